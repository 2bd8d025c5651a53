//! Low-rank adaptation (LoRA, Hu et al. 2021): frozen weights W, and W + (α/rank)·B·A in their place.
//!
//! The factors live beside the model ([`Lora`]), not in it. What runs is made of both once per
//! optimiser step, as rounded weights are ([`crate::quantized`]): on a grid the weight that is
//! rounded is W + s·B·A, so that what ships is the rounded merged weight; in float W stays where it
//! is and the factors run beside it. Gradients go to A and B alone.
//!
//! Adapters are written and read as PEFT does (`adapter_model.safetensors`, `adapter_config.json`),
//! so that its tools take them from here.

use std::collections::BTreeMap;
use std::path::Path;

use burn::module::Param;
use burn::tensor::{Gradients, Tensor, TensorData};
use distill_ops::{LoraInput, LoraRule};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};

use crate::llama::{Linear, Normal};
use crate::parameters::{self, NamedTensors};
use crate::quantized::{self, WeightGrid, WeightGrids};
use crate::{LlamaConfig, LlamaForCausalLM, ModelError, fake_quant};

/// The linears of a decoder layer, by the last part of their names.
pub const TARGETS: [&str; 7] =
    ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

const WEIGHTS: &str = "adapter_model.safetensors";
const CONFIG: &str = "adapter_config.json";
/// What PEFT puts before the name of a module.
const PEFT: &str = "base_model.model.";

/// Which linears are adapted, and how.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraOptions {
    /// Rows of A and columns of B.
    pub rank: usize,
    /// α: B·A is multiplied by α / rank.
    pub alpha: f64,
    /// Some of [`TARGETS`].
    pub targets: Vec<String>,
}

