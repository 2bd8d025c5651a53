//! The tables of `model.edge`: the tokenizer that maps them is the one that is made of the lists,
//! and whatever stands in them, it encodes and decodes without a panic.

mod tiny_model;
mod vocabularies;

use std::path::Path;
use std::sync::LazyLock;

use distill_edge::{EdgeError, PreTokenizer, StoredVocabulary, Tokenizer};
use distill_gguf::{GgmlType, GgufFile, GgufWriter, Value};
use proptest::prelude::*;
use tiny_model::{Draft, SHAPE};
use vocabularies::random::{for_texts, unicode, with_special};
use vocabularies::{ALL, open, vectors};

/// A file that holds a vocabulary as `model.edge` does, and nothing else.
fn stored(file: &GgufFile) -> GgufFile {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("stored.edge");
    let StoredVocabulary { keys, tensors } = StoredVocabulary::of(file).unwrap().unwrap();
    let mut writer = GgufWriter::create(&path).unwrap();
    let kept = |key: &str| !StoredVocabulary::INSTEAD_OF.contains(&key);
    for (key, value) in file.metadata().iter().filter(|(key, _)| kept(key)) {
        writer.set(key, value.clone());
    }
    for (key, value) in keys {
        writer.set(key, value);
    }
    for tensor in &tensors {
        writer.tensor(tensor.name, &tensor.dims, tensor.ty, &tensor.bytes[..]).unwrap();
    }
    writer.finish().unwrap();
    GgufFile::open(&path).unwrap()
}

#[test]
fn mapped_tables_give_the_tokenizer_of_the_lists() {
    for name in ALL {
        let Some(vocabulary) = open(name) else { continue };
        let listed = &vocabulary.tokenizer;
        let mapped = &Tokenizer::from_gguf(&stored(&vocabulary.file)).unwrap();
        assert_eq!(mapped.vocab_size(), listed.vocab_size());
        for id in 0..=listed.vocab_size() as u32 {
            assert_eq!(mapped.piece(id), listed.piece(id), "{name} {id}");
            assert_eq!(mapped.kind(id), listed.kind(id), "{name} {id}");
            assert_eq!(mapped.is_eog(id), listed.is_eog(id), "{name} {id}");
        }
        assert_eq!((mapped.bos(), mapped.eos()), (listed.bos(), listed.eos()));
        assert_eq!(mapped.chat_template(), listed.chat_template());
        assert_eq!(mapped.pre_tokenizer(), listed.pre_tokenizer());
        let same = |text: &str| {
            assert_eq!(mapped.encode(text, true), listed.encode(text, true), "{name} {text:?}");
            assert_eq!(mapped.encode_plain(text), listed.encode_plain(text), "{name} {text:?}");
        };
        for_texts(unicode(), same);
        for_texts(with_special(&vocabulary), same);
        if name != "smollm2" {
            for (text, ids) in vectors(name) {
                assert_eq!(mapped.encode(&text, false), ids, "{name} {text:?}");
                assert_eq!(mapped.decode(&ids), text, "{name}");
            }
        }
    }
}

#[test]
fn the_tables_of_a_file_are_the_same_whenever_they_are_made() {
    let file = GgufFile::from_bytes(tiny("gpt2", "llama-bpe").bytes(), Path::new("tiny")).unwrap();
    let make = || stored(&file).bytes().to_vec();
    assert_eq!(make(), make());
    assert!(StoredVocabulary::of(&stored(&file)).unwrap().is_none(), "tables have no lists");
}

#[test]
fn a_vocabulary_of_no_tokens_has_no_tables() {
    // Found by the fuzzer: a tensor of no elements, which no file can hold.
    let mut draft = tiny("gpt2", "gpt-2");
    for key in ["tokenizer.ggml.tokens", "tokenizer.ggml.merges"] {
        draft.set(key, Vec::<String>::new());
    }
    draft.set("tokenizer.ggml.token_type", Vec::<i32>::new());
    let file = GgufFile::from_bytes(draft.bytes(), Path::new("m.gguf")).unwrap();
    let said = StoredVocabulary::of(&file).unwrap_err().to_string();
    assert_eq!(said, "m.gguf: tokenizer.ggml.tokens is empty; expected at least one token");
}

/// A model with all kinds of tokens.
fn tiny(model: &str, pre: &str) -> Draft {
    let mut draft = Draft::new(SHAPE, GgmlType::Q4_0, GgmlType::Q8_0);
    let mut types = vec![1; SHAPE.vocab];
    (types[27], types[30], types[31], types[32]) = (3, 2, 4, 5);
    draft.set("tokenizer.ggml.token_type", types);
    draft.set("tokenizer.ggml.model", model);
    draft.set("tokenizer.ggml.pre", pre);
    draft.set("tokenizer.ggml.scores", vec![-1.0_f32; SHAPE.vocab]);
    draft
}

/// The error of a tiny model whose stored tables were changed.
fn error(model: &str, change: impl FnOnce(&mut Draft)) -> String {
    let mut draft = tiny(model, "llama-bpe").packed();
    change(&mut draft);
    let file = GgufFile::from_bytes(draft.bytes(), Path::new("m.edge")).unwrap();
    let error: EdgeError = Tokenizer::from_gguf(&file).unwrap_err();
    error.to_string()
}

