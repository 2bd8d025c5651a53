//! A tiny Llama in a GGUF file, from random Hugging Face weights, and its float64 reference.
//!
//! The reference is written from the architecture's definition alone: rotate-half RoPE on the
//! Hugging Face row order, plain loops, f64. It shares no code with the runtime, and only the
//! weights' dequantised values with the file.

// Each test binary uses its own part of this module.
#![allow(dead_code)]

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use distill_edge::StoredVocabulary;
use distill_gguf::{GgmlType, GgufFile, GgufWriter, Value, names};
use distill_quant::packed::{Packed, ROWS};
use distill_quant::{f16, q4_0, q8_0};

/// Sizes of the tiny model.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub hidden: usize,
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub feed_forward: usize,
    pub vocab: usize,
    pub tied: bool,
    /// Llama 3's RoPE scaling.
    pub rope_factors: bool,
}

pub const SHAPE: Shape = Shape {
    hidden: 64,
    layers: 2,
    heads: 6,
    kv_heads: 3,
    head_dim: 32,
    feed_forward: 96,
    vocab: 261,
    tied: true,
    rope_factors: false,
};

const EPSILON: f64 = 1e-5;
const THETA: f64 = 500.0;

/// A model in memory: dequantised values by Hugging Face name, [rows, columns] each.
pub struct TinyModel {
    pub shape: Shape,
    pub weights: HashMap<String, Vec<f32>>,
    pub directory: tempfile::TempDir,
    pub path: PathBuf,
}

/// Values in −1..1, the same for the same seed.
fn random(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut step = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| step()).collect()
}

/// The bytes of `values` in `ty`, and the values they stand for.
fn store(values: &[f32], ty: GgmlType) -> (Vec<u8>, Vec<f32>) {
    let mut bytes = Vec::new();
    let mut back = vec![0.0; values.len()];
    match ty {
        GgmlType::F32 => {
            bytes.extend(values.iter().flat_map(|v| v.to_le_bytes()));
            back.copy_from_slice(values);
        }
        GgmlType::F16 => {
            bytes.extend(values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()));
            f16::dequantize(&bytes, &mut back);
        }
        GgmlType::Q4_0 => {
            bytes.resize(values.len() / 32 * 18, 0);
            q4_0::quantize_row(values, &mut bytes);
            q4_0::dequantize(&bytes, &mut back);
        }
        GgmlType::Q8_0 => {
            bytes.resize(values.len() / 32 * 34, 0);
            q8_0::quantize_row(values, &mut bytes);
            q8_0::dequantize(&bytes, &mut back);
        }
        other => panic!("the tiny model has no {other:?}"),
    }
    (bytes, back)
}

/// One tensor on its way into the file.
pub struct Tensor {
    pub name: String,
    pub dims: Vec<u64>,
    pub ty: GgmlType,
    pub bytes: Vec<u8>,
}

/// Metadata and tensors of a tiny model, before they are written: tests break them on purpose.
pub struct Draft {
    pub metadata: Vec<(String, Value)>,
    pub tensors: Vec<Tensor>,
    pub weights: HashMap<String, Vec<f32>>,
    pub shape: Shape,
}

