//! One column of a Parquet table, row by row.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parquet::basic::{ConvertedType, LogicalType, Type as Physical};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::{Field, Row, reader::RowIter};
use parquet::schema::types::Type;

use crate::error::{DataError, Place};

/// A Parquet file as a stream of documents. Only the text column is read, a page at a time.
pub(super) struct ParquetFile {
    path: PathBuf,
    field: String,
    rows: RowIter<'static>,
    /// The row read last, from 1.
    row: u64,
    failed: bool,
}

impl ParquetFile {
    pub(super) fn open(path: &Path, field: &str) -> Result<Self, DataError> {
        let file = super::open_file(path)?;
        let rows = guarded(path, Place::Schema, || {
            let reader = SerializedFileReader::new(file)
                .map_err(|error| unreadable(path, Place::Schema, &error))?;
            let projection = projection(path, field, reader.metadata().file_metadata().schema())?;
            RowIter::from_file_into(Box::new(reader))
                .project(Some(projection))
                .map_err(|error| unreadable(path, Place::Schema, &error))
        })?;
        Ok(Self { path: path.to_path_buf(), field: field.to_owned(), rows, row: 0, failed: false })
    }

    fn next_row(&mut self) -> Option<Result<String, DataError>> {
        let place = Place::Row(self.row + 1);
        let row = guarded(&self.path, place, || {
            self.rows.next().transpose().map_err(|error| unreadable(&self.path, place, &error))
        });
        self.row += 1;
        row.transpose().map(|row| row.and_then(|row| self.document(row, place)))
    }

    fn document(&self, row: Row, place: Place) -> Result<String, DataError> {
        let found = match row.into_columns().pop() {
            Some((_, Field::Str(text))) => return Ok(text),
            Some((_, Field::Bytes(bytes))) => match String::from_utf8(bytes.data().to_vec()) {
                Ok(text) => return Ok(text),
                Err(_) => "bytes that are not UTF-8".to_owned(),
            },
            Some((_, Field::Null)) | None => "null".to_owned(),
            Some((_, other)) => format!("{other:.40}"),
        };
        let (path, field) = (self.path.clone(), self.field.clone());
        Err(DataError::FieldType { path, place, field, found })
    }
}

impl Iterator for ParquetFile {
    type Item = Result<String, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let document = self.next_row()?;
        self.failed = document.is_err();
        Some(document)
    }
}

/// The file's schema with the text column alone.
fn projection(path: &Path, field: &str, schema: &Type) -> Result<Type, DataError> {
    let missing = || DataError::FieldMissing {
        path: path.to_path_buf(),
        place: Place::Schema,
        field: field.to_owned(),
        found: schema.get_fields().iter().map(|column| column.name().to_owned()).collect(),
    };
    let column = schema.get_fields().iter().find(|column| column.name() == field);
    let column = column.ok_or_else(missing)?;
    if !is_text(column) {
        return Err(DataError::FieldType {
            path: path.to_path_buf(),
            place: Place::Schema,
            field: field.to_owned(),
            found: if column.is_primitive() {
                format!("a column of {}", column.get_physical_type())
            } else {
                "a nested column".into()
            },
        });
    }
    Type::group_type_builder(schema.name())
        .with_fields(vec![Arc::clone(column)])
        .build()
        .map_err(|error| unreadable(path, Place::Schema, &error))
}

/// Bytes that are text or do not say otherwise (old writers leave the annotation out).
fn is_text(column: &Type) -> bool {
    let info = column.get_basic_info();
    let repeated =
        info.has_repetition() && info.repetition() == parquet::basic::Repetition::REPEATED;
    column.is_primitive()
        && !repeated
        && column.get_physical_type() == Physical::BYTE_ARRAY
        && matches!(info.converted_type(), ConvertedType::UTF8 | ConvertedType::NONE)
        && matches!(info.logical_type_ref(), None | Some(LogicalType::String))
}

/// Runs the reader; the library panics on some damaged files, which is an error like any other.
fn guarded<T>(
    path: &Path,
    place: Place,
    read: impl FnOnce() -> Result<T, DataError>,
) -> Result<T, DataError> {
    // What the closure leaves half done is never used again: the stream ends with an error.
    catch_unwind(AssertUnwindSafe(read))
        .unwrap_or_else(|panic| Err(unreadable(path, place, &message(panic.as_ref()))))
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "the file is damaged".into())
}

fn unreadable(path: &Path, place: Place, reason: &dyn std::fmt::Display) -> DataError {
    DataError::Parquet { path: path.to_path_buf(), place, reason: reason.to_string() }
}
