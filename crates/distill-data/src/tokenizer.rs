//! Text ↔ token ids, from a Hugging Face directory, a GGUF's vocabulary, or trained here.

mod byte_level;
mod directory;
mod gguf;
mod pieces;
mod save;
mod train;
mod vocabulary;

use serde_json::{Map, Value};
use tokenizers::Tokenizer;

use crate::chat::{Message, render_chat};
use crate::error::DataError;

pub use train::SpecialTokens;

/// A tokenizer with what a model's files say about it: special tokens and the chat template.
///
/// - [`TextTokenizer::from_directory`]: `tokenizer.json` and its neighbours;
/// - [`TextTokenizer::from_gguf`]: byte-level BPE from the metadata of a GGUF;
/// - [`TextTokenizer::train`]: a new byte-level BPE.
#[derive(Clone, Debug)]
pub struct TextTokenizer {
    inner: Tokenizer,
    special: SpecialIds,
    adds_bos: bool,
    /// Whether long texts may be encoded in pieces.
    can_cut: bool,
    /// What is put before and behind a text, where that is simply to be told.
    around: Option<(Vec<u32>, Vec<u32>)>,
    chat_template: Option<String>,
    /// `tokenizer_config.json` as it was read, so that saving keeps what is not understood here.
    config: Map<String, Value>,
    vocab_size: usize,
}

/// The ids of the special tokens that have a role.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct SpecialIds {
    bos: Option<u32>,
    eos: Option<u32>,
    pad: Option<u32>,
    unk: Option<u32>,
}

impl TextTokenizer {
    fn new(
        inner: Tokenizer,
        special: SpecialIds,
        chat_template: Option<String>,
        config: Map<String, Value>,
    ) -> Result<Self, DataError> {
        let mut tokenizer = Self {
            vocab_size: vocabulary::size(&inner),
            inner,
            special,
            adds_bos: false,
            can_cut: false,
            around: None,
            chat_template,
            config,
        };
        // The post-processor decides; what configuration files say about it is advisory.
        let empty = tokenizer.encode("", true)?;
        tokenizer.adds_bos = special.bos.is_some() && empty.first().copied() == special.bos;
        tokenizer.can_cut = pieces::can_cut(&tokenizer.inner);
        let (prefix, suffix) = empty.split_at(usize::from(tokenizer.adds_bos));
        let known =
            suffix.is_empty() || (suffix.len() == 1 && suffix.first().copied() == special.eos);
        tokenizer.around = known.then(|| (prefix.to_vec(), suffix.to_vec()));
        Ok(tokenizer)
    }

    /// The ids of `text`. With `add_special`, with what the tokenizer puts around a text (for
    /// some families a beginning-of-sequence token). Special tokens spelt out in the text become
    /// their ids either way, as in Hugging Face's library.
    ///
    /// # Errors
    /// [`DataError::Tokenizer`] if a model without byte fallback meets a character it lacks.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, DataError> {
        let encoding = self
            .inner
            .encode_fast(text, add_special)
            .map_err(|source| DataError::Tokenizer { action: "encode a text", source })?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The same tokenizer, which takes special tokens spelt out in a text for text.
    #[must_use]
    pub fn plain(&self) -> Self {
        let mut plain = self.clone();
        plain.inner.set_encode_special_tokens(true);
        plain
    }

