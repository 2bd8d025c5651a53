//! A tokenizer from its parts: checks that they fit each other.
//!
//! The lists of a vocabulary become [`Tables`], which `model.edge` holds instead; with a few
//! [`Settings`], these become a tokenizer, wherever they come from.

use distill_gguf::Strings;

use super::bpe::{Merge, Merges, MergesMaker};
use super::hash::Seed;
use super::sentence_piece::{Spaces, merges_by_score};
use super::specials::Specials;
use super::symbols::Symbols;
use super::table::Crowded;
use super::texts::{Index, IndexView, TextsMaker, TooLarge};
use super::vocabulary::{Spelling, TokenKind, Vocabulary};
use super::{PreTokenizer, Tokenizer};

/// A vocabulary, as GGUF metadata spells it.
#[derive(Clone, Debug)]
pub(crate) struct Lists<'a> {
    pub scheme: Scheme<'a>,
    pub tokens: &'a Strings,
    /// One code a token (1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte), or
    /// empty: all normal.
    pub types: &'a [i32],
}

/// What text and tokens are looked up in.
#[derive(Clone, Debug)]
pub(super) struct Tables {
    pub seed: Seed,
    pub vocabulary: Vocabulary,
    pub symbols: Symbols,
    pub merges: Merges,
    /// Normal tokens by their bytes, only where the rule takes whole pieces.
    pub whole_pieces: Option<Index>,
}

/// The other keys.
#[derive(Clone, Debug, Default)]
pub(crate) struct Settings {
    pub unknown: Option<u32>,
    pub bos: Option<u32>,
    pub eos: Option<u32>,
    /// Further ids that end a turn.
    pub ends: Vec<u32>,
    pub add_bos: Option<bool>,
    pub add_eos: bool,
    pub chat_template: Option<String>,
}