impl Draft {
    pub fn new(shape: Shape, linears: GgmlType, embeddings: GgmlType) -> Self {
        let mut draft =
            Self { metadata: metadata(shape), tensors: Vec::new(), weights: HashMap::new(), shape };
        let (query, kv) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
        draft.matrix("model.embed_tokens.weight", shape.vocab, shape.hidden, embeddings, 1.0);
        for l in 0..shape.layers {
            let name = |part: &str| format!("model.layers.{l}.{part}.weight");
            draft.vector(&name("input_layernorm"), shape.hidden);
            draft.matrix(&name("self_attn.q_proj"), query, shape.hidden, linears, 0.3);
            draft.matrix(&name("self_attn.k_proj"), kv, shape.hidden, linears, 0.3);
            draft.matrix(&name("self_attn.v_proj"), kv, shape.hidden, linears, 0.2);
            draft.matrix(&name("self_attn.o_proj"), shape.hidden, query, linears, 0.2);
            draft.vector(&name("post_attention_layernorm"), shape.hidden);
            draft.matrix(&name("mlp.gate_proj"), shape.feed_forward, shape.hidden, linears, 0.2);
            draft.matrix(&name("mlp.up_proj"), shape.feed_forward, shape.hidden, linears, 0.2);
            draft.matrix(&name("mlp.down_proj"), shape.hidden, shape.feed_forward, linears, 0.2);
        }
        draft.vector("model.norm.weight", shape.hidden);
        if !shape.tied {
            draft.matrix("lm_head.weight", shape.vocab, shape.hidden, embeddings, 0.3);
        }
        if shape.rope_factors {
            let factors: Vec<f32> = (0..shape.head_dim / 2).map(|i| 1.0 + i as f32).collect();
            let (bytes, _) = store(&factors, GgmlType::F32);
            draft.tensors.push(Tensor {
                name: "rope_freqs.weight".into(),
                dims: vec![factors.len() as u64],
                ty: GgmlType::F32,
                bytes,
            });
        }
        draft
    }

    fn matrix(&mut self, hf_name: &str, rows: usize, columns: usize, ty: GgmlType, scale: f32) {
        let values: Vec<f32> = random(rows * columns, self.tensors.len() as u64 + 1)
            .iter()
            .map(|v| v * scale)
            .collect();
        let (bytes, back) = store(&values, ty);
        self.weights.insert(hf_name.to_owned(), back);
        let (name, layout) = names::to_gguf(hf_name).expect("a name of the table");
        let bytes = match layout {
            names::RowLayout::Plain => bytes,
            names::RowLayout::RopeHalves { heads } => {
                let heads = if heads == names::Heads::Query {
                    self.shape.heads
                } else {
                    self.shape.kv_heads
                };
                names::permute_rows(&bytes, rows, heads)
            }
        };
        self.tensors.push(Tensor { name, dims: vec![columns as u64, rows as u64], ty, bytes });
    }

    fn vector(&mut self, hf_name: &str, n: usize) {
        let values: Vec<f32> =
            random(n, self.tensors.len() as u64 + 99).iter().map(|v| 1.0 + 0.5 * v).collect();
        let (bytes, back) = store(&values, GgmlType::F32);
        self.weights.insert(hf_name.to_owned(), back);
        let (name, _) = names::to_gguf(hf_name).expect("a name of the table");
        self.tensors.push(Tensor { name, dims: vec![n as u64], ty: GgmlType::F32, bytes });
    }

    pub fn set(&mut self, key: &str, value: impl Into<Value>) {
        self.metadata.retain(|(existing, _)| existing != key);
        self.metadata.push((key.to_owned(), value.into()));
    }

    /// The same model as `model.edge` holds it: quantised matrices packed, and tables of the
    /// vocabulary.
    pub fn packed(mut self) -> Self {
        self.set("general.alignment", 64_u32);
        let file = GgufFile::from_bytes(self.bytes(), Path::new("tiny.gguf")).unwrap();
        let StoredVocabulary { keys, tensors } = StoredVocabulary::of(&file).unwrap().unwrap();
        self.metadata.retain(|(key, _)| !StoredVocabulary::INSTEAD_OF.contains(&key.as_str()));
        keys.into_iter().for_each(|(key, value)| self.set(key, value));
        let tables = tensors.into_iter().map(|table| Tensor {
            name: table.name.to_owned(),
            dims: table.dims,
            ty: table.ty,
            bytes: table.bytes.to_vec(),
        });
        self.tensors.splice(..0, tables);
        for tensor in &mut self.tensors {
            let (packed, ty) = match tensor.ty {
                GgmlType::Q4_0 => (Packed::Q4_0, GgmlType::Q4_0X16),
                GgmlType::Q8_0 => (Packed::Q8_0, GgmlType::Q8_0X16),
                _ => continue,
            };
            let columns = tensor.dims[0] as usize;
            let bytes = packed.group_bytes(columns);
            tensor.bytes = tensor
                .bytes
                .chunks(bytes)
                .flat_map(|rows| {
                    let mut group = vec![0; bytes];
                    packed.pack(rows, columns, &mut group);
                    group
                })
                .collect();
            tensor.ty = ty;
            tensor.dims[1] = tensor.dims[1].next_multiple_of(ROWS as u64);
        }
        self
    }