/// Name and `[out, in]` of a layer's linears.
fn linears(config: &LlamaConfig) -> [(&'static str, usize, usize); 7] {
    let queries = config.num_attention_heads * config.head_dim;
    let keys = config.num_key_value_heads * config.head_dim;
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    [
        ("q_proj", queries, hidden),
        ("k_proj", keys, hidden),
        ("v_proj", keys, hidden),
        ("o_proj", hidden, queries),
        ("gate_proj", inner, hidden),
        ("up_proj", inner, hidden),
        ("down_proj", hidden, inner),
    ]
}

impl LoraOptions {
    /// s = α / rank.
    pub fn scale(&self) -> f32 {
        (self.alpha / self.rank as f64) as f32
    }

    /// Elements of all factors.
    pub fn elements(&self, config: &LlamaConfig) -> usize {
        let targeted =
            |(linear, _, _): &(&str, usize, usize)| self.targets.iter().any(|t| t == linear);
        let of_layer: usize = linears(config)
            .iter()
            .filter(|&linear| targeted(linear))
            .map(|(_, out, input)| self.rank * (out + input))
            .sum();
        config.num_hidden_layers * of_layer
    }

    /// Checks that the factors are smaller than the matrices of such a model.
    ///
    /// # Errors
    /// [`ModelError::LoraRank`] naming the first that is not.
    pub fn check(&self, config: &LlamaConfig) -> Result<(), ModelError> {
        let rank = self.rank;
        for (linear, out, input) in linears(config) {
            if rank > out.min(input) && self.targets.iter().any(|target| target == linear) {
                return Err(ModelError::LoraRank { rank, linear: linear.into(), out, input });
            }
        }
        Ok(())
    }
}

/// The factors of every adapted linear.
#[derive(Clone, Debug)]
pub struct Lora {
    options: LoraOptions,
    /// By the linear's name, e.g. `model.layers.0.self_attn.q_proj`.
    factors: BTreeMap<String, Factors>,
}

#[derive(Clone, Debug)]
struct Factors {
    /// `[rank, in]`.
    a: Tensor<2>,
    /// `[out, rank]`.
    b: Tensor<2>,
}

/// What a linear of a model that runs knows of its factors.
#[derive(Clone, Debug)]
pub struct Adapter {
    /// A, `[rank, in]`.
    pub a: Tensor<2>,
    /// B, `[out, rank]`.
    pub b: Tensor<2>,
    /// W, `[out, in]`.
    base: Tensor<2>,
    scale: f32,
    rule: LoraRule,
}

impl Lora {
    /// New factors for a model: A uniform within ±1/√in (as PEFT: `kaiming_uniform_(a=√5)`), B zero,
    /// so that training begins at the model itself.
    ///
    /// # Errors
    /// [`ModelError::LoraRank`] if a matrix has fewer rows or columns than the rank.
    pub fn init(
        model: &LlamaForCausalLM,
        options: &LoraOptions,
        seed: u64,
    ) -> Result<Self, ModelError> {
        let mut random = Normal::new(seed);
        Self::build(model, options, |_, [a_dims, b_dims]| {
            let bound = 1.0 / (a_dims[1] as f64).sqrt();
            let a = (0..a_dims[0] * a_dims[1])
                .map(|_| (bound * (2.0 * random.uniform() - 1.0)) as f32)
                .collect();
            Ok([a, vec![0.0; b_dims[0] * b_dims[1]]])
        })
    }

    fn build(
        model: &LlamaForCausalLM,
        options: &LoraOptions,
        mut values: impl FnMut(&str, [[usize; 2]; 2]) -> Result<[Vec<f32>; 2], ModelError>,
    ) -> Result<Self, ModelError> {
        let rank = options.rank;
        let mut factors = BTreeMap::new();
        for (name, linear) in model.linears() {
            if !options.targets.iter().any(|target| name.ends_with(target.as_str())) {
                continue;
            }
            let weight = linear.weight.val();
            let [out, input] = weight.dims();
            if rank > out.min(input) {
                return Err(ModelError::LoraRank { rank, linear: name, out, input });
            }
            let [a, b] = values(&name, [[rank, input], [out, rank]])?;
            let device = weight.device();
            let a = Tensor::from_data(TensorData::new(a, [rank, input]), &device);
            let b = Tensor::from_data(TensorData::new(b, [out, rank]), &device);
            factors.insert(name, Factors { a, b });
        }
        Ok(Self { options: options.clone(), factors })
    }

    /// Which linears are adapted, and how.
    pub fn options(&self) -> &LoraOptions {
        &self.options
    }

    /// Names and dimensions of what is trained, e.g. `model.layers.0.self_attn.q_proj.lora_A.weight`.
    pub fn shapes(&self) -> Vec<(String, Vec<usize>)> {
        let each = |(name, factors): (&String, &Factors)| {
            [(a_of(name), factors.a.dims().to_vec()), (b_of(name), factors.b.dims().to_vec())]
        };
        self.factors.iter().flat_map(each).collect()
    }

    /// Replaces each factor by what `map` makes of it, as [`parameters::map`] does.
    pub fn map(&mut self, mut map: impl FnMut(&str, &[usize], Tensor<1>) -> Tensor<1>) {
        for (name, factors) in &mut self.factors {
            for (name, tensor) in [(a_of(name), &mut factors.a), (b_of(name), &mut factors.b)] {
                let dims = tensor.dims();
                // Handed over whole, so that it is the only one.
                let whole = std::mem::replace(tensor, Tensor::empty([0, 0], &tensor.device()));
                let flat = whole.reshape([dims[0] * dims[1]]);
                *tensor = map(&name, &dims, flat).reshape(dims);
            }
        }
    }

    /// The model with W + s·B·A for every adapted W; the other weights are shared with it.
    pub fn merge(&self, base: &LlamaForCausalLM) -> LlamaForCausalLM {
        let mut merged = base.clone();
        for (name, linear) in merged.linears_mut() {
            if let Some(factors) = self.factors.get(&name) {
                let weight = self.merged(linear.weight.val(), factors);
                linear.weight = Param::initialized(linear.weight.id, weight);
            }
        }
        merged
    }

    fn merged(&self, base: Tensor<2>, factors: &Factors) -> Tensor<2> {
        distill_ops::lora_merge(base, factors.a.clone(), factors.b.clone(), self.options.scale())
    }

    /// The model as it runs in training: each weight on its grid, the adapted ones merged before they
    /// are rounded, and each adapted linear knowing its factors.
    pub fn live(&self, base: &LlamaForCausalLM, grids: &WeightGrids) -> LlamaForCausalLM {
        // In float nothing is merged: the factors run beside the weights, which are shared.
        let rule = match grids.linears {
            WeightGrid::Float => LoraRule::Beside,
            WeightGrid::Q8_0 => LoraRule::Merged,
            WeightGrid::Q4_0 => LoraRule::MergedQ4_0,
        };
        let mut live = parameters::map(base.clone(), |name, dims, weights| {
            let linear = name.strip_suffix(".weight").unwrap_or(name);
            let weights = match self.factors.get(linear) {
                Some(factors) if rule != LoraRule::Beside => {
                    let [out, input] = [dims[0], dims[1]];
                    let merged = self.merged(weights.reshape([out, input]), factors);
                    merged.reshape([out * input])
                }
                _ => weights,
            };
            quantized::round(grids.of(name), weights, None, None)
        });
        live.rounding = grids.activations.into();
        for ((name, linear), (_, masters)) in live.linears_mut().zip(base.linears()) {
            linear.adapter = self.factors.get(&name).map(|factors| Adapter {
                a: factors.a.clone(),
                b: factors.b.clone(),
                base: masters.weight.val(),
                scale: self.options.scale(),
                rule,
            });
        }
        live
    }

    /// Writes the adapter as PEFT does into an existing directory. `base` is where the frozen model
    /// comes from: a path or a hub id.
    ///
    /// # Errors
    /// [`ModelError::NonFinite`] naming tensor and index if training diverged, [`ModelError::Io`].
    pub fn save(&self, base: &str, directory: &Path) -> Result<(), ModelError> {
        let path = directory.join(CONFIG);
        let alpha = match self.options.alpha {
            whole if whole.fract() == 0.0 => serde_json::json!(whole as i64),
            alpha => serde_json::json!(alpha),
        };
        let config = serde_json::json!({
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base,
            "r": self.options.rank,
            "lora_alpha": alpha,
            "lora_dropout": 0.0,
            "target_modules": self.options.targets,
            "bias": "none",
            "fan_in_fan_out": false,
            "init_lora_weights": true,
            "inference_mode": true,
            "use_rslora": false,
        });
        let json = serde_json::to_string_pretty(&config).unwrap_or_default();
        std::fs::write(&path, json).map_err(ModelError::io("writing", &path))?;

        let path = directory.join(WEIGHTS);
        let mut tensors: Vec<(String, [usize; 2], Vec<u8>)> = Vec::new();
        for (name, factors) in &self.factors {
            for (name, tensor) in [(a_of(name), &factors.a), (b_of(name), &factors.b)] {
                let values = parameters::values(tensor.clone());
                if let Some(index) = values.iter().position(|v| !v.is_finite()) {
                    let (place, value) = (path.display().to_string(), values[index]);
                    return Err(ModelError::NonFinite { place, tensor: name, index, value });
                }
                let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
                tensors.push((format!("{PEFT}{name}"), tensor.dims(), bytes));
            }
        }
        let views = tensors.iter().map(|(name, dims, bytes)| {
            let view = TensorView::new(Dtype::F32, dims.to_vec(), bytes);
            (name.as_str(), view.expect("the bytes were made from these dimensions"))
        });
        let metadata = Some(std::collections::HashMap::from([("format".into(), "pt".into())]));
        safetensors::serialize_to_file(views, metadata, &path).map_err(|error| match error {
            safetensors::SafeTensorError::IoError(source) => {
                ModelError::Io { action: "writing", path: path.clone(), source }
            }
            source => ModelError::Safetensors { path: path.clone(), source },
        })
    }

    /// Reads the factors that [`Lora::save`] wrote for this model.
    ///
    /// # Errors
    /// [`ModelError::Tensors`], [`ModelError::TensorShape`], [`ModelError::Dtype`] if the file holds
    /// others; [`ModelError::LoraRank`], [`ModelError::Safetensors`], [`ModelError::Io`].
    pub fn load(
        model: &LlamaForCausalLM,
        options: &LoraOptions,
        directory: &Path,
    ) -> Result<Self, ModelError> {
        let path = directory.join(WEIGHTS);
        let bytes = std::fs::read(&path).map_err(ModelError::io("reading", &path))?;
        let file = SafeTensors::deserialize(&bytes)
            .map_err(|source| ModelError::Safetensors { path: path.clone(), source })?;
        let mut left: Vec<String> = file.names().into_iter().map(str::to_owned).collect();
        let mut read = |name: String, expected: [usize; 2]| {
            let name = format!("{PEFT}{name}");
            left.retain(|other| *other != name);
            let view = file.tensor(&name).map_err(|_| ModelError::Tensors {
                path: path.clone(),
                missing: vec![name.clone()],
                unexpected: Vec::new(),
            })?;
            if view.dtype() != Dtype::F32 {
                let found = format!("{:?}", view.dtype());
                return Err(ModelError::Dtype { path: path.clone(), tensor: name, found });
            }
            if view.shape() != expected {
                return Err(ModelError::TensorShape {
                    path: path.clone(),
                    tensor: name,
                    found: view.shape().to_vec(),
                    expected: expected.to_vec(),
                });
            }
            let floats = view.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b));
            Ok(floats.collect())
        };
        let lora = Self::build(model, options, |name, [a, b]| {
            Ok([read(a_of(name), a)?, read(b_of(name), b)?])
        })?;
        match left.is_empty() {
            true => Ok(lora),
            false => Err(ModelError::Tensors { path, missing: Vec::new(), unexpected: left }),
        }
    }
}