#[test]
fn tables_that_cannot_be_are_named() {
    let set = |key: &'static str, value: u32| move |draft: &mut Draft| draft.set(key, value);
    insta::assert_snapshot!(error("gpt2", set("distill.tokenizer.version", 2)), @"m.edge: distill.tokenizer.version is 2; expected 1: export the model again with the release that runs it");
    insta::assert_snapshot!(error("gpt2", set("tokenizer.ggml.eos_token_id", 4000)), @"m.edge: tokenizer.ggml (eos token id) is 4000; expected an id below 261, the size of the vocabulary");
    let without =
        |name: &'static str| move |draft: &mut Draft| draft.tensors.retain(|t| t.name != name);
    for name in ["kinds", "pieces", "piece_ends", "merges", "bytes", "whole_pieces"] {
        let name: &str = Box::leak(format!("tokenizer.{name}").into_boxed_str());
        let said = error("gpt2", without(name));
        assert!(said.starts_with(&format!("m.edge: tensor `{name}` is missing")), "{said}");
    }
    let changed = |name: &'static str, change: fn(&mut tiny_model::Tensor)| {
        move |draft: &mut Draft| {
            change(draft.tensors.iter_mut().find(|tensor| tensor.name == name).unwrap())
        }
    };
    let cut = |tensor: &mut tiny_model::Tensor| {
        tensor.dims[1] = 63;
        tensor.bytes.truncate(63 * 16);
    };
    insta::assert_snapshot!(error("gpt2", changed("tokenizer.merges", cut)), @"m.edge: tensor `tokenizer.merges` has shape [4, 63]; expected [4, 64] (row length first)");
    let shorter = |tensor: &mut tiny_model::Tensor| {
        tensor.dims[0] -= 1;
        tensor.bytes.truncate(tensor.bytes.len() - 4);
    };
    insta::assert_snapshot!(error("gpt2", changed("tokenizer.piece_ends", shorter)), @"m.edge: tensor `tokenizer.piece_ends` has shape [260]; expected [261] (row length first)");
    let retyped = |tensor: &mut tiny_model::Tensor| tensor.ty = GgmlType::F32;
    insta::assert_snapshot!(error("llama", changed("tokenizer.characters", retyped)), @"m.edge: tensor `tokenizer.characters` is F32; expected I32. Export the model again in one of these types");
    let split = |tensor: &mut tiny_model::Tensor| {
        // The text of the control token, in the middle of a character.
        let at = tensor.bytes.windows(7).position(|bytes| bytes == b"<|end|>").unwrap();
        tensor.bytes[at] = 0xA9;
    };
    insta::assert_snapshot!(error("gpt2", changed("tokenizer.pieces", split)), @"m.edge: tokenizer.pieces is not UTF-8 in token 27, which is matched as a whole; expected what the export wrote: export the model again");
}

/// Stored vocabularies of each kind, before they are damaged.
static DRAFTS: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let kinds = [("gpt2", "gpt-2"), ("gpt2", "llama-bpe"), ("llama", ""), ("gemma4", "")];
    let bytes = |(model, pre)| {
        let mut draft = tiny(model, pre).packed();
        draft.tensors.retain(|tensor| tensor.name.starts_with("tokenizer."));
        draft.bytes()
    };
    kinds.map(bytes).to_vec()
});

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn damaged_tables_encode_without_a_panic_and_give_tokens(
        which in 0..4_usize,
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..40),
        filled in proptest::option::of((any::<prop::sample::Index>(), any::<u8>())),
    ) {
        let mut bytes = DRAFTS[which].clone();
        let file = GgufFile::from_bytes(bytes.clone(), Path::new("m.edge")).unwrap();
        if let Some((tensor, byte)) = filled {
            bytes[tensor.get(file.tensors()).range.clone()].fill(byte);
        }
        let first = file.tensors()[0].range.start;
        for (at, byte) in changes {
            let at = first + at.index(bytes.len() - first);
            bytes[at] = byte;
        }
        let file = GgufFile::from_bytes(bytes, Path::new("m.edge")).unwrap();
        if let Ok(tokenizer) = Tokenizer::from_gguf(&file) {
            for text in ["a cab\n", "<|end|>ab è filler31 filler30", &"ab ".repeat(100), "\u{1F600}"] {
                for ids in [tokenizer.encode(text, true), tokenizer.encode_plain(text)] {
                    prop_assert!(ids.iter().all(|&id| (id as usize) < tokenizer.vocab_size()));
                    tokenizer.decode(&ids);
                }
            }
            let pre = tokenizer.pre_tokenizer();
            prop_assert_eq!(pre == PreTokenizer::SentencePiece, which >= 2);
        }
    }
}

#[test]
fn a_model_edge_of_an_earlier_release_has_lists_and_still_loads() {
    let mut draft = tiny("gpt2", "gpt-2");
    draft.set("general.alignment", 64_u32);
    let lists: Vec<_> = draft.metadata.iter().map(|(key, _)| key.as_str()).collect();
    assert!(lists.contains(&"tokenizer.ggml.tokens"));
    let file = GgufFile::from_bytes(draft.bytes(), Path::new("old.edge")).unwrap();
    let mapped = Tokenizer::from_gguf(&stored(&file)).unwrap();
    let listed = Tokenizer::from_gguf(&file).unwrap();
    assert_eq!(mapped.encode("ab cab", true), listed.encode("ab cab", true));
    assert!(matches!(file.metadata().get("tokenizer.ggml.merges"), Some(Value::Array(_))));
}
