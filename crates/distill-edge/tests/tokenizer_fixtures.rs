//! The tokenizer against Hugging Face's, on vocabularies made by `scripts/tokenizer_fixtures.py`.

use std::path::{Path, PathBuf};

use distill_edge::Tokenizer;
use distill_gguf::GgufFile;

fn fixture(name: &str, extension: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join(format!("tests/fixtures/tokenizer-{name}.{extension}"))
}

fn tokenizer(name: &str) -> Tokenizer {
    let path = fixture(name, "gguf");
    Tokenizer::from_gguf(&GgufFile::open(&path).unwrap()).unwrap()
}

/// (text, ids) of each line.
fn cases(name: &str) -> Vec<(String, Vec<u32>)> {
    let lines = std::fs::read_to_string(fixture(name, "txt")).unwrap();
    let case = |line: &str| {
        let (hex, ids) = line.split_once('\t').unwrap();
        let byte = |i: usize| u8::from_str_radix(&hex[i..i + 2], 16).unwrap();
        let bytes: Vec<u8> = (0..hex.len()).step_by(2).map(byte).collect();
        let ids = ids.split_whitespace().map(|id| id.parse().unwrap()).collect();
        (String::from_utf8(bytes).unwrap(), ids)
    };
    lines.lines().map(case).collect()
}

fn check(name: &str) {
    let (tokenizer, cases) = (tokenizer(name), cases(name));
    assert!(cases.len() > 100);
    for (text, ids) in cases {
        assert_eq!(tokenizer.encode(&text, false), ids, "{name}: {text:?}");
        assert_eq!(tokenizer.decode(&ids), text, "{name}");
    }
}

#[test]
fn gpt_2_encodes_as_hugging_face_does() {
    check("gpt-2");
}

#[test]
fn smollm_encodes_as_hugging_face_does() {
    check("smollm");
}

#[test]
fn llama_bpe_encodes_as_hugging_face_does() {
    check("llama-bpe");
}

#[test]
fn qwen2_encodes_as_hugging_face_does() {
    check("qwen2");
}
