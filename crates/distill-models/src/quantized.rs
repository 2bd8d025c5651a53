//! The weights that ship, made from the master weights.
//!
//! Fake quantisation stands outside the autodiff graph: once per optimiser step the masters
//! are rounded, the model runs on the rounded weights, and [`straight_through`] carries their
//! gradients back to the masters. Micro-batches, evaluation and export thus see one and the
//! same grid, and its cost does not grow with gradient accumulation.

use std::collections::BTreeMap;

use burn::tensor::Tensor;
use distill_quant::q4_0::BlockQ4_0;
use distill_quant::{BLOCK, f16};

use crate::parameters::{self, NamedTensors};
use crate::{ActivationGrid, LlamaConfig, LlamaForCausalLM, ModelError, fake_quant};

/// Grid of a group of weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum WeightGrid {
    /// As trained.
    #[default]
    Float,
    /// 4 bits, blocks of 32.
    Q4_0,
    /// 8 bits, blocks of 32.
    Q8_0,
}

/// Which grid each group of weights ships on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct WeightGrids {
    /// The matrices of the decoder layers.
    pub linears: WeightGrid,
    /// Token embedding and head, tied or not.
    pub embeddings: WeightGrid,
    /// Inputs of the linears and of the head.
    pub activations: ActivationGrid,
}

impl WeightGrids {
    /// The grid of a parameter; norms and scales of blocks stay in float.
    pub fn of(&self, name: &str) -> WeightGrid {
        if name.ends_with("norm.weight") || is_block_scale(name) {
            WeightGrid::Float
        } else if name == "model.embed_tokens.weight" || name == "lm_head.weight" {
            self.embeddings
        } else {
            self.linears
        }
    }

    /// Checks that every quantised matrix has whole blocks in its rows.
    ///
    /// # Errors
    /// [`ModelError::Shape`] naming the dimension.
    pub fn check(&self, config: &LlamaConfig) -> Result<(), ModelError> {
        let linears = self.linears != WeightGrid::Float;
        let embeddings = self.embeddings != WeightGrid::Float;
        let activations = self.activations != ActivationGrid::Float;
        let queries = config.num_attention_heads * config.head_dim;
        for (quantized, key, width) in [
            (linears || embeddings || activations, "hidden_size", config.hidden_size),
            (linears || activations, "intermediate_size", config.intermediate_size),
            (linears || activations, "num_attention_heads · head_dim", queries),
        ] {
            if quantized && !width.is_multiple_of(distill_quant::BLOCK) {
                return Err(ModelError::Shape {
                    place: "quantize".into(),
                    problem: format!(
                        "the student's `{key}` is {width}, which is no multiple of the block of {}",
                        distill_quant::BLOCK
                    ),
                });
            }
        }
        Ok(())
    }
}

/// Whether a parameter is the scales of a matrix's blocks.
pub fn is_block_scale(name: &str) -> bool {
    name.ends_with(SCALE)
}

/// The name of a matrix's scales: `….weight_scale` for `….weight`.
pub fn block_scale_of(matrix: &str) -> String {
    format!("{}{SCALE}", matrix.trim_end_matches(".weight"))
}

/// The matrix whose scales a parameter is.
pub fn block_scale_owner(scales: &str) -> String {
    format!("{}.weight", scales.trim_end_matches(SCALE))
}

const SCALE: &str = ".weight_scale";

/// The scales of blocks that a model has, by their names.
fn block_scales(model: &LlamaForCausalLM) -> NamedTensors {
    let mut scales = NamedTensors::new();
    parameters::for_each_tensor(model, |name, tensor| {
        if is_block_scale(name) {
            scales.insert(name.to_string(), tensor);
        }
    });
    scales
}

/// The model as it ships: every weight on its grid, activations rounded in the forward pass.
pub fn quantize(masters: &LlamaForCausalLM, grids: &WeightGrids) -> LlamaForCausalLM {
    quantize_into(masters, grids, NamedTensors::new())
}

/// The same, its weights in memory that another such model had: what [`reclaim`] gave.
pub fn quantize_into(
    masters: &LlamaForCausalLM,
    grids: &WeightGrids,
    mut room: NamedTensors,
) -> LlamaForCausalLM {
    let scales = block_scales(masters);
    let mut model = parameters::map(masters.clone(), |name, _, weights| {
        round(grids.of(name), weights, scales.get(&block_scale_of(name)), room.remove(name))
    });
    model.rounding = grids.activations.into();
    model
}

/// The rounded weights of a model that is no longer needed.
pub fn reclaim(model: LlamaForCausalLM, grids: &WeightGrids) -> NamedTensors {
    let mut room = NamedTensors::new();
    parameters::for_each_tensor(&model, |name, weights| {
        if grids.of(name) != WeightGrid::Float {
            room.insert(name.to_string(), weights);
        }
    });
    room
}

/// A flat matrix on a grid, with its scales of blocks if it has any, in the memory of `room` if nobody
/// else holds that. Q8_0's scales always follow from the weights: in 8 bits nothing is won by others.
pub fn round(
    grid: WeightGrid,
    weights: Tensor<1>,
    scales: Option<&Tensor<1>>,
    room: Option<Tensor<1>>,
) -> Tensor<1> {
    match (grid, scales) {
        (WeightGrid::Float, _) => weights,
        (WeightGrid::Q4_0, None) => fake_quant::q4_0(weights, room),
        (WeightGrid::Q4_0, Some(scales)) => fake_quant::q4_0_scaled(weights, scales, room),
        (WeightGrid::Q8_0, _) => fake_quant::q8_0(weights, room),
    }
}

/// The model with scales of its own on every Q4_0 matrix: those that it has, else those that follow
/// from the weights. They can be trained then.
pub fn with_own_scales(model: LlamaForCausalLM, grids: &WeightGrids) -> LlamaForCausalLM {
    let mut scales = BTreeMap::new();
    parameters::for_each(&model, |name, _, values| {
        if is_block_scale(name) {
            scales.insert(block_scale_owner(name), values);
        } else if grids.of(name) == WeightGrid::Q4_0 {
            let of = |block: &[f32; BLOCK]| f16::to_f32(BlockQ4_0::quantize(block).d);
            let from_weights = values.as_chunks().0.iter().map(of).collect();
            scales.entry(name.to_string()).or_insert(from_weights);
        }
    });
    model.with_block_scales(scales)
}

/// Turns gradients of the rounded weights into gradients of the masters: unchanged inside the
/// grid's range, zero where the code is clamped. Q8_0 never clamps. Scales of blocks that a model has
/// get gradients too, under their own names: those of their logarithms, which is what is trained.
pub fn straight_through(
    masters: &LlamaForCausalLM,
    grids: &WeightGrids,
    gradients: &mut NamedTensors,
) {
    if grids.linears != WeightGrid::Q4_0 && grids.embeddings != WeightGrid::Q4_0 {
        return;
    }
    let scales = block_scales(masters);
    parameters::for_each_tensor(masters, |name, weights| {
        if grids.of(name) != WeightGrid::Q4_0 {
            return;
        }
        let Some(gradient) = gradients.remove(name) else { return };
        let scale = block_scale_of(name);
        let passed = match scales.get(&scale) {
            None => fake_quant::q4_0_straight_through(weights, gradient),
            Some(scales) => {
                let (of_weights, of_scales) =
                    fake_quant::q4_0_scaled_straight_through(weights, scales, gradient);
                // ∂/∂ln s = s · ∂/∂s.
                gradients.insert(scale, of_scales * scales.clone());
                of_weights
            }
        };
        gradients.insert(name.to_string(), passed);
    });
}
