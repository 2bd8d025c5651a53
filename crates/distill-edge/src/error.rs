//! What can go wrong: each error names the file and the place, what was expected and what was
//! found, and where it helps, the way out.

use std::fmt;
use std::path::PathBuf;

use distill_gguf::{Decimal, GgufError};

use crate::cache::KvType;
use crate::tokenizer::PreTokenizer;

/// Everything the runtime refuses.
#[derive(Debug)]
#[non_exhaustive]
pub enum EdgeError {
    /// The container is damaged, or a metadata key is missing or of another type.
    Gguf(GgufError),
    /// Another model architecture.
    Architecture {
        /// The model file.
        file: PathBuf,
        /// What `general.architecture` says.
        found: String,
    },
    /// A metadata value that the runtime cannot run.
    Config {
        /// The model file.
        file: PathBuf,
        /// The metadata key.
        key: String,
        /// Its value.
        found: String,
        /// What the runtime can run.
        expected: String,
    },
    /// A tensor that the architecture needs is not there.
    MissingTensor {
        /// The model file.
        file: PathBuf,
        /// The tensor's name in the file.
        tensor: String,
        /// Its shape in ggml order: the row length first.
        expected: Vec<u64>,
    },
    /// A tensor that the architecture does not have: the model would be computed wrongly.
    UnexpectedTensor {
        /// The model file.
        file: PathBuf,
        /// The tensor's name in the file.
        tensor: String,
    },
    /// A tensor of another shape.
    Shape {
        /// The model file.
        file: PathBuf,
        /// The tensor's name in the file.
        tensor: String,
        /// The shape by the metadata, in ggml order.
        expected: Vec<u64>,
        /// The shape in the file.
        found: Vec<u64>,
    },
    /// A tensor in a storage type without kernels.
    Type {
        /// The model file.
        file: PathBuf,
        /// The tensor's name in the file.
        tensor: String,
        /// The types the runtime reads there.
        expected: &'static str,
        /// The type in the file.
        found: &'static str,
    },
    /// A row that is not whole blocks, in the integer path.
    NotWholeBlocks {
        /// The model file.
        file: PathBuf,
        /// The tensor's name in the file.
        tensor: String,
        /// Its row length.
        columns: usize,
    },
    /// A value in the file that is not a finite number.
    NotFinite {
        /// The model file.
        file: PathBuf,
        /// The tensor's name in the file.
        tensor: String,
        /// Where.
        index: usize,
        /// What.
        found: f32,
    },
    /// Another pre-tokenizer.
    PreTokenizer {
        /// The model file.
        file: PathBuf,
        /// What the file says.
        found: String,
    },
    /// A merge whose parts or whole are not tokens.
    Merge {
        /// The model file.
        file: PathBuf,
        /// The place in the merge list.
        index: usize,
        /// The merge as written.
        merge: String,
    },
    /// A prompt or continuation longer than the session's context.
    ContextOverflow {
        /// Tokens already in the session.
        position: usize,
        /// Tokens to be added.
        tokens: usize,
        /// The session's context in tokens.
        context: usize,
    },
    /// A call with no token at all.
    NoTokens,
    /// A token id outside the vocabulary.
    TokenId {
        /// The place in the tokens given.
        index: usize,
        /// The id.
        id: u32,
        /// The size of the vocabulary.
        vocab_size: usize,
    },
    /// Not enough memory for a session.
    Memory {
        /// The context asked for, in tokens.
        context: usize,
        /// Bytes it needs; `usize::MAX` stands for more than can be counted.
        bytes: usize,
    },
    /// Heads that are not whole blocks of the cache's type.
    KvBlocks {
        /// Elements of a head.
        head_dim: usize,
        /// How keys and values were to be stored.
        kv: KvType,
    },
    /// A saved session could not be read or written.
    StateIo {
        /// The state file.
        file: PathBuf,
        /// `"read"` or `"write"`.
        action: &'static str,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A saved session that does not belong to this one.
    State {
        /// The state file.
        file: PathBuf,
        /// What does not fit.
        what: &'static str,
        /// Its value.
        found: String,
        /// What would fit.
        expected: String,
    },
    /// Not enough memory for the weights.
    WeightMemory {
        /// The model file.
        file: PathBuf,
        /// Bytes of the packed weights.
        bytes: usize,
    },
    /// The system gave no thread.
    Thread {
        /// Which one.
        index: usize,
        /// How many were asked for.
        threads: usize,
        /// The system's answer.
        source: std::io::Error,
    },
}

impl fmt::Display for EdgeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gguf(error) => error.fmt(f),
            Self::Architecture { file, found } => write!(
                f,
                "{}: general.architecture is `{found}`; this runtime runs `llama`",
                file.display()
            ),
            Self::Config { file, key, found, expected } => {
                write!(f, "{}: {key} is {found}; expected {expected}", file.display())
            }
            Self::MissingTensor { file, tensor, expected } => write!(
                f,
                "{}: tensor `{tensor}` is missing; expected shape {expected:?}",
                file.display()
            ),
            Self::UnexpectedTensor { file, tensor } => write!(
                f,
                "{}: unexpected tensor `{tensor}`: the plain llama architecture has none of that name, so this is another kind of model",
                file.display()
            ),
            Self::Shape { file, tensor, expected, found } => write!(
                f,
                "{}: tensor `{tensor}` has shape {found:?}; expected {expected:?} (row length first)",
                file.display()
            ),
            Self::Type { file, tensor, expected, found } => write!(
                f,
                "{}: tensor `{tensor}` is {found}; expected {expected}. Export the model again in one of these types",
                file.display()
            ),
            Self::NotWholeBlocks { file, tensor, columns } => write!(
                f,
                "{}: tensor `{tensor}` has rows of {columns}; Q8_0 activations need a multiple of 32. Load the model with float activations",
                file.display()
            ),
            Self::NotFinite { file, tensor, index, found } => write!(
                f,
                "{}: tensor `{tensor}` holds {} at index {index}; expected finite numbers",
                file.display(),
                Decimal((*found).into())
            ),
            Self::PreTokenizer { file, found } => write!(
                f,
                "{}: tokenizer.ggml.pre is `{found}`; this runtime knows {}",
                file.display(),
                PreTokenizer::NAMES
            ),
            Self::Merge { file, index, merge } => write!(
                f,
                "{}: tokenizer.ggml.merges[{index}] is `{merge}`; expected two tokens of the vocabulary, separated by a space, whose joined text is a token too",
                file.display()
            ),
            Self::ContextOverflow { position, tokens, context } => write!(
                f,
                "{tokens} more tokens after {position} do not fit into a context of {context}. Open the session with a larger context or shorten the text"
            ),
            Self::NoTokens => write!(
                f,
                "no tokens were given; at least one is needed to predict the next. A model without a BOS token needs a non-empty prompt"
            ),
            Self::TokenId { index, id, vocab_size } => write!(
                f,
                "token {index} is {id}, but the vocabulary has {vocab_size} tokens. Was the text encoded by another model's tokenizer?"
            ),
            Self::Memory { context, bytes } => write!(
                f,
                "a session with a context of {context} tokens needs more memory than there is ({bytes} bytes). Ask for a smaller context"
            ),
            Self::KvBlocks { head_dim, kv } => write!(
                f,
                "heads of {head_dim} elements are not whole blocks of 32, which a cache in {kv} needs. Open the session with one in f16 or f32"
            ),
            Self::StateIo { file, action, source } => {
                write!(f, "cannot {action} {}: {source}", file.display())
            }
            Self::State { file, what, found, expected } => write!(
                f,
                "{}: {what} is {found}; expected {expected}. Compute the prompt again and save it anew",
                file.display()
            ),
            Self::WeightMemory { file, bytes } => write!(
                f,
                "{}: the packed weights need {bytes} bytes, which the system does not give. Free some memory or run a smaller model",
                file.display()
            ),
            Self::Thread { index, threads, source } => {
                write!(f, "cannot start thread {index} of {threads}: {source}")
            }
        }
    }
}

