//! What is written: the tables and keys of a recipe, as they stand in TOML.
//!
//! This file is the reference of the format. The JSON schema is generated from it (the text of
//! every key, its default, its bounds), and the document is held against that schema before it
//! becomes these types; so a bound stands here and nowhere else. What concerns several keys at
//! once is checked in `resolve`.

mod teacher;

use std::borrow::Cow;
use std::ops::Range;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Deserialize;

use crate::defaults;
use crate::resolved::{
    ActivationGrid, Backend, Choice, KvCache, LoraTarget, Method, OptimizerState, Precision,
    Scales, StraightThrough, WeightGrid,
};

pub(crate) use teacher::{LocalTeacher, RemoteTeacher, Teacher, TeacherCache, TeacherSignal};

/// A value and the bytes of the document it was written in.
#[derive(Clone, Debug, Deserialize)]
#[serde(transparent)]
pub(crate) struct Written<T>(toml::Spanned<T>);

impl<T> Written<T> {
    pub(crate) fn value(&self) -> &T {
        self.0.get_ref()
    }

    pub(crate) fn span(&self) -> Range<usize> {
        self.0.span()
    }
}

impl<T: JsonSchema> JsonSchema for Written<T> {
    fn schema_name() -> Cow<'static, str> {
        T::schema_name()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        T::json_schema(generator)
    }

    fn inline_schema() -> bool {
        true
    }
}

/// A run of distill: from a teacher to an exported, verified student.
///
/// Paths are relative to the directory that distill is started in.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Recipe {
    /// Name of the run; its directory is `<output>/<name>/<run id>/`.
    ///
    /// Letters, digits, `-`, `_` and `.`.
    #[schemars(length(min = 1))]
    pub(crate) name: Written<String>,
    /// Seed of everything random: initial weights, data order, sampling.
    #[schemars(extend("default" = defaults::SEED))]
    pub(crate) seed: Option<Written<u64>>,
    /// What computes the training graph.
    #[schemars(extend("default" = defaults::BACKEND))]
    pub(crate) backend: Option<Written<Backend>>,
    /// Directory that holds the runs.
    #[schemars(length(min = 1), extend("default" = defaults::OUTPUT))]
    pub(crate) output: Option<Written<String>>,
    pub(crate) student: Written<Student>,
    pub(crate) teacher: Option<Written<Teacher>>,
    pub(crate) data: Written<Data>,
    pub(crate) distill: Option<Written<Distill>>,
    pub(crate) quantize: Option<Quantize>,
    pub(crate) device: Option<Device>,
    pub(crate) train: Train,
    pub(crate) eval: Option<Eval>,
    pub(crate) export: Option<Export>,
}

/// The model that is trained. Exactly one of `from`, `config` and `keep_layers`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Student {
    /// An existing model to start from: a Hugging Face directory, a `.gguf` file, or a hub id
    /// `owner/name` (`owner/name/file.gguf` where a repository has several).
    #[schemars(length(min = 1))]
    pub(crate) from: Option<Written<String>>,
    /// Branch, tag or commit of a hub id.
    #[schemars(length(min = 1), extend("default" = defaults::REVISION))]
    pub(crate) revision: Option<Written<String>>,
    /// A new model of the Llama family, random from `seed`.
    pub(crate) config: Option<Written<NewModel>>,
    /// Cut the student from the teacher: the numbers of the layers to keep, from 0, increasing.
    #[schemars(length(min = 1))]
    pub(crate) keep_layers: Option<Written<Vec<usize>>>,
    /// Tokenizer to train and ship with: a directory, a `.gguf` file or a hub id. Default: the
    /// student's own, else the teacher's.
    #[schemars(length(min = 1))]
    pub(crate) tokenizer: Option<Written<String>>,
    /// Instead of `tokenizer`: train a new byte-level BPE of this many tokens on the data.
    #[schemars(range(min = 260, max = 1_000_000))]
    pub(crate) train_tokenizer: Option<Written<usize>>,
}

