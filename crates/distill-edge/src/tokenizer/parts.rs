//! A tokenizer from its parts: checks that they fit each other.

use super::bpe::{Merge, Merges};
use super::sentence_piece::{Spaces, merges_by_score};
use super::specials::Specials;
use super::symbols::Symbols;
use super::texts::{Index, Texts, TooLarge};
use super::vocabulary::{Spelling, TokenKind, Vocabulary};
use super::{PreTokenizer, Tokenizer};

/// Everything a tokenizer is made of, as GGUF metadata spells it.
#[derive(Clone, Debug)]
pub(crate) struct Parts<'a> {
    pub scheme: Scheme<'a>,
    pub tokens: &'a [String],
    /// One code a token (1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte), or
    /// empty: all normal.
    pub types: &'a [i32],
    pub unknown: Option<u32>,
    pub bos: Option<u32>,
    pub eos: Option<u32>,
    /// Further ids that end a turn.
    pub ends: &'a [u32],
    pub add_bos: Option<bool>,
    pub add_eos: bool,
    pub chat_template: Option<String>,
}

/// How text becomes tokens (`tokenizer.ggml.model`).
#[derive(Clone, Copy, Debug)]
pub(crate) enum Scheme<'a> {
    /// `gpt2`: byte-level BPE with a merge list.
    ByteLevel { pre: &'a str, merges: &'a [String] },
    /// `llama`: SentencePiece BPE, whose merges follow from scores.
    Scores { scores: &'a [f32], space_prefix: bool },
    /// `gemma4`: SentencePiece's symbols with a merge list.
    Merges { merges: &'a [String], space_prefix: bool },
}

/// What is wrong with [`Parts`], without the file's name.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum PartsError {
    Pre(String),
    TypeCount(usize),
    ScoreCount(usize),
    Score { index: usize, score: f32 },
    Length { index: usize, bytes: usize },
    Byte { index: usize, text: String },
    Merge { index: usize, text: String },
    Id { what: &'static str, id: u32 },
    TooLarge,
}

/// Control tokens that end a turn in the model families this runtime reads.
const TURN_ENDS: [&str; 8] = [
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<end_of_turn>",
    "<turn|>",
];

impl Parts<'_> {
    pub(crate) fn build(self) -> Result<Tokenizer, PartsError> {
        if !self.types.is_empty() && self.types.len() != self.tokens.len() {
            return Err(PartsError::TypeCount(self.types.len()));
        }
        self.check_ids()?;
        let kinds = TokenKind::of(self.tokens, self.types);
        let mut texts = Texts::with_capacity(self.tokens.len());
        for token in self.tokens {
            texts.push(|bytes| bytes.extend_from_slice(token.as_bytes()))?;
        }
        let all = 0..self.tokens.len() as u32;
        let spaces = |prefix| Spaces::new(prefix, self.tokens, &kinds);
        let (symbols, merges, spelling) = match self.scheme {
            Scheme::ByteLevel { pre, merges } => {
                let pre =
                    PreTokenizer::from_name(pre).ok_or_else(|| PartsError::Pre(pre.to_owned()))?;
                let ids = Index::new(&texts, all);
                let symbols = Symbols::byte_level(pre, |text| ids.get(&texts, text.as_bytes()));
                (symbols, listed_merges(merges, &texts, &ids)?, Spelling::ByteLevel)
            }
            Scheme::Scores { scores, space_prefix } => {
                let merges = merges_by_score(&texts, &kinds, scores)?;
                let symbols = Symbols::characters(spaces(space_prefix), self.tokens, &kinds);
                (symbols, merges, Spelling::Text)
            }
            Scheme::Merges { merges, space_prefix } => {
                let symbols = Symbols::characters(spaces(space_prefix), self.tokens, &kinds);
                let ids = Index::new(&texts, all);
                (symbols, listed_merges(merges, &texts, &ids)?, Spelling::Text)
            }
        };
        let specials = (0..).zip(self.tokens).zip(&kinds);
        let specials =
            Specials::new(specials.map(|((id, text), &kind)| (id, text.as_str(), kind)))?;
        let end_of_generation = self.end_of_generation(&kinds);
        // SentencePiece vocabularies have an unknown token whether the file names it or not.
        let unknown = (0..).zip(&kinds).find(|(_, kind)| **kind == TokenKind::Unknown);
        let unknown = match spelling {
            Spelling::ByteLevel => self.unknown,
            Spelling::Text => self.unknown.or(unknown.map(|(id, _)| id)),
        };
        let vocabulary = Vocabulary::new(self.tokens, kinds, spelling)?;
        let takes_whole_pieces =
            matches!(symbols, Symbols::Bytes { pre, .. } if pre.ignores_merges());
        Ok(Tokenizer {
            whole_pieces: takes_whole_pieces
                .then(|| Index::new(vocabulary.pieces(), vocabulary.normal())),
            add_bos: self.add_bos.unwrap_or(adds_bos(&symbols)),
            vocabulary,
            symbols,
            merges,
            specials,
            unknown,
            bos: self.bos,
            eos: self.eos,
            end_of_generation,
            add_eos: self.add_eos,
            chat_template: self.chat_template,
        })
    }

    fn check_ids(&self) -> Result<(), PartsError> {
        let ids = [("unknown", self.unknown), ("bos", self.bos), ("eos", self.eos)];
        let ends = self.ends.iter().map(|&id| ("end of turn", Some(id)));
        for (what, id) in ids.into_iter().chain(ends) {
            if let Some(id) = id.filter(|&id| id as usize >= self.tokens.len()) {
                return Err(PartsError::Id { what, id });
            }
        }
        Ok(())
    }

    /// The ids that end a turn, in ascending order.
    fn end_of_generation(&self, kinds: &[TokenKind]) -> Vec<u32> {
        let ends = (0..).zip(self.tokens).zip(kinds).filter(|&((id, text), kind)| {
            self.eos == Some(id)
                || self.ends.contains(&id)
                || *kind == TokenKind::Control && TURN_ENDS.contains(&text.as_str())
        });
        ends.map(|((id, _), _)| id).collect()
    }
}

/// Whether texts begin with a BOS where the file does not say: Llama 3 and SentencePiece do.
fn adds_bos(symbols: &Symbols) -> bool {
    match symbols {
        Symbols::Bytes { pre, .. } => *pre == PreTokenizer::LlamaBpe,
        Symbols::Characters { .. } => true,
    }
}

/// The merge table of a list; every merge is `left right`, and all three texts must be tokens.
fn listed_merges(list: &[String], texts: &Texts, ids: &Index) -> Result<Merges, PartsError> {
    let mut merges = Merges::with_capacity(list.len());
    let (mut joined, mut last) = (Vec::new(), None);
    for (index, text) in list.iter().enumerate() {
        let bad = || PartsError::Merge { index, text: text.clone() };
        let (left, right) = text.split_once(' ').ok_or_else(bad)?;
        joined.clear();
        joined.extend_from_slice(left.as_bytes());
        joined.extend_from_slice(right.as_bytes());
        let id = |text: &[u8]| ids.get(texts, text).ok_or_else(bad);
        // Lists that were made from scores name every way to the same token in a row.
        let token = match last {
            Some(token) if texts.get(token) == joined => token,
            _ => id(&joined)?,
        };
        last = Some(token);
        let rank = u32::try_from(index).map_err(|_| PartsError::TooLarge)?;
        merges.add(id(left.as_bytes())?, id(right.as_bytes())?, Merge { rank, token });
    }
    Ok(merges)
}

impl From<TooLarge> for PartsError {
    fn from(_: TooLarge) -> Self {
        Self::TooLarge
    }
}
