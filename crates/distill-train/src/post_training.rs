//! Finished weights onto the grid without training: what quantisation-aware training is held against,
//! and what it begins with.
//!
//! Layer after layer, and within a layer in the order of the forward pass, each linear is quantised for
//! the inputs that it will have: those that come out of what is quantised already, rounded as the
//! runtime rounds them. From these inputs x a linear needs H = Σ x·xᵀ alone: its diagonal weights the
//! errors of [`Method::Search`], all of it feeds them back in [`Method::Gptq`].

use std::collections::BTreeMap;

use burn::module::Param;
use burn::tensor::{Device, Tensor, TensorData};
use distill_data::{Batch, Split};
use distill_models::parameters;
use distill_models::quantized::{self, WeightGrid};
use distill_models::{LlamaForCausalLM, Positions, WeightGrids};
use distill_ops::cpu::{cholesky, gptq};
use distill_recipe::Method;

use crate::backward::input_ids;
use crate::teacher::forward;

/// What is added to the diagonal of H, as a share of its mean: GPTQ's.
const DAMPING: f64 = 0.01;
/// What a key or value is worth that no query looks at, where the mean is one.
const LEAST_RECEIVED: f32 = 0.1;

/// A model whose weights, rounded to `grids`, are what the method makes of them; with
/// [`Method::Round`] the model as it is. `progress` hears how many of how many layers are done.
///
/// `calibration` is text such as the model will meet; some ten thousand tokens are enough.
pub fn quantize(
    model: LlamaForCausalLM,
    grids: &WeightGrids,
    method: Method,
    calibration: &[Batch],
    device: &Device,
    progress: &mut dyn FnMut(usize, usize),
) -> LlamaForCausalLM {
    if method == Method::Round {
        return model;
    }
    let mut found = Found::default();
    let mut live = model.clone();
    if grids.embeddings == WeightGrid::Q4_0 {
        found.table(&model, grids, calibration, device);
    }
    round(&mut live, grids, &found, |name| grids.of(name) == grids.embeddings && is_table(name));

    live.rounding = grids.activations.into();
    let mut texts: Vec<Text> = calibration
        .iter()
        .map(|batch| {
            let (positions, documents) = (&batch.position_ids, &batch.document_ids);
            let positions = model.config.packed(batch.batch, positions, documents);
            let residual = live.embed(input_ids(batch, device));
            Text { positions, input: residual.clone(), residual }
        })
        .collect();
    let layers = model.config.num_hidden_layers;
    for layer in 0..layers {
        if grids.linears != WeightGrid::Q4_0 {
            break;
        }
        progress(layer, layers);
        for stage in Stage::ALL {
            for text in &mut texts {
                text.advance(&live, layer, stage);
            }
            let gram = Gram::of(texts.iter().map(|text| text.weighted_input(&live, layer, stage)));
            let factor = (method == Method::Gptq).then(|| gram.inverse_factor());
            for linear in stage.linears() {
                let name = format!("model.layers.{layer}.{linear}.weight");
                found.linear(&model, &name, &gram, factor.as_deref());
                round(&mut live, grids, &found, |of| of == name);
            }
        }
        for text in &mut texts {
            text.finish(&live, layer);
        }
    }
    progress(layers, layers);
    found.into_model(model)
}

/// Sequences from all over a text, whose documents need not be alike, and from each of its parts as
/// many as its share of an epoch asks for.
pub fn calibration(text: &Split, sequences: usize) -> Vec<Batch> {
    let mut starts = Vec::new();
    let (mut listed, mut epoch) = (0, 0);
    for (length, quota) in text.parts() {
        starts.push((listed, length, epoch, quota));
        listed += length;
        epoch += quota;
    }
    let sequences = sequences.min(text.len());
    let at = |i: usize| {
        let place = (2 * i + 1) * epoch / (2 * sequences);
        let part = starts.iter().rfind(|(_, _, start, _)| *start <= place);
        let &(listed, length, start, quota) = part.expect("the first starts at 0");
        listed + (place - start) * length / quota
    };
    (0..sequences).map(|i| text.batch(&[at(i)])).collect()
}

/// Linears of a layer that are quantised together, in the order of the forward pass.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    KeysAndValues,
    Queries,
    Output,
    GateAndUp,
    Down,
}

impl Stage {
    const ALL: [Self; 5] =
        [Self::KeysAndValues, Self::Queries, Self::Output, Self::GateAndUp, Self::Down];