    pub fn write_to(&self, path: &Path) {
        let mut writer = GgufWriter::create(path).unwrap();
        for (key, value) in &self.metadata {
            writer.set(key.as_str(), value.clone());
        }
        for tensor in &self.tensors {
            writer
                .tensor(tensor.name.as_str(), &tensor.dims, tensor.ty, tensor.bytes.as_slice())
                .unwrap();
        }
        writer.finish().unwrap();
    }

    /// The file.
    pub fn bytes(&self) -> Vec<u8> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tiny.gguf");
        self.write_to(&path);
        std::fs::read(&path).unwrap()
    }

    pub fn finish(self) -> TinyModel {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tiny.gguf");
        self.write_to(&path);
        TinyModel { shape: self.shape, weights: self.weights, directory, path }
    }
}

fn metadata(shape: Shape) -> Vec<(String, Value)> {
    // Single letters and byte-level characters first, so that text can be encoded; the rest filler.
    let tokens: Vec<String> = (0..shape.vocab)
        .map(|i| match i {
            0..26 => char::from(b'a' + i as u8).to_string(),
            26 => "Ġ".to_owned(),
            27 => "<|end|>".to_owned(),
            28 => "ab".to_owned(),
            29 => "è".to_owned(),
            _ => format!("filler{i}"),
        })
        .collect();
    let types: Vec<i32> = (0..shape.vocab).map(|i| if i == 27 { 3 } else { 1 }).collect();
    let u32s = [
        ("llama.context_length", 128),
        ("llama.embedding_length", shape.hidden),
        ("llama.block_count", shape.layers),
        ("llama.feed_forward_length", shape.feed_forward),
        ("llama.attention.head_count", shape.heads),
        ("llama.attention.head_count_kv", shape.kv_heads),
        ("llama.attention.key_length", shape.head_dim),
        ("llama.attention.value_length", shape.head_dim),
        ("llama.rope.dimension_count", shape.head_dim),
        ("llama.vocab_size", shape.vocab),
        ("tokenizer.ggml.eos_token_id", 27),
        ("tokenizer.ggml.bos_token_id", 27),
    ];
    let mut metadata: Vec<(String, Value)> = vec![
        ("general.architecture".into(), Value::String("llama".into())),
        ("llama.attention.layer_norm_rms_epsilon".into(), Value::F32(EPSILON as f32)),
        ("llama.rope.freq_base".into(), Value::F32(THETA as f32)),
        ("tokenizer.ggml.model".into(), Value::String("gpt2".into())),
        ("tokenizer.ggml.pre".into(), Value::String("gpt-2".into())),
        ("tokenizer.ggml.tokens".into(), Value::from(tokens)),
        ("tokenizer.ggml.token_type".into(), Value::from(types)),
        ("tokenizer.ggml.merges".into(), Value::from(vec!["a b".to_owned()])),
    ];
    metadata.extend(u32s.map(|(key, n)| (key.to_owned(), Value::U32(n as u32))));
    metadata
}

impl TinyModel {
    pub fn new(shape: Shape, linears: GgmlType, embeddings: GgmlType) -> Self {
        Draft::new(shape, linears, embeddings).finish()
    }

    fn weight(&self, name: &str) -> Vec<f64> {
        self.weights[name].iter().map(|&v| f64::from(v)).collect()
    }

