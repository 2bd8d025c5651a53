//! A tokenizer from a file's `tokenizer.ggml.*` keys, or from the tables of `model.edge`.

use std::path::Path;

use distill_gguf::{Decimal, GgufFile, Metadata};

use super::hash::Seed;
use super::parts::{Lists, PartsError, Scheme, Settings, Tables};
use super::stored::{self, StoredVocabulary};
use super::{PreTokenizer, Tokenizer};
use crate::EdgeError;

/// Token ids that end a turn, where a file names them.
const END_KEYS: [&str; 2] = ["tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"];

const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";
const SCORES: &str = "tokenizer.ggml.scores";
const MERGES: &str = "tokenizer.ggml.merges";

/// What the tables that a file holds are hashed with, if it takes all entries.
const STORED_SEED: Seed = Seed::new(0);

impl StoredVocabulary {
    /// The keys of the lists that a file does not need beside its tables.
    pub const INSTEAD_OF: [&str; 4] = [TOKENS, TYPES, SCORES, MERGES];

    /// The tables of a GGUF file's vocabulary, which depend on nothing but the file; `None` if it
    /// is a `model.edge` that holds them.
    ///
    /// # Errors
    /// As [`Tokenizer::from_gguf`].
    pub fn of(file: &GgufFile) -> Result<Option<Self>, EdgeError> {
        if stored::are_in(file)? {
            return Ok(None);
        }
        let reader = Reader { metadata: file.metadata(), file: file.path() };
        let tables = reader.tables(STORED_SEED)?;
        // No model has such a vocabulary, and no tensor is empty.
        if tables.vocabulary.len() == 0 {
            return Err(reader.refuse(TOKENS, "empty", "at least one token"));
        }
        let stored = Self::from(&tables);
        reader.tokenizer(tables)?;
        Ok(Some(stored))
    }
}

impl Tokenizer {
    /// Reads the tokenizer of a file: maps its tables if it is a `model.edge`, or makes them of its
    /// lists.
    ///
    /// # Errors
    /// If a key is missing or of another type, the tokenizer is none of byte-level BPE with one of
    /// the known pre-tokenizers, SentencePiece BPE and Gemma 4's, or vocabulary, merges, scores,
    /// types and ids do not fit each other.
    pub fn from_gguf(file: &GgufFile) -> Result<Self, EdgeError> {
        let reader = Reader { metadata: file.metadata(), file: file.path() };
        let tables = match stored::are_in(file)? {
            true => reader.stored(file)?,
            false => reader.tables(Seed::default())?,
        };
        reader.tokenizer(tables)
    }
}

/// How many tokens a file's vocabulary has.
pub(crate) fn vocab_size(file: &GgufFile) -> Result<usize, EdgeError> {
    match stored::are_in(file)? {
        true => stored::tokens(file),
        false => Ok(file.metadata().strings(TOKENS)?.len()),
    }
}

struct Reader<'f> {
    metadata: &'f Metadata,
    file: &'f Path,
}

