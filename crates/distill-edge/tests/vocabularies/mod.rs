//! The vocabularies of real models, which `python3 datasets/fetch.py vocabularies smollm2` puts
//! into `datasets/downloads`.

// Each test binary uses its own part of this module.
#![allow(dead_code)]

pub mod hugging_face;
pub mod random;

use std::path::{Path, PathBuf};

use distill_edge::Tokenizer;
use distill_gguf::GgufFile;

/// Those that come with conformance vectors.
pub const WITH_VECTORS: [&str; 7] =
    ["gpt-2", "llama-bpe", "llama-spm", "phi-3", "qwen2", "qwen35", "gemma-4"];

/// Those and SmolLM2's.
pub const ALL: [&str; 8] =
    ["smollm2", "gpt-2", "llama-bpe", "llama-spm", "phi-3", "qwen2", "qwen35", "gemma-4"];

/// The vocabulary of a model file.
pub struct Vocabulary {
    pub name: &'static str,
    pub file: GgufFile,
    pub tokenizer: Tokenizer,
}

fn downloads() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../datasets/downloads")
}

/// A file of `datasets/downloads`. Without it the caller checks nothing, and says so;
/// `DISTILL_REQUIRE_MODELS=1` makes that a failure.
pub fn download(name: &str) -> Option<PathBuf> {
    let path = downloads().join(name);
    if path.is_file() {
        return Some(path);
    }
    eprintln!("NOT RUN: {} is not there; fetch it with datasets/fetch.py", path.display());
    assert!(std::env::var_os("DISTILL_REQUIRE_MODELS").is_none(), "the file is required");
    None
}

/// The vocabulary of this name, `smollm2` or one of [`WITH_VECTORS`].
pub fn open(name: &'static str) -> Option<Vocabulary> {
    let path = match name {
        "smollm2" => download("SmolLM2-135M-Instruct.Q4_1.gguf")?,
        _ => download(&format!("vocabularies/ggml-vocab-{name}.gguf"))?,
    };
    let file = GgufFile::open(&path).unwrap();
    let tokenizer = Tokenizer::from_gguf(&file).unwrap();
    Some(Vocabulary { name, file, tokenizer })
}

/// (text, ids) of each conformance vector.
pub fn vectors(name: &str) -> Vec<(String, Vec<u32>)> {
    let read = |extension: &str| {
        let path = downloads().join(format!("vocabularies/ggml-vocab-{name}.gguf.{extension}"));
        std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    };
    let (texts, ids) = (read("inp"), read("out"));
    let separator = "\n__ggml_vocab_test__\n";
    let texts = texts.strip_suffix(separator).unwrap_or(&texts).split(separator);
    let ids: Vec<Vec<u32>> = ids
        .lines()
        .map(|line| line.split_whitespace().map(|id| id.parse().unwrap()).collect())
        .collect();
    let texts: Vec<String> = texts.map(str::to_owned).collect();
    assert_eq!(texts.len(), ids.len(), "{name}");
    texts.into_iter().zip(ids).collect()
}
