//! The tokenizer against Hugging Face's, on the same vocabularies: a library of speeches, random
//! Unicode, text with special tokens. And decoding inverts encoding.

mod vocabularies;

use std::path::Path;

use proptest::prelude::any;
use vocabularies::random::{for_texts, unicode, with_special};
use vocabularies::{ALL, hugging_face, open};

fn random_text_is_encoded_as_hugging_face_does(name: &'static str) {
    let Some(vocabulary) = open(name) else { return };
    let mut peer = hugging_face::tokenizer(vocabulary.file.metadata());
    let ours = &vocabulary.tokenizer;
    for_texts(unicode(), |text| {
        let ids = hugging_face::encode(&mut peer, text, false);
        assert_eq!(ours.encode(text, false), ids, "{name}: {text:?}");
        assert_eq!(ours.decode(&ids), peer.decode(&ids, false).unwrap(), "{name}: {text:?}");
    });
    for_texts(with_special(&vocabulary), |text| {
        let ids = hugging_face::encode(&mut peer, text, false);
        assert_eq!(ours.encode(text, false), ids, "{name}: {text:?}");
        assert_eq!(ours.decode(&ids), peer.decode(&ids, false).unwrap(), "{name}: {text:?}");
        let plain = hugging_face::encode(&mut peer, text, true);
        assert_eq!(ours.encode_plain(text), plain, "{name}, plain: {text:?}");
    });
}

#[test]
fn random_text_is_encoded_as_hugging_face_does_in_byte_level_vocabularies() {
    for name in ["smollm2", "gpt-2", "llama-bpe", "qwen2", "qwen35"] {
        random_text_is_encoded_as_hugging_face_does(name);
    }
}

#[test]
fn random_text_is_encoded_as_hugging_face_does_in_sentence_piece_vocabularies() {
    for name in ["llama-spm", "phi-3", "gemma-4"] {
        random_text_is_encoded_as_hugging_face_does(name);
    }
}

/// All 233 State of the Union addresses, 11 MB, where they have been fetched; else the 53 that are
/// committed.
fn speeches() -> String {
    let datasets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../datasets");
    std::fs::read_to_string(datasets.join("downloads/sotu.txt")).unwrap_or_else(|error| {
        eprintln!("NOT RUN on sotu.txt, but on state-of-the-union.txt: {error}");
        std::fs::read_to_string(datasets.join("state-of-the-union.txt")).unwrap()
    })
}

#[test]
fn speeches_are_encoded_as_hugging_face_does_and_decode_to_themselves() {
    let text = speeches();
    for name in ALL {
        let Some(vocabulary) = open(name) else { continue };
        let peer = hugging_face::tokenizer(vocabulary.file.metadata());
        let ours = &vocabulary.tokenizer;
        let speeches: Vec<&str> = text.split_inclusive('\n').collect();
        let encodings = peer.encode_batch_fast(speeches.clone(), false).unwrap();
        for (index, (speech, encoding)) in speeches.iter().zip(encodings).enumerate() {
            let ids = ours.encode(speech, false);
            // Only the first difference is shown: a speech has 10 000 ids.
            let differs = ids.iter().zip(encoding.get_ids()).position(|(a, b)| a != b);
            assert_eq!(differs, None, "{name}, speech {index}");
            assert_eq!(ids.len(), encoding.get_ids().len(), "{name}, speech {index}");
        }
        assert!(ours.decode(&ours.encode(&text, false)) == text, "{name}");
    }
}

/// Whether each byte is a token of its own.
fn covered_bytes(tokenizer: &distill_edge::Tokenizer) -> [bool; 256] {
    let mut covered = [false; 256];
    for id in 0..tokenizer.vocab_size() as u32 {
        if let [byte] = tokenizer.piece(id) {
            covered[usize::from(*byte)] = true;
        }
    }
    covered
}

#[test]
fn decoding_inverts_encoding() {
    for name in ALL {
        let Some(vocabulary) = open(name) else { continue };
        let tokenizer = &vocabulary.tokenizer;
        let spaces = tokenizer.pre_tokenizer() == distill_edge::PreTokenizer::SentencePiece;
        let covered = covered_bytes(tokenizer);
        // SmolLM2 has no token for bytes that its training text lacked: private characters'.
        assert!(name == "smollm2" || covered.iter().filter(|&&c| c).count() == 256, "{name}");
        let invert = |text: &str| {
            // In SentencePiece's vocabularies `▁` is a space.
            let has_tokens = text.bytes().all(|byte| covered[usize::from(byte)]);
            if has_tokens && !(spaces && text.contains('▁')) {
                assert_eq!(tokenizer.decode(&tokenizer.encode(text, false)), text, "{name}");
                assert_eq!(tokenizer.decode(&tokenizer.encode_plain(text)), text, "{name}");
            }
        };
        for_texts(unicode(), invert);
        for_texts(any::<String>(), invert);
    }
}
