//! How many tokens a recipe's text has, without reading more of it than a few seconds allow.

use distill_data::{DataError, SpecialTokens, TextTokenizer, documents};
use distill_recipe::{Recipe, TokenizerChoice};
use serde::Serialize;

use crate::TrainError;
use crate::prepare::{self, LocalPaths, sources};

/// Text that is tokenised; the rest is only measured.
const SAMPLE_BYTES: usize = 4 << 20;
/// Text that is read; the size of what lies beyond is told by its files.
const READ_BYTES: u64 = 256 << 20;

/// A recipe's text.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Text {
    /// Bytes of text, or of the files where not all were read.
    pub bytes: u64,
    /// Tokens, the held-out ones too.
    pub tokens: u64,
    /// Whether all were counted; else the first `sample_bytes` were, and the rest is in proportion.
    pub counted: bool,
    /// Bytes of text whose tokens were counted.
    pub sample_bytes: u64,
    /// The longest document, of those that were read.
    pub longest_bytes: u64,
    /// Those of `tokens` that a model writes.
    pub generated: u64,
}

impl Text {
    /// Counts. Gives the tokenizer back, which a recipe may have trained on its text.
    ///
    /// # Errors
    /// [`TrainError::Data`].
    pub fn count(recipe: &Recipe, paths: &LocalPaths) -> Result<(Self, TextTokenizer), TrainError> {
        let sources = sources(recipe, paths)?;
        let generated = recipe.data.generate.as_ref().map_or(0, |generate| generate.tokens);
        if sources.is_empty() && generated > 0 {
            let text = Self {
                bytes: 0,
                tokens: generated,
                counted: true,
                sample_bytes: 0,
                longest_bytes: 0,
                generated,
            };
            return Ok((text, prepare::named_tokenizer(recipe, paths)?));
        }
        let (mut sample, mut sample_bytes) = (Vec::new(), 0);
        let (mut bytes, mut longest, mut whole) = (0, 0, true);
        for document in documents(&sources)? {
            let mut document = document?;
            bytes += document.len() as u64;
            longest = longest.max(document.len() as u64);
            if bytes > READ_BYTES {
                let files = sources.iter().filter_map(|s| s.path().metadata().ok());
                bytes = bytes.max(files.map(|file| file.len()).sum());
                whole = false;
                break;
            }
            if sample_bytes < SAMPLE_BYTES {
                if sample_bytes + document.len() > SAMPLE_BYTES {
                    whole = false;
                    document.truncate(document.floor_char_boundary(SAMPLE_BYTES - sample_bytes));
                }
                sample_bytes += document.len();
                sample.push(document);
            } else {
                whole = false;
            }
        }
        if sample.is_empty() {
            let first = sources[0].path().to_path_buf();
            return Err(DataError::NoText { files: sources.len(), first }.into());
        }
        let tokenizer = match recipe.student.tokenizer {
            TokenizerChoice::Train { vocab_size } => {
                let special = SpecialTokens::default();
                let documents = sample.iter().cloned().map(Ok);
                TextTokenizer::train(documents, vocab_size, &special)?
            }
            _ => prepare::named_tokenizer(recipe, paths)?,
        };
        // Every document is ended by one more token.
        let ids = tokenizer.encode_batch(&sample, true)?;
        let found = ids.iter().map(|ids| ids.len() as u64 + 1).sum::<u64>();
        let share = bytes as f64 / sample_bytes.max(1) as f64;
        let text = Self {
            bytes,
            tokens: generated + if whole { found } else { (found as f64 * share) as u64 },
            generated,
            counted: whole,
            sample_bytes: sample_bytes as u64,
            longest_bytes: longest,
        };
        Ok((text, tokenizer))
    }
}
