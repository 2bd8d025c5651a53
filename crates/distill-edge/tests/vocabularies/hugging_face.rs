//! Hugging Face's `tokenizers` with the vocabulary of a GGUF, put together as the converters of
//! `transformers` and the models' own `tokenizer.json` do.

use std::collections::HashMap;

use distill_gguf::{Metadata, Strings};
use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::sequence::Sequence as Decoders;
use tokenizers::decoders::strip::Strip;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::{Prepend, Replace, Sequence as Normalizers};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior, Tokenizer};

type MergeList = Vec<(String, String)>;

/// The peer of the runtime's tokenizer for the same file.
///
/// Qwen 2's `tokenizer.json` applies NFC first; the runtime leaves that to the caller, and so
/// does this.
pub fn tokenizer(metadata: &Metadata) -> Tokenizer {
    let model = metadata.string("tokenizer.ggml.model").unwrap();
    let tokens = metadata.strings("tokenizer.ggml.tokens").unwrap();
    let types = metadata.i32s("tokenizer.ggml.token_type").unwrap();
    let vocabulary: HashMap<&str, u32> = (0..).zip(tokens).map(|(id, token)| (token, id)).collect();
    let merges = match model {
        "llama" => {
            merges_by_score(tokens, &vocabulary, metadata.f32s("tokenizer.ggml.scores").unwrap())
        }
        _ => listed_merges(metadata.strings("tokenizer.ggml.merges").unwrap()),
    };
    let owned: Vocab = vocabulary.iter().map(|(token, &id)| ((*token).to_owned(), id)).collect();
    let builder = BPE::builder().vocab_and_merges(owned, merges);
    let mut tokenizer = if model == "gpt2" {
        let pre = metadata.string("tokenizer.ggml.pre").unwrap();
        let bpe = builder.ignore_merges(pre == "llama-bpe").build().unwrap();
        let mut tokenizer = Tokenizer::new(bpe);
        tokenizer.with_pre_tokenizer(Some(words(pre)));
        tokenizer.with_decoder(Some(ByteLevel::default()));
        tokenizer
    } else {
        let builder = builder.byte_fallback(true).fuse_unk(true).unk_token("<unk>".to_owned());
        let mut tokenizer = Tokenizer::new(builder.build().unwrap());
        let prefix = metadata
            .optional_bool("tokenizer.ggml.add_space_prefix")
            .unwrap()
            .unwrap_or(model == "llama");
        spaces(&mut tokenizer, prefix);
        tokenizer
    };
    add_special(&mut tokenizer, tokens, &types);
    tokenizer
}

/// Every pair of tokens that spells a token, as `transformers` lists them for SentencePiece.
fn merges_by_score(tokens: &Strings, ids: &HashMap<&str, u32>, scores: &[f32]) -> MergeList {
    let mut merges = Vec::new();
    for (token, &score) in tokens.iter().zip(scores) {
        let mut own: Vec<(u32, u32)> = (1..token.len())
            .filter(|&at| token.is_char_boundary(at))
            .filter_map(|at| Some((*ids.get(&token[..at])?, *ids.get(&token[at..])?)))
            .collect();
        own.sort_unstable();
        merges.extend(own.into_iter().map(|pair| (score, pair)));
    }
    merges.sort_by(|(a, _), (b, _)| b.partial_cmp(a).unwrap());
    let tokens: Vec<&str> = tokens.iter().collect();
    let text = |id: u32| tokens[id as usize].to_owned();
    merges.into_iter().map(|(_, (left, right))| (text(left), text(right))).collect()
}

fn listed_merges(merges: &Strings) -> MergeList {
    let pair = |merge: &str| {
        let (left, right) = merge.split_once(' ').unwrap();
        (left.to_owned(), right.to_owned())
    };
    merges.iter().map(pair).collect()
}

/// The pre-tokenizers of the families' `tokenizer.json`.
fn words(pre: &str) -> PreTokenizers {
    let (numbers, marks) = match pre {
        "gpt-2" => return PreTokenizers::new(vec![ByteLevel::new(false, true, true).into()]),
        "smollm" => {
            let bytes = ByteLevel::new(false, true, true);
            return PreTokenizers::new(vec![Digits::new(true).into(), bytes.into()]);
        }
        "llama-bpe" => (r"\p{N}{1,3}", ""),
        "qwen2" => (r"\p{N}", ""),
        "qwen35" => (r"\p{N}", r"\p{M}"),
        other => panic!("no peer for the pre-tokenizer {other}"),
    };
    let pattern = format!(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}{marks}]+|{numbers}| ?[^\s\p{{L}}{marks}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    );
    let split =
        Split::new(SplitPattern::Regex(pattern), SplitDelimiterBehavior::Isolated, false).unwrap();
    PreTokenizers::new(vec![split.into(), ByteLevel::new(false, true, false).into()])
}

/// SentencePiece's normalisation and its inverse.
fn spaces(tokenizer: &mut Tokenizer, prefix: bool) {
    let replace = Replace::new(" ", "▁").unwrap();
    let mut normalizers = vec![replace.into()];
    let mut decoders = vec![
        Replace::new("▁", " ").unwrap().into(),
        ByteFallback::default().into(),
        Fuse::default().into(),
    ];
    if prefix {
        normalizers.insert(0, Prepend::new("▁".to_owned()).into());
        decoders.push(Strip::new(' ', 1, 0).into());
    }
    tokenizer.with_normalizer(Some(Normalizers::new(normalizers))).unwrap();
    tokenizer.with_decoder(Some(Decoders::new(decoders)));
}

/// Tokens matched in the text as it is, before anything else. Those that pad the vocabulary, each
/// named after its id, are no tokens of the model's own tokenizer.
fn add_special(tokenizer: &mut Tokenizer, tokens: &Strings, types: &[i32]) {
    for (id, (token, kind)) in tokens.iter().zip(types).enumerate() {
        let added = AddedToken::from(token.to_owned(), matches!(kind, 2 | 3)).normalized(false);
        match kind {
            _ if *token == format!("[PAD{id}]") => {}
            2 | 3 => drop(tokenizer.add_special_tokens([added]).unwrap()),
            4 => drop(tokenizer.add_tokens([added]).unwrap()),
            _ => {}
        }
    }
}

/// The ids of `text`; with `plain`, control tokens in it are text.
pub fn encode(tokenizer: &mut Tokenizer, text: &str, plain: bool) -> Vec<u32> {
    tokenizer.set_encode_special_tokens(plain);
    tokenizer.encode_fast(text, false).unwrap().get_ids().to_vec()
}