/// How text becomes tokens (`tokenizer.ggml.model`).
#[derive(Clone, Copy, Debug)]
pub(crate) enum Scheme<'a> {
    /// `gpt2`: byte-level BPE with a merge list.
    ByteLevel { pre: &'a str, merges: &'a Strings },
    /// `llama`: SentencePiece BPE, whose merges follow from scores.
    Scores { scores: &'a [f32], space_prefix: bool },
    /// `gemma4`: SentencePiece's symbols with a merge list.
    Merges { merges: &'a Strings, space_prefix: bool },
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
    Utf8 { id: u32 },
    TooLarge,
    Crowded,
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

/// So many seeds are tried for tables that take every entry; the first nearly always is enough.
const SEEDS: u64 = 16;

impl Lists<'_> {
    /// The tables, hashed with `seed`, or one of those behind it.
    pub(super) fn tables(&self, seed: Seed) -> Result<Tables, PartsError> {
        let mut tables = Err(PartsError::Crowded);
        for i in 0..SEEDS {
            if matches!(tables, Err(PartsError::Crowded)) {
                tables = self.tables_with(Seed::new(seed.value().wrapping_add(i)));
            }
        }
        tables
    }

    fn tables_with(&self, seed: Seed) -> Result<Tables, PartsError> {
        let &Self { scheme, tokens, types } = self;
        if !types.is_empty() && types.len() != tokens.len() {
            return Err(PartsError::TypeCount(types.len()));
        }
        let kinds = TokenKind::of(tokens, types);
        let mut texts = TextsMaker::with_capacity(tokens.len());
        for token in tokens {
            texts.push(|bytes| bytes.extend_from_slice(token.as_bytes()))?;
        }
        let texts = texts.done();
        let index = || Index::new(&texts, &|_| true, seed);
        let characters =
            |prefix| Symbols::characters(Spaces::new(prefix, tokens, &kinds), tokens, &kinds, seed);
        let (symbols, merges, spelling) = match scheme {
            Scheme::ByteLevel { pre, merges } => {
                let pre =
                    PreTokenizer::from_name(pre).ok_or_else(|| PartsError::Pre(pre.to_owned()))?;
                let ids = index()?;
                let symbols =
                    Symbols::byte_level(pre, |text| ids.view(&texts).get(text.as_bytes()));
                (symbols, listed_merges(merges, ids.view(&texts), seed)?, Spelling::ByteLevel)
            }
            Scheme::Scores { scores, space_prefix } => {
                let merges = merges_by_score(&texts, &kinds, scores, seed)?;
                (characters(space_prefix)?, merges, Spelling::Text)
            }
            Scheme::Merges { merges, space_prefix } => {
                let symbols = characters(space_prefix)?;
                (symbols, listed_merges(merges, index()?.view(&texts), seed)?, Spelling::Text)
            }
        };
        let vocabulary = Vocabulary::new(tokens, &kinds, spelling)?;
        let whole_pieces = match symbols.takes_whole_pieces() {
            true => {
                let is_normal = |id| vocabulary.kind(id) == Some(TokenKind::Normal);
                Some(Index::new(vocabulary.pieces(), &is_normal, seed)?)
            }
            false => None,
        };
        let merges = merges.done(tokens.len());
        Ok(Tables { seed, vocabulary, symbols, merges, whole_pieces })
    }
}

impl Tables {
    /// The tokenizer with these tables.
    pub(super) fn tokenizer(self, settings: Settings) -> Result<Tokenizer, PartsError> {
        let Self { vocabulary, symbols, merges, whole_pieces, .. } = self;
        settings.check_ids(vocabulary.len())?;
        let mut special = Vec::new();
        for (id, kind) in vocabulary.kinds().filter(|(_, kind)| kind.is_special()) {
            // A text is cut where one of these ends, which has to be between two characters.
            let text = std::str::from_utf8(vocabulary.piece(id));
            special.push((id, text.map_err(|_| PartsError::Utf8 { id })?, kind));
        }
        let specials = Specials::new(special.iter().copied())?;
        // SentencePiece vocabularies have an unknown token whether the file names it or not.
        let unknown = special.iter().find(|(.., kind)| *kind == TokenKind::Unknown);
        let unknown = match symbols {
            Symbols::Bytes { .. } => settings.unknown,
            Symbols::Characters { .. } => settings.unknown.or(unknown.map(|&(id, ..)| id)),
        };
        Ok(Tokenizer {
            end_of_generation: settings.end_of_generation(&special),
            add_bos: settings.add_bos.unwrap_or(adds_bos(&symbols)),
            whole_pieces,
            vocabulary,
            symbols,
            merges,
            specials,
            unknown,
            bos: settings.bos,
            eos: settings.eos,
            add_eos: settings.add_eos,
            chat_template: settings.chat_template,
        })
    }
}

impl Settings {
    fn check_ids(&self, tokens: usize) -> Result<(), PartsError> {
        let ids = [("unknown", self.unknown), ("bos", self.bos), ("eos", self.eos)];
        let ends = self.ends.iter().map(|&id| ("end of turn", Some(id)));
        for (what, id) in ids.into_iter().chain(ends) {
            if let Some(id) = id.filter(|&id| id as usize >= tokens) {
                return Err(PartsError::Id { what, id });
            }
        }
        Ok(())
    }

    /// The ids that end a turn.
    fn end_of_generation(&self, special: &[(u32, &str, TokenKind)]) -> Vec<u32> {
        let known = special
            .iter()
            .filter(|(_, text, kind)| *kind == TokenKind::Control && TURN_ENDS.contains(text));
        let named = self.eos.iter().chain(&self.ends).copied();
        named.chain(known.map(|&(id, ..)| id)).collect()
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
fn listed_merges(
    list: &Strings,
    ids: IndexView<'_>,
    seed: Seed,
) -> Result<MergesMaker, PartsError> {
    let mut merges = MergesMaker::new(list.len(), seed);
    let (mut joined, mut last) = (Vec::new(), None);
    for (index, text) in list.iter().enumerate() {
        let bad = || PartsError::Merge { index, text: text.to_owned() };
        let (left, right) = text.split_once(' ').ok_or_else(bad)?;
        joined.clear();
        joined.extend_from_slice(left.as_bytes());
        joined.extend_from_slice(right.as_bytes());
        let id = |text: &[u8]| ids.get(text).ok_or_else(bad);
        // Lists that were made from scores name every way to the same token in a row.
        let token = match last {
            Some(token) if ids.text(token) == joined => token,
            _ => id(&joined)?,
        };
        last = Some(token);
        let rank = u32::try_from(index).map_err(|_| PartsError::TooLarge)?;
        merges.add(id(left.as_bytes())?, id(right.as_bytes())?, Merge { rank, token })?;
    }
    Ok(merges)
}

impl From<Crowded> for PartsError {
    fn from(_: Crowded) -> Self {
        Self::Crowded
    }
}

impl From<TooLarge> for PartsError {
    fn from(_: TooLarge) -> Self {
        Self::TooLarge
    }
}