/// The shape of a new model. Its vocabulary is the tokenizer's.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewModel {
    /// Width of the model; a multiple of 32 where it is quantized.
    #[schemars(range(min = 1, max = 65_536))]
    pub(crate) hidden_size: Written<usize>,
    /// Width of the feed-forward layer; a multiple of 32 where it is quantized.
    #[schemars(range(min = 1, max = 1_048_576))]
    pub(crate) intermediate_size: Written<usize>,
    /// Number of decoder layers.
    #[schemars(range(min = 1, max = 1024))]
    pub(crate) num_hidden_layers: Written<usize>,
    /// Number of query heads.
    #[schemars(range(min = 1, max = 1024))]
    pub(crate) num_attention_heads: Written<usize>,
    /// Number of key and value heads; it divides `num_attention_heads`. Default: as many.
    #[schemars(range(min = 1, max = 1024))]
    pub(crate) num_key_value_heads: Option<Written<usize>>,
    /// Width of one head, an even number. Default: `hidden_size / num_attention_heads`.
    #[schemars(range(min = 2, max = 4096))]
    pub(crate) head_dim: Option<Written<usize>>,
    /// Base of the rotary position embedding.
    #[schemars(range(min = 1), extend("default" = defaults::ROPE_THETA))]
    pub(crate) rope_theta: Option<Written<f64>>,
    /// Epsilon inside every RMSNorm.
    #[schemars(extend("exclusiveMinimum" = 0), extend("default" = defaults::RMS_NORM_EPS))]
    pub(crate) rms_norm_eps: Option<Written<f64>>,
    /// Longest sequence the model is meant for, in tokens.
    #[schemars(range(min = 1, max = 16_777_216), extend("default" = defaults::MAX_POSITION_EMBEDDINGS))]
    pub(crate) max_position_embeddings: Option<Written<usize>>,
    /// Whether the head reuses the token embedding.
    #[schemars(extend("default" = defaults::TIE_WORD_EMBEDDINGS))]
    pub(crate) tie_word_embeddings: Option<Written<bool>>,
}

/// The text, and how it is cut into sequences.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Data {
    /// Files (`.txt`, `.jsonl`, `.parquet`), directories or globs; from the hub
    /// `hf:owner/name` (all of a data set) or `hf:owner/name/path/in/repo`. May be left out where
    /// `[data.generate]` makes the text.
    #[schemars(length(min = 1), inner(length(min = 1)))]
    pub(crate) sources: Option<Written<Vec<Written<String>>>>,
    /// The share of each source in the tokens that are trained on, relative to the others: one
    /// number a source. Default: where nothing has a weight, all text is one, and otherwise all
    /// sources together weigh 1.
    ///
    /// A source that is short for its share is repeated, one that is long for it takes several
    /// epochs. The held-out part is mixed alike.
    #[schemars(length(min = 1), inner(range(min = 0.001)))]
    pub(crate) weights: Option<Written<Vec<Written<f64>>>>,
    pub(crate) generate: Option<Written<Generate>>,
    /// The field that holds the text, in JSONL and Parquet.
    #[schemars(length(min = 1), extend("default" = defaults::TEXT_FIELD))]
    pub(crate) text_field: Option<Written<String>>,
    /// What separates documents inside a text file. Default: one file is one document.
    #[schemars(length(min = 1))]
    pub(crate) document_separator: Option<Written<String>>,
    /// Tokens per training sequence.
    #[schemars(range(min = 2, max = 1_048_576), extend("default" = defaults::SEQUENCE_LENGTH))]
    pub(crate) sequence_length: Option<Written<usize>>,
    /// Fraction of the sequences that is kept for measuring and never trained on.
    #[schemars(
        extend("exclusiveMinimum" = 0),
        extend("exclusiveMaximum" = 1),
        extend("default" = defaults::HELD_OUT)
    )]
    pub(crate) held_out: Option<Written<f64>>,
}

