//! The gradients of a micro-batch.

use burn::tensor::{Device, Int, Tensor, TensorData};
use distill_data::Batch;
use distill_models::LlamaForCausalLM;
use distill_models::parameters::{self, NamedTensors};
use distill_recipe::Precision;

use crate::head::{HeadInput, LossSums};
use crate::loss::Distillation;
use crate::teacher::Signal;

/// What a micro-batch's gradients are made from besides the model.
#[derive(Clone, Copy)]
pub struct MicroBatch<'a> {
    /// Tokens, labels, mask.
    pub batch: &'a Batch,
    /// The teacher's signal and how to be held against it; `None` is plain cross-entropy.
    pub distillation: Option<(&'a Signal, &'a Distillation)>,
    /// Tokens that exist.
    pub vocabulary: usize,
    /// Valid tokens of the whole accumulation window, by which gradients are divided.
    pub denominator: usize,
    /// Whether only the inputs of the layers are kept, and each layer is computed again for its
    /// gradients (Chen et al. 2016): a third more arithmetic, a fraction of the memory.
    pub activation_checkpointing: bool,
    /// What the products of the layers compute in.
    pub precision: Precision,
}

impl MicroBatch<'_> {
    /// Adds the gradients with respect to `model`, whose weights carry no graph; returns the sums of
    /// the losses, which are not divided. An adapted model's weights are frozen: there are gradients
    /// of its factors only, and none are computed below the first of these.
    pub fn backward(self, model: &LlamaForCausalLM, gradients: &mut NamedTensors) -> LossSums {
        let batch = self.batch;
        let device = model.head().device();
        let frozen = model.is_adapted();
        let in_bf16;
        let model = match self.precision {
            Precision::F32 => model,
            Precision::Bf16 => {
                in_bf16 = model.clone().with_bf16_linears();
                &in_bf16
            }
        };
        let live = parameters::tracked(model);
        let positions = model.config.packed(batch.batch, &batch.position_ids, &batch.document_ids);
        // The layers in runs, each with a graph of its own.
        let layers = model.config.num_hidden_layers;
        let run = if self.activation_checkpointing { 1 } else { layers.max(1) };
        let runs: Vec<_> =
            (0..layers.max(1)).step_by(run).map(|l| l..layers.min(l + run)).collect();
        let mut inputs = vec![model.embed(input_ids(batch, &device))];
        for run in &runs[..runs.len() - 1] {
            let x = inputs[inputs.len() - 1].clone();
            inputs.push(model.layers(run.clone(), x, &positions));
        }
        let mut sums = LossSums::default();
        let mut slope: Option<Tensor<3>> = None;
        for (run, input) in runs.into_iter().zip(inputs).rev() {
            // Below the first layer there is nothing but a frozen embedding.
            let asked = run.start > 0 || !frozen;
            let input = input.autodiff();
            let input = if asked { input.require_grad() } else { input };
            let mut y = live.layers(run, input.clone(), &positions);
            let of_y = slope.take().unwrap_or_else(|| {
                y = live.head_input(y.clone());
                let (found, of_hidden) = self.head(model, y.clone().inner(), gradients);
                sums = found;
                of_hidden
            });
            // The gradient of this sum with respect to `y` is `of_y`.
            let mut found = (y * Tensor::from_inner(of_y)).sum().backward();
            slope = if asked { input.grad_remove(&mut found) } else { None };
            parameters::accumulate_gradients(&live, &mut found, gradients);
        }
        if let Some(slope) = slope {
            add_embedding_rows(model, &batch.input_ids, slope, gradients);
        }
        sums
    }

    /// The loss at the head's input `[batch, tokens, hidden]`, and the gradient of that; the head's
    /// own is added.
    fn head(
        self,
        model: &LlamaForCausalLM,
        hidden: Tensor<3>,
        gradients: &mut NamedTensors,
    ) -> (LossSums, Tensor<3>) {
        let dims = hidden.dims();
        let loss = HeadInput {
            hidden: hidden.reshape([dims[0] * dims[1], dims[2]]),
            head: model.head(),
            frozen: model.is_adapted(),
            vocabulary: self.vocabulary,
            batch: self.batch,
            distillation: self.distillation,
            denominator: self.denominator,
        }
        .loss();
        if let Some(gradient) = loss.head_gradient {
            let head = if model.lm_head.is_some() { "lm_head.weight" } else { EMBEDDING };
            let elements: usize = gradient.dims().iter().product();
            parameters::add(gradients, head.to_string(), gradient.reshape([elements]));
        }
        (loss.sums, loss.hidden_gradient.reshape(dims))
    }
}

const EMBEDDING: &str = "model.embed_tokens.weight";

/// Adds the gradients of the tokens' embeddings `[batch, tokens, hidden]` to those of their rows.
fn add_embedding_rows(
    model: &LlamaForCausalLM,
    ids: &[u32],
    slope: Tensor<3>,
    gradients: &mut NamedTensors,
) {
    let [rows, width] = model.model.embed_tokens.weight.val().dims();
    let table = gradients
        .remove(EMBEDDING)
        .unwrap_or_else(|| Tensor::zeros([rows * width], &slope.device()));
    let slope = slope.reshape([ids.len() * width]);
    gradients.insert(EMBEDDING.to_string(), distill_ops::add_rows(table, ids, slope, width));
}

/// The tokens of a batch, `[batch, sequence]`.
pub fn input_ids(batch: &Batch, device: &Device) -> Tensor<2, Int> {
    let ids: Vec<i32> = batch.input_ids.iter().map(|&id| id as i32).collect();
    Tensor::from_data(TensorData::new(ids, [batch.batch, batch.sequence]), device)
}
