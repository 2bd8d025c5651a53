//! Finished weights onto the grid without training: what quantisation-aware training is held against,
//! and what it begins with.
//!
//! Layer after layer, and within a layer in the order of the forward pass, each linear is quantised for
//! the inputs that it will have: those that come out of what is quantised already, rounded as the
//! runtime rounds them. Of these inputs x a linear needs H = Σ x·xᵀ: its diagonal weights the errors of
//! [`Method::Search`], all of it feeds them back in [`Method::Gptq`], which also makes up for how far
//! they have moved from those in full precision (`Feedback::target`). Embedding and head come first,
//! for the inputs that the head has in full precision.

use std::collections::BTreeMap;

use burn::module::Param;
use burn::tensor::{Device, Tensor, TensorData};
use distill_data::{Batch, Split};
use distill_models::parameters;
use distill_models::quantized::{self, WeightGrid};
use distill_models::{LlamaForCausalLM, Positions, WeightGrids};
use distill_ops::cpu::descent::descend;
use distill_ops::cpu::{cholesky, gptq};
use distill_recipe::Method;

use crate::backward::input_ids;
use crate::teacher::forward;

/// What is added to the diagonal of H, as a share of its mean: GPTQ's.
const DAMPING: f64 = 0.01;
/// What a key or value is worth that no query looks at, where the mean is one.
const LEAST_RECEIVED: f32 = 0.1;

