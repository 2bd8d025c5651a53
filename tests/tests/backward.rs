//! Gradients of the whole graph: fused against plain tensor operations, with and without activation
//! checkpointing.

mod tiny;

use std::collections::BTreeMap;

use burn::tensor::Device;
use distill_data::Batch;
use distill_models::parameters::{self, NamedTensors};
use distill_models::quantized::quantize;
use distill_models::{ActivationGrid, Backend, WeightGrid, WeightGrids};
use distill_recipe::Precision;
use distill_train::backward::MicroBatch;
use distill_train::loss::{Distillation, Divergence};
use distill_train::teacher::{LocalTeacher, Teacher};
use tiny::tiny_config;

/// Two sequences of packed documents; the head's tile is not whole.
fn batch() -> Batch {
    const TOKENS: usize = 70;
    let count = 2 * TOKENS;
    Batch {
        batch: 2,
        sequence: TOKENS,
        input_ids: (0..count).map(|i| (i * 7 % 31) as u32).collect(),
        labels: (0..count).map(|i| ((i + 1) * 7 % 31) as u32).collect(),
        loss_mask: (0..count).map(|i| i % 6 != 2).collect(),
        document_ids: (0..count).map(|i| (i % TOKENS / 25) as u32).collect(),
        position_ids: (0..count).map(|i| (i % TOKENS % 25) as u32).collect(),
    }
}

struct Found {
    loss: f64,
    gradients: BTreeMap<String, Vec<f32>>,
}

fn gradients(device: &Device, tied: bool, distil: bool, activation_checkpointing: bool) -> Found {
    let mut config = tiny_config();
    config.tie_word_embeddings = tied;
    let grids = WeightGrids {
        linears: WeightGrid::Q4_0,
        embeddings: WeightGrid::Q8_0,
        activations: ActivationGrid::Float,
    };
    let model = quantize(&tiny::model(&config, device), &grids);
    let batch = batch();
    let options = Distillation {
        divergence: Divergence::Jsd { beta: 0.4 },
        temperature: 2.0,
        scale_by_temperature_squared: true,
        cross_entropy: 0.2,
    };
    let mut other = config.clone();
    other.num_hidden_layers = 1;
    let teacher = LocalTeacher::new(tiny::model(&other, device), config.vocab_size, device.clone());
    let signal = teacher.signal(&batch).expect("a signal");
    let mut gradients = NamedTensors::new();
    let sums = MicroBatch {
        batch: &batch,
        distillation: distil.then_some((&signal, &options)),
        vocabulary: config.vocab_size,
        denominator: batch.valid_tokens(),
        activation_checkpointing,
        precision: Precision::F32,
    }
    .backward(&model, &mut gradients);
    let values = |(name, tensor)| (name, parameters::values(tensor));
    Found { loss: sums.loss, gradients: gradients.into_iter().map(values).collect() }
}

#[test]
fn every_parameter_has_the_same_gradient_on_every_backend() {
    let backends = [
        Backend::Ndarray,
        #[cfg(feature = "wgpu")]
        Backend::Wgpu,
        #[cfg(feature = "cuda")]
        Backend::Cuda,
    ];
    let flex = Backend::Flex.device().expect("flex");
    for (tied, distil) in [(true, false), (true, true), (false, true)] {
        let found = gradients(&flex, tied, distil, false);
        for backend in &backends {
            let other =
                gradients(&backend.device().expect("this build has it"), tied, distil, false);
            assert!((found.loss - other.loss).abs() <= 1e-5 * other.loss.abs());
            assert_eq!(
                found.gradients.keys().collect::<Vec<_>>(),
                other.gradients.keys().collect::<Vec<_>>()
            );
            for (name, found) in &found.gradients {
                let other = &other.gradients[name];
                let norm = |x: &mut dyn Iterator<Item = f32>| x.map(|x| x * x).sum::<f32>().sqrt();
                let error = norm(&mut found.iter().zip(other).map(|(a, b)| a - b));
                let size = norm(&mut other.iter().copied());
                assert!(error <= 2e-5 * size, "{backend:?} {name}: {error} of {size}");
            }
        }
    }
}

#[test]
fn activation_checkpointing_changes_no_bit() {
    let device = Backend::Flex.device().expect("flex");
    for distil in [false, true] {
        let kept = gradients(&device, true, distil, false);
        let again = gradients(&device, true, distil, true);
        assert_eq!(kept.loss, again.loss);
        assert_eq!(kept.gradients, again.gradients);
    }
}
