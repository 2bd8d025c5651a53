//! The header of a safetensors file, trusting nothing in it.
//!
//! Layout: the header's length u64, the header as JSON, then the data. The header maps each name
//! to `dtype`, `shape` and `data_offsets`, counted from the start of the data.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use crate::ExportError;
use crate::error::shortened;

/// The limit of the format.
const LONGEST_HEADER: u64 = 100_000_000;

/// Where a tensor stands, checked against the file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Entry {
    pub dtype: String,
    pub shape: Vec<usize>,
    /// Position of the first byte in the file.
    pub start: u64,
    pub bytes: u64,
}

#[derive(Deserialize)]
struct Record {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (u64, u64),
}

/// Reads the header of `path`.
pub(crate) fn read(path: &Path) -> Result<BTreeMap<String, Entry>, ExportError> {
    let read_error = |source| ExportError::Read { file: path.to_owned(), source };
    let damaged = |place: String, found: String, expected: String| ExportError::Safetensors {
        file: path.to_owned(),
        place,
        found,
        expected,
    };
    let mut file = File::open(path).map_err(read_error)?;
    let file_bytes = file.metadata().map_err(read_error)?.len();
    if file_bytes < 8 {
        let found = format!("{file_bytes} bytes long");
        return Err(damaged("the file".into(), found, "8 bytes at the least".into()));
    }
    let mut length = [0; 8];
    file.read_exact(&mut length).map_err(read_error)?;
    let length = u64::from_le_bytes(length);
    let longest = LONGEST_HEADER.min(file_bytes - 8);
    if length > longest {
        let expected = format!("at most {longest} (the file has {file_bytes} bytes)");
        return Err(damaged("the header length at byte 0".into(), length.to_string(), expected));
    }
    let mut header = vec![0; length as usize];
    file.read_exact(&mut header).map_err(read_error)?;
    let header: BTreeMap<String, Value> = serde_json::from_slice(&header)
        .map_err(|source| ExportError::Json { file: path.to_owned(), source })?;

    let data_start = 8 + length;
    let data_bytes = file_bytes - data_start;
    let mut entries = BTreeMap::new();
    for (name, value) in header {
        if name == "__metadata__" {
            continue;
        }
        let text = shortened(&value);
        let record: Record = serde_json::from_value(value).map_err(|_| {
            let expected = "an object with dtype, shape and data_offsets";
            damaged(format!("the record of tensor `{name}`"), text, expected.into())
        })?;
        let (start, end) = record.data_offsets;
        if start > end || end > data_bytes {
            return Err(damaged(
                format!("the place of tensor `{name}`"),
                format!("bytes {start} to {end} of the data"),
                format!("a range within its {data_bytes} bytes"),
            ));
        }
        let entry = Entry {
            dtype: record.dtype,
            shape: record.shape,
            start: data_start + start,
            bytes: end - start,
        };
        if let Some(expected) = expected_bytes(&entry)
            && expected != Some(entry.bytes)
        {
            return Err(damaged(
                format!("the size of tensor `{name}`"),
                format!("{} bytes", entry.bytes),
                match expected {
                    Some(bytes) => format!("{bytes} for {} {:?}", entry.dtype, entry.shape),
                    None => format!("less: {:?} does not fit any file", entry.shape),
                },
            ));
        }
        entries.insert(name, entry);
    }
    Ok(entries)
}

/// The size by shape and type; the inner option is empty where it overflows, the outer where the
/// type is none of ours.
fn expected_bytes(entry: &Entry) -> Option<Option<u64>> {
    let element = match entry.dtype.as_str() {
        "F32" => 4,
        "F16" | "BF16" => 2,
        _ => return None,
    };
    let bytes = entry
        .shape
        .iter()
        .try_fold(element, |bytes: u64, &dim| bytes.checked_mul(u64::try_from(dim).ok()?));
    Some(bytes)
}
