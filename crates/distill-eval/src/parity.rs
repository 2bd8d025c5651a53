//! The parity gate: does the runtime compute what was trained?
//!
//! The graph is the checkpoint's master weights rounded by the training grid; the runtime reads
//! the exported file. They are held against each other on held-out text, position by position
//! with the same tokens before each (teacher-forced), and on greedy continuations, in two
//! configurations:
//!
//! - **exact**: float activations and an f32 KV cache. Both compute the same sums in another
//!   order, so only rounding may differ.
//! - **shipped**: what an app gets by default. Where activations are rounded, the graph follows
//!   the runtime at rounding boundaries, and only there: see [`crate::replay`].

use std::path::Path;
use std::sync::Arc;

use burn::tensor::{Device, Int, Tensor, TensorData};
use distill_edge::{Activations, KvType, LoadOptions, Model, Session, SessionOptions};
use distill_models::quantized::quantize;
use distill_models::{ActivationGrid, LlamaForCausalLM, WeightGrids, parameters};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::EvalError;
use crate::replay::{Codes, Replay};
use crate::runtime::configuration;
use crate::score::{kl, top};

/// Positions whose logits are compared at a time.
const TILE: usize = 128;

/// What agreement is. A property of the formats, not of a recipe.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// Least share of positions with the same top token.
    pub same_top: f64,
    /// Largest mean KL(graph ‖ runtime), nats.
    pub mean_kl: f64,
    /// Largest difference of a logit, if it is bounded.
    pub max_logit_difference: Option<f64>,
    /// Two logits closer than this may change places in greedy decoding.
    pub near_tie: f64,
}

/// Float activations, f32 KV cache.
pub const EXACT: Limits =
    Limits { same_top: 0.999, mean_kl: 1e-5, max_logit_difference: Some(2e-3), near_tie: 4e-3 };
/// The runtime's defaults.
pub const SHIPPED: Limits =
    Limits { same_top: 0.995, mean_kl: 1e-4, max_logit_difference: None, near_tie: 5e-2 };

/// The gate's verdict; written as `parity.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Parity {
    /// Whether every configuration stays within its limits.
    pub passed: bool,
    /// Float activations, f32 KV cache.
    pub exact: Comparison,
    /// The runtime's defaults.
    pub shipped: Comparison,
    /// Whether `model.edge` gives the very logits of `model.gguf`, if there is one.
    pub packed_is_equal: Option<bool>,
}

/// One configuration of the runtime against the graph.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// e.g. `"Q8_0 activations, f16 KV cache"`.
    pub configuration: String,
    /// Kernels of the runtime, e.g. `"avx2"`.
    pub kernels: String,
    /// Whether it stays within the limits.
    pub passed: bool,
    /// The limits.
    pub limits: Limits,
    /// Positions compared.
    pub positions: usize,
    /// Share of positions with the same top token.
    pub same_top: f64,
    /// Mean KL(graph ‖ runtime), nats.
    pub mean_kl: f64,
    /// Largest difference of any logit.
    pub max_logit_difference: f64,
    /// How the codes of rounded activations compare; `None` where they are not rounded.
    pub codes: Option<Codes>,
    /// Where the two are furthest apart.
    pub worst: Worst,
    /// Greedy continuations.
    pub greedy: Vec<Greedy>,
}

/// The position at which graph and runtime are furthest apart.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Worst {
    /// Index of the text.
    pub sequence: usize,
    /// Position in it, from 0.
    pub position: usize,
    /// KL(graph ‖ runtime) there, nats.
    pub kl: f64,
    /// The graph's top token.
    pub graph_top: u32,
    /// The runtime's top token.
    pub runtime_top: u32,
    /// The text before it, for a reader; filled in by whoever has the tokenizer.
    pub context: String,
}

/// A prompt continued by both.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Greedy {
    /// Tokens of the prompt.
    pub prompt: Vec<u32>,
    /// Tokens until the two part, or all of them.
    pub same: usize,
    /// Tokens asked for.
    pub tokens: usize,
    /// Difference of the graph's two best logits where they part; `None` if they do not.
    pub gap: Option<f64>,
}

/// What is compared.
pub struct ParityInput<'a> {
    /// The checkpoint's weights.
    pub masters: &'a LlamaForCausalLM,
    /// The grids of the export.
    pub grids: WeightGrids,
    /// Where the graph runs; the CPU is the reference.
    pub device: &'a Device,
    /// The exported file.
    pub gguf: &'a Path,
    /// The same in the runtime's order, if it was exported too.
    pub packed: Option<&'a Path>,
    /// Held-out texts, each of at least two tokens.
    pub texts: &'a [Vec<u32>],
    /// Prompts for greedy decoding.
    pub prompts: &'a [Vec<u32>],
    /// Tokens to decode for each prompt.
    pub max_new_tokens: usize,
    /// Threads of the runtime.
    pub threads: usize,
}

