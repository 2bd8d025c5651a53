//! What the device will do with the student, against what the recipe's `[device]` asks of it.

use distill_edge::predict::{Sizes, Speed};
use distill_edge::{Config, KvType};
use distill_gguf::GgmlType;
use distill_models::LlamaConfig;
use distill_recipe::{
    ActivationGrid, Device, Document, KvCache, Method, ProblemKind, Quantize, Recipe, Scales,
    StraightThrough, WeightGrid,
};
use serde::Serialize;

use crate::failure::Failure;

/// Threads whose buffers are counted. They are small.
const THREADS: usize = 4;

/// What the device will do.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DevicePlan {
    /// Bytes of all weights.
    pub weight_bytes: u64,
    /// Bytes of weights that a token reads.
    pub token_weight_bytes: u64,
    /// Decoding with so much in the cache.
    pub decode: Vec<Decode>,
    /// Multiplications and additions until the first token of an answer.
    pub prompt_operations: u64,
    /// Tokens of its prompt.
    pub prompt_tokens: usize,
    /// Milliseconds until then, if the recipe says how fast the device is.
    pub first_token_ms: Option<f64>,
    /// Memory with the longest context.
    pub ram: Ram,
}

/// Decoding a token.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Decode {
    /// Tokens in the cache.
    pub depth: usize,
    /// Cache in binary16.
    pub f16: Reads,
    /// Cache in 8 bits, where heads are whole blocks.
    pub q8_0: Option<Reads>,
}

/// What a token reads.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Reads {
    /// Weights and cache.
    pub bytes: u64,
    /// What that comes to.
    pub tokens_per_second: Option<f64>,
}

/// Bytes of memory on the device.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Ram {
    /// Tokens that the cache can hold.
    pub context: usize,
    /// Weights.
    pub weights: u64,
    /// Cache.
    pub cache: u64,
    /// Buffers, tokenizer, program.
    pub other: u64,
}

impl Ram {
    /// The sum.
    pub fn total(&self) -> u64 {
        self.weights + self.cache + self.other
    }
}

/// Tokens planned for where the recipe has no `[device]`.
const DEFAULT: (usize, usize) = (2048, 128);

impl DevicePlan {
    /// What follows from the student's shape and the recipe's grids.
    pub fn new(recipe: &Recipe, student: &LlamaConfig) -> Self {
        let sizes = sizes(student, recipe.quantize.as_ref());
        let device = recipe.device.as_ref();
        let (context, prompt) = device.map_or(DEFAULT, |d| (d.context_length, d.prompt_tokens));
        let context = context.min(student.max_position_embeddings);
        let prompt = prompt.min(context);
        let reads = |depth: usize, kv: KvType| Reads {
            bytes: sizes.decode_bytes(depth, kv),
            tokens_per_second: device.map(|d| sizes.tokens_per_second(depth, kv, speed(d))),
        };
        let mut depths = vec![0, context / 4, context];
        depths.dedup();
        let decode = depths.into_iter().map(|depth| Decode {
            depth,
            f16: reads(depth, KvType::F16),
            q8_0: sizes.can_cache(KvType::Q8_0).then(|| reads(depth, KvType::Q8_0)),
        });
        let kv = device.map_or(KvType::F16, |d| kv_type(d.kv_cache));
        Self {
            weight_bytes: sizes.weight_bytes(),
            token_weight_bytes: sizes.bytes_per_token(),
            decode: decode.collect(),
            prompt_operations: sizes.prompt_operations(prompt),
            prompt_tokens: prompt,
            first_token_ms: device.map(|d| 1e3 * sizes.first_token_seconds(prompt, speed(d))),
            ram: ram(&sizes, context, kv),
        }
    }
}

/// Refuses a recipe whose device cannot do what is asked of it.
///
/// # Errors
/// [`Failure::Budget`], each limit with what is predicted, and what would help.
pub fn check(
    recipe: &Recipe,
    student: &LlamaConfig,
    document: &Document,
    overrides: &[String],
) -> Result<(), Failure> {
    let Some(device) = &recipe.device else { return Ok(()) };
    let now = Choice { quantize: recipe.quantize.clone(), device: device.clone() };
    let broken: Vec<_> = LIMITS
        .iter()
        .filter_map(|limit| {
            let asked = (limit.asked)(device)?;
            let found = (limit.predict)(&now, student);
            (!limit.keeps(found, asked)).then(|| {
                let kind = ProblemKind::Budget {
                    key: limit.key,
                    limit: (limit.words)(asked),
                    predicted: format!("{} {}", (limit.what)(&now), (limit.words)(found)),
                    help: help(limit, asked, found, &now, student),
                };
                (format!("device.{}", limit.key), kind)
            })
        })
        .collect();
    if broken.is_empty() { Ok(()) } else { Err(Failure::Budget(document.error(overrides, broken))) }
}

