//! What a run leaves on disk.

use distill_gguf::GgmlType;
use distill_models::{LlamaConfig, WeightGrid};
use distill_recipe::Recipe;
use serde::Serialize;

use super::Workload;
use super::memory::{linear_elements, table_elements, tables};

/// What a tokenizer's files take for each token.
const VOCABULARY_BYTES: u64 = 64;

/// Bytes on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Disk {
    /// A checkpoint: weights, both moments, tokenizer.
    pub checkpoint: u64,
    /// Checkpoints that stay.
    pub checkpoints_kept: u64,
    /// Everything under `export/`.
    pub export: u64,
    /// The most at a time: a new checkpoint is written before an old one goes.
    pub total: u64,
}

impl Disk {
    pub(super) fn of(recipe: &Recipe, work: &Workload<'_>) -> Self {
        let student = work.student;
        let vocabulary = VOCABULARY_BYTES * work.vocabulary as u64;
        let weights = 4 * student.parameters() as u64;
        let checkpoint = 3 * weights + vocabulary;
        let train = &recipe.train;
        let made = train.steps.div_ceil(train.checkpoint_every) as u64;
        let checkpoints_kept = made.min(train.keep_checkpoints as u64);
        let shipped = shipped_bytes(student, work) + vocabulary;
        let gguf = if recipe.export.gguf { 2 * shipped } else { 0 };
        let huggingface = if recipe.export.huggingface { weights + vocabulary } else { 0 };
        let export = gguf + huggingface;
        let most = checkpoints_kept + u64::from(made > checkpoints_kept);
        let total = checkpoint * most.max(checkpoints_kept) + export;
        Self { checkpoint, checkpoints_kept, export, total }
    }
}

/// Bytes of the weights as they ship.
pub(super) fn shipped_bytes(student: &LlamaConfig, work: &Workload<'_>) -> u64 {
    let stored = |grid: WeightGrid, elements: usize| {
        let ty = match grid {
            WeightGrid::Float => GgmlType::F32,
            WeightGrid::Q4_0 => GgmlType::Q4_0,
            WeightGrid::Q8_0 => GgmlType::Q8_0,
        };
        (elements / ty.block_elements() * ty.block_bytes()) as u64
    };
    let linears = student.num_hidden_layers * linear_elements(student);
    let tables = tables(student) * table_elements(student);
    let norms = student.parameters() - linears - tables;
    stored(work.grids.linears, linears)
        + stored(work.grids.embeddings, tables)
        + stored(WeightGrid::Float, norms)
}