/// Text that a model makes up, many sequences at a time through the edge runtime. It is kept under
/// `<output>/generated`, and made again only where the model or how it is drawn changes.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Generate {
    /// The model that writes: a Hugging Face directory, a `.gguf` file, or a hub id. Default: the
    /// teacher, or else `student.from`. Its tokenizer is the student's. What the edge runtime does
    /// not read is converted once, to Q8_0.
    #[schemars(length(min = 1))]
    pub(crate) from: Option<Written<String>>,
    /// Branch, tag or commit of a hub id.
    #[schemars(length(min = 1), extend("default" = defaults::REVISION))]
    pub(crate) revision: Option<Written<String>>,
    /// Tokens to make, of texts that pass the filters.
    #[schemars(range(min = 1))]
    pub(crate) tokens: Written<u64>,
    /// The share of this text in the tokens that are trained on, relative to `data.weights`.
    /// Default: 1 where the sources have weights, else as much as there is.
    #[schemars(range(min = 0.001))]
    pub(crate) weight: Option<Written<f64>>,
    /// What texts begin with, in turn: `"<|endoftext|>"`, or `"<|im_start|>user\n"`. Special tokens
    /// spelt out are those tokens. Default: the token that begins a text, or else ends one.
    #[schemars(length(min = 1), inner(length(min = 1)))]
    pub(crate) begin: Option<Written<Vec<Written<String>>>>,
    /// Files, directories or globs of prompts: text n begins with `begin` and the n-th of them, over
    /// and over. They are read as `sources` are; of a text file, each line is one.
    #[schemars(length(min = 1), inner(length(min = 1)))]
    pub(crate) prompts: Option<Written<Vec<Written<String>>>>,
    /// The tokens that end a text. Default: those that end the model's answers.
    #[schemars(length(min = 1), inner(length(min = 1)))]
    pub(crate) end: Option<Written<Vec<Written<String>>>>,
    /// Most tokens of a text, with what it begins with. Default: `data.sequence_length`.
    #[schemars(range(min = 2, max = 1_048_576))]
    pub(crate) max_tokens: Option<Written<usize>>,
    /// Divides the logits; 1 draws from the model as it is.
    #[schemars(extend("exclusiveMinimum" = 0), extend("default" = defaults::GENERATE_TEMPERATURE))]
    pub(crate) temperature: Option<Written<f64>>,
    /// Draw from the most likely tokens whose probabilities reach this sum; 1 keeps all.
    #[schemars(
        extend("exclusiveMinimum" = 0),
        range(max = 1),
        extend("default" = defaults::GENERATE_TOP_P)
    )]
    pub(crate) top_p: Option<Written<f64>>,
    /// Texts of fewer tokens than these, besides what they begin with, are not trained on.
    #[schemars(range(min = 1), extend("default" = defaults::GENERATE_MIN_TOKENS))]
    pub(crate) min_tokens: Option<Written<usize>>,
    /// Texts with a larger share of repeated runs of four tokens are not trained on: a model that
    /// has fallen into a loop repeats nearly all.
    #[schemars(range(min = 0, max = 1), extend("default" = defaults::GENERATE_MAX_REPETITION))]
    pub(crate) max_repetition: Option<Written<f64>>,
    /// Texts whose tokens have a lower mean log-probability are not trained on. Default: none is
    /// too low.
    #[schemars(range(max = 0))]
    pub(crate) min_log_prob: Option<Written<f64>>,
    /// Texts whose tokens have a higher mean log-probability are not trained on. Default: none is
    /// too high.
    #[schemars(range(max = 0))]
    pub(crate) max_log_prob: Option<Written<f64>>,
}

/// How the student is held against the teacher: the loss is `(1 − w) · D + w · cross-entropy`.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Distill {
    /// The divergence D between the teacher's distribution p and the student's q.
    #[schemars(extend("default" = Loss::default()))]
    pub(crate) loss: Option<Written<Loss>>,
    /// Weight of the teacher in the mixture; for `loss = "jsd"` alone.
    #[schemars(
        extend("exclusiveMinimum" = 0),
        extend("exclusiveMaximum" = 1),
        extend("default" = defaults::BETA)
    )]
    pub(crate) beta: Option<Written<f64>>,
    /// Both distributions are softened by it.
    #[schemars(extend("exclusiveMinimum" = 0), extend("default" = defaults::TEMPERATURE))]
    pub(crate) temperature: Option<Written<f64>>,
    /// Whether D is multiplied by the temperature squared, so that gradients keep their size.
    #[schemars(extend("default" = defaults::SCALE_BY_TEMPERATURE_SQUARED))]
    pub(crate) scale_by_temperature_squared: Option<Written<bool>>,
    /// Weight w of the cross-entropy with the text itself.
    #[schemars(range(min = 0, max = 1), extend("default" = defaults::CROSS_ENTROPY))]
    pub(crate) cross_entropy: Option<Written<f64>>,
}

/// A divergence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, serde::Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Loss {
    /// KL(p‖q): the student covers all that the teacher does.
    #[default]
    ForwardKl,
    /// KL(q‖p): the student keeps to what the teacher finds likely.
    ReverseKl,
    /// The generalised Jensen–Shannon divergence, between the two by `beta`.
    Jsd,
}