/// What a recipe can choose that the device feels.
#[derive(Clone, Debug, PartialEq)]
struct Choice {
    quantize: Option<Quantize>,
    device: Device,
}

/// A demand.
struct Limit {
    key: &'static str,
    asked: fn(&Device) -> Option<f64>,
    predict: fn(&Choice, &LlamaConfig) -> f64,
    /// Whether more is better.
    at_least: bool,
    words: fn(f64) -> String,
    /// What the figure is of, with a verb.
    what: fn(&Choice) -> String,
}

impl Limit {
    fn keeps(&self, found: f64, asked: f64) -> bool {
        if self.at_least { found >= asked } else { found <= asked }
    }
}

const LIMITS: [Limit; 3] = [
    Limit {
        key: "ram_mb",
        asked: |device| device.ram_mb,
        predict: |choice, student| {
            let sizes = sizes(student, choice.quantize.as_ref());
            let context = choice.device.context_length.min(student.max_position_embeddings);
            ram(&sizes, context, kv_type(choice.device.kv_cache)).total() as f64 / 1e6
        },
        at_least: false,
        words: |mb| format!("{mb:.1} MB"),
        what: |_| "weights, cache and buffers take".into(),
    },
    Limit {
        key: "min_tokens_per_s",
        asked: |device| device.min_tokens_per_s,
        predict: |choice, student| {
            let sizes = sizes(student, choice.quantize.as_ref());
            let depth = choice.device.context_length.min(student.max_position_embeddings);
            let kv = kv_type(choice.device.kv_cache);
            sizes.tokens_per_second(depth, kv, speed(&choice.device))
        },
        at_least: true,
        words: |speed| format!("{speed:.digits$} tokens/s", digits = usize::from(speed < 100.0)),
        what: |choice| {
            format!("with {} tokens in the cache it decodes", choice.device.context_length)
        },
    },
    Limit {
        key: "first_token_ms",
        asked: |device| device.first_token_ms,
        predict: |choice, student| {
            let sizes = sizes(student, choice.quantize.as_ref());
            let prompt = choice.device.prompt_tokens.min(student.max_position_embeddings);
            1e3 * sizes.first_token_seconds(prompt, speed(&choice.device))
        },
        at_least: false,
        words: |ms| format!("{ms:.0} ms"),
        what: |choice| format!("the first after {} takes", choice.device.prompt_tokens),
    },
];

/// Changes that would move the figure the right way, with what it would be.
fn help(limit: &Limit, asked: f64, found: f64, now: &Choice, student: &LlamaConfig) -> String {
    let better = |value: f64| if limit.at_least { value > found } else { value < found };
    let mut all = now.clone();
    let mut gains = Vec::new();
    for (words, change) in changes(now, student) {
        let mut with = now.clone();
        change(&mut with);
        let value = (limit.predict)(&with, student);
        if better(value) {
            change(&mut all);
            gains.push((words, value));
        }
    }
    let together = (limit.predict)(&all, student);
    let gains: Vec<String> = gains
        .into_iter()
        .map(|(words, value)| format!("{words} gives {}", (limit.words)(value)))
        .collect();
    let enough = limit.keeps(together, asked);
    let otherwise = "a smaller student, or another limit";
    match (gains.len(), enough) {
        (0, _) => format!("it takes {otherwise}"),
        (1, true) => gains.join("; "),
        (1, false) => format!("{}; beyond that it takes {otherwise}", gains.join("; ")),
        (_, true) => format!("{}; together {}", gains.join("; "), (limit.words)(together)),
        (_, false) => format!(
            "{}; together {}, beyond which it takes {otherwise}",
            gains.join("; "),
            (limit.words)(together)
        ),
    }
}

type Change = Box<dyn Fn(&mut Choice)>;