/// How often coordinate descent looks at every code once GPTQ has decided.
const SWEEPS: usize = 2;

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
    // Scales that the model may have had from another method are no part of this one.
    let model = model.with_block_scales(BTreeMap::new());
    if method == Method::Round {
        return model;
    }
    let mut found = Found::default();
    let mut live = model.clone();
    if grids.embeddings == WeightGrid::Q4_0 {
        found.table(&model, grids, method, calibration, device);
    }
    round(&mut live, grids, &found, is_table);

    live.rounding = grids.activations.into();
    let texts = |model: &LlamaForCausalLM| -> Vec<Text> {
        calibration.iter().map(|batch| Text::new(model, batch, device)).collect()
    };
    // The same text through the layers as they become, and as they were.
    let (mut texts, mut full) = (
        texts(&live),
        match method {
            Method::Gptq => texts(&model),
            Method::Round | Method::Search => Vec::new(),
        },
    );
    let layers = model.config.num_hidden_layers;
    for layer in 0..layers {
        if grids.linears != WeightGrid::Q4_0 {
            break;
        }
        progress(layer, layers);
        for stage in Stage::ALL {
            texts.iter_mut().for_each(|text| text.advance(&live, layer, stage));
            full.iter_mut().for_each(|text| text.advance(&model, layer, stage));
            let worths: Vec<Tensor<3>> =
                texts.iter().map(|text| text.worth(&live, layer, stage)).collect();
            let weighted = |(text, worth): (&Text, &Tensor<3>)| text.input.clone() * worth.clone();
            let gram = Gram::of(texts.iter().zip(&worths).map(weighted));
            let feedback = (method == Method::Gptq).then(|| {
                let (h, factor) = gram.damped();
                Feedback { h, factor, drift: Drift::of(&texts, &full, &worths, stage) }
            });
            for linear in stage.linears() {
                let name = format!("model.layers.{layer}.{linear}.weight");
                found.linear(&model, &name, &gram, feedback.as_ref());
                round(&mut live, grids, &found, |of| of == name);
            }
        }
        texts.iter_mut().for_each(|text| text.finish(&live, layer));
        full.iter_mut().for_each(|text| text.finish(&model, layer));
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
    fn new(model: &LlamaForCausalLM, batch: &Batch, device: &Device) -> Self {
        let (positions, documents) = (&batch.position_ids, &batch.document_ids);
        let positions = model.config.packed(batch.batch, positions, documents);
        let residual = model.embed(input_ids(batch, device));
        Self { positions, input: residual.clone(), residual }
    }

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

    /// The root of what a squared error of the linears' output is worth at each token,
    /// `[batch, tokens, 1]`.
    ///
    /// - A key or value is worth the attention that it gets, as the first token of a text gets half of
    ///   all: an error of its value is added to every token.
    /// - What is added to the residual stream is read after a norm, so that errors count relative to
    ///   the stream: the first tokens carry values a thousand times those of others.
    ///
    /// Without the two H speaks of other tokens than those that matter, and GPTQ, which spoils what H
    /// does not speak of, was worse than rounding on SmolLM2-135M.
    fn worth(&self, model: &LlamaForCausalLM, layer: usize, stage: Stage) -> Tensor<3> {
        let (input, residual) = (self.input.clone(), self.residual.clone());
        // Of each token's mean square.
        let relative_to = |stream: Tensor<3>| {
            stream.square().mean_dim(2).add_scalar(f32::MIN_POSITIVE).sqrt().recip()
        };
        match stage {
            Stage::KeysAndValues => {
                let received = model.attention_received(layer, input, &self.positions.afresh());
                received.add_scalar(LEAST_RECEIVED).sqrt()
            }
            Stage::Queries | Stage::GateAndUp => input.mean_dim(2).ones_like(),
            Stage::Output => relative_to(model.add_attention(layer, residual, input)),
            Stage::Down => relative_to(model.add_feed_forward(layer, residual, input)),
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
    /// The token embedding and the head. Rows of the embedding enter the residual stream as they are, so
    /// that all of their errors weigh the same; those of the head meet its inputs. A matrix that is both
    /// is judged by the sum, which weighs the two alike.
    fn table(
        &mut self,
        model: &LlamaForCausalLM,
        grids: &WeightGrids,
        method: Method,
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
        let head = Gram::of(inputs);
        let tied = model.lm_head.is_none();
        parameters::for_each(model, |name, _, mut values| {
            if !is_table(name) {
                return;
            }
            let embeds = name != "lm_head.weight";
            let gram = match (embeds, tied) {
                (true, true) => head.and_identity(),
                (true, false) => Gram::identity(head.width),
                (false, _) => head.clone(),
            };
            let scales = if method == Method::Gptq {
                let (_, factor) = gram.damped();
                let scales = gptq::gptq(&mut values, &factor, gram.width);
                self.masters.insert(name.to_string(), values);
                scales
            } else {
                gptq::search(&values, &gram.diagonal())
            };
            self.scales.insert(name.to_string(), scales);
        });
    }

    /// A linear by searched scales alone, or with errors fed back.
    fn linear(
        &mut self,
        model: &LlamaForCausalLM,
        name: &str,
        gram: &Gram,
        feedback: Option<&Feedback>,
    ) {
        let linear = model.linears().find(|(linear, _)| name.starts_with(linear.as_str()));
        let (_, linear) = linear.expect("a name of this model");
        let scales = match feedback {
            Some(feedback) => {
                let target = parameters::values(feedback.target(linear.weight.val()));
                let mut weights = target.clone();
                let mut scales = gptq::gptq(&mut weights, &feedback.factor, gram.width);
                let h = &feedback.h;
                descend(&mut weights, &mut scales, &target, h, gram.width, SWEEPS);
                self.masters.insert(name.to_string(), weights);
                scales
            }
            None => gptq::search(&parameters::values(linear.weight.val()), &gram.diagonal()),
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

/// What GPTQ makes use of besides the weights.
struct Feedback {
    /// H, damped, `[width, width]`.
    h: Vec<f32>,
    /// R of H⁻¹ = RᵀR, `[width, width]`.
    factor: Vec<f32>,
    drift: Drift,
}

impl Feedback {
    /// Weights `[out, width]` that make up, on the inputs x̂ that the linear will have, for what
    /// quantisation has changed before it: those of least Σ ‖Ŵ·x̂ − W·x − δ‖², where x is the input in
    /// full precision and δ what the residual stream lacks of its full-precision self (for linears that
    /// are added to it; else 0). With M = Σ (W·(x − x̂) + δ)·x̂ᵀ that is W + M·H⁻¹. (GPTAQ, Li et al.
    /// 2025, has the part of x.)
    ///
    /// Most of M is chance: what quantisation did to these texts. Of the way to those weights as much is
    /// gone as two halves of the text agree on. With M = M₁ + M₂ the part of ‖M‖² = tr M·H⁻¹·Mᵀ that
    /// is not chance is 4·tr M₁·H⁻¹·M₂ᵀ on average, and their ratio is the share that leaves the least
    /// error on other text; a little less, as the halves' H differ too, by about width / tokens.
    fn target(&self, weights: Tensor<2>) -> Tensor<2> {
        let [_, width] = weights.dims();
        let factor = TensorData::new(self.factor.clone(), [width, width]);
        let factor = Tensor::<2>::from_data(factor, &weights.device());
        // Mᵢ·Rᵀ, whose scalar products are those of Mᵢ under H⁻¹.
        let [first, second] = [0, 1].map(|half| {
            let moved = weights.clone().matmul(self.drift.inputs[half].clone());
            let moved = match &self.drift.residual {
                Some(residual) => moved + residual[half].clone(),
                None => moved,
            };
            moved.matmul(factor.clone().transpose())
        });
        let product =
            |a: &Tensor<2>, b: &Tensor<2>| -> f32 { (a.clone() * b.clone()).sum().into_scalar() };
        let both = first.clone() + second.clone();
        let (agreed, all) = (4.0 * product(&first, &second), product(&both, &both));
        let share = if agreed > 0.0 { (agreed / all).min(1.0) } else { 0.0 };
        if share == 0.0 { weights } else { weights + both.matmul(factor) * share }
    }
}

/// How far quantisation has moved what a linear reads and what it is added to, as sums over the tokens
/// of either half of the texts.
struct Drift {
    /// Σ (x − x̂)·x̂ᵀ, `[width, width]`.
    inputs: [Tensor<2>; 2],
    /// Σ δ·x̂ᵀ, `[hidden, width]`.
    residual: Option<[Tensor<2>; 2]>,
}

impl Drift {
    fn of(texts: &[Text], full: &[Text], worths: &[Tensor<3>], stage: Stage) -> Self {
        let sums = |moved: fn(&Text, &Text) -> Tensor<3>| {
            let rows = |x: Tensor<3>| {
                let [batch, tokens, width] = x.dims();
                x.reshape([batch * tokens, width])
            };
            let of = |index: usize| {
                let worth = &worths[index];
                let moved = rows(moved(&texts[index], &full[index]) * worth.clone());
                moved.transpose().matmul(rows(texts[index].input.clone() * worth.clone()))
            };
            // The halves take turns, so that both have the same H (in stretches of neighbours, which may be of
            // one document, they agreed on less, and other text lost by it). Of a single text there are
            // no halves, and nothing is made up for.
            let half = |first: usize| {
                let sum = (first..texts.len()).step_by(2).map(of).reduce(|a, b| a + b);
                sum.unwrap_or_else(|| of(0).zeros_like())
            };
            [half(0), half(1)]
        };
        let is_added = matches!(stage, Stage::Output | Stage::Down);
        Self {
            inputs: sums(|text, full| full.input.clone() - text.input.clone()),
            residual: is_added
                .then(|| sums(|text, full| full.residual.clone() - text.residual.clone())),
        }
    }
}

/// H = Σ x·xᵀ over the inputs of some linears.
#[derive(Clone)]
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

    fn identity(width: usize) -> Self {
        let sums = (0..width * width).map(|i| if i % (width + 1) == 0 { 1.0 } else { 0.0 });
        Self { width, sums: sums.collect() }
    }

    /// H with a diagonal of 1 on average, and the identity.
    fn and_identity(&self) -> Self {
        let mean = self.diagonal().iter().sum::<f32>() / self.width as f32;
        let mut both = Self::identity(self.width);
        both.sums
            .iter_mut()
            .zip(&self.sums)
            .for_each(|(b, h)| *b += h / mean.max(f32::MIN_POSITIVE));
        both
    }

    fn diagonal(&self) -> Vec<f32> {
        (0..self.width).map(|k| self.sums[k * self.width + k]).collect()
    }

    /// H with what is added to its diagonal, and R of its inverse RᵀR. Of a column that is always zero
    /// the diagonal is the damping alone.
    fn damped(&self) -> (Vec<f32>, Vec<f32>) {
        let n = self.width;
        if self.sums.iter().any(|x| !x.is_finite()) {
            // Activations overflowed; nothing is fed back then.
            let identity = Self::identity(n).sums;
            return (identity.clone(), identity);
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
                let single = |values: Vec<f64>| values.into_iter().map(|x| x as f32).collect();
                return (single(h), single(factor));
            }
            // Rounding made it indefinite; the diagonal outweighs the rest in the end.
            damping *= 10.0;
        }
    }
}

#[cfg(test)]
mod tests {
    use distill_models::LlamaConfig;

    use super::*;

    /// Of either half.
    const TOKENS: usize = 2000;

    fn flex() -> Device {
        distill_models::Backend::Flex.device().expect("flex")
    }

    /// Numbers that look random, about as many above zero as below.
    fn noise(n: usize, seed: u64) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            ((state >> 40) as f32 / (1u64 << 23) as f32) - 1.0
        };
        (0..n).map(|_| next() + next()).collect()
    }

    fn matrix(values: Vec<f32>, dims: [usize; 2]) -> Tensor<2> {
        Tensor::from_data(TensorData::new(values, dims), &flex())
    }

    /// What is made of weights 8 × 32 for texts whose inputs x are those given, where x̂ is noise.
    fn target(weights: &Tensor<2>, inputs: impl Fn(&Tensor<2>, u64) -> Tensor<2>) -> Tensor<2> {
        let (width, tokens) = (32, TOKENS);
        let mut halves = Vec::new();
        let mut h = matrix(vec![0.0; width * width], [width, width]);
        for half in 0..2 {
            let found = matrix(noise(tokens * width, 10 + half), [tokens, width]);
            let moved = inputs(&found, half) - found.clone();
            h = h + found.clone().transpose().matmul(found.clone());
            halves.push(moved.transpose().matmul(found));
        }
        let (h, factor) = Gram { width, sums: parameters::values(h) }.damped();
        let inputs = [halves[0].clone(), halves[1].clone()];
        let feedback = Feedback { h, factor, drift: Drift { inputs, residual: None } };
        feedback.target(weights.clone())
    }

    fn distance(a: &Tensor<2>, b: &Tensor<2>) -> f32 {
        let off = parameters::values(a.clone() - b.clone());
        off.iter().map(|x| x * x).sum::<f32>().sqrt()
    }

    #[test]
    fn what_can_be_made_up_for_is_and_chance_is_left_alone() {
        let weights = matrix(noise(8 * 32, 3), [8, 32]);
        // x = A·x̂ for one A: then W·A gives what W gave, up to the damping of a hundredth.
        let mut a: Vec<f32> = noise(32 * 32, 4).iter().map(|x| 0.1 * x).collect();
        (0..32).for_each(|i| a[33 * i] += 1.0);
        let a = matrix(a, [32, 32]);
        let made = target(&weights, |found, _| found.clone().matmul(a.clone().transpose()));
        let whole = weights.clone().matmul(a);
        let cost = distance(&weights, &whole);
        assert!(distance(&made, &whole) < 0.03 * cost, "{} {cost}", distance(&made, &whole));

        // x and x̂ that differ by chance: least squares go 4.5 % of the weights astray, for 32 numbers a
        // row are fitted to 4,000 tokens; halves that do not agree say so.
        let off = |found: &Tensor<2>, half: u64| {
            found.clone() + matrix(noise(TOKENS * 32, 20 + half), [TOKENS, 32]) * 0.5
        };
        let astray = distance(&target(&weights, off), &weights)
            / distance(&weights, &(weights.clone() * 0.0));
        assert!(astray < 0.015, "{astray}");
    }

    #[test]
    fn an_output_projection_makes_up_for_what_its_stream_and_its_inputs_lack() {
        let (width, tokens) = (32, 500);
        let config = LlamaConfig {
            vocab_size: 32,
            hidden_size: width,
            intermediate_size: width,
            num_hidden_layers: 1,
            num_attention_heads: 1,
            num_key_value_heads: 1,
            head_dim: width,
            rope_theta: 10_000.0,
            rope_scaling: None,
            rms_norm_eps: 1e-5,
            max_position_embeddings: tokens,
            tie_word_embeddings: true,
            bos_token_id: None,
            eos_token_id: None,
        };
        let positions = vec![0; tokens];
        let three = |x: Tensor<2>| x.reshape([1, tokens, width]);
        let weights = matrix(noise(width * width, 3), [width, width]);
        // x = A·x̂ and δ = B·x̂: then W·A + B gives what is lacking.
        let near = |seed| matrix(noise(width * width, seed), [width, width]) * 0.1;
        let (a, b) = (near(4) + Tensor::eye(width, &flex()), near(5));
        let of = |seed| {
            let found = matrix(noise(tokens * width, seed), [tokens, width]);
            let stream = matrix(noise(tokens * width, seed + 50), [tokens, width]);
            let lacks = found.clone().matmul(b.clone().transpose());
            let text = |input: Tensor<2>, residual: Tensor<2>| Text {
                positions: config.packed(1, &positions, &positions),
                input: three(input),
                residual: three(residual),
            };
            let full = found.clone().matmul(a.clone().transpose());
            (text(found, stream.clone()), text(full, stream + lacks))
        };
        let (texts, full): (Vec<Text>, Vec<Text>) = (0..8).map(|i| of(100 + i)).unzip();
        // A token's worth weighs both sides alike.
        let worths: Vec<Tensor<3>> = (0..8)
            .map(|i| {
                let worth = noise(tokens, 200 + i).iter().map(|x| x.abs() + 0.1).collect();
                matrix(worth, [tokens, 1]).reshape([1, tokens, 1])
            })
            .collect();
        let weighted = texts.iter().zip(&worths).map(|(t, w)| t.input.clone() * w.clone());
        let (h, factor) = Gram::of(weighted).damped();
        for (stage, expected) in [
            (Stage::Output, weights.clone().matmul(a.clone()) + b.clone()),
            (Stage::Queries, weights.clone().matmul(a.clone())),
        ] {
            let drift = Drift::of(&texts, &full, &worths, stage);
            let feedback = Feedback { h: h.clone(), factor: factor.clone(), drift };
            let made = feedback.target(weights.clone());
            let (off, cost) = (distance(&made, &expected), distance(&weights, &expected));
            assert!(off < 0.05 * cost, "{stage:?}: {off} {cost}");
        }
    }

    #[test]
    fn inputs_that_are_not_finite_leave_the_weights_as_they_are() {
        let mut sums = vec![1.0; 32 * 32];
        sums[5] = f32::INFINITY;
        let (h, factor) = Gram { width: 32, sums }.damped();
        assert!(h == factor && h[0] == 1.0 && h[1] == 0.0);
    }
}