/// The grid that is trained on and shipped, block by block of 32. Without this table the student
/// is trained and exported in f32.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Quantize {
    /// All linear layers of the decoder.
    pub(crate) linears: Written<WeightGrid>,
    /// The token embedding and the head, tied or not.
    pub(crate) embeddings: Written<WeightGrid>,
    /// The inputs of the quantized layers, as the runtime will compute them.
    #[schemars(extend("default" = defaults::ACTIVATIONS))]
    pub(crate) activations: Option<Written<ActivationGrid>>,
    /// The first step that sees the grid; before it, training is in f32.
    #[schemars(extend("default" = defaults::START_STEP))]
    pub(crate) start_step: Option<Written<usize>>,
    /// How the weights come to the grid at `start_step`: what training begins with.
    #[schemars(extend("default" = defaults::METHOD))]
    pub(crate) method: Option<Written<Method>>,
    /// Where the scale of each Q4_0 block comes from while training. Default: `weights` where the
    /// method is `round`, else `learned`.
    pub(crate) scales: Option<Written<Scales>>,
    /// Steps over which the weights come to the grid, from `start_step` on: each computes with one part
    /// more of the rounding error. 0: all at once. Evaluations are of what would ship.
    #[schemars(extend("default" = defaults::RAMP_STEPS))]
    pub(crate) ramp_steps: Option<Written<usize>>,
    /// The gradient of a weight whose 4-bit code is clamped at the end of the grid.
    #[schemars(extend("default" = defaults::STRAIGHT_THROUGH))]
    pub(crate) straight_through: Option<Written<StraightThrough>>,
    /// Sequences of the training text that `search` and `gptq` look at.
    #[schemars(range(min = 1), extend("default" = defaults::CALIBRATION_SEQUENCES))]
    pub(crate) calibration_sequences: Option<Written<usize>>,
}

/// The device that the student is made for, and what it must do there. `distill plan` predicts it,
/// and a run that cannot keep to it is refused before it begins.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Device {
    /// Bytes that the device reads from memory, in 10^9 a second: decoding a token reads all
    /// weights and the whole cache once.
    ///
    /// Take what is reached, not what the data sheet says; about two thirds of that is common.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub(crate) bandwidth_gbps: Written<f64>,
    /// Multiplications and additions that the device reaches in matrix products, in 10^12 a
    /// second: reading a prompt takes two for every weight and token. The default is about what a
    /// phone's CPU does with the instructions for bytes.
    #[schemars(extend("exclusiveMinimum" = 0), extend("default" = defaults::TOPS))]
    pub(crate) tops: Option<Written<f64>>,
    /// Most memory that weights, cache and buffers may take together, in 10^6 bytes.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub(crate) ram_mb: Option<Written<f64>>,
    /// Fewest tokens a second to decode, with `context_length` tokens in the cache.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub(crate) min_tokens_per_s: Option<Written<f64>>,
    /// Longest time until the first token of the answer to `prompt_tokens` tokens.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub(crate) first_token_ms: Option<Written<f64>>,
    /// Tokens of prompt and answers together that the device must hold; at most those that the
    /// student is made for.
    #[schemars(range(min = 1, max = 16_777_216), extend("default" = defaults::CONTEXT_LENGTH))]
    pub(crate) context_length: Option<Written<usize>>,
    /// Tokens of the prompt that `first_token_ms` is meant for.
    #[schemars(range(min = 1, max = 16_777_216), extend("default" = defaults::PROMPT_TOKENS))]
    pub(crate) prompt_tokens: Option<Written<usize>>,
    /// How keys and values are kept there.
    #[schemars(extend("default" = defaults::KV_CACHE))]
    pub(crate) kv_cache: Option<Written<KvCache>>,
}

