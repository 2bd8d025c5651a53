//! The training graph computes a Llama: against a float64 forward pass written out here.

mod tiny;

use burn::tensor::{Device, Int, Tensor, TensorData};
use distill_models::{Backend, LlamaForCausalLM, RopeScaling, parameters};
use tiny::{reference_logits, tiny_config, weights_of};

fn ids(tokens: &[u32], device: &Device) -> Tensor<2, Int> {
    let ids: Vec<i32> = tokens.iter().map(|&t| t as i32).collect();
    Tensor::from_data(TensorData::new(ids, [1, tokens.len()]), device)
}

fn graph_logits(model: &LlamaForCausalLM, tokens: &[u32], device: &Device) -> Vec<f32> {
    let positions = model.config.document(tokens.len());
    parameters::values(model.logits(model.hidden(ids(tokens, device), &positions)))
}

const TOKENS: [u32; 9] = [3, 17, 4, 4, 29, 0, 31, 8, 12];

#[test]
fn logits_equal_a_float64_forward_pass() {
    for (tied, scaled) in [(true, false), (false, false), (true, true)] {
        let mut config = tiny_config();
        config.tie_word_embeddings = tied;
        if scaled {
            config.rope_scaling = Some(RopeScaling::Llama3 {
                rope_type: "llama3".into(),
                factor: 8.0,
                low_freq_factor: 1.0,
                high_freq_factor: 4.0,
                original_max_position_embeddings: 16,
            });
        }
        let backends = [
            Backend::Flex,
            Backend::Ndarray,
            #[cfg(feature = "wgpu")]
            Backend::Wgpu,
            #[cfg(feature = "cuda")]
            Backend::Cuda,
        ];
        for backend in backends {
            let device = backend.device().expect("this build has it");
            let model = tiny::model(&config, &device);
            let expected = reference_logits(&weights_of(&model), &config, &TOKENS);
            let found = graph_logits(&model, &TOKENS, &device);
            assert_eq!(found.len(), expected.len());
            for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
                let error = (f64::from(*found) - expected).abs();
                assert!(error < 2e-5, "tied {tied} scaled {scaled} at {index}: {found} {expected}");
            }
        }
    }
}

#[test]
fn packed_documents_do_not_see_each_other() {
    let device = Device::flex();
    let model = tiny::model(&tiny_config(), &device);
    let (first, second) = TOKENS.split_at(4);
    let documents = [0, 0, 0, 0, 1, 1, 1, 1, 1];
    let positions = [0, 1, 2, 3, 0, 1, 2, 3, 4];
    let layout = model.config.packed(1, &positions, &documents);
    let packed = parameters::values(model.logits(model.hidden(ids(&TOKENS, &device), &layout)));
    let apart =
        [graph_logits(&model, first, &device), graph_logits(&model, second, &device)].concat();
    for (index, (a, b)) in packed.iter().zip(&apart).enumerate() {
        assert!((a - b).abs() < 1e-5, "{index}: {a} {b}");
    }
}

#[test]
fn parameter_paths_are_hugging_face_names() {
    let names: Vec<String> = parameters::shapes(&tiny::model(&tiny_config(), &Device::flex()))
        .into_iter()
        .map(|(n, _)| n)
        .collect();
    for name in [
        "model.embed_tokens.weight",
        "model.layers.1.self_attn.q_proj.weight",
        "model.layers.0.mlp.down_proj.weight",
        "model.layers.0.post_attention_layernorm.weight",
        "model.norm.weight",
    ] {
        assert!(names.iter().any(|n| n == name), "{name} is not among {names:?}");
    }
}
