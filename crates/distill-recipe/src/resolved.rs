//! What runs: a recipe with every default filled in.
//!
//! The types are plain and have the shape of the written recipe, key by key, so that
//! [`Recipe::to_toml`] is itself a recipe: reading it back gives the same value. Nothing here
//! is checked again: a value of these types that came out of [`Recipe::from_path`] has passed
//! every check of the `resolve` module.

mod teacher;

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::student_keys::StudentKeys;

pub use teacher::{
    Engine, LocalTeacher, Protocol, RemoteTeacher, Teacher, TeacherCache, TeacherSignal,
    TeacherSource,
};

/// A whole run: from a teacher to an exported student.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recipe {
    /// Name of the run; its directory is `<output>/<name>/<run id>/`.
    pub name: String,
    /// Seed of everything random: initial weights, data order, sampling.
    pub seed: u64,
    /// What computes the training graph.
    pub backend: Backend,
    /// Directory that holds the runs.
    pub output: PathBuf,
    /// The model that is trained.
    pub student: Student,
    /// The model it learns from; `None` is plain cross-entropy training.
    pub teacher: Option<Teacher>,
    /// The text.
    pub data: Data,
    /// How the student is held against the teacher; `Some` exactly when there is a teacher.
    pub distill: Option<Distill>,
    /// The grid trained on and shipped; `None` trains and exports f32.
    pub quantize: Option<Quantize>,
    /// The device it is made for; `None` makes no demands.
    pub device: Option<Device>,
    /// The optimiser and its schedule.
    pub train: Train,
    /// What is measured during and after training.
    pub eval: Eval,
    /// What is written at the end.
    pub export: Export,
}

/// What computes the training graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Backend {
    /// CPU, the default: Burn's flex backend.
    Flex,
    /// CPU, a second implementation to cross-check the first.
    Ndarray,
    /// GPU through Vulkan, Metal or DirectX; needs a build with `--features wgpu`.
    Wgpu,
    /// NVIDIA GPU; needs a build with `--features cuda`.
    Cuda,
}

/// The model that is trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "StudentKeys", into = "StudentKeys")]
pub struct Student {
    /// Where its first weights come from.
    pub init: StudentInit,
    /// The tokenizer it is trained and shipped with.
    pub tokenizer: TokenizerChoice,
}

/// Where the student's first weights come from.
#[derive(Clone, Debug, PartialEq)]
pub enum StudentInit {
    /// An existing model.
    From(ModelRef),
    /// A new model, random from the recipe's seed.
    Config(NewModel),
    /// The teacher, of which only these layers are kept (strictly increasing, not empty).
    KeepLayers(Vec<usize>),
}

/// Which tokenizer the student is trained and shipped with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenizerChoice {
    /// The student's own (the student comes from a model); the teacher's if it has none.
    Student,
    /// The teacher's (the student is new or cut from the teacher).
    Teacher,
    /// That of another directory, GGUF file or hub id.
    From(String),
    /// A new byte-level BPE, trained on the recipe's data.
    Train {
        /// Number of tokens, special ones included.
        vocab_size: usize,
    },
}

/// A model by place: a Hugging Face directory, a `.gguf` file, or a hub id `owner/name`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelRef {
    /// The place.
    pub from: String,
    /// Branch, tag or commit, for a hub id.
    pub revision: String,
}

/// Shape of a new model of the Llama family. The vocabulary is the tokenizer's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NewModel {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Number of decoder layers.
    pub num_hidden_layers: usize,
    /// Number of query heads.
    pub num_attention_heads: usize,
    /// Number of key and value heads; divides the query heads.
    pub num_key_value_heads: usize,
    /// Width of one head; even.
    pub head_dim: usize,
    /// Base of the rotary position embedding.
    pub rope_theta: f64,
    /// Epsilon inside every RMSNorm.
    pub rms_norm_eps: f64,
    /// Longest sequence the model is meant for, in tokens.
    pub max_position_embeddings: usize,
    /// Whether the head reuses the token embedding.
    pub tie_word_embeddings: bool,
}

