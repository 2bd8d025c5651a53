//! Byte-level BPE as the families of GPT-2 write it into their `tokenizer.json`.
//!
//! A tokenizer is put together as that file's JSON and then read by the library: what is saved
//! later is what was built, and both ways in share one reader.

use serde_json::{Map, Value, json};
use tokenizers::Tokenizer;

use crate::error::DataError;

/// How text is split into words before merging; the names are those of GGUF's
/// `tokenizer.ggml.pre`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PreTokenizer {
    Gpt2,
    SmolLm,
    LlamaBpe,
    Qwen2,
}

/// Llama 3's words: contractions in any case, digits by threes, punctuation with its newlines.
const LLAMA_BPE_WORDS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Qwen 2's words: as Llama 3's, each digit alone.
const QWEN2_WORDS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

impl PreTokenizer {
    pub(super) const NAMES: [(&'static str, Self); 4] = [
        ("gpt-2", Self::Gpt2),
        ("smollm", Self::SmolLm),
        ("llama-bpe", Self::LlamaBpe),
        ("qwen2", Self::Qwen2),
    ];

    pub(super) fn from_name(name: &str) -> Option<Self> {
        Self::NAMES.iter().find(|(known, _)| *known == name).map(|&(_, pre)| pre)
    }

    /// Whether a word that is itself a token is taken as it is, unmerged.
    fn ignores_merges(self) -> bool {
        self == Self::LlamaBpe
    }

    /// Whether the family begins a text with its beginning-of-sequence token when its file does
    /// not say.
    pub(super) fn adds_bos_by_default(self) -> bool {
        self == Self::LlamaBpe
    }

    fn normalizer(self) -> Value {
        match self {
            Self::Qwen2 => json!({ "type": "NFC" }),
            Self::Gpt2 | Self::SmolLm | Self::LlamaBpe => Value::Null,
        }
    }

    fn pre_tokenizer(self) -> Value {
        let sequence = |first: Value, use_regex: bool| json!({ "type": "Sequence", "pretokenizers": [first, byte_level(use_regex)] });
        let split = |words: &str| {
            json!({
                "type": "Split",
                "pattern": { "Regex": words },
                "behavior": "Isolated",
                "invert": false,
            })
        };
        match self {
            Self::Gpt2 => byte_level(true),
            Self::SmolLm => sequence(json!({ "type": "Digits", "individual_digits": true }), true),
            Self::LlamaBpe => sequence(split(LLAMA_BPE_WORDS), false),
            Self::Qwen2 => sequence(split(QWEN2_WORDS), false),
        }
    }
}

/// Whether a serialised pre-tokenizer splits words as one of the families does.
pub(super) fn is_known(pre_tokenizer: &Value) -> bool {
    let kind = |value: &Value| value["type"].as_str().unwrap_or_default().to_owned();
    match kind(pre_tokenizer).as_str() {
        "Sequence" => {
            let steps = pre_tokenizer["pretokenizers"].as_array();
            steps.is_some_and(|steps| !steps.is_empty() && steps.iter().all(is_known))
        }
        "ByteLevel" => pre_tokenizer["add_prefix_space"] == false,
        "Digits" => true,
        "Split" => {
            let words = pre_tokenizer["pattern"]["Regex"].as_str();
            words.is_some_and(|words| [LLAMA_BPE_WORDS, QWEN2_WORDS].contains(&words))
                && pre_tokenizer["behavior"] == "Isolated"
                && pre_tokenizer["invert"] == false
        }
        _ => false,
    }
}

fn byte_level(use_regex: bool) -> Value {
    json!({
        "type": "ByteLevel",
        "add_prefix_space": false,
        "trim_offsets": true,
        "use_regex": use_regex,
    })
}

/// The parts of a byte-level BPE tokenizer.
pub(super) struct ByteLevelBpe<'a> {
    pub(super) pre: PreTokenizer,
    /// Token and id.
    pub(super) vocabulary: Vec<(&'a str, u32)>,
    /// In the order of their rank.
    pub(super) merges: Vec<(&'a str, &'a str)>,
    /// Tokens found in the text before it is split into words.
    pub(super) added: Vec<AddedToken<'a>>,
    /// Put before every text.
    pub(super) prefix: Option<(&'a str, u32)>,
    /// Put behind every text.
    pub(super) suffix: Option<(&'a str, u32)>,
}

/// A token that is matched as a whole.
pub(super) struct AddedToken<'a> {
    pub(super) content: &'a str,
    pub(super) id: u32,
    /// Control tokens, which decoding may leave out.
    pub(super) special: bool,
}

impl ByteLevelBpe<'_> {
    pub(super) fn build(&self) -> Result<Tokenizer, DataError> {
        serde_json::from_value(self.json()).map_err(|error| DataError::Tokenizer {
            action: "build the tokenizer",
            source: error.into(),
        })
    }

    fn json(&self) -> Value {
        let vocabulary: Map<String, Value> =
            self.vocabulary.iter().map(|&(token, id)| (token.to_owned(), id.into())).collect();
        let added: Vec<Value> = self
            .added
            .iter()
            .map(|token| {
                json!({
                    "id": token.id,
                    "content": token.content,
                    "single_word": false,
                    "lstrip": false,
                    "rstrip": false,
                    "normalized": false,
                    "special": token.special,
                })
            })
            .collect();
        json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": added,
            "normalizer": self.pre.normalizer(),
            "pre_tokenizer": self.pre.pre_tokenizer(),
            "post_processor": self.post_processor(),
            "decoder": byte_level(true),
            "model": {
                "type": "BPE",
                "dropout": null,
                "unk_token": null,
                "continuing_subword_prefix": null,
                "end_of_word_suffix": null,
                "fuse_unk": false,
                "byte_fallback": false,
                "ignore_merges": self.pre.ignores_merges(),
                "vocab": vocabulary,
                "merges": self.merges,
            },
        })
    }

    fn post_processor(&self) -> Value {
        if self.prefix.is_none() && self.suffix.is_none() {
            return byte_level(true);
        }
        let piece = |token: &Option<(&str, u32)>, kind: u32| {
            token.map(|(content, _)| json!({ "SpecialToken": { "id": content, "type_id": kind } }))
        };
        let around = |name: &str, kind: u32| {
            let text = json!({ "Sequence": { "id": name, "type_id": kind } });
            let pieces = [piece(&self.prefix, kind), Some(text), piece(&self.suffix, kind)];
            pieces.into_iter().flatten().collect::<Vec<Value>>()
        };
        let special: Map<String, Value> = [self.prefix, self.suffix]
            .into_iter()
            .flatten()
            .map(|(content, id)| {
                let token = json!({ "id": content, "ids": [id], "tokens": [content] });
                (content.to_owned(), token)
            })
            .collect();
        let pair = [around("A", 0), around("B", 1)].concat();
        json!({
            "type": "TemplateProcessing",
            "single": around("A", 0),
            "pair": pair,
            "special_tokens": special,
        })
    }
}

/// A family's tokenizer with the 256 bytes, a few merges and the added token `<e>`.
#[cfg(test)]
pub(super) fn example(name: &str) -> Tokenizer {
    use tokenizers::pre_tokenizers::byte_level::ByteLevel;

    let mut tokens: Vec<String> = ByteLevel::alphabet().iter().map(char::to_string).collect();
    tokens.sort_unstable();
    let merges = [("a", "b"), ("Ġ", "a"), ("Ċ", "Ċ"), ("Ġ", "Ġ"), (".", "Ċ"), ("ab", "c")];
    tokens.extend(merges.iter().map(|(left, right)| [*left, *right].concat()));
    tokens.push("<e>".into());
    let added = AddedToken { content: "<e>", id: tokens.len() as u32 - 1, special: true };
    ByteLevelBpe {
        pre: PreTokenizer::from_name(name).unwrap(),
        vocabulary: tokens.iter().map(String::as_str).zip(0..).collect(),
        merges: merges.to_vec(),
        added: vec![added],
        prefix: None,
        suffix: None,
    }
    .build()
    .unwrap()
}