    fn linears(self) -> &'static [&'static str] {
        match self {
            Self::KeysAndValues => &["self_attn.k_proj", "self_attn.v_proj"],
            Self::Queries => &["self_attn.q_proj"],
            Self::Output => &["self_attn.o_proj"],
            Self::GateAndUp => &["mlp.gate_proj", "mlp.up_proj"],
            Self::Down => &["mlp.down_proj"],
        }
    }
}

/// Calibration text on its way through the quantised layers.
struct Text {
    positions: Positions,
    /// `[batch, tokens, hidden]`.
    residual: Tensor<3>,
    /// What the linears of the stage read, `[batch, tokens, width]`.
    input: Tensor<3>,
}

impl Text {
    /// Through the linears of the stages before, to the input of this one's.
    fn advance(&mut self, model: &LlamaForCausalLM, layer: usize, stage: Stage) {
        let (input, residual) = (self.input.clone(), self.residual.clone());
        match stage {
            Stage::KeysAndValues => self.input = model.attention_input(layer, residual),
            Stage::Queries => {}
            Stage::Output => self.input = model.attention_mixed(layer, input, &self.positions),
            Stage::GateAndUp => {
                self.residual = model.add_attention(layer, residual, input);
                self.input = model.feed_forward_input(layer, self.residual.clone());
            }
            Stage::Down => self.input = model.feed_forward_inner(layer, input),
        }
    }

    /// Through the last stage, to the end of the layer.
    fn finish(&mut self, model: &LlamaForCausalLM, layer: usize) {
        self.residual = model.add_feed_forward(layer, self.residual.clone(), self.input.clone());
    }

    /// The input of the stage, each token times the root of what a squared error of the linears'
    /// output is worth there.
    ///
    /// - A key or value is worth the attention that it gets, as the first token of a text gets half of
    ///   all: an error of its value is added to every token.
    /// - What is added to the residual stream is read after a norm, so that errors count relative to
    ///   the stream: the first tokens carry values a thousand times those of others.
    ///
    /// Without the two H speaks of other tokens than those that matter, and GPTQ, which spoils what H
    /// does not speak of, was worse than rounding on SmolLM2-135M.
    fn weighted_input(&self, model: &LlamaForCausalLM, layer: usize, stage: Stage) -> Tensor<3> {
        let (input, residual) = (self.input.clone(), self.residual.clone());
        let relative_to = |stream: Tensor<3>| {
            // [batch, tokens, 1]
            let mean_square = stream.square().mean_dim(2);
            input.clone() / mean_square.add_scalar(f32::MIN_POSITIVE).sqrt()
        };
        match stage {
            Stage::KeysAndValues => {
                let received = model.attention_received(layer, input.clone(), &self.positions);
                input.clone() * received.add_scalar(LEAST_RECEIVED).sqrt()
            }
            Stage::Queries | Stage::GateAndUp => input,
            Stage::Output => relative_to(model.add_attention(layer, residual, input.clone())),
            Stage::Down => relative_to(model.add_feed_forward(layer, residual, input.clone())),
        }
    }
}

fn is_table(name: &str) -> bool {
    name == "model.embed_tokens.weight" || name == "lm_head.weight"
}

/// What was found so far, by the names of the matrices.
#[derive(Default)]
struct Found {
    /// `[rows · columns / 32]`.
    scales: BTreeMap<String, Vec<f32>>,
    /// Those that differ from the model's, `[rows · columns]`.
    masters: BTreeMap<String, Vec<f32>>,
}

impl Found {
    /// Scales of the token embedding and of the head. Rows of the embedding enter the residual stream
    /// as they are, so that all of their errors weigh the same; those of the head meet its inputs. A
    /// matrix that is both is judged by the sum.
    fn table(
        &mut self,
        model: &LlamaForCausalLM,
        grids: &WeightGrids,
        calibration: &[Batch],
        device: &Device,
    ) {
        let mut live = model.clone();
        live.rounding = grids.activations.into();
        let inputs = calibration.iter().map(|batch| {
            let hidden = forward(&live, batch, device);
            let [tokens, width] = hidden.dims();
            hidden.reshape([1, tokens, width])
        });
        let second_moments = Gram::of(inputs).diagonal();
        let mean = second_moments.iter().sum::<f32>() / second_moments.len() as f32;
        let tied = model.lm_head.is_none();
        parameters::for_each(model, |name, _, values| {
            if is_table(name) {
                let embeds = name != "lm_head.weight";
                let weight = |h: &f32| match (embeds, tied) {
                    (true, true) => h / mean.max(f32::MIN_POSITIVE) + 1.0,
                    (true, false) => 1.0,
                    (false, _) => *h,
                };
                let importance: Vec<f32> = second_moments.iter().map(weight).collect();
                self.scales.insert(name.to_string(), gptq::search(&values, &importance));
            }
        });
    }

