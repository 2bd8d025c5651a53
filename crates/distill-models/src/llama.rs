//! The Llama family: SmolLM2, Llama 3.2.
//!
//! Pre-norm decoder layers of grouped-query attention with rotary positions and a SwiGLU
//! network. Weights are `[out, in]`, as Hugging Face stores them, so that the quantisation
//! blocks of 32 lie along the contiguous input dimension.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use burn::module::{Module, Param};
use burn::tensor::{Device, FloatDType, Int, Tensor, TensorData};
use distill_ops::{Gate, Norm, Positions, Shape, plain};

use crate::lora::Adapter;
use crate::rope::inverse_frequencies;
use crate::{ActivationGrid, LinearInput, LlamaConfig, Rounding};

/// A causal language model; its parameter paths are Hugging Face's tensor names.
#[derive(Module, Debug)]
pub struct LlamaForCausalLM {
    /// Everything below the head.
    pub model: LlamaModel,
    /// The head, unless it is the embedding.
    pub lm_head: Option<Linear>,
    /// Shape of the model.
    #[module(skip)]
    pub config: LlamaConfig,
    /// What the forward pass rounds.
    #[module(skip)]
    pub rounding: Arc<dyn Rounding>,
}

/// Embedding, decoder layers, final norm.
#[derive(Module, Debug)]
pub struct LlamaModel {
    /// `[vocab, hidden]`.
    pub embed_tokens: Embedding,
    /// Decoder layers, bottom first.
    pub layers: Vec<LlamaDecoderLayer>,
    /// Norm before the head.
    pub norm: RmsNorm,
}

/// One residual block of attention and one of the feed-forward network.
#[derive(Module, Debug)]
pub struct LlamaDecoderLayer {
    /// Norm before attention.
    pub input_layernorm: RmsNorm,
    /// Attention.
    pub self_attn: LlamaAttention,
    /// Norm before the feed-forward network.
    pub post_attention_layernorm: RmsNorm,
    /// Feed-forward network.
    pub mlp: LlamaMlp,
}

/// Grouped-query attention.
#[derive(Module, Debug)]
pub struct LlamaAttention {
    /// `[heads · head_dim, hidden]`.
    pub q_proj: Linear,
    /// `[kv_heads · head_dim, hidden]`.
    pub k_proj: Linear,
    /// `[kv_heads · head_dim, hidden]`.
    pub v_proj: Linear,
    /// `[hidden, heads · head_dim]`.
    pub o_proj: Linear,
}

/// `down(silu(gate(x)) ∘ up(x))`.
#[derive(Module, Debug)]
pub struct LlamaMlp {
    /// `[intermediate, hidden]`.
    pub gate_proj: Linear,
    /// `[intermediate, hidden]`.
    pub up_proj: Linear,
    /// `[hidden, intermediate]`.
    pub down_proj: Linear,
}

/// A matrix `[out, in]` without bias.
#[derive(Module, Debug)]
pub struct Linear {
    /// `[out, in]`.
    pub weight: Param<Tensor<2>>,
    /// The scale of each block of 32 on its grid, `[out, in / 32]`, where it does not follow from
    /// the block's weights.
    pub weight_scale: Option<Param<Tensor<2>>>,
    /// The low-rank factors that gradients go to, if the weight is frozen.
    #[module(skip)]
    pub adapter: Option<Adapter>,
}

/// A table `[vocab, hidden]`.
#[derive(Module, Debug)]
pub struct Embedding {
    /// `[vocab, hidden]`.
    pub weight: Param<Tensor<2>>,
    /// As a linear's, `[vocab, hidden / 32]`.
    pub weight_scale: Option<Param<Tensor<2>>>,
}

/// `x / sqrt(mean(x²) + ε) ∘ weight` over the last dimension.
#[derive(Module, Debug)]
pub struct RmsNorm {
    /// `[hidden]`.
    pub weight: Param<Tensor<1>>,
    /// ε.
    #[module(skip)]
    pub epsilon: f64,
}

impl LlamaConfig {
    /// Positions of packed documents: attention is causal and never crosses from one document
    /// to another. Both slices are row-major `[batch, tokens]`.
    ///
    /// # Panics
    /// If the slices do not hold `batch · tokens` elements.
    pub fn packed(&self, batch: usize, position_ids: &[u32], document_ids: &[u32]) -> Positions {
        let shape = Shape {
            batch,
            tokens: position_ids.len() / batch,
            heads: self.num_attention_heads,
            kv_heads: self.num_key_value_heads,
            head_dim: self.head_dim,
        };
        let frequencies =
            inverse_frequencies(self.rope_theta, self.head_dim, self.rope_scaling.as_ref());
        Positions::packed(shape, &frequencies, position_ids, document_ids)
    }