/// The text and how it is cut.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Data {
    /// Files, directories, globs, or `hf:owner/name[/path]`; at least one, or `generate`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<String>,
    /// The share of each source in what is trained on, relative to the others; `None`: the sources
    /// are one text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<Vec<f64>>,
    /// The field that holds the text, in JSONL and Parquet.
    pub text_field: String,
    /// What separates documents inside a text file; `None`: one file is one document.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub document_separator: Option<String>,
    /// Tokens per training sequence.
    pub sequence_length: usize,
    /// Fraction of the sequences that is never trained on, in (0, 1).
    pub held_out: f64,
    /// Text that a model makes up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generate: Option<Generate>,
}

/// Text that a model makes up. In TOML: the model's keys, and the others beside them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Generate {
    /// The model that writes.
    #[serde(flatten)]
    pub model: ModelRef,
    /// Tokens of texts that pass the filters.
    pub tokens: u64,
    /// Its share in what is trained on, relative to those of the sources; `None`: it is one text
    /// with them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<f64>,
    /// What texts begin with, in turn; empty: the token that begins a text.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub begin: Vec<String>,
    /// Files of prompts that follow `begin`, in turn.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub prompts: Vec<String>,
    /// The tokens that end a text; empty: those that end the model's answers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub end: Vec<String>,
    /// Most tokens of a text, with what it begins with.
    pub max_tokens: usize,
    /// Divides the logits; > 0.
    pub temperature: f64,
    /// Tokens are drawn from the most likely ones whose probabilities reach this sum, in (0, 1].
    pub top_p: f64,
    /// Fewest tokens of a text, without what it begins with.
    pub min_tokens: usize,
    /// Largest share of repeated runs of four tokens, in [0, 1].
    pub max_repetition: f64,
    /// Least mean log-probability of a text's tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_log_prob: Option<f64>,
    /// Greatest mean log-probability of a text's tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_log_prob: Option<f64>,
}

/// The loss: `(1 − cross_entropy) · D(teacher, student) + cross_entropy · CE(labels, student)`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Distill {
    /// The divergence D. In TOML: `loss`, and `beta` beside it for `jsd`.
    #[serde(flatten)]
    pub loss: DivergenceKind,
    /// Both distributions are softened by it; > 0.
    pub temperature: f64,
    /// Whether D is multiplied by the temperature squared.
    pub scale_by_temperature_squared: bool,
    /// Weight of the cross-entropy, in [0, 1].
    pub cross_entropy: f64,
}

/// A divergence between the teacher's distribution p and the student's q.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "loss", rename_all = "snake_case")]
pub enum DivergenceKind {
    /// KL(p‖q): the student covers all that the teacher does.
    ForwardKl,
    /// KL(q‖p): the student keeps to what the teacher finds likely.
    ReverseKl,
    /// The generalised Jensen–Shannon divergence.
    Jsd {
        /// Weight of the teacher in the mixture, in (0, 1).
        beta: f64,
    },
}

/// The grid that is trained on and shipped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quantize {
    /// All linear layers of the decoder.
    pub linears: WeightGrid,
    /// The token embedding and the head, tied or not.
    pub embeddings: WeightGrid,
    /// The inputs of quantised layers.
    pub activations: ActivationGrid,
    /// The first optimiser step (counted from 0) that sees the grid.
    pub start_step: usize,
    /// How the weights come to the grid there.
    #[serde(default = "round")]
    pub method: Method,
    /// Where scales of Q4_0 blocks come from while training.
    #[serde(default = "from_weights")]
    pub scales: Scales,
    /// Steps in which the weights come to the grid by degrees; 0: all at once.
    #[serde(default)]
    pub ramp_steps: usize,
    /// The gradient of clamped weights.
    #[serde(default = "clipped")]
    pub straight_through: StraightThrough,
    /// Sequences of training text that the method looks at.
    #[serde(default = "calibration")]
    pub calibration_sequences: usize,
}

const fn round() -> Method {
    crate::defaults::METHOD
}

const fn from_weights() -> Scales {
    Scales::Weights
}

const fn clipped() -> StraightThrough {
    crate::defaults::STRAIGHT_THROUGH
}

const fn calibration() -> usize {
    crate::defaults::CALIBRATION_SEQUENCES
}

/// How the weights of a finished model come to a grid of 4 bits, before any training on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// Each to the nearest code, the scale from the block's largest weight.
    Round,
    /// The scale that leaves the least squared error of the block, errors of a weight weighted by
    /// how large its inputs are.
    Search,
    /// Searched scales, and column after column the error of rounding is made up for by the columns
    /// that follow, so that the layer's output stays near (GPTQ).
    Gptq,
}

