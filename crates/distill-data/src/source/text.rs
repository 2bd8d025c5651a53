//! Plain text, cut at a separator while it is read.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use crate::error::DataError;

/// Bytes asked of the operating system at a time.
const READ_BYTES: usize = 1 << 16;
const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

/// A text file as a stream of documents; at most one document is in memory.
pub(super) struct TextFile {
    path: PathBuf,
    reader: BufReader<File>,
    separator: Option<Vec<u8>>,
    /// Bytes read and not handed out yet.
    pending: Vec<u8>,
    /// Bytes of `pending` in which no separator begins.
    searched: usize,
    /// Bytes and lines handed out.
    offset: u64,
    line: u64,
    finished: bool,
}

impl TextFile {
    pub(super) fn open(path: &Path, separator: Option<&str>) -> Result<Self, DataError> {
        if separator == Some("") {
            return Err(DataError::EmptySeparator);
        }
        Ok(Self {
            path: path.to_path_buf(),
            reader: BufReader::with_capacity(READ_BYTES, super::open_file(path)?),
            separator: separator.map(|text| text.as_bytes().to_vec()),
            pending: Vec::new(),
            searched: 0,
            offset: 0,
            line: 1,
            finished: false,
        })
    }

    /// Reads until `pending` holds a separator or the rest of the file; returns the length of
    /// the document at its front, and of the separator behind it.
    fn fill(&mut self) -> Result<(usize, usize), DataError> {
        let io = |source| DataError::Io { path: self.path.clone(), action: "read", source };
        let Some(separator) = &self.separator else {
            self.reader.read_to_end(&mut self.pending).map_err(io)?;
            return Ok((self.pending.len(), 0));
        };
        loop {
            if let Some(found) = find(&self.pending[self.searched..], separator) {
                return Ok((self.searched + found, separator.len()));
            }
            // A separator may begin in the last bytes and end in the next ones.
            self.searched = self.pending.len().saturating_sub(separator.len() - 1);
            let before = self.pending.len();
            let mut next = self.reader.by_ref().take(READ_BYTES as u64);
            next.read_to_end(&mut self.pending).map_err(io)?;
            if self.pending.len() == before {
                return Ok((before, 0));
            }
        }
    }

    fn next_document(&mut self) -> Result<String, DataError> {
        let (document, separator) = self.fill()?;
        self.finished = separator == 0;
        let rest = self.pending.split_off(document + separator);
        let mut bytes = std::mem::replace(&mut self.pending, rest);
        self.searched = 0;
        let (line, offset) = (self.line, self.offset);
        self.line += count_lines(&bytes);
        self.offset += bytes.len() as u64;
        bytes.truncate(document);
        let text = String::from_utf8(bytes).map_err(|error| {
            let valid = error.utf8_error().valid_up_to();
            DataError::InvalidUtf8 {
                path: self.path.clone(),
                line: line + count_lines(&error.as_bytes()[..valid]),
                offset: offset + valid as u64,
            }
        })?;
        // A byte order mark at the front of a file is no text.
        match text.as_bytes().strip_prefix(BYTE_ORDER_MARK) {
            Some(_) if offset == 0 => Ok(text[BYTE_ORDER_MARK.len()..].to_owned()),
            _ => Ok(text),
        }
    }
}

impl Iterator for TextFile {
    type Item = Result<String, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.finished {
            return None;
        }
        let document = self.next_document();
        self.finished |= document.is_err();
        Some(document)
    }
}

fn count_lines(bytes: &[u8]) -> u64 {
    bytes.iter().filter(|&&byte| byte == b'\n').count() as u64
}

/// Where `needle` first begins.
fn find(bytes: &[u8], needle: &[u8]) -> Option<usize> {
    let first = *needle.first()?;
    let mut from = 0;
    while let Some(candidate) = bytes[from..].iter().position(|&byte| byte == first) {
        let start = from + candidate;
        if bytes[start..].starts_with(needle) {
            return Some(start);
        }
        from = start + 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(bytes: &[u8], separator: Option<&str>) -> Vec<Result<String, DataError>> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.txt");
        std::fs::write(&path, bytes).unwrap();
        TextFile::open(&path, separator).unwrap().collect()
    }

    fn texts(bytes: &[u8], separator: Option<&str>) -> Vec<String> {
        read(bytes, separator).into_iter().map(Result::unwrap).collect()
    }

    #[test]
    fn a_file_without_a_separator_is_one_document() {
        assert_eq!(texts(b"one\n\n\ntwo\n", None), ["one\n\n\ntwo\n"]);
    }

    #[test]
    fn a_separator_belongs_to_no_document() {
        assert_eq!(texts(b"one\n%%\ntwo\n%%\n", Some("\n%%\n")), ["one", "two", ""]);
    }

    #[test]
    fn a_byte_order_mark_is_no_text() {
        assert_eq!(texts("\u{feff}one|\u{feff}two".as_bytes(), Some("|")), ["one", "\u{feff}two"]);
    }

    #[test]
    fn invalid_utf8_is_named_with_line_and_byte() {
        let mut documents = read(b"one\ntwo|three\nfo\xffur|five", Some("|"));
        assert_eq!(documents.remove(0).unwrap(), "one\ntwo");
        let error = documents.remove(0).unwrap_err();
        assert!(
            matches!(&error, DataError::InvalidUtf8 { line: 3, offset: 16, .. }),
            "{error} ({error:?})"
        );
        assert!(documents.is_empty(), "nothing comes after an error");
    }

    #[test]
    fn separators_are_found_across_the_borders_of_reads() {
        for shift in 0..5 {
            let long = "x".repeat(READ_BYTES - shift);
            assert_eq!(texts(format!("{long}<##>b").as_bytes(), Some("<##>")), [&long, "b"]);
        }
    }

    proptest! {
        #[test]
        fn reading_cuts_as_the_standard_library_does(text in "[ab\\n]{0,40}", separator in "[ab\\n]{1,3}") {
            let expected: Vec<&str> = text.split(&separator).collect();
            prop_assert_eq!(texts(text.as_bytes(), Some(&separator)), expected);
        }
    }
}
