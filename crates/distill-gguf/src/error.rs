//! What can go wrong, each with the file, the place and the way out.

use std::fmt;
use std::path::PathBuf;

use crate::GgmlType;

/// Why a GGUF file could not be read, used or written.
#[derive(Debug)]
#[non_exhaustive]
pub enum GgufError {
    /// The file could not be opened or mapped.
    Open {
        /// The file.
        file: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The path is a directory, a device or the like.
    NotAFile {
        /// The path.
        file: PathBuf,
    },
    /// The file does not begin with `GGUF`.
    Magic {
        /// The file.
        file: PathBuf,
        /// The first four bytes.
        found: [u8; 4],
    },
    /// The version is not 2 or 3.
    Version {
        /// The file.
        file: PathBuf,
        /// The version found.
        version: u32,
    },
    /// The file is written for big-endian machines.
    BigEndian {
        /// The file.
        file: PathBuf,
        /// The version, after reversing its bytes.
        version: u32,
    },
    /// The file ends before what it announces.
    Truncated {
        /// The file.
        file: PathBuf,
        /// What was being read.
        what: String,
        /// Where it begins.
        offset: u64,
        /// Bytes it needs, at the least.
        needed: u64,
        /// Bytes between `offset` and the end of the file.
        available: u64,
    },
    /// Bytes that should be text are not UTF-8.
    Utf8 {
        /// The file.
        file: PathBuf,
        /// What was being read.
        what: String,
        /// Where the text begins.
        offset: u64,
    },
    /// The type number of a metadata value is unknown.
    UnknownValueType {
        /// The file.
        file: PathBuf,
        /// The key.
        key: String,
        /// The number found.
        found: u32,
        /// Where it stands.
        offset: u64,
    },
    /// Arrays of arrays of arrays … beyond the limit.
    NestedTooDeep {
        /// The file.
        file: PathBuf,
        /// The key.
        key: String,
        /// The limit.
        limit: usize,
        /// Where the array too deep begins.
        offset: u64,
    },
    /// A boolean is neither 0 nor 1.
    BadBool {
        /// The file.
        file: PathBuf,
        /// The key.
        key: String,
        /// The byte found.
        found: u8,
        /// Where it stands.
        offset: u64,
    },
    /// A metadata key stands there twice.
    DuplicateKey {
        /// The file.
        file: PathBuf,
        /// The key.
        key: String,
        /// Where the second begins.
        offset: u64,
    },
    /// A tensor name stands there twice.
    DuplicateTensor {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// Where the second record begins.
        offset: u64,
    },
    /// `general.alignment` cannot be.
    Alignment {
        /// The file.
        file: PathBuf,
        /// The value found, as text.
        found: String,
    },
    /// A tensor has no dimension, too many, or an empty one.
    Dims {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// The dims that were read.
        dims: Vec<u64>,
        /// How many there are said to be.
        count: u32,
        /// Where the record begins.
        offset: u64,
    },
    /// The tensor's type is not one this crate knows.
    UnknownTensorType {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// The number found.
        found: u32,
        /// Where it stands.
        offset: u64,
    },
    /// Dims and type do not give a size: a row is not whole blocks, or the product overflows.
    TensorSize {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its dims.
        dims: Vec<u64>,
        /// Its type.
        ty: GgmlType,
    },
    /// The tensor's data begin between two multiples of the alignment.
    Misaligned {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its offset in the data section.
        offset: u64,
        /// The file's alignment.
        alignment: u64,
    },
    /// The tensor's data reach beyond the end of the file.
    TensorOutOfFile {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its offset in the data section.
        offset: u64,
        /// Its size.
        needed: u64,
        /// Where the data section begins.
        data_start: u64,
        /// The length of the file.
        file_bytes: u64,
    },
    /// Two tensors share bytes.
    Overlap {
        /// The file.
        file: PathBuf,
        /// The tensor that begins later, or at the same place.
        tensor: String,
        /// Its offset in the data section.
        offset: u64,
        /// The tensor it begins in.
        other: String,
        /// The other's offset in the data section.
        other_offset: u64,
        /// The other's size.
        other_bytes: usize,
    },
    /// A key that is needed is not there.
    MissingKey {
        /// The file.
        file: PathBuf,
        /// The key.
        key: String,
        /// What was looked for.
        expected: &'static str,
    },
    /// A key has another type than is needed, or a number out of its range.
    WrongType {
        /// The file.
        file: PathBuf,
        /// The key.
        key: String,
        /// What was looked for.
        expected: &'static str,
        /// What is there.
        found: String,
    },
    /// A tensor that is needed is not there.
    MissingTensor {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// How many the file has.
        count: usize,
    },
    /// The tensor's type has no float values.
    NotDequantizable {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its type.
        ty: GgmlType,
    },
    /// The file could not be created, written, flushed or renamed.
    Write {
        /// The file.
        file: PathBuf,
        /// What was tried.
        action: &'static str,
        /// Why not.
        source: std::io::Error,
    },
    /// The disk is full.
    DiskFull {
        /// The file.
        file: PathBuf,
        /// Bytes of the whole file.
        needed: u64,
    },
    /// What was given to the writer cannot be stored.
    Source {
        /// The file being written.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// What its source said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A tensor's source gave more or fewer bytes than dims and type say.
    SourceLength {
        /// The file being written.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// Bytes by dims and type.
        expected: u64,
        /// Bytes given (for too many: at least).
        found: u64,
    },
    /// A tensor's name is longer than readers accept.
    NameTooLong {
        /// The file being written.
        file: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// A tensor was declared twice to the writer.
    DeclaredTwice {
        /// The file being written.
        file: PathBuf,
        /// The tensor.
        tensor: String,
    },
}

impl fmt::Display for GgufError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open { file, source } => {
                write!(f, "{}: cannot open the model file: {source}", file.display())
            }
            Self::NotAFile { file } => {
                write!(f, "{}: not a regular file; expected a .gguf file", file.display())
            }
            Self::Magic { file, found } => write!(
                f,
                "{}: not a GGUF file: it begins with {}, expected \"GGUF\"",
                file.display(),
                quoted(found)
            ),
            Self::Version { file, version } => write!(
                f,
                "{}: GGUF version {version} at byte 4, expected 2 or 3; convert the model again \
                 with current tools",
                file.display()
            ),
            Self::BigEndian { file, version } => write!(
                f,
                "{}: a big-endian GGUF file (version {version} with its bytes reversed); convert \
                 it to little-endian, e.g. with the gguf package's gguf-convert-endian",
                file.display()
            ),
            Self::Truncated { file, what, offset, needed, available } => write!(
                f,
                "{}: the file ends early: {what} at byte {offset} needs {needed} bytes, and \
                 {available} are left; it is truncated or damaged, so fetch or convert it again",
                file.display()
            ),
            Self::Utf8 { file, what, offset } => {
                write!(f, "{}: {what} at byte {offset} is not valid UTF-8", file.display())
            }
            Self::UnknownValueType { file, key, found, offset } => write!(
                f,
                "{}: metadata key `{key}` has the value type {found} at byte {offset}, expected \
                 0 to 12",
                file.display()
            ),
            Self::NestedTooDeep { file, key, limit, offset } => write!(
                f,
                "{}: metadata key `{key}` nests arrays more than {limit} deep at byte {offset}",
                file.display()
            ),
            Self::BadBool { file, key, found, offset } => write!(
                f,
                "{}: metadata key `{key}` has the boolean {found} at byte {offset}, expected 0 \
                 or 1",
                file.display()
            ),
            Self::DuplicateKey { file, key, offset } => {
                write!(f, "{}: metadata key `{key}` appears again at byte {offset}", file.display())
            }
            Self::DuplicateTensor { file, tensor, offset } => {
                write!(f, "{}: tensor `{tensor}` appears again at byte {offset}", file.display())
            }
            Self::Alignment { file, found } => write!(
                f,
                "{}: general.alignment is {found}, expected a power of two of at least 8",
                file.display()
            ),
            Self::Dims { file, tensor, dims, count, offset } => write!(
                f,
                "{}: tensor `{tensor}`, record at byte {offset}: dims {dims:?} (count {count}), \
                 expected 1 to 4 dims, none of them zero",
                file.display()
            ),
            Self::UnknownTensorType { file, tensor, found, offset } => write!(
                f,
                "{}: tensor `{tensor}` has the type {found} ({}) at byte {offset}; supported: \
                 F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K; use another \
                 quantisation of this model",
                file.display(),
                foreign_type(*found)
            ),
            Self::TensorSize { file, tensor, dims, ty } => write!(
                f,
                "{}: tensor `{tensor}` cannot have dims {dims:?} in {ty}: expected 1 to 4 dims, \
                 none zero, rows that are multiples of {}, and a size below 2^64 bytes",
                file.display(),
                ty.block_elements()
            ),
            Self::Misaligned { file, tensor, offset, alignment } => write!(
                f,
                "{}: tensor `{tensor}` begins at data offset {offset}, expected a multiple of \
                 {alignment}",
                file.display()
            ),
            Self::TensorOutOfFile { file, tensor, offset, needed, data_start, file_bytes } => {
                write!(
                    f,
                    "{}: tensor `{tensor}` needs {needed} bytes at data offset {offset} (data \
                     begin at byte {data_start}), but the file has {file_bytes} bytes; it is \
                     truncated or damaged, so fetch or convert it again",
                    file.display()
                )
            }
            Self::Overlap { file, tensor, offset, other, other_offset, other_bytes } => write!(
                f,
                "{}: tensor `{tensor}` begins at data offset {offset}, inside tensor `{other}`, \
                 which has {other_bytes} bytes at data offset {other_offset}; expected tensors \
                 that do not overlap",
                file.display()
            ),
            Self::MissingKey { file, key, expected } => write!(
                f,
                "{}: metadata key `{key}` is missing; expected {expected}",
                file.display()
            ),
            Self::WrongType { file, key, expected, found } => write!(
                f,
                "{}: metadata key `{key}` is {found}; expected {expected}",
                file.display()
            ),
            Self::MissingTensor { file, tensor, count } => write!(
                f,
                "{}: tensor `{tensor}` is missing among the {count} tensors of the file",
                file.display()
            ),
            Self::NotDequantizable { file, tensor, ty } => {
                write!(f, "{}: tensor `{tensor}` is {ty}, which has no dequantiser", file.display())
            }
            Self::Write { file, action, source } => {
                write!(f, "{}: cannot {action} the model file: {source}", file.display())
            }
            Self::DiskFull { file, needed } => write!(
                f,
                "{}: no space left: the file needs {needed} bytes; free some or write elsewhere \
                 (nothing partial was left behind)",
                file.display()
            ),
            Self::Source { file, tensor, source } => {
                write!(f, "{}: cannot store tensor `{tensor}`: {source}", file.display())
            }
            Self::SourceLength { file, tensor, expected, found } => write!(
                f,
                "{}: tensor `{tensor}` was given {found} bytes, expected {expected}",
                file.display()
            ),
            Self::NameTooLong { file, tensor } => {
                write!(f, "{}: tensor name `{tensor}` is longer than 63 bytes", file.display())
            }
            Self::DeclaredTwice { file, tensor } => {
                write!(f, "{}: tensor `{tensor}` was declared twice", file.display())
            }
        }
    }
}

