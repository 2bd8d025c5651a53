//! AdamW (Loshchilov & Hutter 2019, algorithm 2) and the global norm.

use burn::tensor::{Device, Tensor, TensorData};
use distill_models::LlamaForCausalLM;
use distill_models::parameters::{self, NamedTensors};
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

    /// One update; a parameter without a gradient stays as it is.
    pub fn update(
        &mut self,
        model: LlamaForCausalLM,
        mut gradients: NamedTensors,
        learning_rate: f64,
    ) -> LlamaForCausalLM {
        self.step += 1;
        let correction1 = 1.0 - self.beta1.powi(self.step as i32);
        let correction2 = 1.0 - self.beta2.powi(self.step as i32);
        parameters::map(model, |name, dims, weight| {
            let gradient = gradients.remove(name)?;
            let square = gradient.clone().square();
            let m = decay(self.exp_avg.remove(name), gradient, self.beta1);
            let v = decay(self.exp_avg_sq.remove(name), square, self.beta2);
            let root = v.clone().div_scalar(correction2).sqrt().add_scalar(self.epsilon);
            let update = m.clone().mul_scalar(learning_rate / correction1) / root;
            self.exp_avg.insert(name.to_string(), m);
            self.exp_avg_sq.insert(name.to_string(), v);
            let decayed = dims.len() > 1 && self.weight_decay > 0.0;
            let kept = if decayed {
                weight.mul_scalar(1.0 - learning_rate * self.weight_decay)
            } else {
                weight
            };
            Some(kept - update)
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

fn decay(past: Option<Tensor<1>>, new: Tensor<1>, beta: f64) -> Tensor<1> {
    let new = new.mul_scalar(1.0 - beta);
    match past {
        Some(past) => past.mul_scalar(beta) + new,
        None => new,
    }
}

/// √Σg² over all parameters; gradients are scaled down to `limit` if it is larger.
/// Returns the norm before clipping.
pub fn clip_global_norm(gradients: &mut NamedTensors, limit: f64) -> f64 {
    let norm = gradients
        .values()
        .map(|g| f64::from(parameters::values(g.clone().square().sum())[0]))
        .sum::<f64>()
        .sqrt();
    if norm > limit {
        for gradient in gradients.values_mut() {
            *gradient = gradient.clone().mul_scalar(limit / norm);
        }
    }
    norm
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(values: &[f32]) -> Tensor<1> {
        Tensor::from_data(TensorData::new(values.to_vec(), [values.len()]), &Device::flex())
    }

    #[test]
    fn a_norm_above_the_limit_is_scaled_to_it_over_all_parameters() {
        let mut gradients =
            NamedTensors::from([("a".into(), tensor(&[3.0])), ("b".into(), tensor(&[0.0, 4.0]))]);
        assert_eq!(clip_global_norm(&mut gradients, 1.0), 5.0);
        let clipped = parameters::values(gradients["b"].clone());
        assert!((clipped[1] - 0.8).abs() < 1e-6, "{clipped:?}");
        assert!((clip_global_norm(&mut gradients, 1.0) - 1.0).abs() < 1e-6);
    }
}
