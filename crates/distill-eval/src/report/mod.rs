//! The report of a run: what ships, held against what was trained, in measured figures only.
//!
//! [`RunReport`] is the data; [`table()`] prints it for a terminal, [`html()`] writes one page with
//! everything inside it, and [`markdown()`] and [`model_card()`] write what goes beside a model.

mod benchmarks;
mod chart;
mod figures;
mod html;
mod markdown;
mod table;
mod verdict;

pub use html::html;
pub use markdown::{markdown, model_card};
pub use table::table;

use serde::{Deserialize, Serialize};

use crate::benchmark::Benchmark;
use crate::parity::Parity;

/// Everything the report shows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunReport {
    /// The recipe's name.
    pub name: String,
    /// Directory name of the run.
    pub run: String,
    /// Version of distill.
    pub version: String,
    /// When the run ended, UTC, ISO 8601.
    pub finished: String,
    /// The machine.
    pub hardware: Hardware,
    /// The resolved recipe, TOML.
    pub recipe: String,
    /// What was typed.
    pub command: String,
    /// What training took.
    pub cost: Cost,
    /// Held-out positions that the rows were measured on.
    pub positions: usize,
    /// Whether the student was a finished model when quantisation began: only then does the
    /// difference to it tell what training won back of what rounding cost.
    pub began_finished: bool,
    /// One row a model, in the order of the story: teacher, full-precision student,
    /// post-training quantised, quantisation-aware, exported runtime.
    pub rows: Vec<Row>,
    /// The tasks of the recipe, each model beside the others.
    pub benchmarks: Vec<Benchmark>,
    /// Curves of `metrics.jsonl`. The page draws those that [`Curve`] names.
    pub curves: Vec<Curve>,
    /// The gate's verdict; `None` if nothing was exported.
    pub parity: Option<Parity>,
    /// Continuations by the exported runtime.
    pub samples: Vec<Sample>,
    /// Exported files.
    pub files: Vec<ExportedFile>,
}

impl RunReport {
    /// How much of what rounding cost was won back by training with it; `None` unless the
    /// student began as a finished model and was measured in full precision, post-training
    /// quantised and quantisation-aware.
    pub fn recovery(&self) -> Option<Recovery> {
        if !self.began_finished {
            return None;
        }
        let perplexity = |kind| self.row(kind).and_then(|row| row.perplexity);
        Some(Recovery {
            full_precision: perplexity(RowKind::FullPrecision)?,
            post_training_quantized: perplexity(RowKind::PostTrainingQuantized)?,
            quantization_aware: perplexity(RowKind::QuantizationAware)?,
        })
    }

    /// The first row of a kind.
    pub fn row(&self, kind: RowKind) -> Option<&Row> {
        self.rows.iter().find(|row| row.kind == kind)
    }
}

/// Perplexities of the student in the three forms that tell what quantisation cost.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Recovery {
    /// Never rounded.
    pub full_precision: f64,
    /// The same weights, rounded.
    pub post_training_quantized: f64,
    /// Trained with rounding, rounded.
    pub quantization_aware: f64,
}

impl Recovery {
    /// `(ptq − qat) / (ptq − fp)`: 1 when everything was won back, above it when training
    /// gained more than rounding had cost. `None` if rounding cost nothing, for then there
    /// is nothing to have a share of.
    pub fn share(&self) -> Option<f64> {
        let lost = self.post_training_quantized - self.full_precision;
        let share = (self.post_training_quantized - self.quantization_aware) / lost;
        (lost > 0.0 && share.is_finite()).then_some(share)
    }
}

/// Where the figures were measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Hardware {
    /// CPU model.
    pub cpu: String,
    /// Threads used.
    pub threads: usize,
    /// Memory, bytes.
    pub memory_bytes: u64,
    /// Backend of the training graph.
    pub backend: String,
    /// Kernels of the runtime, e.g. `avx2`.
    pub kernels: String,
}

/// What training took, summed over `timings.jsonl` and `metrics.jsonl`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// Optimiser steps.
    pub steps: usize,
    /// Tokens that the student was trained on.
    pub tokens: u64,
    /// Time of the steps.
    pub seconds: f64,
    /// Time of the method that training on the grid began with.
    #[serde(default)]
    pub method_seconds: f64,
    /// Time of evaluations on held-out text.
    #[serde(default)]
    pub evaluation_seconds: f64,
    /// What the processor's packages drew during the steps; `None` where the machine does not tell.
    pub joules: Option<f64>,
}

/// Which part a row plays in the story.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RowKind {
    /// What the student learns from.
    #[default]
    Teacher,
    /// The student, never rounded.
    FullPrecision,
    /// The same weights, simply rounded.
    PostTrainingQuantized,
    /// The same weights as the recipe's method put them on the grid, before any training there.
    Start,
    /// The student trained with rounding, in the training graph.
    QuantizationAware,
    /// The exported file, through the edge runtime: what ships.
    ExportedRuntime,
}

/// Figures of one model; `None` is "not measured", never a guess.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Its part in the story.
    pub kind: RowKind,
    /// What this is, e.g. `"student, post-training quantised"`.
    pub model: String,
    /// How it was run, e.g. `"graph, step 100"` or `"runtime, Q8_0 activations, f16 KV"`.
    pub through: String,
    /// exp of the mean negative log-likelihood.
    pub perplexity: Option<f64>,
    /// Mean KL(teacher ‖ model), nats.
    pub kl: Option<f64>,
    /// Share of positions with the teacher's top token.
    pub same_top: Option<f64>,
    /// Size of the weights, bytes.
    pub bytes: Option<u64>,
    /// Decode speed.
    pub tokens_per_second: Option<f64>,
    /// The file of the run directory that holds these figures.
    pub records: String,
}

/// One scalar over steps.
///
/// Drawn are `train`: `loss`, `gradient_norm`, `learning_rate`; `eval`: `loss`, `perplexity`,
/// `kl`, `same_top`. A figure of the splits `full_precision` and `post_training_quantized`
/// becomes a level line in the `eval` chart of its name. Others are left out.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Curve {
    /// The split of the record, e.g. `train` or `eval`.
    pub split: String,
    /// e.g. `loss`.
    pub name: String,
    /// (step, value), rising steps.
    pub points: Vec<(usize, f64)>,
}

/// A prompt and its continuation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// What was given.
    pub prompt: String,
    /// What the runtime made of it.
    pub continuation: String,
}

/// A file under `export/`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ExportedFile {
    /// Path below the run directory.
    pub path: String,
    /// Size.
    pub bytes: u64,
    /// SHA-256, hexadecimal.
    pub sha256: String,
}

#[cfg(test)]
pub(crate) mod example;

#[cfg(test)]
mod tests {
    use super::Recovery;

    #[test]
    fn half_of_the_lost_perplexity_won_back_is_a_share_of_one_half() {
        let recovery = Recovery {
            full_precision: 20.0,
            post_training_quantized: 24.0,
            quantization_aware: 22.0,
        };
        assert_eq!(recovery.share(), Some(0.5));
    }

    #[test]
    fn there_is_no_share_of_a_loss_that_did_not_happen() {
        for post_training_quantized in [20.0, 19.5, f64::NAN] {
            let recovery = Recovery {
                full_precision: 20.0,
                post_training_quantized,
                quantization_aware: 19.0,
            };
            assert_eq!(recovery.share(), None);
        }
    }
}
