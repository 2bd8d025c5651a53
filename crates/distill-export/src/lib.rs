//! A checkpoint into the files that ship: file to file, no training framework, no accelerator.
//!
//! A checkpoint is a Hugging Face directory: `config.json`, `model.safetensors` (or shards with
//! their index), `tokenizer.json`, `tokenizer_config.json`. Its weights are the masters; codes are
//! taken from them by the scalar rule of `distill-quant`, which is the rule training faked, so
//! that what ships is what was trained.
//!
//! - [`export_gguf`]: one GGUF file with weights and tokenizer, complete for llama.cpp.
//! - [`export_edge`]: that file again, in the order in which the edge runtime computes.
//! - [`export_huggingface`]: the directory again, with the values that ship.
//!
//! Tensors stream through memory in pieces of about a MiB. A finished file takes its name only
//! when all of it is on the disk.

mod checkpoint;
mod config;
mod edge;
mod error;
mod gguf;
mod huggingface;
mod safetensors_header;
mod tokenizer;
mod weights;

pub use edge::export_edge;
pub use error::{ExportError, Mismatch};
pub use gguf::{Activations, GgufOptions, Grid, export_gguf};
pub use huggingface::{FloatType, HuggingFaceOptions, export_huggingface};

use std::path::Path;

/// What was written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Summary {
    /// Tensors in the weight file.
    pub tensors: usize,
    /// Size of the weight file in bytes.
    pub bytes: u64,
    /// SHA-256 of the weight file, in lower-case hexadecimal: as `sha256sum` prints it.
    pub sha256: String,
}

/// Whether the tokenizer in `directory` is of a kind that a GGUF can hold and the runtimes know,
/// for a model with `vocab_size` rows: to be asked before training, not after.
///
/// # Errors
/// As [`export_gguf`] would fail for it.
pub fn check_tokenizer(directory: &Path, vocab_size: usize) -> Result<(), ExportError> {
    tokenizer::Vocabulary::read(directory, vocab_size, &serde_json::Value::Null).map(|_| ())
}

/// SHA-256 of a file, as `sha256sum` prints it.
fn sha256(path: &Path) -> Result<String, ExportError> {
    use sha2::Digest;
    let read_error = |source| ExportError::Read { file: path.to_owned(), source };
    let mut file = std::fs::File::open(path).map_err(read_error)?;
    let mut hasher = sha2::Sha256::new();
    std::io::copy(&mut file, &mut hasher).map_err(read_error)?;
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}
