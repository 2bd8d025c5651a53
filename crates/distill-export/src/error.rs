//! What can go wrong, each with the file, the place and the way out.

use std::fmt;
use std::path::PathBuf;

use distill_edge::EdgeError;
use distill_gguf::GgufError;

/// Why a checkpoint could not be exported.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// A file of the checkpoint could not be read.
    #[error("{}: cannot read: {source}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file of the checkpoint is not there.
    #[error("{}: not found; expected {expected}", file.display())]
    Missing {
        /// The file.
        file: PathBuf,
        /// What the directory should hold.
        expected: &'static str,
    },
    /// A file could not be written.
    #[error("{}: cannot {action}: {source}", file.display())]
    Write {
        /// The file.
        file: PathBuf,
        /// What was tried.
        action: &'static str,
        /// Why not.
        source: std::io::Error,
    },
    /// The disk is full.
    #[error("{}: no space left: the file needs {needed} bytes; free some or write elsewhere", file.display())]
    DiskFull {
        /// The file.
        file: PathBuf,
        /// Bytes of the whole file.
        needed: u64,
    },
    /// A JSON file is malformed; the source gives line and column.
    #[error("{}: not the JSON that was expected: {source}", file.display())]
    Json {
        /// The file.
        file: PathBuf,
        /// What the parser said.
        source: serde_json::Error,
    },
    /// A key of `config.json` is missing or not usable.
    #[error("{}: key `{key}` is {found}; expected {expected}", file.display())]
    Config {
        /// The file.
        file: PathBuf,
        /// The key.
        key: &'static str,
        /// What is there.
        found: String,
        /// What is needed.
        expected: String,
    },
    /// A safetensors file contradicts itself or its length.
    #[error(
        "{}: damaged safetensors file: {place} is {found}, expected {expected}; fetch or save it \
         again", file.display()
    )]
    Safetensors {
        /// The file.
        file: PathBuf,
        /// What part of it.
        place: String,
        /// What is there.
        found: String,
        /// What should be.
        expected: String,
    },
    /// The tensors are not those that `config.json` describes.
    #[error("{}: the weights are not those of its config.json: {mismatch}", directory.display())]
    Tensors {
        /// The checkpoint.
        directory: PathBuf,
        /// What is wrong.
        mismatch: Mismatch,
    },
    /// A tensor has another shape than `config.json` says.
    #[error("{}: tensor `{tensor}` has the shape {found:?}, expected {expected:?}", file.display())]
    Shape {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its shape.
        found: Vec<usize>,
        /// The shape by `config.json`.
        expected: Vec<usize>,
    },
    /// A tensor is not of a float type.
    #[error("{}: tensor `{tensor}` is {found}, expected F32, F16 or BF16", file.display())]
    Dtype {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its type.
        found: String,
    },
    /// A weight is NaN or infinite.
    #[error(
        "{}: tensor `{tensor}` holds {value} at element {index}; export a checkpoint from before \
         training diverged", file.display()
    )]
    NonFinite {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// The element, row-major in the checkpoint's order.
        index: usize,
        /// Its value.
        value: f32,
    },
    /// A row is not whole blocks of the grid.
    #[error(
        "{}: tensor `{tensor}` has rows of {row} elements, and {grid} needs multiples of {block}; \
         choose f16 or f32 for it", file.display()
    )]
    RowNotBlocks {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// Elements of a row.
        row: usize,
        /// The grid.
        grid: &'static str,
        /// Elements of its blocks.
        block: usize,
    },
    /// The tokenizer is not one that the runtimes have.
    #[error("{}: {part} is {found}; supported: {supported}", file.display())]
    Tokenizer {
        /// The file.
        file: PathBuf,
        /// What part of it.
        part: &'static str,
        /// What is there, shortened.
        found: String,
        /// What could be.
        supported: &'static str,
    },
    /// A token's id has no row in the embedding.
    #[error(
        "{}: token {token:?} has the id {id}, but config.json gives the embedding {vocab_size} \
         rows (`vocab_size`); tokenizer and model do not belong together", file.display()
    )]
    TokenBeyondVocabulary {
        /// The file.
        file: PathBuf,
        /// The token.
        token: String,
        /// Its id.
        id: u64,
        /// `vocab_size`.
        vocab_size: usize,
    },
    /// Two tokens have one id.
    #[error("{}: the tokens {first:?} and {second:?} both have the id {id}", file.display())]
    TokenIdTwice {
        /// The file.
        file: PathBuf,
        /// One token.
        first: String,
        /// The other.
        second: String,
        /// The id.
        id: u64,
    },
    /// One token has two ids.
    #[error("{}: the token {token:?} has the ids {first} and {second}", file.display())]
    TokenTwice {
        /// The file.
        file: PathBuf,
        /// The token.
        token: String,
        /// One id.
        first: usize,
        /// The other.
        second: usize,
    },
    /// A special token is not in the vocabulary.
    #[error("{}: `{key}` is {token:?}, which tokenizer.json does not have", file.display())]
    UnknownSpecialToken {
        /// The file.
        file: PathBuf,
        /// The key.
        key: &'static str,
        /// The token.
        token: String,
    },
    /// The GGUF file could not be written.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// The runtime that `model.edge` is for does not read the tokenizer.
    #[error(transparent)]
    Edge(#[from] EdgeError),
}

/// Tensors that should be there and are not, and the other way round.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mismatch {
    /// Expected and not found.
    pub missing: Vec<String>,
    /// Found and not expected.
    pub unexpected: Vec<String>,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// Enough to see the pattern.
        const SHOWN: usize = 8;
        let mut first = true;
        for (what, names) in [("missing", &self.missing), ("unexpected", &self.unexpected)] {
            if names.is_empty() {
                continue;
            }
            let shown: Vec<&str> = names.iter().take(SHOWN).map(String::as_str).collect();
            let separator = if first { "" } else { "; " };
            write!(f, "{separator}{} {what}: {}", names.len(), shown.join(", "))?;
            if names.len() > SHOWN {
                f.write_str(", …")?;
            }
            first = false;
        }
        Ok(())
    }
}

/// Text for a message: at most 200 characters of it.
pub(crate) fn shortened(text: impl ToString) -> String {
    let text = text.to_string();
    match text.char_indices().nth(200) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}
