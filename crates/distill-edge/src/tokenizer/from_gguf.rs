//! A tokenizer from a file's `tokenizer.ggml.*` keys.

use std::path::Path;

use distill_gguf::Metadata;

use super::{Parts, PartsError, Scheme, Tokenizer};
use crate::EdgeError;

/// Token ids that end a turn, where a file names them.
const END_KEYS: [&str; 2] = ["tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"];

impl Tokenizer {
    /// Reads the tokenizer of a GGUF file; `file` is named in errors.
    ///
    /// # Errors
    /// If a key is missing or of another type, the tokenizer is none of byte-level BPE with one of
    /// the known pre-tokenizers, SentencePiece BPE and Gemma 4's, or vocabulary, merges, scores,
    /// types and ids do not fit each other.
    pub fn from_gguf(metadata: &Metadata, file: &Path) -> Result<Self, EdgeError> {
        let config = |key: &str, found: String, expected: &str| EdgeError::Config {
            file: file.to_owned(),
            key: key.to_owned(),
            found,
            expected: expected.to_owned(),
        };
        let tokens = metadata.strings("tokenizer.ggml.tokens")?;
        let space_prefix = metadata.optional_bool("tokenizer.ggml.add_space_prefix")?;
        let scheme = match metadata.string("tokenizer.ggml.model")? {
            "gpt2" => Scheme::ByteLevel {
                pre: metadata.string("tokenizer.ggml.pre")?,
                merges: metadata.strings("tokenizer.ggml.merges")?,
            },
            "llama" => Scheme::Scores {
                scores: metadata.f32s("tokenizer.ggml.scores")?,
                space_prefix: space_prefix.unwrap_or(true),
            },
            "gemma4" => Scheme::Merges {
                merges: metadata.strings("tokenizer.ggml.merges")?,
                space_prefix: space_prefix.unwrap_or(false),
            },
            other => {
                return Err(config(
                    "tokenizer.ggml.model",
                    format!("`{other}`"),
                    "`gpt2` (byte-level BPE), `llama` (SentencePiece BPE) or `gemma4`",
                ));
            }
        };
        let types = match metadata.contains("tokenizer.ggml.token_type") {
            true => metadata.i32s("tokenizer.ggml.token_type")?,
            false => Vec::new(),
        };
        let mut ends = Vec::new();
        for key in END_KEYS {
            ends.extend(metadata.optional_u32(key)?);
        }
        let parts = Parts {
            scheme,
            tokens,
            types: &types,
            unknown: metadata.optional_u32("tokenizer.ggml.unknown_token_id")?,
            bos: metadata.optional_u32("tokenizer.ggml.bos_token_id")?,
            eos: metadata.optional_u32("tokenizer.ggml.eos_token_id")?,
            ends: &ends,
            add_bos: metadata.optional_bool("tokenizer.ggml.add_bos_token")?,
            add_eos: metadata.optional_bool("tokenizer.ggml.add_eos_token")?.unwrap_or(false),
            chat_template: metadata.optional_string("tokenizer.chat_template")?.map(str::to_owned),
        };
        let count = tokens.len();
        parts.build().map_err(|error| match error {
            PartsError::Pre(found) => EdgeError::PreTokenizer { file: file.to_owned(), found },
            PartsError::Merge { index, text } => {
                EdgeError::Merge { file: file.to_owned(), index, merge: text }
            }
            PartsError::TypeCount(found) => config(
                "tokenizer.ggml.token_type",
                format!("an array of {found}"),
                &format!("one entry for each of the {count} tokens"),
            ),
            PartsError::ScoreCount(found) => config(
                "tokenizer.ggml.scores",
                format!("an array of {found}"),
                &format!("one entry for each of the {count} tokens"),
            ),
            PartsError::Score { index, score } => config(
                &format!("tokenizer.ggml.scores[{index}]"),
                score.to_string(),
                "a finite number",
            ),
            PartsError::Length { index, bytes } => config(
                &format!("tokenizer.ggml.tokens[{index}]"),
                format!("{bytes} bytes long"),
                "a token of at most 1024 bytes",
            ),
            PartsError::Byte { index, text } => config(
                &format!("tokenizer.ggml.tokens[{index}]"),
                format!("`{text}`, by its type a byte"),
                "a byte from `<0x00>` to `<0xFF>`",
            ),
            PartsError::Id { what, id } => config(
                &format!("tokenizer.ggml ({what} token id)"),
                id.to_string(),
                &format!("an id below {count}, the size of the vocabulary"),
            ),
            PartsError::TooLarge => {
                config("tokenizer.ggml.tokens", "over 4 GiB".to_owned(), "less text")
            }
        })
    }
}
