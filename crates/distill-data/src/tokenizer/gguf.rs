//! A tokenizer from the vocabulary in a GGUF's metadata.

use std::collections::BTreeMap;

use distill_gguf::{GgufFile, Metadata};
use serde_json::Map;

use super::byte_level::{AddedToken, ByteLevelBpe, PreTokenizer};
use super::{SpecialIds, TextTokenizer};
use crate::error::DataError;

const MODEL: &str = "tokenizer.ggml.model";
const PRE: &str = "tokenizer.ggml.pre";
const TOKENS: &str = "tokenizer.ggml.tokens";
const TOKEN_TYPE: &str = "tokenizer.ggml.token_type";
const MERGES: &str = "tokenizer.ggml.merges";
const BOS: &str = "tokenizer.ggml.bos_token_id";
const EOS: &str = "tokenizer.ggml.eos_token_id";
const PAD: &str = "tokenizer.ggml.padding_token_id";
const UNK: &str = "tokenizer.ggml.unknown_token_id";
const ADD_BOS: &str = "tokenizer.ggml.add_bos_token";
const ADD_EOS: &str = "tokenizer.ggml.add_eos_token";
const CHAT_TEMPLATE: &str = "tokenizer.chat_template";

/// `tokenizer.ggml.token_type`: special tokens, matched as a whole.
const CONTROL: i32 = 3;
/// Matched as a whole, and part of the text.
const USER_DEFINED: i32 = 4;
/// Padding of the vocabulary: an embedding row that no text reaches.
const UNUSED: i32 = 5;

impl TextTokenizer {
    /// Builds the byte-level BPE of a GGUF (`gpt2` models whose words are split as gpt-2,
    /// smollm, llama-bpe or qwen2 do) as the family's own `tokenizer.json` has it: control and
    /// user-defined tokens are matched before words are split, unused tokens are left out.
    ///
    /// # Errors
    /// [`DataError::UnsupportedVocabulary`] for other kinds, [`DataError::GgufVocabulary`] for
    /// lists that contradict each other, [`DataError::Gguf`] for missing or mistyped keys.
    pub fn from_gguf(file: &GgufFile) -> Result<Self, DataError> {
        Self::from_metadata(file.metadata())
    }

    fn from_metadata(metadata: &Metadata) -> Result<Self, DataError> {
        let vocabulary = Vocabulary::read(metadata)?;
        let special = SpecialIds {
            bos: vocabulary.special(BOS)?,
            eos: vocabulary.special(EOS)?,
            pad: vocabulary.special(PAD)?,
            unk: vocabulary.special(UNK)?,
        };
        let adds_bos =
            metadata.optional_bool(ADD_BOS)?.unwrap_or(vocabulary.pre.adds_bos_by_default());
        let adds_eos = metadata.optional_bool(ADD_EOS)?.unwrap_or(false);
        let spelt = |id: Option<u32>, wanted: bool| {
            id.filter(|_| wanted).map(|id| (vocabulary.tokens[id as usize], id))
        };
        let inner = ByteLevelBpe {
            pre: vocabulary.pre,
            vocabulary: vocabulary.used().collect(),
            merges: vocabulary.merges()?,
            added: vocabulary.added().collect(),
            prefix: spelt(special.bos, adds_bos),
            suffix: spelt(special.eos, adds_eos),
        }
        .build()?;
        let template = metadata.optional_string(CHAT_TEMPLATE)?.map(str::to_owned);
        Self::new(inner, special, template, Map::new())
    }
}

/// The lists of the metadata, of equal length and without doubles.
struct Vocabulary<'a> {
    metadata: &'a Metadata,
    pre: PreTokenizer,
    tokens: Vec<&'a str>,
    types: Vec<i32>,
    ids: BTreeMap<&'a str, u32>,
}