impl std::error::Error for EdgeError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Gguf(error) => error.source(),
            Self::StateIo { source, .. } | Self::Thread { source, .. } => Some(source),
            _ => None,
        }
    }
}

impl From<GgufError> for EdgeError {
    fn from(error: GgufError) -> Self {
        Self::Gguf(error)
    }
}

impl EdgeError {
    /// Whether the cause lies in what the runtime was given, rather than in the machine.
    pub fn is_input(&self) -> bool {
        !matches!(
            self,
            Self::Thread { .. }
                | Self::Memory { .. }
                | Self::WeightMemory { .. }
                | Self::StateIo { .. }
        )
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error;
    use std::io;

    use super::*;

    #[test]
    fn the_container_speaks_for_itself_and_what_the_system_said_is_kept_as_the_source() {
        let said = || io::Error::other("no such luck");
        let file = PathBuf::from("m.gguf");
        let container = EdgeError::from(GgufError::Open { file: file.clone(), source: said() });
        assert_eq!(container.to_string(), "m.gguf: cannot open the model file: no such luck");
        let state = EdgeError::StateIo { file, action: "read", source: said() };
        let thread = EdgeError::Thread { index: 1, threads: 2, source: said() };
        for error in [container, state, thread] {
            assert!(error.to_string().ends_with(": no such luck"), "{error}");
            assert_eq!(error.source().unwrap().to_string(), "no such luck");
        }
        assert!(EdgeError::NoTokens.source().is_none());
    }
}
