//! JSONL whose lines are records of several fields: questions, answers.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::error::{DataError, list};
use crate::source::jsonl::{JsonlFile, kind};

/// One line: an object, whose fields are asked for by name.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    path: PathBuf,
    line: u64,
    form: &'static str,
    object: Map<String, Value>,
}

/// The records of a file, read as they are asked for.
pub struct Records {
    path: PathBuf,
    form: &'static str,
    file: JsonlFile,
}

/// Opens a JSONL file; blank lines are passed over. `form` shows what a line holds, for errors.
///
/// # Errors
/// [`DataError::NotFound`], [`DataError::Io`]; of a record, [`DataError::Json`] and
/// [`DataError::InvalidUtf8`].
pub fn records(path: &Path, form: &'static str) -> Result<Records, DataError> {
    Ok(Records { path: path.to_path_buf(), form, file: JsonlFile::open(path, "")? })
}

impl Iterator for Records {
    type Item = Result<Record, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        let object = self.file.next_object().transpose()?;
        let (path, form) = (self.path.clone(), self.form);
        Some(object.map(|object| Record { path, line: self.file.line(), form, object }))
    }
}

impl Record {
    /// Its line in the file, from 1.
    #[must_use]
    pub fn line(&self) -> u64 {
        self.line
    }

    /// A field that holds text.
    ///
    /// # Errors
    /// [`DataError::Record`] if it is missing or something else.
    pub fn text(&self, key: &str) -> Result<&str, DataError> {
        let value = self.value(key)?;
        value.as_str().ok_or_else(|| self.other(key, value, "a string"))
    }

    /// A field that holds a list of texts.
    ///
    /// # Errors
    /// As [`Record::text`].
    pub fn texts<'a>(&'a self, key: &str) -> Result<Vec<&'a str>, DataError> {
        let value = self.value(key)?;
        let texts = value.as_array().ok_or_else(|| self.other(key, value, "a list of strings"))?;
        let text = |(index, value): (usize, &'a Value)| {
            let problem = || format!("{key:?} holds {} at {index}, not a string", kind(value));
            value.as_str().ok_or_else(|| self.problem(problem()))
        };
        texts.iter().enumerate().map(text).collect()
    }

    /// A field that holds a place in a list, from 0.
    ///
    /// # Errors
    /// As [`Record::text`].
    pub fn index(&self, key: &str) -> Result<usize, DataError> {
        let value = self.value(key)?;
        let index = value.as_u64().and_then(|index| usize::try_from(index).ok());
        index.ok_or_else(|| match value {
            Value::Number(number) => {
                self.problem(format!("field {key:?} is {number}, not a whole number from 0"))
            }
            _ => self.other(key, value, "a whole number from 0"),
        })
    }

    /// An error at this line.
    #[must_use]
    pub fn problem(&self, problem: String) -> DataError {
        DataError::Record { path: self.path.clone(), line: self.line, problem, form: self.form }
    }

    fn value(&self, key: &str) -> Result<&Value, DataError> {
        self.object.get(key).ok_or_else(|| {
            let found: Vec<String> = self.object.keys().cloned().collect();
            self.problem(format!("no field {key:?}; the fields are {}", list(&found)))
        })
    }

    fn other(&self, key: &str, found: &Value, expected: &str) -> DataError {
        self.problem(format!("field {key:?} is {}, not {expected}", kind(found)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(bytes: &[u8]) -> Vec<Result<Record, DataError>> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("r.jsonl");
        std::fs::write(&path, bytes).unwrap();
        records(&path, "FORM").unwrap().collect()
    }

    #[test]
    fn fields_are_read_by_name_and_lines_are_counted_from_one() {
        let mut records = read(b"\n{\"t\": \"a\", \"l\": [\"b\", \"c\"], \"i\": 2}\n");
        let record = records.pop().unwrap().unwrap();
        assert_eq!((record.line(), record.text("t").unwrap()), (2, "a"));
        assert_eq!((record.texts("l").unwrap(), record.index("i").unwrap()), (vec!["b", "c"], 2));
    }

    #[test]
    fn a_field_of_another_type_says_what_it_is_and_what_a_line_holds() {
        let record = read(b"{\"t\": null, \"l\": [\"b\", []], \"i\": 1.5}").pop().unwrap().unwrap();
        let said =
            |error: DataError| error.to_string().split_once("r.jsonl:").unwrap().1.to_owned();
        assert_eq!(
            said(record.text("t").unwrap_err()),
            "1: field \"t\" is null, not a string; expected FORM"
        );
        assert_eq!(
            said(record.texts("l").unwrap_err()),
            "1: \"l\" holds a list at 1, not a string; expected FORM"
        );
        assert_eq!(
            said(record.index("i").unwrap_err()),
            "1: field \"i\" is 1.5, not a whole number from 0; expected FORM"
        );
        assert_eq!(
            said(record.text("x").unwrap_err()),
            "1: no field \"x\"; the fields are \"t\", \"l\", \"i\"; expected FORM"
        );
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_and_values_never_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..100),
            value in r#"[\[\]{}"0-9eE.,:-]{0,20}"#,
        ) {
            let line = [b"{\"t\": ", value.as_bytes(), b"}\n", &bytes].concat();
            for record in read(&line).into_iter().flatten() {
                let _ = (record.text("t"), record.texts("t"), record.index("t"));
            }
        }
    }
}