impl<'a> Vocabulary<'a> {
    fn read(metadata: &'a Metadata) -> Result<Self, DataError> {
        let unsupported = |key, found: &str, expected: &[&str]| DataError::UnsupportedVocabulary {
            path: metadata.file().to_path_buf(),
            key,
            found: found.to_owned(),
            expected: expected.iter().map(|&name| name.to_owned()).collect(),
        };
        let model = metadata.string(MODEL)?;
        if model != "gpt2" {
            return Err(unsupported(MODEL, model, &["gpt2"]));
        }
        let pre = metadata.string(PRE)?;
        let names = PreTokenizer::NAMES.map(|(name, _)| name);
        let pre = PreTokenizer::from_name(pre).ok_or_else(|| unsupported(PRE, pre, &names))?;
        let tokens: Vec<&str> = metadata.strings(TOKENS)?.iter().collect();
        let types = match metadata.contains(TOKEN_TYPE) {
            true => metadata.i32s(TOKEN_TYPE)?,
            false => vec![1; tokens.len()],
        };
        let (count, ids) = (tokens.len(), BTreeMap::new());
        let mut vocabulary = Self { metadata, pre, tokens, types, ids };
        if vocabulary.types.len() != count {
            let problem = format!("{} types for {count} tokens", vocabulary.types.len());
            return Err(vocabulary.contradiction(TOKEN_TYPE, problem));
        }
        for (token, id) in vocabulary.used() {
            if let Some(first) = vocabulary.ids.insert(token, id) {
                let problem = format!("tokens {first} and {id} are both {token:?}");
                return Err(vocabulary.contradiction(TOKENS, problem));
            }
        }
        Ok(vocabulary)
    }

    /// Tokens and ids without the padding of the vocabulary.
    fn used(&self) -> impl Iterator<Item = (&'a str, u32)> + use<'a> {
        let used: Vec<bool> = self
            .tokens
            .iter()
            .zip(&self.types)
            .enumerate()
            .map(|(id, (t, &k))| !is_padding(id, t, k))
            .collect();
        let tokens = self.tokens.clone().into_iter().zip(0_u32..).zip(used);
        tokens.filter(|&(_, used)| used).map(|(token, _)| token)
    }

    /// Tokens that are matched as a whole.
    fn added(&self) -> impl Iterator<Item = AddedToken<'a>> {
        self.used().filter_map(|(content, id)| match self.types[id as usize] {
            CONTROL => Some(AddedToken { content, id, special: true }),
            USER_DEFINED => Some(AddedToken { content, id, special: false }),
            _ => None,
        })
    }

    /// Merges as pairs of tokens. A merge is spelt `left right`; byte-level tokens hold no space,
    /// but one may begin with it.
    fn merges(&self) -> Result<Vec<(&'a str, &'a str)>, DataError> {
        let merges = self.metadata.strings(MERGES)?;
        let mut pairs = Vec::with_capacity(merges.len());
        for (rank, merge) in merges.iter().enumerate() {
            let space = merge.bytes().skip(1).position(|byte| byte == b' ').map(|at| at + 1);
            let Some(space) = space else {
                let problem = format!("merge {rank} is {merge:?}, expected two tokens");
                return Err(self.contradiction(MERGES, problem));
            };
            let (left, right) = (&merge[..space], &merge[space + 1..]);
            for token in [left, right, &[left, right].concat()] {
                if !self.ids.contains_key(token) {
                    let problem = format!("merge {rank} needs {token:?}, which is no token");
                    return Err(self.contradiction(MERGES, problem));
                }
            }
            pairs.push((left, right));
        }
        Ok(pairs)
    }

    /// The id that a key names, if it is there and a token in use.
    fn special(&self, key: &'static str) -> Result<Option<u32>, DataError> {
        let Some(id) = self.metadata.optional_u32(key)? else {
            return Ok(None);
        };
        let problem = match self.tokens.get(id as usize) {
            None => format!("{id} is not below {} tokens", self.tokens.len()),
            Some(token) if is_padding(id as usize, token, self.types[id as usize]) => {
                format!("{id} is an unused token")
            }
            Some(_) => return Ok(Some(id)),
        };
        Err(self.contradiction(key, problem))
    }

    fn contradiction(&self, key: &'static str, problem: String) -> DataError {
        DataError::GgufVocabulary { path: self.metadata.file().to_path_buf(), key, problem }
    }
}

/// Whether a token only pads the vocabulary. Older converters call such tokens user-defined and
/// name each after its id: `[PAD151646]`.
fn is_padding(id: usize, token: &str, kind: i32) -> bool {
    let named = || token.strip_prefix("[PAD")?.strip_suffix(']')?.parse().ok();
    kind == UNUSED || (kind == USER_DEFINED && named() == Some(id))
}