/// The optimiser (AdamW) and its schedule. A step is one update of the weights, made from
/// `batch_size · gradient_accumulation` sequences.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Train {
    /// Number of optimiser steps.
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub(crate) steps: Written<usize>,
    /// Sequences computed at once; more need more memory.
    #[schemars(range(min = 1, max = 65_536), extend("default" = defaults::BATCH_SIZE))]
    pub(crate) batch_size: Option<Written<usize>>,
    /// Batches whose gradients are summed before an update.
    #[schemars(range(min = 1, max = 65_536), extend("default" = defaults::GRADIENT_ACCUMULATION))]
    pub(crate) gradient_accumulation: Option<Written<usize>>,
    /// Keep only the inputs of the layers, and compute each layer again for its gradients: a third
    /// more arithmetic for a fraction of the memory.
    #[schemars(extend("default" = false))]
    pub(crate) activation_checkpointing: Option<Written<bool>>,
    /// Highest learning rate.
    #[schemars(range(max = 1), extend("exclusiveMinimum" = 0))]
    pub(crate) learning_rate: Written<f64>,
    /// Learning rate at the last step. Default: a tenth of `learning_rate`.
    #[schemars(range(min = 0, max = 1))]
    pub(crate) min_learning_rate: Option<Written<f64>>,
    /// How the learning rate falls after the warm-up.
    #[schemars(extend("default" = ScheduleKind::default()))]
    pub(crate) schedule: Option<Written<ScheduleKind>>,
    /// Steps over which the learning rate rises from zero.
    #[schemars(extend("default" = defaults::WARMUP_STEPS))]
    pub(crate) warmup_steps: Option<Written<usize>>,
    /// Length of the fall at the end, for `schedule = "wsd"` alone. Default: a fifth of `steps`.
    pub(crate) decay_steps: Option<Written<usize>>,
    /// Decoupled weight decay.
    #[schemars(range(min = 0), extend("default" = defaults::WEIGHT_DECAY))]
    pub(crate) weight_decay: Option<Written<f64>>,
    /// Decay of the first moment.
    #[schemars(
        range(min = 0),
        extend("exclusiveMaximum" = 1),
        extend("default" = defaults::BETA1)
    )]
    pub(crate) beta1: Option<Written<f64>>,
    /// Decay of the second moment.
    #[schemars(
        range(min = 0),
        extend("exclusiveMaximum" = 1),
        extend("default" = defaults::BETA2)
    )]
    pub(crate) beta2: Option<Written<f64>>,
    /// Added to the root of the second moment.
    #[schemars(extend("exclusiveMinimum" = 0), extend("default" = defaults::EPSILON))]
    pub(crate) epsilon: Option<Written<f64>>,
    /// What the layers' matrix products compute in; `bf16` is for `backend = "cuda"`, without LoRA
    /// and `[quantize]`. Master weights, norms, attention, head and loss stay in f32.
    #[schemars(extend("default" = defaults::PRECISION))]
    pub(crate) precision: Option<Written<Precision>>,
    /// The type in which both moments are kept. Smaller ones are rounded stochastically, so that they
    /// stay right on average; on other backends than `flex` they lie in the host's memory and the
    /// update runs on the CPU.
    #[schemars(extend("default" = defaults::OPTIMIZER_STATE))]
    pub(crate) optimizer_state: Option<Written<OptimizerState>>,
    /// Largest global norm of the gradient; a large value such as 1e9 never clips.
    #[schemars(extend("exclusiveMinimum" = 0), extend("default" = defaults::CLIP_NORM))]
    pub(crate) clip_norm: Option<Written<f64>>,
    /// Steps between two evaluations. Default: a fifth of `steps`.
    #[schemars(range(min = 1))]
    pub(crate) eval_every: Option<Written<usize>>,
    /// Steps between two checkpoints. Default: `eval_every`.
    #[schemars(range(min = 1))]
    pub(crate) checkpoint_every: Option<Written<usize>>,
    /// How many of the newest checkpoints stay on disk.
    #[schemars(range(min = 1), extend("default" = defaults::KEEP_CHECKPOINTS))]
    pub(crate) keep_checkpoints: Option<Written<usize>>,
    /// Evaluations without one that is better than all before, after which training ends. Default:
    /// training goes on to the last step.
    #[schemars(range(min = 1))]
    pub(crate) patience: Option<Written<usize>>,
    pub(crate) learning_rate_factors: Option<LearningRateFactors>,
    pub(crate) lora: Option<Written<Lora>>,
}

/// What the learning rate of some weights is multiplied by; 0 leaves them as they are.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct LearningRateFactors {
    /// All linear layers of the decoder.
    #[schemars(range(min = 0), extend("default" = defaults::LEARNING_RATE_FACTOR))]
    pub(crate) linears: Option<Written<f64>>,
    /// The token embedding and the head, tied or not.
    #[schemars(range(min = 0), extend("default" = defaults::LEARNING_RATE_FACTOR))]
    pub(crate) embeddings: Option<Written<f64>>,
    /// All norms.
    #[schemars(range(min = 0), extend("default" = defaults::LEARNING_RATE_FACTOR))]
    pub(crate) norms: Option<Written<f64>>,
    /// Scales of blocks, which change by this rate relative to what they are.
    #[schemars(range(min = 0), extend("default" = defaults::LEARNING_RATE_FACTOR))]
    pub(crate) scales: Option<Written<f64>>,
}

