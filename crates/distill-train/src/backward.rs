//! The gradients of a micro-batch.

use burn::tensor::Tensor;
use distill_data::Batch;
use distill_models::LlamaForCausalLM;
use distill_models::parameters::{self, NamedTensors};

use crate::head::{HeadInput, LossSums};
use crate::loss::Distillation;
use crate::teacher::{Signal, forward};

/// Adds the gradients of a micro-batch, divided by `denominator`, the valid tokens of the whole
/// accumulation window; returns the sums of its losses, which are not divided.
///
/// `live` is a [`tracked`](parameters::tracked) model; `distillation` is the teacher's signal and how
/// to be held against it, `None` for plain cross-entropy.
pub fn backward(
    live: &LlamaForCausalLM,
    batch: &Batch,
    distillation: Option<(&Signal, &Distillation)>,
    vocabulary: usize,
    denominator: usize,
    gradients: &mut NamedTensors,
) -> LossSums {
    let head = live.head();
    let hidden = forward(live, batch, &head.device());
    let loss = HeadInput {
        hidden: hidden.clone().inner(),
        head: head.inner(),
        vocabulary,
        batch,
        distillation,
        denominator,
    }
    .loss();
    let head = if live.lm_head.is_some() { "lm_head.weight" } else { "model.embed_tokens.weight" };
    let elements: usize = loss.head_gradient.dims().iter().product();
    parameters::add(gradients, head.to_string(), loss.head_gradient.reshape([elements]));
    // The gradient of this sum with respect to `hidden` is the head's.
    let mut backward = (hidden * Tensor::from_inner(loss.hidden_gradient)).sum().backward();
    parameters::accumulate_gradients(live, &mut backward, gradients);
    loss.sums
}