/// Where the scales of Q4_0 blocks come from while training.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Scales {
    /// From the block's largest weight, at every step anew.
    Weights,
    /// They stay as the method found them.
    Fixed,
    /// They are trained with the weights (LSQ).
    Learned,
}

/// What gradient passes through the rounding of a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum StraightThrough {
    /// That of the rounded weight; none where the code is clamped at an end of the grid.
    Clipped,
    /// That of the rounded weight, everywhere.
    Identity,
}

/// A grid for weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WeightGrid {
    /// 4 bits a weight and one f16 scale per 32 (4.5 bits in all).
    #[serde(rename = "q4_0")]
    Q4_0,
    /// 8 bits a weight and one f16 scale per 32 (8.5 bits in all).
    #[serde(rename = "q8_0")]
    Q8_0,
    /// f32, as trained.
    None,
}

/// A grid for activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ActivationGrid {
    /// 8 bits with one scale per block of 32, as the runtime's integer kernels compute.
    #[serde(rename = "q8_0")]
    Q8_0,
    /// f32.
    Float,
}

/// The device that the student is made for, and what it must do there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Device {
    /// Bytes read from memory, 10⁹ a second.
    pub bandwidth_gbps: f64,
    /// Multiplications and additions in matrix products, 10¹² a second.
    pub tops: f64,
    /// Most memory of weights, cache and buffers, in 10⁶ bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ram_mb: Option<f64>,
    /// Fewest tokens a second to decode with `context_length` tokens in the cache.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_tokens_per_s: Option<f64>,
    /// Longest time to the first token after a prompt of `prompt_tokens`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_token_ms: Option<f64>,
    /// Tokens of prompt and answers together.
    pub context_length: usize,
    /// Tokens of a prompt, at most `context_length`.
    pub prompt_tokens: usize,
    /// How keys and values are kept.
    pub kv_cache: KvCache,
}

/// How the runtime keeps keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum KvCache {
    /// binary16, the runtime's default.
    F16,
    /// 8-bit codes with a scale for 32: half the memory, and a little more.
    #[serde(rename = "q8_0")]
    Q8_0,
}

/// The optimiser (AdamW) and its schedule. A step is one update of the weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Train {
    /// Number of optimiser steps, ≥ 1.
    pub steps: usize,
    /// Sequences per micro-batch.
    pub batch_size: usize,
    /// Micro-batches per step.
    pub gradient_accumulation: usize,
    /// Whether layers are computed again for their gradients instead of kept.
    pub activation_checkpointing: bool,
    /// Highest learning rate.
    pub learning_rate: f64,
    /// Learning rate at the last step.
    pub min_learning_rate: f64,
    /// How it falls. In TOML: `schedule`, and `decay_steps` beside it for `wsd`.
    #[serde(flatten)]
    pub schedule: Schedule,
    /// Steps over which it rises linearly at the start.
    pub warmup_steps: usize,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Decay of the first moment, in [0, 1).
    pub beta1: f64,
    /// Decay of the second moment, in [0, 1).
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// What the layers' matrix products compute in while training.
    #[serde(default)]
    pub precision: Precision,
    /// The type in which both moments are kept from step to step.
    pub optimizer_state: OptimizerState,
    /// Largest global norm of the gradient; infinite: never clipped.
    pub clip_norm: f64,
    /// Steps between two evaluations.
    pub eval_every: usize,
    /// Steps between two checkpoints.
    pub checkpoint_every: usize,
    /// How many of the newest checkpoints stay on disk, ≥ 1.
    pub keep_checkpoints: usize,
    /// Evaluations without a better one after which training ends; `None`: it goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub patience: Option<usize>,
    /// What the learning rate of some weights is multiplied by.
    #[serde(default)]
    pub learning_rate_factors: LearningRateFactors,
    /// Low-rank factors that are trained in place of the weights; `None` trains all weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lora: Option<Lora>,
}

/// What the learning rate of some weights is multiplied by; 0 leaves them as they are.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LearningRateFactors {
    /// All linear layers of the decoder.
    pub linears: f64,
    /// The token embedding and the head.
    pub embeddings: f64,
    /// All norms.
    pub norms: f64,
    /// Scales of blocks, relative to what they are.
    pub scales: f64,
}

