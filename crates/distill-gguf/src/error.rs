//! What can go wrong, each with the file, the place and the way out.

use std::path::PathBuf;

use crate::GgmlType;

/// Why a GGUF file could not be read, used or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GgufError {
    /// The file could not be opened or mapped.
    #[error("{}: cannot open the model file: {source}", file.display())]
    Open {
        /// The file.
        file: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The path is a directory, a device or the like.
    #[error("{}: not a regular file; expected a .gguf file", file.display())]
    NotAFile {
        /// The path.
        file: PathBuf,
    },
    /// The file does not begin with `GGUF`.
    #[error(
        "{}: not a GGUF file: it begins with {}, expected \"GGUF\"", file.display(), quoted(found)
    )]
    Magic {
        /// The file.
        file: PathBuf,
        /// The first four bytes.
        found: [u8; 4],
    },
    /// The version is not 2 or 3.
    #[error(
        "{}: GGUF version {version} at byte 4, expected 2 or 3; convert the model again with \
         current tools", file.display()
    )]
    Version {
        /// The file.
        file: PathBuf,
        /// The version found.
        version: u32,
    },
    /// The file is written for big-endian machines.
    #[error(
        "{}: a big-endian GGUF file (version {version} with its bytes reversed); convert it to \
         little-endian, e.g. with the gguf package's gguf-convert-endian", file.display()
    )]
    BigEndian {
        /// The file.
        file: PathBuf,
        /// The version, after reversing its bytes.
        version: u32,
    },
    /// The file ends before what it announces.
    #[error(
        "{}: the file ends early: {what} at byte {offset} needs {needed} bytes, and {available} \
         are left; it is truncated or damaged, so fetch or convert it again", file.display()
    )]
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
    #[error("{}: {what} at byte {offset} is not valid UTF-8", file.display())]
    Utf8 {
        /// The file.
        file: PathBuf,
        /// What was being read.
        what: String,
        /// Where the text begins.
        offset: u64,
    },
    /// The type number of a metadata value is unknown.
    #[error(
        "{}: metadata key `{key}` has the value type {found} at byte {offset}, expected 0 to 12",
        file.display()
    )]
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
    #[error(
        "{}: metadata key `{key}` nests arrays more than {limit} deep at byte {offset}",
        file.display()
    )]
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
    #[error(
        "{}: metadata key `{key}` has the boolean {found} at byte {offset}, expected 0 or 1",
        file.display()
    )]
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
    #[error("{}: metadata key `{key}` appears again at byte {offset}", file.display())]
    DuplicateKey {
        /// The file.
        file: PathBuf,
        /// The key.
        key: String,
        /// Where the second begins.
        offset: u64,
    },
    /// A tensor name stands there twice.
    #[error("{}: tensor `{tensor}` appears again at byte {offset}", file.display())]
    DuplicateTensor {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// Where the second record begins.
        offset: u64,
    },
    /// `general.alignment` cannot be.
    #[error(
        "{}: general.alignment is {found}, expected a power of two of at least 8", file.display()
    )]
    Alignment {
        /// The file.
        file: PathBuf,
        /// The value found, as text.
        found: String,
    },
    /// A tensor has no dimension, too many, or an empty one.
    #[error(
        "{}: tensor `{tensor}`, record at byte {offset}: dims {dims:?} (count {count}), expected \
         1 to 4 dims, none of them zero", file.display()
    )]
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
    #[error(
        "{}: tensor `{tensor}` has the type {found} ({}) at byte {offset}; supported: F32, F16, \
         BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K; use another quantisation of this \
         model", file.display(), foreign_type(*found)
    )]
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
    #[error(
        "{}: tensor `{tensor}` cannot have dims {dims:?} in {ty}: expected 1 to 4 dims, none \
         zero, rows that are multiples of {}, and a size below 2^64 bytes", file.display(), ty.block_elements()
    )]
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
    #[error(
        "{}: tensor `{tensor}` begins at data offset {offset}, expected a multiple of {alignment}",
        file.display()
    )]
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
    #[error(
        "{}: tensor `{tensor}` needs {needed} bytes at data offset {offset} (data begin at byte \
         {data_start}), but the file has {file_bytes} bytes; it is truncated or damaged, so fetch \
         or convert it again", file.display()
    )]
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
    #[error(
        "{}: tensor `{tensor}` begins at data offset {offset}, inside tensor `{other}`, which has \
         {other_bytes} bytes at data offset {other_offset}; expected tensors that do not overlap",
        file.display()
    )]
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
    #[error("{}: metadata key `{key}` is missing; expected {expected}", file.display())]
    MissingKey {
        /// The file.
        file: PathBuf,
        /// The key.
        key: String,
        /// What was looked for.
        expected: &'static str,
    },
    /// A key has another type than is needed, or a number out of its range.
    #[error("{}: metadata key `{key}` is {found}; expected {expected}", file.display())]
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
    #[error(
        "{}: tensor `{tensor}` is missing among the {count} tensors of the file", file.display()
    )]
    MissingTensor {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// How many the file has.
        count: usize,
    },
    /// The tensor's type has no float values.
    #[error("{}: tensor `{tensor}` is {ty}, which has no dequantiser", file.display())]
    NotDequantizable {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its type.
        ty: GgmlType,
    },
    /// The file could not be created, written, flushed or renamed.
    #[error("{}: cannot {action} the model file: {source}", file.display())]
    Write {
        /// The file.
        file: PathBuf,
        /// What was tried.
        action: &'static str,
        /// Why not.
        source: std::io::Error,
    },
    /// The disk is full.
    #[error(
        "{}: no space left: the file needs {needed} bytes; free some or write elsewhere (nothing \
         partial was left behind)", file.display()
    )]
    DiskFull {
        /// The file.
        file: PathBuf,
        /// Bytes of the whole file.
        needed: u64,
    },
    /// What was given to the writer cannot be stored.
    #[error("{}: cannot store tensor `{tensor}`: {source}", file.display())]
    Source {
        /// The file being written.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// What its source said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A tensor's source gave more or fewer bytes than dims and type say.
    #[error(
        "{}: tensor `{tensor}` was given {found} bytes, expected {expected}", file.display()
    )]
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
    #[error("{}: tensor name `{tensor}` is longer than 63 bytes", file.display())]
    NameTooLong {
        /// The file being written.
        file: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// A tensor was declared twice to the writer.
    #[error("{}: tensor `{tensor}` was declared twice", file.display())]
    DeclaredTwice {
        /// The file being written.
        file: PathBuf,
        /// The tensor.
        tensor: String,
    },
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
