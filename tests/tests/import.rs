//! The real SmolLM2-135M-Instruct, read from its GGUF, against transformers and against
//! llama.cpp (the fixture says both agree with float64).
//!
//! The model is not in this repository: `python3 datasets/fetch.py` brings it. Without it the
//! tests say so and check nothing; `DISTILL_REQUIRE_MODELS=1` makes that a failure.

use burn::tensor::{Device, Int, Tensor, TensorData};
use distill_data::TextTokenizer;
use distill_gguf::GgufFile;
use distill_models::{load_pretrained, parameters};
use distill_tests::{fixture, smollm2};
use serde_json::Value;

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().expect("a list").iter().map(|n| n.as_f64().expect("a number")).collect()
}

#[test]
fn imported_logits_agree_with_transformers_within_a_thousandth() {
    let Some(path) = smollm2() else { return };
    let device = Device::flex();
    let (model, report) = load_pretrained(&path, &device).expect("loads");
    assert_eq!(report.elements, 134_515_008);
    let fixture = fixture("smollm2-135m-instruct-logits.json");
    let mut worst: f64 = 0.0;
    let mut compared = 0;
    for prompt in fixture["prompts"].as_array().expect("prompts") {
        let ids: Vec<i32> = numbers(&prompt["ids"]).iter().map(|&id| id as i32).collect();
        let count = ids.len();
        let positions = model.config.document(count);
        let ids = Tensor::<2, Int>::from_data(TensorData::new(ids, [1, count]), &device);
        let hidden = model.hidden(ids, &positions);
        for position in prompt["positions"].as_array().expect("positions") {
            let at = position["position"].as_u64().expect("a position") as usize;
            let logits = parameters::values(model.logits(hidden.clone().narrow(1, at, 1)));
            for kind in ["top", "sampled"] {
                let ids = numbers(&position[format!("{kind}_ids")]);
                let expected = numbers(&position[format!("{kind}_logits")]);
                for (id, expected) in ids.iter().zip(expected) {
                    let difference = (f64::from(logits[*id as usize]) - expected).abs();
                    assert!(difference <= 1e-3, "token {id}: {difference}");
                    worst = worst.max(difference);
                    compared += 1;
                }
            }
        }
    }
    eprintln!("{compared} logits, largest difference {worst:.2e}");
    assert!(compared > 1000 && worst <= 1e-3, "{worst}");
}

#[test]
fn token_ids_of_the_gguf_vocabulary_agree_with_hugging_face_and_llama_cpp() {
    let Some(path) = smollm2() else { return };
    let trainer = TextTokenizer::from_gguf(&GgufFile::open(&path).expect("opens")).expect("reads");
    let fixture = fixture("smollm2-tokenizer.json");
    for case in fixture["cases"].as_array().expect("cases") {
        let text = case["text"].as_str().expect("text");
        let expected: Vec<u32> = numbers(&case["ids"]).iter().map(|&id| id as u32).collect();
        assert_eq!(trainer.encode(text, false).expect("encodes"), expected, "{text:?}");
    }
}