impl Default for LearningRateFactors {
    fn default() -> Self {
        let factor = crate::defaults::LEARNING_RATE_FACTOR;
        Self { linears: factor, embeddings: factor, norms: factor, scales: factor }
    }
}

/// What the layers' matrix products compute in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// binary32.
    #[default]
    F32,
    /// bfloat16, with CUDA. Weights and all else stay in f32: norms, attention, head, loss, gradients
    /// once they are made, the optimiser; so do evaluations.
    Bf16,
}

/// A type for the moments of the optimiser.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum OptimizerState {
    /// 8 bytes a trained weight.
    #[serde(rename = "f32")]
    F32,
    /// bfloat16, rounded stochastically: 4 bytes a trained weight.
    #[serde(rename = "bf16")]
    Bf16,
    /// A dynamic 8-bit code with a scale for each 256, rounded stochastically: 2 bytes a trained
    /// weight.
    #[serde(rename = "8bit")]
    EightBit,
}

/// Low-rank factors beside frozen weights: W + (alpha / rank) · B · A.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Lora {
    /// Rows of A and columns of B, ≥ 1.
    pub rank: usize,
    /// Multiplies B · A, divided by the rank.
    pub alpha: f64,
    /// The linears that get factors, each once; at least one.
    pub targets: Vec<LoraTarget>,
}

/// A linear of every decoder layer.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum LoraTarget {
    /// Queries of attention.
    QProj,
    /// Keys of attention.
    KProj,
    /// Values of attention.
    VProj,
    /// Output of attention.
    OProj,
    /// Gate of the feed-forward network.
    GateProj,
    /// Input of the feed-forward network.
    UpProj,
    /// Output of the feed-forward network.
    DownProj,
}

impl LoraTarget {
    /// All of them, in the order of the forward pass.
    pub const ALL: [Self; 7] = [
        Self::QProj,
        Self::KProj,
        Self::VProj,
        Self::OProj,
        Self::GateProj,
        Self::UpProj,
        Self::DownProj,
    ];

    /// Its name in recipes and in Hugging Face's tensors.
    pub const fn name(self) -> &'static str {
        match self {
            Self::QProj => "q_proj",
            Self::KProj => "k_proj",
            Self::VProj => "v_proj",
            Self::OProj => "o_proj",
            Self::GateProj => "gate_proj",
            Self::UpProj => "up_proj",
            Self::DownProj => "down_proj",
        }
    }
}

/// How the learning rate falls after the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "schedule", rename_all = "snake_case")]
pub enum Schedule {
    /// Along half a cosine, to `min_learning_rate` at the last step.
    Cosine,
    /// Constant, then linearly to `min_learning_rate` over the last steps (warm-up, stable, decay).
    Wsd {
        /// Length of the fall, in steps.
        decay_steps: usize,
    },
}

/// What is measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Eval {
    /// Held-out sequences per evaluation; all of them if there are fewer.
    pub sequences: usize,
    /// Texts to continue, for the report.
    pub prompts: Vec<String>,
    /// Longest continuation, in tokens.
    pub max_new_tokens: usize,
    /// Benchmarks of the student in full precision, by post-training methods and as exported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tasks: Option<Tasks>,
}

/// Benchmarks on files, through the runtime.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tasks {
    /// Texts.
    pub perplexity: Vec<String>,
    /// Multiple choice, JSONL.
    pub choice: Vec<String>,
    /// Last-word accuracy, JSONL.
    pub last_word: Vec<String>,
    /// Tokens of a window.
    pub context: usize,
    /// The most windows of a text; `None`: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chunks: Option<usize>,
    /// The most items of a file; `None`: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
    /// Ways to the grid without training that are measured beside the exported student.
    pub baselines: Vec<Method>,
}

/// What is written at the end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Export {
    /// Whether `export/model.gguf` is written.
    pub gguf: bool,
    /// Whether `export/huggingface/` is written.
    pub huggingface: bool,
    /// Which checkpoint is exported.
    #[serde(default)]
    pub checkpoint: Choice,
    /// Held-out positions on which runtime and training graph must agree.
    pub parity_positions: usize,
}

/// A checkpoint of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Choice {
    /// That of the last step.
    #[default]
    Last,
    /// That with the least divergence from the teacher on held-out text, every weight as it ships;
    /// without a teacher, with the least loss.
    Best,
}
