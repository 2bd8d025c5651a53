//! What a cache in 8 bits costs the real SmolLM2-135M-Instruct.
//!
//! The model is not in this repository: `python3 datasets/fetch.py smollm2` brings it. Without it
//! the test says so and checks nothing; `DISTILL_REQUIRE_MODELS=1` makes that a failure.

use std::path::{Path, PathBuf};

use distill_edge::{Activations, KvType, LoadOptions, Model, Session, SessionOptions};
use distill_gguf::{GgmlType, GgufFile, GgufWriter, TensorSource};
use distill_quant::{q4_0, q8_0};

fn datasets() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../datasets")
}

fn smollm2() -> Option<PathBuf> {
    let named = std::env::var_os("DISTILL_SMOLLM2_GGUF").map(PathBuf::from);
    let path =
        named.unwrap_or_else(|| datasets().join("downloads/SmolLM2-135M-Instruct.Q4_1.gguf"));
    if path.is_file() {
        return Some(path);
    }
    eprintln!("NOT RUN: {} is not there; fetch it with datasets/fetch.py", path.display());
    assert!(std::env::var_os("DISTILL_REQUIRE_MODELS").is_none(), "the model is required");
    None
}

/// The same model as this runtime runs it: linear layers in Q4_0, embeddings in Q8_0.
fn requantize(source: &GgufFile, out: &Path) {
    let mut writer = GgufWriter::create(out).unwrap();
    for (key, value) in source.metadata().iter() {
        writer.set(key, value.clone());
    }
    for tensor in source.tensors() {
        let name = &tensor.name;
        let ty = match tensor.dims.len() {
            1 => GgmlType::F32,
            _ if name == "token_embd.weight" => GgmlType::Q8_0,
            _ => GgmlType::Q4_0,
        };
        let bytes = TensorSource::stream(move |out| {
            let values = source.require(name)?.dequantize()?;
            let mut bytes = vec![0; ty.tensor_bytes(&tensor.dims).unwrap() as usize];
            match ty {
                GgmlType::Q4_0 => q4_0::quantize_row(&values, &mut bytes),
                GgmlType::Q8_0 => q8_0::quantize_row(&values, &mut bytes),
                _ => bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect(),
            }
            out.write_all(&bytes)?;
            Ok(())
        });
        writer.tensor(name, &tensor.dims, ty, bytes).unwrap();
    }
    writer.finish().unwrap();
}

/// The distribution after each token, `[tokens, vocab]`, as logarithms.
fn log_probs(model: &Model, tokens: &[u32], kv: KvType) -> Vec<Vec<f64>> {
    let options = SessionOptions { context: tokens.len(), kv, threads: 2 };
    let mut rows = Vec::with_capacity(tokens.len());
    Session::new(model, options)
        .unwrap()
        .score(tokens, |_, logits| {
            let logits = logits.iter().map(|&x| f64::from(x));
            let largest = logits.clone().fold(f64::NEG_INFINITY, f64::max);
            let log_sum = logits.clone().map(|x| (x - largest).exp()).sum::<f64>().ln() + largest;
            rows.push(logits.map(|x| x - log_sum).collect());
        })
        .unwrap();
    rows
}

/// KL(p ‖ q) and log-probability of the text's own next token under both, means over positions.
fn compare(tokens: &[u32], p: &[Vec<f64>], q: &[Vec<f64>]) -> [f64; 3] {
    let kl = |p: &[f64], q: &[f64]| p.iter().zip(q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>();
    let mean_kl = p.iter().zip(q).map(|(p, q)| kl(p, q)).sum::<f64>() / p.len() as f64;
    let loss = |rows: &[Vec<f64>]| {
        let next = tokens[1..].iter().zip(rows).map(|(&id, row)| -row[id as usize]);
        next.sum::<f64>() / (tokens.len() - 1) as f64
    };
    [mean_kl, loss(p), loss(q)]
}

#[test]
fn codes_change_the_next_token_of_a_real_model_little() {
    let Some(path) = smollm2() else { return };
    let directory = tempfile::tempdir().unwrap();
    let quantized = directory.path().join("q4_0.gguf");
    requantize(&GgufFile::open(&path).unwrap(), &quantized);
    let text = std::fs::read_to_string(datasets().join("state-of-the-union.txt")).unwrap();
    // Bounds are three times what was measured: 5.0e-4 with float activations; with Q8_0's, whose
    // own rounding answers to any change, 4.6e-3 (and 3.9e-3 between caches in f32 and f16).
    for (activations, count, bound) in
        [(Activations::Float, 512, 1.5e-3), (Activations::Q8_0, 1024, 1.4e-2)]
    {
        let options = LoadOptions { activations: Some(activations), ..LoadOptions::default() };
        let model = Model::load(&quantized, &options).unwrap();
        let tokens = &model.tokenizer().encode(&text[..8192], true)[..count];
        let [half, codes] = [KvType::F16, KvType::Q8_0].map(|kv| log_probs(&model, tokens, kv));
        let [kl, loss, codes_loss] = compare(tokens, &half, &codes);
        println!("{activations:?} activations, {count} tokens: KL {kl:.3e}, loss {loss:.5}");
        println!("  in f16 and {codes_loss:.5} in q8_0");
        // Nothing at all would mean that no codes were read.
        assert!(kl > 1e-5 && kl < bound, "{activations:?}: {kl}");
        assert!((codes_loss - loss).abs() < 0.02, "{activations:?}: {loss}, {codes_loss}");
    }
}
