//! A checkpoint small enough to read with one's own eyes: two layers of width 64, 80 tokens.
#![allow(dead_code)] // each test file uses its own part

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};

pub const VOCAB: usize = 80;
pub const HIDDEN: usize = 64;
pub const INNER: usize = 96;
pub const HEADS: usize = 4;
pub const KV_HEADS: usize = 2;

pub struct Tiny {
    pub config: Value,
    pub tokenizer: Value,
    pub tokenizer_config: Value,
    /// Name to shape and values.
    pub tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
}

/// Numbers between −1 and 1 that look random and are the same everywhere.
pub fn noise(seed: u64) -> impl Iterator<Item = f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    })
}

impl Tiny {
    pub fn new(tied: bool, head_dim: usize) -> Self {
        let (queries, keys) = (HEADS * head_dim, KV_HEADS * head_dim);
        let mut shapes = vec![
            ("model.embed_tokens.weight".to_owned(), vec![VOCAB, HIDDEN]),
            ("model.norm.weight".to_owned(), vec![HIDDEN]),
        ];
        if !tied {
            shapes.push(("lm_head.weight".to_owned(), vec![VOCAB, HIDDEN]));
        }
        for layer in 0..2 {
            for (name, shape) in [
                ("input_layernorm", vec![HIDDEN]),
                ("self_attn.q_proj", vec![queries, HIDDEN]),
                ("self_attn.k_proj", vec![keys, HIDDEN]),
                ("self_attn.v_proj", vec![keys, HIDDEN]),
                ("self_attn.o_proj", vec![HIDDEN, queries]),
                ("post_attention_layernorm", vec![HIDDEN]),
                ("mlp.gate_proj", vec![INNER, HIDDEN]),
                ("mlp.up_proj", vec![INNER, HIDDEN]),
                ("mlp.down_proj", vec![HIDDEN, INNER]),
            ] {
                shapes.push((format!("model.layers.{layer}.{name}.weight"), shape));
            }
        }
        let tensors = shapes.into_iter().zip(1..).map(|((name, shape), seed)| {
            let values = noise(seed).take(shape.iter().product()).collect();
            (name, (shape, values))
        });
        Self {
            config: json!({
                "model_type": "llama", "vocab_size": VOCAB, "hidden_size": HIDDEN,
                "intermediate_size": INNER, "num_hidden_layers": 2,
                "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS,
                "head_dim": head_dim, "max_position_embeddings": 128, "rms_norm_eps": 1e-5,
                "rope_theta": 10000.0, "tie_word_embeddings": tied, "torch_dtype": "float32",
            }),
            tokenizer: tokenizer(),
            tokenizer_config: json!({
                "bos_token": "<|start|>",
                "eos_token": { "content": "<|end|>", "special": true },
                "pad_token": null,
                "unk_token": "<|end|>",
                "chat_template": "{{ messages[0]['content'] }}",
            }),
            tensors: tensors.collect(),
        }
    }

    pub fn write(&self, directory: &Path) {
        self.write_companions(directory);
        std::fs::write(directory.join("model.safetensors"), self.safetensors(|_| true)).unwrap();
    }

    /// Everything but the weights.
    pub fn write_companions(&self, directory: &Path) {
        for (name, json) in [
            ("config.json", &self.config),
            ("tokenizer.json", &self.tokenizer),
            ("tokenizer_config.json", &self.tokenizer_config),
        ] {
            std::fs::write(directory.join(name), json.to_string()).unwrap();
        }
    }

    /// The tensors in two shards, with their index.
    pub fn write_sharded(&self, directory: &Path) {
        self.write_companions(directory);
        let of = |name: &str| usize::from(name.contains("layers.1") || name == "model.norm.weight");
        let file = |shard: usize| format!("model-{:05}-of-00002.safetensors", shard + 1);
        for shard in 0..2 {
            let bytes = self.safetensors(|name| of(name) == shard);
            std::fs::write(directory.join(file(shard)), bytes).unwrap();
        }
        let map: BTreeMap<_, _> = self.tensors.keys().map(|name| (name, file(of(name)))).collect();
        let index = json!({ "metadata": { "total_size": 0 }, "weight_map": map });
        std::fs::write(directory.join("model.safetensors.index.json"), index.to_string()).unwrap();
    }

    /// The chosen tensors in f32, written by the safetensors crate.
    pub fn safetensors(&self, chosen: impl Fn(&str) -> bool) -> Vec<u8> {
        let bytes: Vec<(&String, &Vec<usize>, Vec<u8>)> = self
            .tensors
            .iter()
            .filter(|(name, _)| chosen(name))
            .map(|(name, (shape, values))| {
                (name, shape, values.iter().flat_map(|x| x.to_le_bytes()).collect())
            })
            .collect();
        let views = bytes.iter().map(|(name, shape, bytes)| {
            (*name, TensorView::new(Dtype::F32, (*shape).clone(), bytes).unwrap())
        });
        safetensors::serialize(views, None).unwrap()
    }
}

/// 70 byte-level tokens, 3 merges, one special and one plain added token; ids 75 to 79 are free.
fn tokenizer() -> Value {
    let mut vocab = serde_json::Map::new();
    vocab.insert("<|end|>".to_owned(), 0.into());
    vocab.insert("<|start|>".to_owned(), 1.into());
    let letters = ('!'..='~').filter(|letter| *letter != 'A').take(68).map(String::from);
    let merged = ["th", "the", "Ġ"].map(String::from);
    for (token, id) in letters.chain(merged).zip(2..) {
        vocab.insert(token, id.into());
    }
    vocab.insert("Ġthe".to_owned(), 73.into());
    let added = |id: u32, content: &str, special: bool| {
        json!({
            "id": id, "content": content, "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": special,
        })
    };
    json!({
        "version": "1.0",
        "added_tokens": [
            added(0, "<|end|>", true), added(1, "<|start|>", true), added(74, "<tool>", false),
        ],
        "normalizer": null,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                { "type": "Digits", "individual_digits": true },
                { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
                  "use_regex": true },
            ],
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                { "SpecialToken": { "id": "<|start|>", "type_id": 0 } },
                { "Sequence": { "id": "A", "type_id": 0 } },
            ],
            "pair": [],
            "special_tokens": {},
        },
        "decoder": { "type": "ByteLevel" },
        "model": {
            "type": "BPE", "vocab": vocab,
            "merges": ["t h", "th e", "Ġ the"],
        },
    })
}