/// What could be written otherwise: finer grids, a smaller cache, fewer tokens.
fn changes(now: &Choice, student: &LlamaConfig) -> Vec<(String, Change)> {
    let mut changes: Vec<(String, Change)> = Vec::new();
    let mut add = |words: String, change: Change| changes.push((words, change));
    let smaller = |grid: WeightGrid| match grid {
        WeightGrid::None => &[WeightGrid::Q8_0, WeightGrid::Q4_0][..],
        WeightGrid::Q8_0 => &[WeightGrid::Q4_0][..],
        WeightGrid::Q4_0 => &[][..],
    };
    match &now.quantize {
        None => {
            let words = "[quantize] with `linears = \"q4_0\"`, `embeddings = \"q4_0\"`".to_owned();
            let all = Quantize {
                linears: WeightGrid::Q4_0,
                embeddings: WeightGrid::Q4_0,
                activations: ActivationGrid::Q8_0,
                start_step: 0,
                method: Method::Round,
                scales: Scales::Weights,
                ramp_steps: 0,
                straight_through: StraightThrough::Clipped,
                calibration_sequences: 1,
            };
            add(words, Box::new(move |choice| choice.quantize = Some(all.clone())));
        }
        Some(quantize) => {
            for &grid in smaller(quantize.linears) {
                let words = format!("`quantize.linears = \"{}\"`", word(grid));
                let set = move |choice: &mut Choice| {
                    choice.quantize.iter_mut().for_each(|quantize| quantize.linears = grid);
                };
                add(words, Box::new(set));
            }
            for &grid in smaller(quantize.embeddings) {
                let words = format!("`quantize.embeddings = \"{}\"`", word(grid));
                let set = move |choice: &mut Choice| {
                    choice.quantize.iter_mut().for_each(|quantize| quantize.embeddings = grid);
                };
                add(words, Box::new(set));
            }
        }
    }
    if now.device.kv_cache == KvCache::F16 && student.head_dim.is_multiple_of(distill_quant::BLOCK)
    {
        let words = "`device.kv_cache = \"q8_0\"`".to_owned();
        add(words, Box::new(|choice| choice.device.kv_cache = KvCache::Q8_0));
    }
    let context = now.device.context_length.min(student.max_position_embeddings) / 2;
    if context >= 1 {
        let words = format!("`device.context_length = {context}`");
        add(words, Box::new(move |choice| choice.device.context_length = context));
    }
    let prompt = now.device.prompt_tokens.min(student.max_position_embeddings) / 2;
    if prompt >= 1 {
        let words = format!("`device.prompt_tokens = {prompt}`");
        add(words, Box::new(move |choice| choice.device.prompt_tokens = prompt));
    }
    changes
}

fn word(grid: WeightGrid) -> &'static str {
    match grid {
        WeightGrid::Q4_0 => "q4_0",
        WeightGrid::Q8_0 => "q8_0",
        WeightGrid::None => "none",
    }
}

fn kv_type(kv: KvCache) -> KvType {
    match kv {
        KvCache::F16 => KvType::F16,
        KvCache::Q8_0 => KvType::Q8_0,
    }
}

fn speed(device: &Device) -> Speed {
    Speed { bandwidth_gbps: device.bandwidth_gbps, tops: device.tops }
}

fn ram(sizes: &Sizes, context: usize, kv: KvType) -> Ram {
    Ram {
        context,
        weights: sizes.weight_bytes(),
        cache: sizes.cache_bytes(context, kv),
        other: sizes.other_bytes(context, THREADS),
    }
}

/// The student as it will be exported.
fn sizes(student: &LlamaConfig, quantize: Option<&Quantize>) -> Sizes {
    let stored = |grid: WeightGrid| match grid {
        WeightGrid::Q4_0 => GgmlType::Q4_0,
        WeightGrid::Q8_0 => GgmlType::Q8_0,
        WeightGrid::None => GgmlType::F32,
    };
    Sizes {
        config: Config {
            context_length: student.max_position_embeddings,
            hidden_size: student.hidden_size,
            layers: student.num_hidden_layers,
            feed_forward: student.intermediate_size,
            heads: student.num_attention_heads,
            kv_heads: student.num_key_value_heads,
            head_dim: student.head_dim,
            rms_epsilon: student.rms_norm_eps as f32,
            rope_theta: student.rope_theta as f32,
            vocab_size: student.vocab_size,
        },
        linears: quantize.map_or(GgmlType::F32, |q| stored(q.linears)),
        embeddings: quantize.map_or(GgmlType::F32, |q| stored(q.embeddings)),
        tied: student.tie_word_embeddings,
        integer: quantize.is_some_and(|q| q.activations == ActivationGrid::Q8_0),
    }
}