    /// Positions of the first tokens of one document.
    pub fn document(&self, tokens: usize) -> Positions {
        let ids: Vec<u32> = (0..tokens as u32).collect();
        self.packed(1, &ids, &vec![0; tokens])
    }
}

impl LlamaForCausalLM {
    /// A new model: weights normal with σ = 0.02 (residual outputs scaled by 1/√(2·layers), as
    /// GPT-2), norms one. The same seed gives the same weights on every backend.
    ///
    /// # Panics
    /// If the configuration was not validated.
    pub fn init(config: &LlamaConfig, seed: u64, device: &Device) -> Self {
        let mut normal = Normal::new(seed);
        let residual = 0.02 / (2.0 * config.num_hidden_layers as f64).sqrt();
        Self::build(config, device, |name, dims| {
            let elements: usize = dims.iter().product();
            if dims.len() == 1 {
                return vec![1.0; elements];
            }
            let feeds_residual =
                name.ends_with("o_proj.weight") || name.ends_with("down_proj.weight");
            let sigma = if feeds_residual { residual } else { 0.02 };
            (0..elements).map(|_| (sigma * normal.next()) as f32).collect()
        })
    }

    /// Assembles the model, asking for each parameter by name and dimensions; the answer is
    /// row-major.
    ///
    /// # Panics
    /// If the configuration was not validated, or an answer has not the elements of its dimensions.
    pub fn build(
        config: &LlamaConfig,
        device: &Device,
        mut values: impl FnMut(&str, &[usize]) -> Vec<f32>,
    ) -> Self {
        let device = &device.clone().without_autodiff();
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let queries = config.num_attention_heads * config.head_dim;
        let keys = config.num_key_value_heads * config.head_dim;
        let mut matrix = |name: String, dims: [usize; 2]| {
            let name = format!("{name}.weight");
            Param::from_data(TensorData::new(values(&name, &dims), dims), device)
        };
        let embed_tokens = Embedding {
            weight: matrix("model.embed_tokens".into(), [config.vocab_size, hidden]),
            weight_scale: None,
        };
        let mut layers = Vec::with_capacity(config.num_hidden_layers);
        for index in 0..config.num_hidden_layers {
            let mut linear = |name: &str, out: usize, input: usize| Linear {
                weight: matrix(format!("model.layers.{index}.{name}"), [out, input]),
                weight_scale: None,
                adapter: None,
            };
            let self_attn = LlamaAttention {
                q_proj: linear("self_attn.q_proj", queries, hidden),
                k_proj: linear("self_attn.k_proj", keys, hidden),
                v_proj: linear("self_attn.v_proj", keys, hidden),
                o_proj: linear("self_attn.o_proj", hidden, queries),
            };
            let mlp = LlamaMlp {
                gate_proj: linear("mlp.gate_proj", inner, hidden),
                up_proj: linear("mlp.up_proj", inner, hidden),
                down_proj: linear("mlp.down_proj", hidden, inner),
            };
            layers.push((self_attn, mlp));
        }
        let lm_head = (!config.tie_word_embeddings)
            .then(|| matrix("lm_head".into(), [config.vocab_size, hidden]))
            .map(|weight| Linear { weight, weight_scale: None, adapter: None });
        let mut norm = |name: String| RmsNorm {
            weight: Param::from_data(
                TensorData::new(values(&format!("{name}.weight"), &[hidden]), [hidden]),
                device,
            ),
            epsilon: config.rms_norm_eps,
        };
        let layers = layers
            .into_iter()
            .enumerate()
            .map(|(index, (self_attn, mlp))| LlamaDecoderLayer {
                input_layernorm: norm(format!("model.layers.{index}.input_layernorm")),
                self_attn,
                post_attention_layernorm: norm(format!(
                    "model.layers.{index}.post_attention_layernorm"
                )),
                mlp,
            })
            .collect();
        let norm = norm("model.norm".into());
        Self {
            model: LlamaModel { embed_tokens, layers, norm },
            lm_head,
            config: config.clone(),
            rounding: ActivationGrid::Float.into(),
        }
    }

    /// A model without layers to stand in for this one while it is elsewhere.
    pub(crate) fn hollow(&self) -> Self {
        let embed_tokens = self.model.embed_tokens.clone();
        let embed_tokens = Embedding {
            weight: embed_tokens.weight.map(|w| Tensor::zeros([1, 1], &w.device())),
            weight_scale: None,
        };
        let mut norm = self.model.norm.clone();
        norm.weight = norm.weight.map(|w| Tensor::zeros([1], &w.device()));
        Self {
            model: LlamaModel { embed_tokens, layers: Vec::new(), norm },
            lm_head: None,
            config: self.config.clone(),
            rounding: self.rounding.clone(),
        }
    }

