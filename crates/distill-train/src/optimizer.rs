//! AdamW (Loshchilov & Hutter 2019, algorithm 2) and the global norm.

use std::collections::BTreeMap;

use burn::tensor::Tensor;
use distill_models::LlamaForCausalLM;
use distill_models::parameters::{self, NamedTensors};
use distill_models::quantized::is_block_scale;
use distill_ops::cpu::adamw::Update;
use distill_ops::{MomentType, Moments};
use distill_recipe::{LearningRateFactors, OptimizerState, Train};

/// AdamW with bias correction and decoupled weight decay on matrices (norms do not decay).
///
/// m ← β₁m + (1−β₁)g, v ← β₂v + (1−β₂)g², w ← (1 − ηλ)w − η·m̂ / (√v̂ + ε).
#[derive(Clone, Debug)]
pub struct AdamW {
    beta1: f64,
    beta2: f64,
    epsilon: f64,
    weight_decay: f64,
    /// What the learning rate of some parameters is multiplied by.
    factors: LearningRateFactors,
    /// Updates made before scales of blocks had any.
    scales_begin: usize,
    /// The type that moments are kept in.
    state: MomentType,
    /// What their rounding is drawn from, with the step and the parameter's name.
    seed: u64,
    /// Updates made.
    step: usize,
    /// Of each parameter that has had a gradient.
    moments: BTreeMap<String, Moments>,
}

impl AdamW {
    /// A fresh optimiser with the recipe's constants and seed.
    pub fn new(train: &Train, seed: u64) -> Self {
        Self {
            beta1: train.beta1,
            beta2: train.beta2,
            epsilon: train.epsilon,
            weight_decay: train.weight_decay,
            factors: train.learning_rate_factors,
            scales_begin: 0,
            state: match train.optimizer_state {
                OptimizerState::F32 => MomentType::F32,
                OptimizerState::Bf16 => MomentType::Bf16,
                OptimizerState::EightBit => MomentType::EightBit,
            },
            seed,
            step: 0,
            moments: BTreeMap::new(),
        }
    }

    /// Scales of blocks are there from that update on, counted from 0: their moments begin there.
    #[must_use]
    pub fn with_scales_from(mut self, update: usize) -> Self {
        self.scales_begin = update;
        self
    }

    /// Leaves scales of blocks as they are.
    #[must_use]
    pub fn with_fixed_scales(mut self) -> Self {
        self.factors.scales = 0.0;
        self
    }

    /// Whether a parameter is ever changed.
    pub fn trains(&self, name: &str) -> bool {
        self.factor(name) != 0.0
    }

    /// One update of a whole model from gradients times `clip`; a parameter without a gradient stays
    /// as it is.
    pub fn update(
        &mut self,
        model: LlamaForCausalLM,
        mut gradients: NamedTensors,
        clip: f64,
        learning_rate: f64,
    ) -> LlamaForCausalLM {
        let mut step = self.step(clip, learning_rate);
        parameters::map(model, |name, dims, weight| match gradients.remove(name) {
            Some(gradient) => step.apply(name, dims, weight, gradient),
            None => weight,
        })
    }

