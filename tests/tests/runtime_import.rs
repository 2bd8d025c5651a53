//! The edge runtime on the real SmolLM2-135M-Instruct, against transformers, Hugging Face
//! `tokenizers` and llama.cpp (the fixtures say how far those agree with each other).
//!
//! The model is not in this repository: `python3 datasets/fetch.py` brings it. Without it the
//! tests say so and check nothing; `DISTILL_REQUIRE_MODELS=1` makes that a failure.

use std::path::Path;

use distill_edge::{Activations, KvType, LoadOptions, Model, Session, SessionOptions};
use distill_gguf::{GgmlType, GgufFile, GgufWriter, TensorSource, Value as GgufValue};
use distill_tests::{fixture, smollm2};
use serde_json::Value;

fn list(value: &Value) -> &[Value] {
    value.as_array().expect("a list")
}

fn ids(value: &Value) -> Vec<u32> {
    list(value).iter().map(|id| id.as_u64().expect("an id") as u32).collect()
}

/// The same model with every tensor in F32, which the runtime computes without rounding anything.
fn write_f32(source: &GgufFile, out: &Path) {
    let mut writer = GgufWriter::create(out).expect("a temporary file");
    for (key, value) in source.metadata().iter() {
        writer.set(key, value.clone());
    }
    writer.set("general.file_type", GgufValue::U32(0));
    for tensor in source.tensors() {
        let name = &tensor.name;
        let bytes = TensorSource::stream(move |out| {
            for value in source.require(name)?.dequantize()? {
                out.write_all(&value.to_le_bytes())?;
            }
            Ok(())
        });
        writer.tensor(name, &tensor.dims, GgmlType::F32, bytes).expect("a tensor");
    }
    writer.finish().expect("written");
}

fn load(path: &Path) -> Model {
    let options =
        LoadOptions { activations: Some(Activations::Float), threads: 1, ..LoadOptions::default() };
    Model::load(path, &options).expect("loads")
}

#[test]
fn runtime_logits_agree_with_transformers_on_the_dequantized_model() {
    let Some(path) = smollm2() else { return };
    let directory = tempfile::tempdir().expect("a temporary directory");
    let f32_path = directory.path().join("f32.gguf");
    write_f32(&GgufFile::open(&path).expect("opens"), &f32_path);
    let model = load(&f32_path);
    let options = SessionOptions { context: 512, kv: KvType::F32, threads: 1 };
    let mut session = Session::new(&model, options).expect("a session");

    let fixture = fixture("smollm2-135m-instruct-logits.json");
    let (mut worst, mut compared) = (0.0f32, 0);
    for prompt in list(&fixture["prompts"]) {
        session.reset();
        let tokens = ids(&prompt["ids"]);
        session
            .score(&tokens, |at, logits| {
                let positions = list(&prompt["positions"]);
                for position in positions.iter().filter(|p| p["position"] == at) {
                    for kind in ["top", "sampled"] {
                        let ids = ids(&position[format!("{kind}_ids")]);
                        for (id, expected) in
                            ids.iter().zip(list(&position[format!("{kind}_logits")]))
                        {
                            let expected = expected.as_f64().expect("a logit") as f32;
                            let difference = (logits[*id as usize] - expected).abs();
                            assert!(difference.is_finite(), "token {id}: {difference}");
                            worst = worst.max(difference);
                            compared += 1;
                        }
                    }
                }
            })
            .expect("scores");
    }
    assert_eq!(compared, 15 * 128, "eight prompts at two positions, the first has only one");
    // Two float32 programs that sum in orders of their own lie on either side of the exact value:
    // at most twice as far apart as transformers and llama.cpp are.
    let apart = fixture["max_difference_from_llama_cpp_f32"].as_f64().expect("a number");
    let bound = 2.0 * apart as f32;
    assert!(worst <= bound, "max |difference| {worst:.2e}, bound {bound:.2e}");
}

#[test]
fn runtime_tokenizer_gives_the_ids_of_hugging_face_and_llama_cpp() {
    let Some(path) = smollm2() else { return };
    let file = GgufFile::open(&path).expect("opens");
    let tokenizer = distill_edge::Tokenizer::from_gguf(&file).expect("a tokenizer");
    for case in list(&fixture("smollm2-tokenizer.json")["cases"]) {
        let text = case["text"].as_str().expect("a text");
        let expected = ids(&case["ids"]);
        assert_eq!(tokenizer.encode(text, false), expected, "{text:?}");
        let decoded = case["decoded"].as_str().unwrap_or(text);
        assert_eq!(tokenizer.decode(&expected), decoded, "{text:?}");
    }
}
