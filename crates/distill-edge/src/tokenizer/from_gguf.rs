//! A tokenizer from a file's `tokenizer.ggml.*` keys.

use std::path::Path;

use distill_gguf::Metadata;

use super::{Parts, PartsError, Tokenizer};
use crate::EdgeError;

/// Token ids that end a turn, where a file names them.
const END_KEYS: [&str; 2] = ["tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"];

impl Tokenizer {
    /// Reads the tokenizer of a GGUF file; `file` is named in errors.
    ///
    /// # Errors
    /// If a key is missing or of another type, the tokenizer is not byte-level BPE with one of the
    /// known pre-tokenizers, or vocabulary, merges and ids do not fit each other.
    pub fn from_gguf(metadata: &Metadata, file: &Path) -> Result<Self, EdgeError> {
        let config = |key: &str, found: String, expected: &str| EdgeError::Config {
            file: file.to_owned(),
            key: key.to_owned(),
            found,
            expected: expected.to_owned(),
        };
        let model = metadata.string("tokenizer.ggml.model")?;
        if model != "gpt2" {
            return Err(config(
                "tokenizer.ggml.model",
                format!("`{model}`"),
                "`gpt2`: byte-level BPE",
            ));
        }
        let types = match metadata.contains("tokenizer.ggml.token_type") {
            true => metadata.i32s("tokenizer.ggml.token_type")?,
            false => Vec::new(),
        };
        let mut ends = Vec::new();
        for key in END_KEYS {
            ends.extend(metadata.optional_u32(key)?);
        }
        let tokens = metadata.strings("tokenizer.ggml.tokens")?;
        let parts = Parts {
            pre: metadata.string("tokenizer.ggml.pre")?,
            tokens,
            types: &types,
            merges: metadata.strings("tokenizer.ggml.merges")?,
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