    /// The same model with these scales of blocks, by the names of their matrices (`….weight`); a
    /// matrix without has none afterwards.
    ///
    /// # Panics
    /// If they are not a scale for each block of 32 in the rows.
    #[must_use]
    pub fn with_block_scales(mut self, mut scales: BTreeMap<String, Vec<f32>>) -> Self {
        let mut of = |name: String, weight: Tensor<2>| {
            let scales = scales.remove(&format!("{name}.weight"))?;
            let [rows, columns] = weight.dims();
            assert!(columns.is_multiple_of(distill_quant::BLOCK), "{name} has whole blocks");
            let data = TensorData::new(scales, [rows, columns / distill_quant::BLOCK]);
            Some(Param::from_data(data, &weight.device()))
        };
        let embedding = &mut self.model.embed_tokens;
        embedding.weight_scale = of("model.embed_tokens".into(), embedding.weight.val());
        if let Some(head) = &mut self.lm_head {
            head.weight_scale = of("lm_head".into(), head.weight.val());
        }
        for (name, linear) in self.linears_mut() {
            linear.weight_scale = of(name, linear.weight.val());
        }
        self
    }

    /// A student made of some of this model's layers, in order, with everything else kept.
    ///
    /// # Errors
    /// [`crate::ModelError::KeepLayers`] if an index is out of range or the list is not rising.
    pub fn cut(mut self, keep: &[usize]) -> Result<Self, crate::ModelError> {
        self.config = self.config.cut(keep)?;
        let mut index = 0;
        self.model.layers.retain(|_| {
            index += 1;
            keep.contains(&(index - 1))
        });
        Ok(self)
    }

    /// The same weights, those of the layers' matrices in bf16: their products are computed so, by
    /// [`plain::linear`]. Only where no operator is fused.
    #[must_use]
    pub fn with_bf16_linears(mut self) -> Self {
        for (_, linear) in self.linears_mut() {
            let weight = linear.weight.val().cast(FloatDType::BF16);
            linear.weight = Param::initialized(linear.weight.id, weight);
        }
        self
    }

    /// Final hidden states, the head's input. `input_ids` is `[batch, tokens]`, the result
    /// `[batch, tokens, hidden]`; already on the activation grid.
    pub fn hidden(&self, input_ids: Tensor<2, Int>, positions: &Positions) -> Tensor<3> {
        let x = self.layers(0..self.model.layers.len(), self.embed(input_ids), positions);
        self.head_input(x)
    }

    /// The embeddings of `[batch, tokens]` tokens, `[batch, tokens, hidden]`.
    pub fn embed(&self, input_ids: Tensor<2, Int>) -> Tensor<3> {
        let [batch, tokens] = input_ids.dims();
        let rows =
            self.model.embed_tokens.weight.val().select(0, input_ids.reshape([batch * tokens]));
        rows.reshape([batch, tokens, self.config.hidden_size])
    }

    /// The residual stream `[batch, tokens, hidden]` after some consecutive layers.
    pub fn layers(&self, which: Range<usize>, x: Tensor<3>, positions: &Positions) -> Tensor<3> {
        which.fold(x, |x, index| self.layer(index, x, positions))
    }

    /// The head's input, normalised and on the activation grid, from the last layer's output.
    pub fn head_input(&self, x: Tensor<3>) -> Tensor<3> {
        self.rounding.linear_input(LinearInput::Head, self.model.norm.forward(x))
    }

    /// The head's matrix `[vocab, hidden]`.
    pub fn head(&self) -> Tensor<2> {
        match &self.lm_head {
            Some(head) => head.weight.val(),
            None => self.model.embed_tokens.weight.val(),
        }
    }

    /// Logits `[batch, tokens, vocab]` from the final hidden states.
    pub fn logits(&self, hidden: Tensor<3>) -> Tensor<3> {
        distill_ops::linear(hidden, self.head())
    }
}

/// A decoder layer in its parts, from one input of linears to the next. All tensors are
/// `[batch, tokens, width]`; inputs of linears are on the activation grid.
impl LlamaForCausalLM {
    fn layer(&self, index: usize, x: Tensor<3>, positions: &Positions) -> Tensor<3> {
        let input = self.attention_input(index, x.clone());
        let mixed = self.attention_mixed(index, input, positions);
        let x = self.add_attention(index, x, mixed);
        let input = self.feed_forward_input(index, x.clone());
        let inner = self.feed_forward_inner(index, input);
        self.add_feed_forward(index, x, inner)
    }

