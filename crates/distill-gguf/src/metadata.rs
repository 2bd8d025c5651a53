//! The metadata of a file: keys in their order, with getters whose errors name the file and key.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use crate::{Array, GgufError, Strings, Value};

/// The keys and values of a file, in its order.
#[derive(Clone, Debug)]
pub struct Metadata {
    file: PathBuf,
    entries: Vec<(String, Value)>,
    index: HashMap<String, usize>,
}

impl Metadata {
    pub(crate) fn new(file: &Path) -> Self {
        Self { file: file.to_owned(), entries: Vec::new(), index: HashMap::new() }
    }

    /// Adds a key; returns `false` if it is there already.
    pub(crate) fn insert(&mut self, key: String, value: Value) -> bool {
        if self.index.contains_key(&key) {
            return false;
        }
        self.index.insert(key.clone(), self.entries.len());
        self.entries.push((key, value));
        true
    }

    /// The file these come from, as errors name it.
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Keys and values in the order of the file.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Value)> {
        self.entries.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// How many keys there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The value of `key`, if there.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.index.get(key).map(|&i| &self.entries[i].1)
    }

    /// Whether `key` is there.
    #[must_use]
    pub fn contains(&self, key: &str) -> bool {
        self.index.contains_key(key)
    }

    /// An integer of any type that fits a u32.
    ///
    /// # Errors
    /// If the key is missing, no integer, or out of range.
    pub fn u32(&self, key: &str) -> Result<u32, GgufError> {
        self.typed(key, "an integer from 0 to 4294967295", |value| {
            value.as_u64().and_then(|x| u32::try_from(x).ok())
        })
    }

    /// An integer of any type that is not negative.
    ///
    /// # Errors
    /// If the key is missing, no integer, or negative.
    pub fn u64(&self, key: &str) -> Result<u64, GgufError> {
        self.typed(key, "an integer not below 0", Value::as_u64)
    }

    /// A float of either type, as f32.
    ///
    /// # Errors
    /// If the key is missing or no float.
    pub fn f32(&self, key: &str) -> Result<f32, GgufError> {
        self.typed(key, "a float", |value| value.as_f64().map(|x| x as f32))
    }

    /// A boolean.
    ///
    /// # Errors
    /// If the key is missing or no boolean.
    pub fn bool(&self, key: &str) -> Result<bool, GgufError> {
        self.typed(key, "a boolean", Value::as_bool)
    }

    /// A string.
    ///
    /// # Errors
    /// If the key is missing or no string.
    pub fn string(&self, key: &str) -> Result<&str, GgufError> {
        self.typed(key, "a string", Value::as_str)
    }

    /// An array of strings.
    ///
    /// # Errors
    /// If the key is missing or something else.
    pub fn strings(&self, key: &str) -> Result<&Strings, GgufError> {
        self.typed(key, "an array of strings", |value| match value {
            Value::Array(Array::String(x)) => Some(x),
            _ => None,
        })
    }

    /// An array of i32 (or of u32 that all fit).
    ///
    /// # Errors
    /// If the key is missing or something else.
    pub fn i32s(&self, key: &str) -> Result<Vec<i32>, GgufError> {
        self.typed(key, "an array of 32-bit integers", |value| match value {
            Value::Array(Array::I32(x)) => Some(x.clone()),
            Value::Array(Array::U32(x)) => x.iter().map(|&x| i32::try_from(x).ok()).collect(),
            _ => None,
        })
    }

    /// An array of f32.
    ///
    /// # Errors
    /// If the key is missing or something else.
    pub fn f32s(&self, key: &str) -> Result<&[f32], GgufError> {
        self.typed(key, "an array of F32", |value| match value {
            Value::Array(Array::F32(x)) => Some(x.as_slice()),
            _ => None,
        })
    }

    /// [`Metadata::u32`], or `None` where the key is missing.
    ///
    /// # Errors
    /// If the key is there with something else.
    pub fn optional_u32(&self, key: &str) -> Result<Option<u32>, GgufError> {
        self.contains(key).then(|| self.u32(key)).transpose()
    }

    /// [`Metadata::f32`], or `None` where the key is missing.
    ///
    /// # Errors
    /// If the key is there with something else.
    pub fn optional_f32(&self, key: &str) -> Result<Option<f32>, GgufError> {
        self.contains(key).then(|| self.f32(key)).transpose()
    }

    /// [`Metadata::bool`], or `None` where the key is missing.
    ///
    /// # Errors
    /// If the key is there with something else.
    pub fn optional_bool(&self, key: &str) -> Result<Option<bool>, GgufError> {
        self.contains(key).then(|| self.bool(key)).transpose()
    }

    /// [`Metadata::string`], or `None` where the key is missing.
    ///
    /// # Errors
    /// If the key is there with something else.
    pub fn optional_string(&self, key: &str) -> Result<Option<&str>, GgufError> {
        self.contains(key).then(|| self.string(key)).transpose()
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &'static str,
        convert: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<T, GgufError> {
        let Some(value) = self.get(key) else {
            return Err(GgufError::MissingKey {
                file: self.file.clone(),
                key: key.to_owned(),
                expected,
            });
        };
        convert(value).ok_or_else(|| GgufError::WrongType {
            file: self.file.clone(),
            key: key.to_owned(),
            expected,
            found: value.describe(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn getters_say_file_key_expectation_and_finding() {
        let mut metadata = Metadata::new(Path::new("m.gguf"));
        assert!(metadata.insert("a".into(), Value::from(-3i32)));
        assert!(metadata.insert("b".into(), Value::from(vec!["x".to_owned()])));
        assert!(!metadata.insert("a".into(), Value::from(1u32)));
        assert_eq!(
            metadata.u32("a").unwrap_err().to_string(),
            "m.gguf: metadata key `a` is I32 -3; expected an integer from 0 to 4294967295"
        );
        assert_eq!(
            metadata.f32("b").unwrap_err().to_string(),
            "m.gguf: metadata key `b` is an array of 1 String; expected a float"
        );
        assert_eq!(
            metadata.string("c").unwrap_err().to_string(),
            "m.gguf: metadata key `c` is missing; expected a string"
        );
        assert!(metadata.strings("b").unwrap().iter().eq(["x"]));
        assert_eq!(metadata.optional_u32("c").unwrap(), None);
        assert!(metadata.optional_u32("a").is_err());
        assert_eq!(metadata.iter().map(|(key, _)| key).collect::<Vec<_>>(), ["a", "b"]);
    }
}
