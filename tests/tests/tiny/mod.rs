//! A model small enough to check by hand, and a float64 forward pass to check it with.

#![allow(dead_code)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::tensor::Device;
use distill_models::{LlamaConfig, LlamaForCausalLM, RopeScaling, TokenIds, parameters};
use distill_recipe::{Document, Recipe};
use distill_train::trainer::Observer;
use distill_train::{LocalPaths, TrainError, Trainer, prepare};

pub type Weights = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

pub fn tiny_config() -> LlamaConfig {
    LlamaConfig {
        vocab_size: 48,
        hidden_size: 64,
        intermediate_size: 96,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 16,
        rope_theta: 10_000.0,
        rope_scaling: None,
        rms_norm_eps: 1e-5,
        max_position_embeddings: 512,
        tie_word_embeddings: true,
        bos_token_id: None,
        eos_token_id: Some(TokenIds::One(0)),
    }
}

/// Random weights, five times as large as at the start of training, and norms off one, so that
/// every part of the network matters to the logits.
pub fn model(config: &LlamaConfig, device: &Device) -> LlamaForCausalLM {
    parameters::map(LlamaForCausalLM::init(config, 7, device), |name, dims, tensor| {
        if dims.len() == 1 {
            let shift = name.len() as f64 / 100.0;
            tensor.add_scalar(shift)
        } else {
            tensor.mul_scalar(5.0)
        }
    })
}

pub fn weights_of(model: &LlamaForCausalLM) -> Weights {
    let mut weights = Weights::new();
    parameters::for_each(model, |name, dims, values| {
        weights.insert(name.to_string(), (dims.to_vec(), values));
    });
    weights
}

/// A recipe for a student of two layers that is made from nothing on a little text, with these tables.
pub fn recipe(directory: &Path, tables: &str) -> Recipe {
    let data = directory.join("text.txt");
    std::fs::write(&data, "A river follows the old house. My bird sees the sun. ".repeat(200))
        .expect("write");
    let text = format!(
        r#"
name = "tiny"
[student]
train_tokenizer = 280
config = {{ hidden_size = 32, intermediate_size = 64, num_hidden_layers = 2, num_attention_heads = 2, num_key_value_heads = 1 }}
[data]
sources = [{data:?}]
sequence_length = 32
held_out = 0.1
{tables}
"#
    );
    let document = Document { path: directory.join("recipe.toml"), text };
    Recipe::from_document(&document, &[]).unwrap_or_else(|error| panic!("{error:?}"))
}

/// Trains by a recipe whose text is one source, from the student's directory if it names one, and gives
/// the checkpoint that an export would take.
pub fn train(recipe: &Recipe, student: Option<&Path>, run: &Path) -> Result<PathBuf, TrainError> {
    train_before(recipe, student, run, &mut ())
}

/// The same before an observer.
pub fn train_before(
    recipe: &Recipe,
    student: Option<&Path>,
    run: &Path,
    observer: &mut dyn Observer,
) -> Result<PathBuf, TrainError> {
    let device = prepare::device(recipe.backend).expect("flex");
    let paths = LocalPaths {
        sources: vec![recipe.data.sources.clone()],
        student: student.map(Path::to_path_buf),
        ..LocalPaths::default()
    };
    std::fs::create_dir_all(run).expect("create");
    let prepared = prepare::prepare(recipe, &paths, run, &device, &mut |_| {})?;
    let first = || Ok(prepared.first_student(recipe, &paths, &device)?.0);
    Trainer::open(recipe, &prepared, first, run.to_path_buf(), device.clone())?.run(observer)
}