/// LoRA: all weights stay as they are, and low-rank factors are trained beside the linears, as
/// W + (alpha / rank) · B · A. Checkpoints and exports hold the sum. With [quantize], the sum is what
/// is rounded; without this table all weights are trained.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Lora {
    /// Rows of A and columns of B: what the update can express, and what it costs.
    #[schemars(range(min = 1, max = 65_536), extend("default" = defaults::LORA_RANK))]
    pub(crate) rank: Option<Written<usize>>,
    /// The update is multiplied by alpha / rank. Default: `rank`.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub(crate) alpha: Option<Written<f64>>,
    /// The linears that get factors, in every layer.
    #[schemars(length(min = 1), extend("default" = defaults::LORA_TARGETS))]
    pub(crate) targets: Option<Written<Vec<Written<LoraTarget>>>>,
}

/// How the learning rate falls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, serde::Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ScheduleKind {
    /// Along half a cosine, over all steps after the warm-up.
    #[default]
    Cosine,
    /// Warm-up, stable, decay: constant, then linearly over the last `decay_steps`.
    Wsd,
}

/// What is measured during and after training.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Eval {
    /// Held-out sequences per evaluation; all of them if there are fewer.
    #[schemars(range(min = 1), extend("default" = defaults::EVAL_SEQUENCES))]
    pub(crate) sequences: Option<Written<usize>>,
    /// Texts that the student continues, for the report.
    #[schemars(extend("default" = defaults::PROMPTS))]
    pub(crate) prompts: Option<Written<Vec<String>>>,
    /// Longest continuation, in tokens.
    #[schemars(range(min = 1, max = 1_048_576), extend("default" = defaults::MAX_NEW_TOKENS))]
    pub(crate) max_new_tokens: Option<Written<usize>>,
    pub(crate) tasks: Option<Written<Tasks>>,
}

/// Benchmarks on files, measured through the runtime at the end of a run: of the student in full
/// precision, on the grid by post-training methods, and as exported. At least one file.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Tasks {
    /// Texts, for perplexity and the divergence from full precision.
    pub(crate) perplexity: Option<Written<Vec<Written<String>>>>,
    /// Multiple choice: JSONL of `{"query", "choices", "gold"}`.
    pub(crate) choice: Option<Written<Vec<Written<String>>>>,
    /// Last-word accuracy: JSONL of `{"context", "continuation"}`.
    pub(crate) last_word: Option<Written<Vec<Written<String>>>>,
    /// Tokens of a window of text; perplexity is that of each window's second half.
    #[schemars(range(min = 4, max = 1_048_576), extend("default" = defaults::TASK_CONTEXT))]
    pub(crate) context: Option<Written<usize>>,
    /// The most windows of a text. Default: all.
    #[schemars(range(min = 1))]
    pub(crate) chunks: Option<Written<usize>>,
    /// The most questions or passages of a file. Default: all.
    #[schemars(range(min = 1))]
    pub(crate) limit: Option<Written<usize>>,
    /// Ways to the grid without training that are measured beside the exported student.
    #[schemars(extend("default" = defaults::BASELINES))]
    pub(crate) baselines: Option<Written<Vec<Written<Method>>>>,
}

/// What is written at the end.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Export {
    /// Write `export/model.gguf`, for this project's runtime and for llama.cpp.
    #[schemars(extend("default" = defaults::GGUF))]
    pub(crate) gguf: Option<Written<bool>>,
    /// Write `export/huggingface/`, for transformers and what reads its format.
    #[schemars(extend("default" = defaults::HUGGINGFACE))]
    pub(crate) huggingface: Option<Written<bool>>,
    /// The checkpoint that is exported: the last, or the one whose weights, as they ship, are nearest
    /// to the teacher on held-out text (without a teacher, predict it best).
    #[schemars(extend("default" = defaults::CHECKPOINT))]
    pub(crate) checkpoint: Option<Written<Choice>>,
    /// Held-out positions on which the runtime and the training graph must agree.
    #[schemars(range(min = 1), extend("default" = defaults::PARITY_POSITIONS))]
    pub(crate) parity_positions: Option<Written<usize>>,
}