impl ParityInput<'_> {
    /// Runs the gate. `progress` hears the positions compared so far.
    ///
    /// # Errors
    /// [`EvalError`] if the file does not load or is of another model; a *disagreement* is no
    /// error but a [`Parity`] that has not passed.
    pub fn compare(&self, progress: &mut dyn FnMut(usize)) -> Result<Parity, EvalError> {
        if self.texts.is_empty() {
            return Err(EvalError::NoText);
        }
        let exact = WeightGrids { activations: ActivationGrid::Float, ..self.grids };
        let exact =
            self.configuration(exact, Some(Activations::Float), KvType::F32, EXACT, progress)?;
        let shipped = self.configuration(self.grids, None, KvType::default(), SHIPPED, progress)?;
        let packed_is_equal = self.packed.map(|packed| self.same_logits(packed)).transpose()?;
        let passed = exact.passed && shipped.passed && packed_is_equal != Some(false);
        Ok(Parity { passed, exact, shipped, packed_is_equal })
    }

    /// Whether both files give the same bits on the first text: they hold the same codes and
    /// scales, so any difference is a fault.
    fn same_logits(&self, packed: &Path) -> Result<bool, EvalError> {
        let logits = |path: &Path| -> Result<Vec<u32>, EvalError> {
            let load = LoadOptions { threads: self.threads, ..LoadOptions::default() };
            let model = Model::load(path, &load)?;
            let text = &self.texts[0];
            let options = SessionOptions { context: text.len(), ..SessionOptions::default() };
            let mut bits = Vec::with_capacity(text.len() * model.config().vocab_size);
            Session::new(&model, options)?.score(text, |_, logits| {
                bits.extend(logits.iter().map(|logit| logit.to_bits()));
            })?;
            Ok(bits)
        };
        Ok(logits(self.gguf)? == logits(packed)?)
    }

    fn configuration(
        &self,
        grids: WeightGrids,
        activations: Option<Activations>,
        kv: KvType,
        limits: Limits,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Comparison, EvalError> {
        let load = LoadOptions { activations, threads: self.threads, ..LoadOptions::default() };
        let runtime = Model::load(self.gguf, &load)?;
        let mut graph = quantize(self.masters, &grids);
        let (found, expected) = (runtime.config().vocab_size, graph.config.vocab_size);
        if found != expected {
            return Err(EvalError::Vocabulary { path: self.gguf.to_path_buf(), found, expected });
        }
        let replay = Replay::new(grids.activations == ActivationGrid::Q8_0, kv == KvType::F16);
        graph.rounding = Arc::new(replay.clone());
        let longest = self.texts.iter().map(Vec::len).max().unwrap_or(0);
        let longest_prompt = self.prompts.iter().map(Vec::len).max().unwrap_or(0);
        let context = longest.max(longest_prompt + self.max_new_tokens);
        let session =
            Session::new(&runtime, SessionOptions { context, kv, threads: self.threads })?;
        let mut both = Both { graph: &graph, replay: &replay, session, device: self.device };

        let mut sums = Sums::default();
        for (sequence, text) in self.texts.iter().enumerate() {
            both.logits(text, |first, ours, theirs| {
                sums.add(sequence, first, ours, theirs, expected);
            })?;
            progress(sums.positions);
        }
        let greedy = self
            .prompts
            .iter()
            .map(|prompt| both.greedy(prompt, self.max_new_tokens))
            .collect::<Result<Vec<Greedy>, _>>()?;
        let positions = sums.positions.max(1) as f64;
        let (same_top, mean_kl) = (sums.same_top as f64 / positions, sums.kl / positions);
        let codes = replay.codes();
        let bounded = |limit: f64| sums.max_difference <= limit;
        let agree = |g: &Greedy| g.gap.is_none_or(|gap| gap <= limits.near_tie);
        Ok(Comparison {
            configuration: configuration(&runtime, kv),
            kernels: runtime.kernel_name().to_string(),
            passed: same_top >= limits.same_top
                && mean_kl <= limits.mean_kl
                && limits.max_logit_difference.is_none_or(bounded)
                && codes.is_none_or(|codes| codes.agree())
                && greedy.iter().all(agree),
            limits,
            positions: sums.positions,
            same_top,
            mean_kl,
            max_logit_difference: sums.max_difference,
            codes,
            worst: sums.worst,
            greedy,
        })
    }
}

/// Graph and runtime in one configuration.
struct Both<'a> {
    graph: &'a LlamaForCausalLM,
    replay: &'a Replay,
    session: Session,
    device: &'a Device,
}