    /// [`TextTokenizer::encode`] for many texts at once, on all cores.
    ///
    /// # Errors
    /// As [`TextTokenizer::encode`].
    pub fn encode_batch(
        &self,
        texts: &[String],
        add_special: bool,
    ) -> Result<Vec<Vec<u32>>, DataError> {
        let failed = |source| DataError::Tokenizer { action: "encode a text", source };
        let Some((prefix, suffix)) = self.around.as_ref().filter(|_| self.can_cut) else {
            let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
            let encodings = self.inner.encode_batch_fast(texts, add_special).map_err(failed)?;
            return Ok(encodings.iter().map(|encoding| encoding.get_ids().to_vec()).collect());
        };
        let pieces: Vec<Vec<&str>> =
            texts.iter().map(|text| pieces::pieces(text).collect()).collect();
        let encodings = self.inner.encode_batch_fast(pieces.concat(), false).map_err(failed)?;
        let mut encodings = encodings.iter();
        let whole = |pieces: &Vec<&str>| {
            let mut ids = if add_special { prefix.clone() } else { Vec::new() };
            for encoding in encodings.by_ref().take(pieces.len()) {
                ids.extend_from_slice(encoding.get_ids());
            }
            ids.extend(suffix.iter().filter(|_| add_special));
            ids
        };
        Ok(pieces.iter().map(whole).collect())
    }

    /// The text of `ids`, special tokens included as they are spelt; ids outside the vocabulary
    /// are left out, bytes that are not UTF-8 become `U+FFFD`.
    #[must_use]
    pub fn decode(&self, ids: &[u32]) -> String {
        self.inner.decode(ids, false).unwrap_or_else(|_| {
            // Only decoders of other families can fail; the bare tokens still say what is there.
            ids.iter().filter_map(|&id| self.inner.id_to_token(id)).collect()
        })
    }

    /// The token of an id as the vocabulary spells it (`Ġthe` in byte-level vocabularies).
    #[must_use]
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The id of a token as the vocabulary spells it.
    #[must_use]
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// One more than the largest id. A model's embedding may have more rows (padding).
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The beginning-of-sequence token.
    #[must_use]
    pub fn bos(&self) -> Option<u32> {
        self.special.bos
    }

    /// The end-of-sequence token: every packed document ends with it.
    #[must_use]
    pub fn eos(&self) -> Option<u32> {
        self.special.eos
    }

    /// The padding token.
    #[must_use]
    pub fn pad(&self) -> Option<u32> {
        self.special.pad
    }

    /// The token for what the vocabulary lacks.
    #[must_use]
    pub fn unk(&self) -> Option<u32> {
        self.special.unk
    }

    /// Whether a text is given a beginning-of-sequence token when special tokens are added.
    #[must_use]
    pub fn adds_bos(&self) -> bool {
        self.adds_bos
    }

    /// The chat template, a Jinja source.
    #[must_use]
    pub fn chat_template(&self) -> Option<&str> {
        self.chat_template.as_deref()
    }

    /// Messages as the model expects them; encode the result without adding special tokens.
    ///
    /// # Errors
    /// [`DataError::NoChatTemplate`], [`DataError::ChatTemplate`].
    pub fn render_chat(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<String, DataError> {
        let template = self.chat_template().ok_or(DataError::NoChatTemplate)?;
        let spelt = |id: Option<u32>| id.and_then(|id| self.token(id)).unwrap_or_default();
        render_chat(
            template,
            messages,
            &spelt(self.bos()),
            &spelt(self.eos()),
            add_generation_prompt,
        )
    }

    /// The tokenizer underneath.
    #[must_use]
    pub fn inner(&self) -> &Tokenizer {
        &self.inner
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_tokenizer_takes_special_tokens_for_text() {
        let texts = std::iter::once(Ok("some words".to_owned()));
        let tokenizer = TextTokenizer::train(texts, 280, &SpecialTokens::default()).unwrap();
        let eos = tokenizer.eos().unwrap();
        let spelt = format!("a{}", tokenizer.token(eos).unwrap());
        assert!(tokenizer.encode(&spelt, false).unwrap().contains(&eos));
        let plain = tokenizer.plain();
        let ids = plain.encode(&spelt, false).unwrap();
        assert!(!ids.contains(&eos));
        assert_eq!(tokenizer.decode(&ids), spelt);
        let (ours, theirs) = (plain.encode("words", true), tokenizer.encode("words", true));
        assert_eq!(ours.unwrap(), theirs.unwrap());
    }
}