/// Logits `[tokens, vocab]` of one document, in f64, in plain loops.
pub fn reference_logits(weights: &Weights, config: &LlamaConfig, tokens: &[u32]) -> Vec<f64> {
    let linear = |x: &[f64], name: &str| -> Vec<f64> {
        let (dims, w) = &weights[&format!("{name}.weight")];
        let row =
            |out: usize| (0..dims[1]).map(|i| x[i] * f64::from(w[out * dims[1] + i])).sum::<f64>();
        (0..dims[0]).map(row).collect()
    };
    let norm = |x: &[f64], name: &str| -> Vec<f64> {
        let mean = x.iter().map(|v| v * v).sum::<f64>() / x.len() as f64;
        let scale = 1.0 / (mean + config.rms_norm_eps).sqrt();
        let w = &weights[&format!("{name}.weight")].1;
        x.iter().zip(w).map(|(v, w)| v * scale * f64::from(*w)).collect()
    };
    let (dim, half) = (config.head_dim, config.head_dim / 2);
    let rotate = |x: &mut [f64], position: usize| {
        for head in x.chunks_mut(dim) {
            for i in 0..half {
                let frequency = frequency(config, i);
                let (sin, cos) = (position as f64 * frequency).sin_cos();
                let (a, b) = (head[i], head[i + half]);
                head[i] = a * cos - b * sin;
                head[i + half] = b * cos + a * sin;
            }
        }
    };
    let embedding = &weights["model.embed_tokens.weight"].1;
    let width = config.hidden_size;
    let mut x: Vec<Vec<f64>> = tokens
        .iter()
        .map(|&t| embedding[t as usize * width..][..width].iter().map(|&v| v.into()).collect())
        .collect();
    for layer in 0..config.num_hidden_layers {
        let name = |part: &str| format!("model.layers.{layer}.{part}");
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        for (position, x) in x.iter_mut().enumerate() {
            let h = norm(x, &name("input_layernorm"));
            let mut query = linear(&h, &name("self_attn.q_proj"));
            let mut key = linear(&h, &name("self_attn.k_proj"));
            rotate(&mut query, position);
            rotate(&mut key, position);
            keys.push(key);
            values.push(linear(&h, &name("self_attn.v_proj")));
            let mut mixed = Vec::new();
            for head in 0..config.num_attention_heads {
                let group = head * config.num_key_value_heads / config.num_attention_heads;
                let q = &query[head * dim..][..dim];
                let score = |k: &Vec<f64>| {
                    let k = &k[group * dim..][..dim];
                    (q.iter().zip(k).map(|(q, k)| q * k).sum::<f64>() / (dim as f64).sqrt()).exp()
                };
                let scores: Vec<f64> = keys.iter().map(score).collect();
                let sum: f64 = scores.iter().sum();
                for i in 0..dim {
                    let term = |(s, v): (&f64, &Vec<f64>)| s / sum * v[group * dim + i];
                    mixed.push(scores.iter().zip(&values).map(term).sum());
                }
            }
            let out = linear(&mixed, &name("self_attn.o_proj"));
            x.iter_mut().zip(out).for_each(|(x, o)| *x += o);
        }
        for x in &mut x {
            let h = norm(x, &name("post_attention_layernorm"));
            let gate = linear(&h, &name("mlp.gate_proj"));
            let up = linear(&h, &name("mlp.up_proj"));
            let silu = |g: f64| g / (1.0 + (-g).exp());
            let inner: Vec<f64> = gate.iter().zip(&up).map(|(g, u)| silu(*g) * u).collect();
            let out = linear(&inner, &name("mlp.down_proj"));
            x.iter_mut().zip(out).for_each(|(x, o)| *x += o);
        }
    }
    let head = if config.tie_word_embeddings { "model.embed_tokens" } else { "lm_head" };
    x.iter().flat_map(|x| linear(&norm(x, "model.norm"), head)).collect()
}

/// Llama 3's scaling as the release notes state it: by wavelength.
fn frequency(config: &LlamaConfig, i: usize) -> f64 {
    let plain = config.rope_theta.powf(-2.0 * i as f64 / config.head_dim as f64);
    let Some(RopeScaling::Llama3 {
        factor,
        low_freq_factor,
        high_freq_factor,
        original_max_position_embeddings,
        ..
    }) = &config.rope_scaling
    else {
        return plain;
    };
    let original = *original_max_position_embeddings as f64;
    let wavelength = 2.0 * std::f64::consts::PI / plain;
    if wavelength < original / high_freq_factor {
        plain
    } else if wavelength > original / low_freq_factor {
        plain / factor
    } else {
        let smooth =
            (original / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
        (1.0 - smooth) * plain / factor + smooth * plain
    }
}
