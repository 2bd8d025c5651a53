//! The report of a run: what ships, held against what was trained, in measured figures only.
//!
//! [`RunReport`] is the data; [`table`] prints it for a terminal and [`html`] writes one file
//! with everything inside it.

use serde::{Deserialize, Serialize};

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
    /// Held-out positions that the rows were measured on.
    pub positions: usize,
    /// One row a model, in the order of the story: teacher, full-precision student,
    /// post-training quantised, quantisation-aware, exported runtime.
    pub rows: Vec<Row>,
    /// Curves of `metrics.jsonl`.
    pub curves: Vec<Curve>,
    /// The gate's verdict; `None` if nothing was exported.
    pub parity: Option<Parity>,
    /// Continuations by the exported runtime.
    pub samples: Vec<Sample>,
    /// Exported files.
    pub files: Vec<ExportedFile>,
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

/// Figures of one model; `None` is "not measured", never a guess.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Row {
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
}

/// One scalar over steps.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Curve {
    /// `train` or `eval`.
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