    /// A linear by searched scales alone, or with errors fed back by a factor.
    fn linear(
        &mut self,
        model: &LlamaForCausalLM,
        name: &str,
        gram: &Gram,
        factor: Option<&[f32]>,
    ) {
        let linear = model.linears().find(|(linear, _)| name.starts_with(linear.as_str()));
        let (_, linear) = linear.expect("a name of this model");
        let mut weights = parameters::values(linear.weight.val());
        let scales = match factor {
            Some(factor) => {
                let scales = gptq::gptq(&mut weights, factor, gram.width);
                self.masters.insert(name.to_string(), weights);
                scales
            }
            None => gptq::search(&weights, &gram.diagonal()),
        };
        self.scales.insert(name.to_string(), scales);
    }

    fn into_model(mut self, model: LlamaForCausalLM) -> LlamaForCausalLM {
        let model = parameters::map(model, |name, _, weights| match self.masters.remove(name) {
            Some(masters) => {
                let elements = masters.len();
                Tensor::from_data(TensorData::new(masters, [elements]), &weights.device())
            }
            None => weights,
        });
        model.with_block_scales(self.scales)
    }
}

/// Gives some matrices of a model the values that they have on the grid.
fn round(
    live: &mut LlamaForCausalLM,
    grids: &WeightGrids,
    found: &Found,
    which: impl Fn(&str) -> bool,
) {
    let round = |name: &str, weight: &mut Param<Tensor<2>>| {
        if !which(name) {
            return;
        }
        let (dims, device) = (weight.val().dims(), weight.val().device());
        let elements = dims[0] * dims[1];
        let flat = |values: &Vec<f32>| {
            Tensor::<1>::from_data(TensorData::new(values.clone(), [values.len()]), &device)
        };
        let masters = found.masters.get(name).map(flat);
        let masters = masters.unwrap_or_else(|| weight.val().reshape([elements]));
        let scales = found.scales.get(name).map(flat);
        let rounded = quantized::round(grids.of(name), masters, scales.as_ref(), None);
        *weight = Param::initialized(weight.id, rounded.reshape(dims));
    };
    round("model.embed_tokens.weight", &mut live.model.embed_tokens.weight);
    if let Some(head) = &mut live.lm_head {
        round("lm_head.weight", &mut head.weight);
    }
    for (name, linear) in live.linears_mut() {
        round(&format!("{name}.weight"), &mut linear.weight);
    }
}

/// H = Σ x·xᵀ over the inputs of some linears.
struct Gram {
    /// Columns of the linears.
    width: usize,
    /// `[width, width]`.
    sums: Vec<f32>,
}

impl Gram {
    /// That of inputs `[batch, tokens, width]`.
    ///
    /// # Panics
    /// If there are none.
    fn of(inputs: impl Iterator<Item = Tensor<3>>) -> Self {
        let gram = |x: Tensor<3>| {
            let [batch, tokens, width] = x.dims();
            let rows = x.reshape([batch * tokens, width]);
            rows.clone().transpose().matmul(rows)
        };
        let sums = inputs.map(gram).reduce(|a, b| a + b).expect("calibration has text");
        Self { width: sums.dims()[0], sums: parameters::values(sums) }
    }

    fn diagonal(&self) -> Vec<f32> {
        (0..self.width).map(|k| self.sums[k * self.width + k]).collect()
    }

    /// R of (H + damping)⁻¹ = RᵀR. Of a column that is always zero the diagonal is the damping alone.
    fn inverse_factor(&self) -> Vec<f32> {
        let n = self.width;
        if self.sums.iter().any(|x| !x.is_finite()) {
            // Activations overflowed; nothing is fed back then.
            return (0..n * n).map(|i| if i % (n + 1) == 0 { 1.0 } else { 0.0 }).collect();
        }
        let diagonal = self.diagonal();
        let mean = diagonal.iter().map(|&x| f64::from(x)).sum::<f64>() / n as f64;
        let mut damping = DAMPING * if mean > 0.0 { mean } else { 1.0 };
        loop {
            let mut h: Vec<f64> = self.sums.iter().map(|&x| f64::from(x)).collect();
            for k in 0..n {
                h[k * n + k] += damping;
            }
            if let Some(factor) = cholesky::inverse_factor(&h, n) {
                return factor.into_iter().map(|x| x as f32).collect();
            }
            // Rounding made it indefinite; the diagonal outweighs the rest in the end.
            damping *= 10.0;
        }
    }
}