impl Adapter {
    /// x `[batch, tokens, in]` → `[batch, tokens, out]` through the live weight and the factors.
    pub(crate) fn forward(&self, x: Tensor<3>, weight: Tensor<2>) -> Tensor<3> {
        let input = LoraInput {
            weight,
            base: self.base.clone(),
            a: self.a.clone(),
            b: self.b.clone(),
            scale: self.scale,
            rule: self.rule,
        };
        match distill_ops::lora(&x, input.clone()) {
            Some(y) => y,
            None => in_tensors(x, input),
        }
    }

    /// The same with factors that gradients are asked for.
    pub(crate) fn tracked(&self) -> Self {
        let leaf = |x: &Tensor<2>| x.clone().autodiff().require_grad();
        let base = self.base.clone().autodiff();
        Self { a: leaf(&self.a), b: leaf(&self.b), base, ..*self }
    }
}

/// As plain tensor operations, for devices without fused ones.
fn in_tensors(x: Tensor<3>, input: LoraInput) -> Tensor<3> {
    let LoraInput { weight, base, a, b, scale, rule } = input;
    if rule == LoraRule::Beside {
        let thin = distill_ops::linear(x.clone(), a);
        return distill_ops::linear(x, weight) + distill_ops::linear(thin, b).mul_scalar(scale);
    }
    if !a.is_autodiff() {
        return distill_ops::linear(x, weight);
    }
    let product = b.matmul(a).mul_scalar(scale);
    let passed = match rule {
        LoraRule::MergedQ4_0 => {
            let merged = (base + product.clone()).inner();
            let dims = merged.dims();
            let flat = merged.reshape([dims[0] * dims[1]]);
            let ones = flat.ones_like();
            let mask = fake_quant::q4_0_straight_through(flat, ones).reshape(dims);
            product * mask.autodiff()
        }
        _ => product,
    };
    // passed − passed is exactly zero, so the value is the live weight bit for bit.
    distill_ops::linear(x, weight + (passed.clone() - passed.detach()))
}

