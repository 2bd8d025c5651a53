//! AdamW (Loshchilov & Hutter 2019, algorithm 2) and the global norm.

use burn::tensor::{Device, Tensor, TensorData};
use distill_models::LlamaForCausalLM;
use distill_models::parameters::{self, NamedTensors};
use distill_ops::cpu::adamw::Update;
use distill_recipe::Train;

/// AdamW with bias correction and decoupled weight decay on matrices (norms do not decay).
///
/// m ← β₁m + (1−β₁)g, v ← β₂v + (1−β₂)g², w ← (1 − ηλ)w − η·m̂ / (√v̂ + ε).
#[derive(Clone, Debug)]
pub struct AdamW {
    beta1: f64,
    beta2: f64,
    epsilon: f64,
    weight_decay: f64,
    /// Updates made.
    step: usize,
    /// First moment of each parameter, `[elements]`.
    exp_avg: NamedTensors,
    /// Second moment of each parameter, `[elements]`.
    exp_avg_sq: NamedTensors,
}

impl AdamW {
    /// A fresh optimiser with the recipe's constants.
    pub fn new(train: &Train) -> Self {
        Self {
            beta1: train.beta1,
            beta2: train.beta2,
            epsilon: train.epsilon,
            weight_decay: train.weight_decay,
            step: 0,
            exp_avg: NamedTensors::new(),
            exp_avg_sq: NamedTensors::new(),
        }
    }

    /// One update from gradients times `clip`; a parameter without a gradient stays as it is.
    pub fn update(
        &mut self,
        model: LlamaForCausalLM,
        mut gradients: NamedTensors,
        clip: f64,
        learning_rate: f64,
    ) -> LlamaForCausalLM {
        self.step += 1;
        let correction = |beta: f64| 1.0 / (1.0 - beta.powi(self.step as i32));
        let rate = learning_rate * correction(self.beta1);
        let update = Update {
            beta1: self.beta1 as f32,
            beta2: self.beta2 as f32,
            rate: rate as f32,
            correction2: correction(self.beta2) as f32,
            epsilon: self.epsilon as f32,
            keep: 1.0,
            clip: clip as f32,
        };
        parameters::map(model, |name, dims, weight| {
            let Some(gradient) = gradients.remove(name) else { return weight };
            let moment =
                |of: &mut NamedTensors| of.remove(name).unwrap_or_else(|| gradient.zeros_like());
            let (m, v) = (moment(&mut self.exp_avg), moment(&mut self.exp_avg_sq));
            let decay = if dims.len() > 1 { learning_rate * self.weight_decay } else { 0.0 };
            let update = Update { keep: (1.0 - decay) as f32, ..update };
            let [weight, m, v] = distill_ops::adamw([weight, m, v], gradient, update);
            self.exp_avg.insert(name.to_string(), m);
            self.exp_avg_sq.insert(name.to_string(), v);
            weight
        })
    }

    /// The state as flat tensors: `exp_avg.<parameter>` and `exp_avg_sq.<parameter>`.
    pub fn state(&self) -> Vec<(String, Vec<f32>)> {
        let named = |prefix: &str, tensors: &NamedTensors| -> Vec<(String, Vec<f32>)> {
            tensors
                .iter()
                .map(|(name, t)| (format!("{prefix}.{name}"), parameters::values(t.clone())))
                .collect()
        };
        let mut state = named("exp_avg", &self.exp_avg);
        state.extend(named("exp_avg_sq", &self.exp_avg_sq));
        state
    }

    /// Puts back what [`AdamW::state`] gave after `step` updates. Returns the name of a tensor
    /// that is not the optimiser's, if there is one.
    pub fn restore(
        &mut self,
        step: usize,
        state: Vec<(String, Vec<f32>)>,
        device: &Device,
    ) -> Option<String> {
        self.step = step;
        for (name, values) in state {
            let elements = values.len();
            let tensor = Tensor::from_data(TensorData::new(values, [elements]), device);
            if let Some(parameter) = name.strip_prefix("exp_avg_sq.") {
                self.exp_avg_sq.insert(parameter.to_string(), tensor);
            } else if let Some(parameter) = name.strip_prefix("exp_avg.") {
                self.exp_avg.insert(parameter.to_string(), tensor);
            } else {
                return Some(name);
            }
        }
        None
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