    /// Logits at every position, [tokens][vocab], in f64. With `quantized`, the input of every
    /// linear layer passes through Q8_0 activations.
    pub fn reference(&self, tokens: &[u32], quantized: bool) -> Vec<Vec<f64>> {
        let s = self.shape;
        let linear = |name: &str, x: &[f64]| -> Vec<f64> {
            let mut x = x.to_vec();
            if quantized {
                let single: Vec<f32> = x.iter().map(|&v| v as f32).collect();
                let mut fake = vec![0.0; single.len()];
                q8_0::fake_quantize_activation(&single, &mut fake);
                x = fake.iter().map(|&v| f64::from(v)).collect();
            }
            self.weight(name)
                .chunks(x.len())
                .map(|row| row.iter().zip(&x).map(|(w, x)| w * x).sum())
                .collect()
        };
        let norm = |name: &str, x: &[f64]| -> Vec<f64> {
            let mean = x.iter().map(|v| v * v).sum::<f64>() / x.len() as f64;
            let weight = self.weight(name);
            x.iter()
                .zip(weight)
                .map(|(v, w)| v / (mean + f64::from(EPSILON as f32)).sqrt() * w)
                .collect()
        };
        let embedding = self.weight("model.embed_tokens.weight");
        let mut x: Vec<Vec<f64>> = tokens
            .iter()
            .map(|&t| embedding[t as usize * s.hidden..(t as usize + 1) * s.hidden].to_vec())
            .collect();
        for l in 0..s.layers {
            let name = |part: &str| format!("model.layers.{l}.{part}.weight");
            let normed: Vec<Vec<f64>> =
                x.iter().map(|x| norm(&name("input_layernorm"), x)).collect();
            let project = |part: &str, turn: bool| -> Vec<Vec<f64>> {
                let rows = normed.iter().map(|x| linear(&name(part), x));
                rows.enumerate()
                    .map(|(p, row)| if turn { self.rotate_half(&row, p) } else { row })
                    .collect()
            };
            let (q, k, v) = (
                project("self_attn.q_proj", true),
                project("self_attn.k_proj", true),
                project("self_attn.v_proj", false),
            );
            for p in 0..tokens.len() {
                let mut attended = Vec::new();
                for h in 0..s.heads {
                    let kv = h / (s.heads / s.kv_heads) * s.head_dim;
                    let score = |at: usize| -> f64 {
                        let dot: f64 =
                            (0..s.head_dim).map(|d| q[p][h * s.head_dim + d] * k[at][kv + d]).sum();
                        (dot / (s.head_dim as f64).sqrt()).exp()
                    };
                    let scores: Vec<f64> = (0..=p).map(score).collect();
                    let total: f64 = scores.iter().sum();
                    attended.extend((0..s.head_dim).map(|d| {
                        scores.iter().enumerate().map(|(at, w)| w * v[at][kv + d]).sum::<f64>()
                            / total
                    }));
                }
                let delta = linear(&name("self_attn.o_proj"), &attended);
                x[p].iter_mut().zip(delta).for_each(|(x, d)| *x += d);
            }
            for x in &mut x {
                let normed = norm(&name("post_attention_layernorm"), x);
                let gate = linear(&name("mlp.gate_proj"), &normed);
                let up = linear(&name("mlp.up_proj"), &normed);
                let inner: Vec<f64> =
                    gate.iter().zip(up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
                let delta = linear(&name("mlp.down_proj"), &inner);
                x.iter_mut().zip(delta).for_each(|(x, d)| *x += d);
            }
        }
        let head = if s.tied { "model.embed_tokens.weight" } else { "lm_head.weight" };
        x.iter().map(|x| linear(head, &norm("model.norm.weight", x))).collect()
    }

    /// Hugging Face's form: within a head, element i turns with element i + head_dim / 2.
    fn rotate_half(&self, x: &[f64], position: usize) -> Vec<f64> {
        let half = self.shape.head_dim / 2;
        let mut out = x.to_vec();
        for (h, head) in x.chunks(2 * half).enumerate() {
            for i in 0..half {
                let factor = if self.shape.rope_factors { 1.0 + i as f64 } else { 1.0 };
                let angle = position as f64 * THETA.powf(-(i as f64) / half as f64) / factor;
                out[h * 2 * half + i] = head[i] * angle.cos() - head[i + half] * angle.sin();
                out[h * 2 * half + i + half] = head[i + half] * angle.cos() + head[i] * angle.sin();
            }
        }
        out
    }
}

/// Tokens of the tiny vocabulary, repeatable.
pub fn tokens(n: usize) -> Vec<u32> {
    (0..n).map(|i| (i * 67 % SHAPE.vocab) as u32).collect()
}
