//! The gate opens for what was exported and shuts for anything else.

mod tiny;

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use distill_data::{SpecialTokens, TextTokenizer};
use distill_eval::parity::{Parity, ParityInput};
use distill_export::{GgufOptions, Grid, export_gguf};
use distill_gguf::GgufFile;
use distill_models::{ActivationGrid, LlamaConfig, LlamaForCausalLM, WeightGrid, WeightGrids};

struct Exported {
    directory: tempfile::TempDir,
    model: LlamaForCausalLM,
    grids: WeightGrids,
}

fn config(vocab_size: usize) -> LlamaConfig {
    LlamaConfig {
        vocab_size,
        hidden_size: 128,
        intermediate_size: 192,
        num_hidden_layers: 3,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 32,
        ..tiny::tiny_config()
    }
}

fn export(tied: bool) -> Exported {
    let directory = tempfile::tempdir().expect("temp dir");
    let checkpoint = directory.path().join("checkpoint");
    std::fs::create_dir(&checkpoint).expect("create");
    let text = "the quick brown fox jumps over the lazy dog and runs far away from the old house";
    let texts = std::iter::once(Ok(text.to_string()));
    let tokenizer =
        TextTokenizer::train(texts, 300, &SpecialTokens::default()).expect("a tokenizer");
    let mut config = config(tokenizer.vocab_size());
    config.tie_word_embeddings = tied;
    let model = tiny::model(&config, &Device::flex());
    distill_models::save::save(&model, &checkpoint).expect("saves");
    tokenizer.save(&checkpoint).expect("saves");
    let options = GgufOptions {
        linears: Grid::Q4_0,
        embeddings: Grid::Q8_0,
        activations: distill_export::Activations::Q8_0,
        name: "tiny".into(),
    };
    export_gguf(&checkpoint, &directory.path().join("model.gguf"), &options).expect("exports");
    let grids = WeightGrids {
        linears: WeightGrid::Q4_0,
        embeddings: WeightGrid::Q8_0,
        activations: ActivationGrid::Q8_0,
    };
    Exported { directory, model, grids }
}

impl Exported {
    fn file(&self) -> PathBuf {
        self.directory.path().join("model.gguf")
    }

    fn parity(&self, gguf: &Path) -> Parity {
        self.parity_with(gguf, None)
    }

    fn parity_with(&self, gguf: &Path, packed: Option<&Path>) -> Parity {
        let vocab = self.model.config.vocab_size as u32;
        let texts = texts(vocab);
        let prompts = vec![texts[0][..8].to_vec(), texts[1][..8].to_vec()];
        ParityInput {
            masters: &self.model,
            grids: self.grids,
            device: &Device::flex(),
            gguf,
            packed,
            texts: &texts,
            prompts: &prompts,
            max_new_tokens: 24,
            threads: 2,
        }
        .compare(&mut |_| {})
        .expect("both run")
    }

    /// The file with its bytes changed; the original stays.
    fn changed(&self, change: impl FnOnce(&GgufFile, &mut Vec<u8>)) -> PathBuf {
        let original = GgufFile::open(&self.file()).expect("opens");
        let mut bytes = original.bytes().to_vec();
        change(&original, &mut bytes);
        assert_ne!(bytes, original.bytes(), "the change changed nothing");
        let path = self.directory.path().join("changed.gguf");
        std::fs::write(&path, bytes).expect("write");
        path
    }
}

/// Four texts of 64 tokens.
fn texts(vocab: u32) -> Vec<Vec<u32>> {
    (0..4u32).map(|t| (0..64).map(|i| (i * 37 + t * 101 + i * i) % vocab).collect()).collect()
}

/// Where a tensor's bytes lie in the file.
fn span(file: &GgufFile, name: &str) -> std::ops::Range<usize> {
    let view = file.tensor(name).expect("the tensor is there");
    let start = view.bytes.as_ptr() as usize - file.bytes().as_ptr() as usize;
    start..start + view.bytes.len()
}