    /// Begins an update, which is then applied to each parameter. Gradients are multiplied by `clip`.
    pub fn step(&mut self, clip: f64, learning_rate: f64) -> Step<'_> {
        self.step += 1;
        let after = |updates: usize| {
            let correction = |beta: f64| 1.0 / (1.0 - beta.powi(updates as i32));
            Update {
                beta1: self.beta1 as f32,
                beta2: self.beta2 as f32,
                rate: (learning_rate * correction(self.beta1)) as f32,
                correction2: correction(self.beta2) as f32,
                epsilon: self.epsilon as f32,
                keep: 1.0,
                clip: clip as f32,
            }
        };
        let of_scales = after(self.step.saturating_sub(self.scales_begin).max(1));
        let update = after(self.step);
        Step { decay: learning_rate * self.weight_decay, update, of_scales, optimizer: self }
    }

    /// The moments of each parameter.
    pub fn moments(&self) -> &BTreeMap<String, Moments> {
        &self.moments
    }

    /// Bytes of all moments.
    pub fn state_bytes(&self) -> usize {
        self.moments.values().map(Moments::bytes).sum()
    }

    /// The type that moments are kept in.
    pub fn state(&self) -> MomentType {
        self.state
    }

    /// Puts back the moments that stood after `step` updates.
    pub fn restore(&mut self, step: usize, moments: BTreeMap<String, Moments>) {
        self.step = step;
        self.moments = moments;
    }

    /// What the learning rate of a parameter is multiplied by.
    fn factor(&self, name: &str) -> f64 {
        if is_block_scale(name) {
            self.factors.scales
        } else if name.ends_with("norm.weight") {
            self.factors.norms
        } else if name == "model.embed_tokens.weight" || name == "lm_head.weight" {
            self.factors.embeddings
        } else {
            self.factors.linears
        }
    }

    /// The key of what is drawn for a parameter in the current step.
    fn noise(&self, name: &str) -> u32 {
        // FNV-1a of the name, then the finaliser of SplitMix64 over all three.
        let name = name.bytes().fold(0xCBF2_9CE4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3)
        });
        let step = (self.step as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let mut z = name ^ step ^ self.seed.rotate_left(32);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 32) as u32
    }
}

/// An update in progress.
pub struct Step<'a> {
    optimizer: &'a mut AdamW,
    update: Update,
    /// That of scales of blocks, whose moments may be younger.
    of_scales: Update,
    /// Learning rate · weight decay.
    decay: f64,
}

impl Step<'_> {
    /// A parameter's flat weights, one step on; `dims` are its dimensions. Scales of blocks are
    /// multiplied: what is trained is their logarithm, so that the learning rate is relative to what
    /// they are, whatever the size of the weights. (A factor to gradients such as LSQ's 1/√(32 · 8)
    /// would change nothing, for Adam's step does not depend on it.)
    pub fn apply(
        &mut self,
        name: &str,
        dims: &[usize],
        weight: Tensor<1>,
        gradient: Tensor<1>,
    ) -> Tensor<1> {
        let factor = self.optimizer.factor(name);
        if factor == 0.0 {
            return weight;
        }
        let noise = self.optimizer.noise(name);
        if !self.optimizer.moments.contains_key(name) {
            let fresh = Moments::zeros(self.optimizer.state, &gradient);
            self.optimizer.moments.insert(name.to_string(), fresh);
        }
        let moments = self.optimizer.moments.get_mut(name).expect("inserted above");
        let rate_of = |update: &Update| (f64::from(update.rate) * factor) as f32;
        if is_block_scale(name) {
            let update = Update { rate: rate_of(&self.of_scales), keep: 1.0, ..self.of_scales };
            let zeros = weight.zeros_like();
            let moved = moments.update(zeros, gradient, update, noise);
            return weight * moved.exp();
        }
        let decay = if dims.len() > 1 { self.decay * factor } else { 0.0 };
        let update =
            Update { rate: rate_of(&self.update), keep: (1.0 - decay) as f32, ..self.update };
        moments.update(weight, gradient, update, noise)
    }
}

/// √Σg² over all parameters.
pub fn global_norm(gradients: &NamedTensors) -> f64 {
    gradients.values().map(distill_ops::sum_of_squares).sum::<f64>().sqrt()
}

/// What gradients of that global norm are multiplied by so that it is at most `limit`.
pub fn clip(norm: f64, limit: f64) -> f64 {
    if norm > limit { limit / norm } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, TensorData};

    use super::*;

    #[test]
    fn a_norm_above_the_limit_is_scaled_to_it_over_all_parameters() {
        let tensor = |values: &[f32]| {
            Tensor::from_data(TensorData::new(values.to_vec(), [values.len()]), &Device::flex())
        };
        let gradients =
            NamedTensors::from([("a".into(), tensor(&[3.0])), ("b".into(), tensor(&[0.0, 4.0]))]);
        assert_eq!(global_norm(&gradients), 5.0);
        assert_eq!((clip(5.0, 1.0), clip(0.5, 1.0)), (0.2, 1.0));
    }
}