/// Takes the gradients of a tracked model's factors and adds them to `into`.
pub(crate) fn accumulate(
    model: &LlamaForCausalLM,
    gradients: &mut Gradients,
    into: &mut NamedTensors,
) {
    for (name, linear) in model.linears() {
        let Some(adapter) = &linear.adapter else { continue };
        for (name, factor) in [(a_of(&name), &adapter.a), (b_of(&name), &adapter.b)] {
            if let Some(gradient) = factor.grad_remove(gradients) {
                let elements = gradient.dims().iter().product::<usize>();
                parameters::add(into, name, gradient.reshape([elements]));
            }
        }
    }
}

fn a_of(linear: &str) -> String {
    format!("{linear}.lora_A.weight")
}

fn b_of(linear: &str) -> String {
    format!("{linear}.lora_B.weight")
}

impl LlamaForCausalLM {
    /// The linears of the decoder layers with their names, e.g. `model.layers.0.self_attn.q_proj`.
    pub fn linears(&self) -> impl Iterator<Item = (String, &Linear)> {
        self.model.layers.iter().enumerate().flat_map(|(index, layer)| {
            let (attention, mlp) = (&layer.self_attn, &layer.mlp);
            [
                ("self_attn.q_proj", &attention.q_proj),
                ("self_attn.k_proj", &attention.k_proj),
                ("self_attn.v_proj", &attention.v_proj),
                ("self_attn.o_proj", &attention.o_proj),
                ("mlp.gate_proj", &mlp.gate_proj),
                ("mlp.up_proj", &mlp.up_proj),
                ("mlp.down_proj", &mlp.down_proj),
            ]
            .map(|(name, linear)| (format!("model.layers.{index}.{name}"), linear))
        })
    }

    /// The same, to be changed.
    pub fn linears_mut(&mut self) -> impl Iterator<Item = (String, &mut Linear)> {
        self.model.layers.iter_mut().enumerate().flat_map(|(index, layer)| {
            let (attention, mlp) = (&mut layer.self_attn, &mut layer.mlp);
            [
                ("self_attn.q_proj", &mut attention.q_proj),
                ("self_attn.k_proj", &mut attention.k_proj),
                ("self_attn.v_proj", &mut attention.v_proj),
                ("self_attn.o_proj", &mut attention.o_proj),
                ("mlp.gate_proj", &mut mlp.gate_proj),
                ("mlp.up_proj", &mut mlp.up_proj),
                ("mlp.down_proj", &mut mlp.down_proj),
            ]
            .map(|(name, linear)| (format!("model.layers.{index}.{name}"), linear))
        })
    }

    /// Whether linears know factors: then these alone are trained, and all weights are frozen.
    pub fn is_adapted(&self) -> bool {
        self.linears().any(|(_, linear)| linear.adapter.is_some())
    }
}
