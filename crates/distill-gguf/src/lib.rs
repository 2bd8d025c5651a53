//! The GGUF container: reading it from hostile hands, writing it whole or not at all.
//!
//! - [`GgufFile`] maps a file, or takes one from memory, and hands out its metadata and its tensors
//!   without copying: arrays of strings ([`Strings`]) stay where they lie in the file.
//! - [`GgufWriter`] streams tensors into a temporary file that takes its name when it is complete.
//! - [`names`] is the one table between Hugging Face's tensor names and GGUF's, with the row
//!   order in which each stores its rotary heads.
//!
//! Versions 2 and 3, little-endian. Every count, length, offset and size of a file is checked
//! against the bytes that are there before anything is allocated or read by it, so that a damaged
//! or malicious file ends in a [`GgufError`] that names the file and the byte.
//!
//! Layout: magic `GGUF`, version u32, tensor count u64, key count u64; then the keys (name, type,
//! value), the tensor records (name, dims, type, offset), padding to the alignment, and the data.
//! Specification: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.

mod bytes;
mod decimal;
mod error;
mod file;
mod ggml_type;
mod map;
mod metadata;
pub mod names;
mod reader;
mod strings;
mod tensor;
mod value;
mod writer;

pub use bytes::Bytes;
pub use decimal::Decimal;
pub use error::GgufError;
pub use file::GgufFile;
pub use ggml_type::GgmlType;
pub use map::map_file;
pub use metadata::Metadata;
pub use strings::{Strings, StringsIter};
pub use tensor::{TensorInfo, TensorView};
pub use value::{Array, Value, ValueType};
pub use writer::{GgufWriter, TensorSource};

/// The alignment of tensor data where the metadata name none, in bytes.
pub const DEFAULT_ALIGNMENT: u64 = 32;
