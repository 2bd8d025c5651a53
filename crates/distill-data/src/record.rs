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