fn assert_shut(parity: &Parity) {
    let exact = &parity.exact;
    assert!(!parity.passed && !exact.passed, "the gate stood open: {exact:?}");
}

#[test]
fn what_was_exported_passes() {
    for tied in [true, false] {
        let exported = export(tied);
        let parity = exported.parity(&exported.file());
        assert!(parity.passed, "{parity:#?}");
        assert_eq!(parity.exact.positions, 256);
    }
}

#[test]
fn the_packed_file_must_give_the_logits_of_the_gguf_bit_for_bit() {
    let exported = export(true);
    let edge = exported.directory.path().join("model.edge");
    distill_export::export_edge(&exported.file(), &edge).expect("packs");
    let parity = exported.parity_with(&exported.file(), Some(&edge));
    assert!(parity.passed && parity.packed_is_equal == Some(true));

    let mut bytes = std::fs::read(&edge).expect("the file");
    let file = GgufFile::open(&edge).expect("opens");
    // The lowest bit of one code, behind the sixteen scales of the first record.
    bytes[span(&file, "blk.1.ffn_up.weight").start + 32] ^= 1;
    std::fs::write(&edge, bytes).expect("write");
    let parity = exported.parity_with(&exported.file(), Some(&edge));
    assert!(!parity.passed && parity.packed_is_equal == Some(false));
    assert!(parity.exact.passed && parity.shipped.passed);
}

#[test]
fn one_flipped_weight_byte_fails() {
    let exported = export(true);
    for name in ["blk.0.attn_q.weight", "blk.2.ffn_down.weight", "blk.1.attn_v.weight"] {
        let path = exported.changed(|file, bytes| {
            // The first nibbles of the first block: behind its two bytes of scale.
            bytes[span(file, name).start + 2] ^= 0xff;
        });
        assert_shut(&exported.parity(&path));
    }
}

#[test]
fn two_swapped_tensors_fail() {
    let exported = export(true);
    let path = exported.changed(|file, bytes| {
        let (gate, up) = (span(file, "blk.1.ffn_gate.weight"), span(file, "blk.1.ffn_up.weight"));
        let (first, second) = (bytes[gate.clone()].to_vec(), bytes[up.clone()].to_vec());
        bytes[gate].copy_from_slice(&second);
        bytes[up].copy_from_slice(&first);
    });
    assert_shut(&exported.parity(&path));
}

#[test]
fn the_other_rope_layout_fails() {
    let exported = export(true);
    let path = exported.changed(|file, bytes| {
        for (suffix, heads) in [("attn_q", 4), ("attn_k", 2)] {
            for layer in 0..3 {
                let span = span(file, &format!("blk.{layer}.{suffix}.weight"));
                let rows = heads * 32;
                let halves = distill_gguf::names::unpermute_rows(&bytes[span.clone()], rows, heads);
                bytes[span].copy_from_slice(&halves);
            }
        }
    });
    assert_shut(&exported.parity(&path));
}

#[test]
fn another_norm_epsilon_fails() {
    let exported = export(true);
    let path = exported.changed(|_, bytes| {
        let key = b"llama.attention.layer_norm_rms_epsilon";
        let at = bytes.windows(key.len()).position(|w| w == key).expect("the key is there");
        // Behind the key: the value's type (u32), then the f32.
        let value = at + key.len() + 4;
        bytes[value..value + 4].copy_from_slice(&1e-6f32.to_le_bytes());
    });
    assert_shut(&exported.parity(&path));
}

#[test]
fn a_scale_that_is_no_number_fails_even_where_its_token_is_never_read() {
    let exported = export(true);
    let vocab = exported.model.config.vocab_size;
    let read: Vec<u32> = texts(vocab as u32).concat();
    let unread = (0..vocab as u32).find(|id| !read.contains(id)).expect("256 tokens of more");
    let path = exported.changed(|file, bytes| {
        let span = span(file, "token_embd.weight");
        let at = span.start + unread as usize * (span.len() / vocab);
        bytes[at..at + 2].copy_from_slice(&0x7e00u16.to_le_bytes());
    });
    assert_shut(&exported.parity(&path));
}
