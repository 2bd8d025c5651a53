//! One JSON object a line.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::error::{DataError, Place};

/// A JSONL file as a stream of documents; blank lines are passed over.
pub(crate) struct JsonlFile {
    path: PathBuf,
    field: String,
    reader: BufReader<File>,
    /// The line read last, from 1.
    line: u64,
    /// Bytes before that line's end.
    offset: u64,
}

impl JsonlFile {
    pub(crate) fn open(path: &Path, field: &str) -> Result<Self, DataError> {
        Ok(Self {
            path: path.to_path_buf(),
            field: field.to_owned(),
            reader: BufReader::new(super::open_file(path)?),
            line: 0,
            offset: 0,
        })
    }

    /// The line read last, from 1.
    pub(crate) fn line(&self) -> u64 {
        self.line
    }

    /// The next object.
    pub(crate) fn next_object(&mut self) -> Result<Option<Map<String, Value>>, DataError> {
        self.next_line()?.map(|line| self.object(&line)).transpose()
    }

    /// The next line that is not blank.
    fn next_line(&mut self) -> Result<Option<String>, DataError> {
        loop {
            let mut bytes = Vec::new();
            let read = self.reader.read_until(b'\n', &mut bytes).map_err(|source| {
                DataError::Io { path: self.path.clone(), action: "read", source }
            })?;
            if read == 0 {
                return Ok(None);
            }
            self.line += 1;
            let line = String::from_utf8(bytes).map_err(|error| DataError::InvalidUtf8 {
                path: self.path.clone(),
                line: self.line,
                offset: self.offset + error.utf8_error().valid_up_to() as u64,
            })?;
            self.offset += read as u64;
            let line = if self.line == 1 { line.trim_start_matches('\u{feff}') } else { &line };
            if !line.trim().is_empty() {
                return Ok(Some(line.to_owned()));
            }
        }
    }

    fn object(&self, line: &str) -> Result<Map<String, Value>, DataError> {
        serde_json::from_str(line).map_err(|error| DataError::Json {
            path: self.path.clone(),
            line: self.line,
            reason: reason(&error),
        })
    }

    fn document(&self, mut object: Map<String, Value>) -> Result<String, DataError> {
        let place = Place::Line(self.line);
        match object.remove(&self.field) {
            Some(Value::String(text)) => Ok(text),
            Some(other) => Err(DataError::FieldType {
                path: self.path.clone(),
                place,
                field: self.field.clone(),
                found: kind(&other).into(),
            }),
            None => Err(DataError::FieldMissing {
                path: self.path.clone(),
                place,
                field: self.field.clone(),
                found: object.into_iter().map(|(key, _)| key).collect(),
            }),
        }
    }
}

impl Iterator for JsonlFile {
    type Item = Result<String, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        let object = self.next_object().transpose()?;
        Some(object.and_then(|object| self.document(object)))
    }
}

/// The parser's reason with the column alone: it counts every line as line 1.
fn reason(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.rsplit_once(" at line ") {
        Some((reason, _)) => format!("{reason} at column {}", error.column()),
        None => text,
    }
}

/// What a value is, with its article.
pub(crate) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(bytes: &[u8]) -> Vec<Result<String, DataError>> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.jsonl");
        std::fs::write(&path, bytes).unwrap();
        JsonlFile::open(&path, "text").unwrap().collect()
    }

    fn only_error(bytes: &[u8]) -> String {
        let message = read(bytes).pop().unwrap().unwrap_err().to_string();
        message.split_once("a.jsonl:").unwrap().1.to_owned()
    }

    #[test]
    fn each_line_is_a_document_and_blank_lines_are_none() {
        let texts: Vec<String> =
            read(b"\xef\xbb\xbf{\"text\":\"a\\nb\",\"n\":1}\r\n\n{\"text\":\"\xc3\xa9\"}")
                .into_iter()
                .map(Result::unwrap)
                .collect();
        assert_eq!(texts, ["a\nb", "é"]);
    }

    #[test]
    fn a_missing_field_lists_the_fields_that_are_there() {
        assert_eq!(
            only_error(b"{\"text\":\"a\"}\n{\"body\":\"b\",\"id\":1}"),
            "2: no field \"text\"; the fields are \"body\", \"id\"; set `text_field`"
        );
    }

    #[test]
    fn a_field_of_another_type_is_named() {
        assert_eq!(
            only_error(b"\n{\"text\":[1]}"),
            "2: field \"text\" is a list, expected a string; clean the row or set `text_field`"
        );
    }

    #[test]
    fn a_broken_line_is_named_with_its_column() {
        assert_eq!(
            only_error(b"{\"text\":\"a\"}\n{\"text\":\"b\""),
            "2: not a JSON object: EOF while parsing an object at column 11; JSONL holds one object a line"
        );
        assert!(only_error(b"[\"a\"]").starts_with("1: not a JSON object"));
    }

    #[test]
    fn invalid_utf8_is_named_with_line_and_byte() {
        assert!(only_error(b"{}\n{\"text\":\"\xff\"}").starts_with("2: invalid UTF-8 at byte 12"));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&bytes);
        }
    }
}