impl std::error::Error for GgufError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Open { source, .. } | Self::Write { source, .. } => Some(source),
            Self::Source { source, .. } => Some(source.as_ref()),
            _ => None,
        }
    }
}

/// Four bytes as text where they are printable, else as numbers.
fn quoted(bytes: &[u8; 4]) -> String {
    format!("\"{}\"", bytes.escape_ascii())
}

/// The names of types that exist and are not supported.
fn foreign_type(id: u32) -> &'static str {
    match id {
        9 => "Q8_1",
        10 => "Q2_K",
        11 => "Q3_K",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        _ => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error;
    use std::io;

    use super::*;

    #[test]
    fn what_another_said_is_told_and_kept_as_the_source() {
        let said = || io::Error::other("no such luck");
        let file = PathBuf::from("m.gguf");
        let open = GgufError::Open { file: file.clone(), source: said() };
        let write = GgufError::Write { file: file.clone(), action: "rename", source: said() };
        let source =
            GgufError::Source { file: file.clone(), tensor: "t".into(), source: said().into() };
        for error in [open, write, source] {
            assert!(error.to_string().ends_with(": no such luck"), "{error}");
            assert_eq!(error.source().unwrap().to_string(), "no such luck");
        }
        assert!(GgufError::NotAFile { file }.source().is_none());
    }
}
