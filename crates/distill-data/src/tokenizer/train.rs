//! A new byte-level BPE vocabulary, trained on the data itself.

use serde_json::Map;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{NormalizerWrapper, TokenizerImpl};

use super::byte_level::{AddedToken, ByteLevelBpe, PreTokenizer};
use super::vocabulary::merges;
use super::{SpecialIds, TextTokenizer, pieces};
use crate::error::DataError;

/// The tokens of a new vocabulary that are not learnt; they take the first ids in this order:
/// end, beginning, padding, unknown, the others. A token that is named twice is one token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpecialTokens {
    /// Ends every document.
    pub eos: String,
    /// Begins every text, if there is one.
    pub bos: Option<String>,
    /// Fills up short sequences.
    pub pad: Option<String>,
    /// Never needed by a byte-level vocabulary; some tools insist on one.
    pub unk: Option<String>,
    /// Further ones, such as `<|im_start|>`.
    pub others: Vec<String>,
}

impl Default for SpecialTokens {
    /// `<|endoftext|>` alone, as GPT-2.
    fn default() -> Self {
        Self { eos: "<|endoftext|>".into(), bos: None, pad: None, unk: None, others: Vec::new() }
    }
}

impl SpecialTokens {
    fn in_order(&self) -> Vec<&str> {
        let named = [Some(&self.eos), self.bos.as_ref(), self.pad.as_ref(), self.unk.as_ref()];
        let mut tokens: Vec<&str> = Vec::new();
        for token in named.into_iter().flatten().chain(&self.others) {
            if !tokens.contains(&token.as_str()) {
                tokens.push(token);
            }
        }
        tokens
    }
}

impl TextTokenizer {
    /// Trains a byte-level BPE with GPT-2's way of splitting words: special tokens first, then
    /// the 256 bytes, then merges until there are `vocab_size` tokens (fewer, if the text has no
    /// more pairs). The same texts give the same vocabulary on every machine. Texts are read as
    /// a stream; what is kept is the distinct words.
    ///
    /// # Errors
    /// [`DataError::VocabularyTooSmall`], [`DataError::NoTrainingText`] if there is no text at all,
    /// the first error of `texts`.
    pub fn train(
        texts: impl Iterator<Item = Result<String, DataError>> + Send,
        vocab_size: usize,
        special: &SpecialTokens,
    ) -> Result<Self, DataError> {
        let tokens = special.in_order();
        if vocab_size < 256 + tokens.len() {
            return Err(DataError::VocabularyTooSmall { vocab_size, special: tokens.len() });
        }
        let model = learn(texts, vocab_size, &tokens)?;
        let vocabulary = model.get_vocab();
        let merges = merges(&serde_json::to_value(&model).unwrap_or_default());
        let id = |token: &Option<String>| token.as_ref().and_then(|t| vocabulary.get(t)).copied();
        let role = SpecialIds {
            bos: id(&special.bos),
            eos: vocabulary.get(&special.eos).copied(),
            pad: id(&special.pad),
            unk: id(&special.unk),
        };
        let mut by_id: Vec<(&str, u32)> =
            vocabulary.iter().map(|(token, &id)| (token.as_str(), id)).collect();
        by_id.sort_unstable_by_key(|&(_, id)| id);
        let added = tokens.iter().filter_map(|&content| {
            let id = *vocabulary.get(content)?;
            Some(AddedToken { content, id, special: true })
        });
        let inner = ByteLevelBpe {
            pre: PreTokenizer::Gpt2,
            merges: merges.iter().map(|(left, right)| (left.as_str(), right.as_str())).collect(),
            added: added.collect(),
            prefix: special.bos.as_deref().zip(role.bos),
            suffix: None,
            vocabulary: by_id,
        }
        .build()?;
        Self::new(inner, role, None, Map::new())
    }
}

/// Learns the merges. The library's trainer breaks ties by id, so that the result does not
/// depend on the order in which threads deliver the words.
fn learn(
    texts: impl Iterator<Item = Result<String, DataError>> + Send,
    vocab_size: usize,
    special: &[&str],
) -> Result<BPE, DataError> {
    let failed = |source| DataError::Tokenizer { action: "train the vocabulary", source };
    let words = ByteLevel::new(false, true, true);
    let mut tokenizer: TokenizerImpl<BPE, NormalizerWrapper, ByteLevel, ByteLevel, ByteLevel> =
        TokenizerImpl::new(BPE::default());
    tokenizer.with_pre_tokenizer(Some(words));
    let mut trainer = BpeTrainer::builder()
        .vocab_size(vocab_size)
        .show_progress(false)
        .special_tokens(special.iter().map(|&t| tokenizers::AddedToken::from(t, true)).collect())
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    let (mut count, mut failure) = (0_usize, None);
    let readable = texts.map_while(|text| match text {
        Ok(text) => {
            count += 1;
            Some(text)
        }
        Err(error) => {
            failure = Some(error);
            None
        }
    });
    // The words of a text are all in memory at once, those of its pieces are not.
    let readable =
        readable.flat_map(|text| pieces::pieces(&text).map(str::to_owned).collect::<Vec<_>>());
    tokenizer.train(&mut trainer, readable).map_err(failed)?;
    match failure {
        Some(error) => Err(error),
        None if count == 0 => Err(DataError::NoTrainingText),
        None => Ok(tokenizer.get_model().clone()),
    }
}