impl Reader<'_> {
    fn refuse(&self, key: &str, found: impl ToString, expected: &str) -> EdgeError {
        EdgeError::Config {
            file: self.file.to_owned(),
            key: key.to_owned(),
            found: found.to_string(),
            expected: expected.to_owned(),
        }
    }

    fn unknown_model(&self, model: &str) -> EdgeError {
        self.refuse(
            "tokenizer.ggml.model",
            format!("`{model}`"),
            "`gpt2` (byte-level BPE), `llama` (SentencePiece BPE) or `gemma4`",
        )
    }

    /// Whether a space stands before every text.
    fn space_prefix(&self, default: bool) -> Result<bool, EdgeError> {
        let said = self.metadata.optional_bool("tokenizer.ggml.add_space_prefix")?;
        Ok(said.unwrap_or(default))
    }

    /// The tables, made of lists.
    fn tables(&self, seed: Seed) -> Result<Tables, EdgeError> {
        let metadata = self.metadata;
        let tokens = metadata.strings(TOKENS)?;
        let scheme = match metadata.string("tokenizer.ggml.model")? {
            "gpt2" => Scheme::ByteLevel {
                pre: metadata.string("tokenizer.ggml.pre")?,
                merges: metadata.strings(MERGES)?,
            },
            "llama" => Scheme::Scores {
                scores: metadata.f32s(SCORES)?,
                space_prefix: self.space_prefix(true)?,
            },
            "gemma4" => Scheme::Merges {
                merges: metadata.strings(MERGES)?,
                space_prefix: self.space_prefix(false)?,
            },
            other => return Err(self.unknown_model(other)),
        };
        let types = match metadata.contains(TYPES) {
            true => metadata.i32s(TYPES)?,
            false => Vec::new(),
        };
        let lists = Lists { scheme, tokens, types: &types };
        lists.tables(seed).map_err(|error| self.error(error, tokens.len()))
    }

    /// The tables that the file holds.
    fn stored(&self, file: &GgufFile) -> Result<Tables, EdgeError> {
        match self.metadata.string("tokenizer.ggml.model")? {
            "gpt2" => {
                let name = self.metadata.string("tokenizer.ggml.pre")?;
                let pre = PreTokenizer::from_name(name);
                let pre = pre.ok_or_else(|| self.error(PartsError::Pre(name.to_owned()), 0))?;
                stored::tables(file, Some(pre), false)
            }
            "llama" => stored::tables(file, None, self.space_prefix(true)?),
            "gemma4" => stored::tables(file, None, self.space_prefix(false)?),
            other => Err(self.unknown_model(other)),
        }
    }

    fn tokenizer(&self, tables: Tables) -> Result<Tokenizer, EdgeError> {
        let metadata = self.metadata;
        let mut ends = Vec::new();
        for key in END_KEYS {
            ends.extend(metadata.optional_u32(key)?);
        }
        let settings = Settings {
            unknown: metadata.optional_u32("tokenizer.ggml.unknown_token_id")?,
            bos: metadata.optional_u32("tokenizer.ggml.bos_token_id")?,
            eos: metadata.optional_u32("tokenizer.ggml.eos_token_id")?,
            ends,
            add_bos: metadata.optional_bool("tokenizer.ggml.add_bos_token")?,
            add_eos: metadata.optional_bool("tokenizer.ggml.add_eos_token")?.unwrap_or(false),
            chat_template: metadata.optional_string("tokenizer.chat_template")?.map(str::to_owned),
        };
        let count = tables.vocabulary.len();
        tables.tokenizer(settings).map_err(|error| self.error(error, count))
    }

    /// What is wrong, with the file's name.
    fn error(&self, error: PartsError, count: usize) -> EdgeError {
        match error {
            PartsError::Pre(found) => EdgeError::PreTokenizer { file: self.file.to_owned(), found },
            PartsError::Merge { index, text } => {
                EdgeError::Merge { file: self.file.to_owned(), index, merge: text }
            }
            PartsError::TypeCount(found) => self.refuse(
                "tokenizer.ggml.token_type",
                format!("an array of {found}"),
                &format!("one entry for each of the {count} tokens"),
            ),
            PartsError::ScoreCount(found) => self.refuse(
                "tokenizer.ggml.scores",
                format!("an array of {found}"),
                &format!("one entry for each of the {count} tokens"),
            ),
            PartsError::Score { index, score } => self.refuse(
                &format!("tokenizer.ggml.scores[{index}]"),
                Decimal(score.into()),
                "a finite number",
            ),
            PartsError::Length { index, bytes } => self.refuse(
                &format!("tokenizer.ggml.tokens[{index}]"),
                format!("{bytes} bytes long"),
                "a token of at most 1024 bytes",
            ),
            PartsError::Byte { index, text } => self.refuse(
                &format!("tokenizer.ggml.tokens[{index}]"),
                format!("`{text}`, by its type a byte"),
                "a byte from `<0x00>` to `<0xFF>`",
            ),
            PartsError::Id { what, id } => self.refuse(
                &format!("tokenizer.ggml ({what} token id)"),
                id,
                &format!("an id below {count}, the size of the vocabulary"),
            ),
            PartsError::Utf8 { id } => self.refuse(
                "tokenizer.pieces",
                format!("not UTF-8 in token {id}, which is matched as a whole"),
                "what the export wrote: export the model again",
            ),
            PartsError::TooLarge => self.refuse(TOKENS, "over 4 GiB", "less text"),
            PartsError::Crowded => self.refuse(TOKENS, "impossible to hash", "another vocabulary"),
        }
    }
}