    /// The input of a layer's query, key and value, from the residual stream.
    pub fn attention_input(&self, layer: usize, x: Tensor<3>) -> Tensor<3> {
        let normed = self.model.layers[layer].input_layernorm.forward(x);
        self.rounding.linear_input(LinearInput::Attention(layer), normed)
    }

    /// The input of attention's output projection.
    pub fn attention_mixed(&self, layer: usize, x: Tensor<3>, positions: &Positions) -> Tensor<3> {
        let mixed = self.model.layers[layer].self_attn.mix(x, positions, self);
        self.rounding.linear_input(LinearInput::AttentionOutput(layer), mixed)
    }

    /// The attention that each token gets from all queries of a layer, mean over heads, from the
    /// input of query, key and value: `[batch, tokens, 1]`.
    pub fn attention_received(
        &self,
        layer: usize,
        x: Tensor<3>,
        positions: &Positions,
    ) -> Tensor<3> {
        let attention = &self.model.layers[layer].self_attn;
        let qkv = side_by_side(x, [&attention.q_proj, &attention.k_proj, &attention.v_proj]);
        plain::attention_received(qkv, positions)
    }

    /// The residual stream after attention.
    pub fn add_attention(&self, layer: usize, x: Tensor<3>, mixed: Tensor<3>) -> Tensor<3> {
        x + self.model.layers[layer].self_attn.o_proj.forward(mixed)
    }

    /// The input of a layer's gate and up, from the residual stream.
    pub fn feed_forward_input(&self, layer: usize, x: Tensor<3>) -> Tensor<3> {
        let normed = self.model.layers[layer].post_attention_layernorm.forward(x);
        self.rounding.linear_input(LinearInput::FeedForward(layer), normed)
    }

    /// The input of a layer's down.
    pub fn feed_forward_inner(&self, layer: usize, x: Tensor<3>) -> Tensor<3> {
        let inner = self.model.layers[layer].mlp.inner(x);
        self.rounding.linear_input(LinearInput::Down(layer), inner)
    }

    /// The residual stream after the layer.
    pub fn add_feed_forward(&self, layer: usize, x: Tensor<3>, inner: Tensor<3>) -> Tensor<3> {
        x + self.model.layers[layer].mlp.down_proj.forward(inner)
    }
}

impl LlamaAttention {
    /// The values that the queries attend to, the input of `o_proj`: `[batch, tokens, heads · head_dim]`.
    fn mix(&self, x: Tensor<3>, positions: &Positions, model: &LlamaForCausalLM) -> Tensor<3> {
        let qkv = side_by_side(x, [&self.q_proj, &self.k_proj, &self.v_proj]);
        match model.rounding.cached() {
            None => distill_ops::attention(qkv, positions),
            Some(round) => plain::attention_rounding(qkv, positions, round),
        }
    }
}

impl LlamaMlp {
    /// silu(gate(x)) ∘ up(x), the input of `down_proj`: `[batch, tokens, intermediate]`.
    fn inner(&self, x: Tensor<3>) -> Tensor<3> {
        distill_ops::gated(Gate::Silu, side_by_side(x, [&self.gate_proj, &self.up_proj]))
    }
}

impl Linear {
    /// `x` `[batch, tokens, in]` → `[batch, tokens, out]`.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        match &self.adapter {
            None => distill_ops::linear(x, self.weight.val()),
            Some(adapter) => adapter.forward(x, self.weight.val()),
        }
    }
}

/// What some linears make of one input, `[batch, tokens, Σ out]`.
fn side_by_side<const N: usize>(x: Tensor<3>, linears: [&Linear; N]) -> Tensor<3> {
    if linears.iter().all(|linear| linear.adapter.is_none()) {
        return distill_ops::linears(x, linears.map(|linear| linear.weight.val()));
    }
    Tensor::cat(linears.map(|linear| linear.forward(x.clone())).to_vec(), 2)
}

impl RmsNorm {
    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let norm = Norm { epsilon: self.epsilon as f32, offset: 0.0 };
        distill_ops::rms_norm(x, self.weight.val(), norm)
    }
}

/// Normal deviates from SplitMix64 and Box–Muller: the same on every backend and platform.
pub(crate) struct Normal {
    state: u64,
    spare: Option<f64>,
}

impl Normal {
    pub(crate) fn new(seed: u64) -> Self {
        Self { state: seed, spare: None }
    }

    /// In [0, 1).
    pub(crate) fn uniform(&mut self) -> f64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }

    fn next(&mut self) -> f64 {
        if let Some(spare) = self.spare.take() {
            return spare;
        }
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        let angle = 2.0 * std::f64::consts::PI * self.uniform();
        self.spare = Some(radius * angle.sin());
        radius * angle.cos()
    }
}
