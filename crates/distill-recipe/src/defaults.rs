//! Every default of a recipe, once. `raw` shows them in the JSON schema, `resolve` fills them in.

use crate::resolved::{
    ActivationGrid, Backend, Choice, Engine, KvCache, LoraTarget, Method, OptimizerState,
    Precision, StraightThrough,
};

pub(crate) const SEED: u64 = 0;
pub(crate) const BACKEND: Backend = Backend::Flex;
pub(crate) const OUTPUT: &str = "checkpoints";
pub(crate) const REVISION: &str = "main";
pub(crate) const ENGINE: Engine = Engine::Graph;

/// What vLLM gives unless it is told otherwise.
pub(crate) const TOP_K: usize = 20;
pub(crate) const POWER: f64 = 1.0;
pub(crate) const CONCURRENCY: usize = 8;
pub(crate) const TIMEOUT_S: f64 = 300.0;
pub(crate) const ATTEMPTS: u32 = 6;

pub(crate) const ROPE_THETA: f64 = 10_000.0;
pub(crate) const RMS_NORM_EPS: f64 = 1e-5;
pub(crate) const MAX_POSITION_EMBEDDINGS: usize = 2048;
pub(crate) const TIE_WORD_EMBEDDINGS: bool = true;

pub(crate) const TEXT_FIELD: &str = "text";
pub(crate) const SEQUENCE_LENGTH: usize = 512;
pub(crate) const HELD_OUT: f64 = 0.05;

pub(crate) const GENERATE_WEIGHT: f64 = 1.0;
pub(crate) const GENERATE_TEMPERATURE: f64 = 1.0;
pub(crate) const GENERATE_TOP_P: f64 = 1.0;
pub(crate) const GENERATE_MIN_TOKENS: usize = 16;
/// Prose has a few hundredths, a loop nearly all.
pub(crate) const GENERATE_MAX_REPETITION: f64 = 0.4;

pub(crate) const BETA: f64 = 0.5;
pub(crate) const TEMPERATURE: f64 = 1.0;
pub(crate) const SCALE_BY_TEMPERATURE_SQUARED: bool = true;
pub(crate) const CROSS_ENTROPY: f64 = 0.0;

pub(crate) const ACTIVATIONS: ActivationGrid = ActivationGrid::Float;
pub(crate) const START_STEP: usize = 0;
pub(crate) const RAMP_STEPS: usize = 0;
pub(crate) const STRAIGHT_THROUGH: StraightThrough = StraightThrough::Clipped;
pub(crate) const METHOD: Method = Method::Round;
pub(crate) const CALIBRATION_SEQUENCES: usize = 32;

/// Two to four large cores of a phone or of a Raspberry Pi 5, at a third of their peak.
pub(crate) const TOPS: f64 = 0.1;
pub(crate) const CONTEXT_LENGTH: usize = 2048;
/// A question, not a document.
pub(crate) const PROMPT_TOKENS: usize = 128;
pub(crate) const KV_CACHE: KvCache = KvCache::F16;

pub(crate) const BATCH_SIZE: usize = 1;
pub(crate) const GRADIENT_ACCUMULATION: usize = 1;
/// `min_learning_rate` over `learning_rate`.
pub(crate) const MIN_LEARNING_RATE_RATIO: f64 = 0.1;
pub(crate) const WARMUP_STEPS: usize = 0;
/// `decay_steps` is this part of `steps`: one in five.
pub(crate) const DECAY_PART: usize = 5;
pub(crate) const WEIGHT_DECAY: f64 = 0.0;
pub(crate) const BETA1: f64 = 0.9;
pub(crate) const BETA2: f64 = 0.95;
pub(crate) const EPSILON: f64 = 1e-8;
pub(crate) const PRECISION: Precision = Precision::F32;
pub(crate) const OPTIMIZER_STATE: OptimizerState = OptimizerState::F32;
pub(crate) const CLIP_NORM: f64 = 1.0;
/// `eval_every` is this part of `steps`: one in five.
pub(crate) const EVAL_PART: usize = 5;
pub(crate) const KEEP_CHECKPOINTS: usize = 2;
pub(crate) const LEARNING_RATE_FACTOR: f64 = 1.0;

pub(crate) const EVAL_SEQUENCES: usize = 8;
/// That of llama-perplexity.
pub(crate) const TASK_CONTEXT: usize = 512;
pub(crate) const BASELINES: [Method; 3] = [Method::Round, Method::Search, Method::Gptq];
pub(crate) const PROMPTS: [&str; 3] =
    ["Once upon a time", "The most important thing about", "In the year 1900,"];
pub(crate) const MAX_NEW_TOKENS: usize = 64;

pub(crate) const GGUF: bool = true;
pub(crate) const HUGGINGFACE: bool = true;
pub(crate) const CHECKPOINT: Choice = Choice::Last;
pub(crate) const PARITY_POSITIONS: usize = 4096;

pub(crate) const LORA_RANK: usize = 16;
pub(crate) const LORA_TARGETS: [LoraTarget; 7] = LoraTarget::ALL;