impl Both<'_> {
    /// Logits of both at every position of a text: `each(first, graph, runtime)`, each
    /// `[positions, vocab]`.
    fn logits(
        &mut self,
        text: &[u32],
        mut each: impl FnMut(usize, &[f32], &[f32]),
    ) -> Result<(), EvalError> {
        let vocab = self.graph.config.vocab_size;
        let mut theirs = Vec::with_capacity(text.len() * vocab);
        self.session.reset();
        self.replay.begin();
        self.session.score_traced(
            text,
            |_, logits| theirs.extend_from_slice(logits),
            |seen| self.replay.record(seen),
        )?;
        graph_logits(self.graph, text, self.device, |first, ours| {
            each(first, ours, &theirs[first * vocab..first * vocab + ours.len()]);
        });
        Ok(())
    }

    /// The runtime continues a prompt; the graph is asked for its choice at each step of the
    /// same text.
    fn greedy(&mut self, prompt: &[u32], tokens: usize) -> Result<Greedy, EvalError> {
        self.session.reset();
        let mut text = prompt.to_vec();
        let mut next = top(self.session.prefill(prompt)?) as u32;
        for _ in 1..tokens {
            text.push(next);
            next = top(self.session.decode(next)?) as u32;
        }
        let vocab = self.graph.config.vocab_size;
        let mut chosen = text[prompt.len()..].to_vec();
        chosen.push(next);
        let first_choice = prompt.len() - 1;
        let mut parted: Option<(usize, f64)> = None;
        self.logits(&text, |first, ours, _| {
            for (row, logits) in ours.chunks_exact(vocab).enumerate() {
                let position = first + row;
                if position < first_choice || parted.is_some() {
                    continue;
                }
                let (best, theirs) = (top(logits), chosen[position - first_choice] as usize);
                if best != theirs {
                    let gap = f64::from(logits[best]) - f64::from(logits[theirs]);
                    parted = Some((position - first_choice, gap));
                }
            }
        })?;
        Ok(Greedy {
            prompt: prompt.to_vec(),
            same: parted.map_or(tokens, |(same, _)| same),
            tokens,
            gap: parted.map(|(_, gap)| gap),
        })
    }
}

#[derive(Default)]
struct Sums {
    positions: usize,
    same_top: usize,
    kl: f64,
    max_difference: f64,
    worst: Worst,
}

impl Sums {
    /// Adds positions `first..` of a text; both slices are `[positions, vocab]`.
    fn add(&mut self, sequence: usize, first: usize, graph: &[f32], runtime: &[f32], vocab: usize) {
        let rows: Vec<(f64, f64, usize, usize)> = graph
            .par_chunks_exact(vocab)
            .zip(runtime.par_chunks_exact(vocab))
            .map(|(ours, theirs)| {
                let apart = |(a, b): (&f32, &f32)| f64::from((a - b).abs());
                // A NaN must not pass for agreement, as it would in f64::max.
                let difference =
                    ours.iter().zip(theirs).map(apart).fold(0.0f64, |worst, d| {
                        if worst.is_nan() || d <= worst { worst } else { d }
                    });
                let kl = kl(ours, theirs);
                // JSON has no infinity: the largest number stands for "not a number".
                let kl = if difference.is_finite() { kl } else { f64::MAX };
                (kl, difference, top(ours), top(theirs))
            })
            .collect();
        for (offset, (kl, difference, ours, theirs)) in rows.into_iter().enumerate() {
            self.positions += 1;
            self.same_top += usize::from(ours == theirs);
            self.kl += kl;
            let difference = if difference.is_nan() { f64::MAX } else { difference };
            self.max_difference = self.max_difference.max(difference);
            if kl > self.worst.kl || self.positions == 1 {
                let (graph_top, runtime_top) = (ours as u32, theirs as u32);
                let position = first + offset;
                let context = String::new();
                self.worst = Worst { sequence, position, kl, graph_top, runtime_top, context };
            }
        }
    }
}

/// The graph's logits at every position of a text, in tiles: `each(first, [positions, vocab])`.
pub fn graph_logits(
    graph: &LlamaForCausalLM,
    text: &[u32],
    device: &Device,
    mut each: impl FnMut(usize, &[f32]),
) {
    let positions = graph.config.document(text.len());
    let hidden = graph.hidden(ids(text, device), &positions);
    for start in (0..text.len()).step_by(TILE) {
        let count = TILE.min(text.len() - start);
        let logits = graph.logits(hidden.clone().narrow(1, start, count));
        each(start, &parameters::values(logits));
    }
}

fn ids(tokens: &[u32], device: &Device) -> Tensor<2, Int> {
    let ids: Vec<i32> = tokens.iter().map(|&id| id as i32).collect();
    let count = ids.len();
    Tensor::from_data(TensorData::new(ids, [1, count]), device)
}
