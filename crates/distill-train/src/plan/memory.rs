//! The memory of a run, counted from the tensors that the code keeps: of f32, but for moments and a
//! teacher in the runtime.
//!
//! ```text
//! always                masters P, moments 2P (from the first update on), the teacher's weights
//! during a step         the rounded copy (of the matrices that have a grid)
//! forward               what the operators keep for their gradients, layer by layer
//! at the loss           that of all layers · the head's tile of logits, its gradient
//! at the bottom layer   that of one layer · gradients P, a second P where several micro-batches
//!                       are added up
//! on the way to grid    the weights as they become, all of the calibration text between two layers
//! at a checkpoint       no gradients; copies of a tensor on its way to disk
//! before and after      text with its tokens; the exported file beside the graph, whole logits
//! ```
//! Activations go as gradients come, so that the most of a backward pass stands at one of its ends.
//! What a layer keeps is listed in [`layer_activations`], in the order of its forward pass.

use distill_models::{LlamaConfig, WeightGrid};
use distill_recipe::OptimizerState;
use serde::Serialize;

use super::Workload;
use super::disk::shipped_bytes;

/// Bytes of an element of any tensor.
const ELEMENT: u64 = 4;
/// Tokens whose logits are made at a time, as `distill_ops::HeadInput` does.
const HEAD_TILE: usize = 128;
/// Tokens whose logits the runtime has room for.
const RUNTIME_HEAD_TILE: usize = 16;
/// Copies of the largest tensor that a checkpoint needs on its way from a tensor to bytes.
const CHECKPOINT_COPIES: u64 = 2;
/// What the tokenizer makes of a byte of a document while it works on it: offsets, spellings, ids.
/// Measured on one document of 11 MB; of one of 1.5 MB it is half of that.
const TOKENIZED_BYTE: u64 = 100;

/// What a moment of a run takes, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// The student's weights in full precision.
    pub masters: u64,
    /// The same on their grid, for the length of a step.
    pub rounded: u64,
    /// The student's gradients.
    pub gradients: u64,
    /// AdamW's first and second moments.
    pub moments: u64,
    /// What the student's layers keep for their gradients, and room to compute these.
    pub activations: u64,
    /// Logits of a tile of tokens, the student's and the teacher's.
    pub head: u64,
    /// The teacher's weights.
    pub teacher_weights: u64,
    /// The teacher's hidden states.
    pub teacher_activations: u64,
    /// Copies on their way to disk.
    pub checkpoint: u64,
    /// The exported file in the runtime, and logits of a whole sequence.
    pub verification: u64,
    /// Text that is being tokenised.
    pub text: u64,
    /// All else: program, tokenizer, text.
    pub baseline: u64,
}

impl Memory {
    /// The sum.
    pub fn total(&self) -> u64 {
        self.parts().iter().map(|(_, bytes)| bytes).sum()
    }

    /// Each part by name.
    pub fn parts(&self) -> [(&'static str, u64); 12] {
        [
            ("masters", self.masters),
            ("rounded copy", self.rounded),
            ("gradients", self.gradients),
            ("moments", self.moments),
            ("activations", self.activations),
            ("head tiles", self.head),
            ("teacher", self.teacher_weights),
            ("teacher activations", self.teacher_activations),
            ("copies for disk", self.checkpoint),
            ("runtime and logits", self.verification),
            ("tokenizing", self.text),
            ("program and text", self.baseline),
        ]
    }
}

/// When a run has the most memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Moment {
    /// While text becomes tokens.
    Text,
    /// While the student is cut from a teacher that the runtime has, too.
    Cut,
    /// While a method puts the weights on the grid.
    Calibration,
    /// While the teacher reads a batch.
    Teacher,
    /// At the loss: all activations are there.
    Loss,
    /// At the bottom of the backward pass: all gradients are there.
    Gradients,
    /// While a checkpoint is written.
    Checkpoint,
    /// While the exported file is held against the graph.
    Verification,
    /// While the exported file is measured against the teacher.
    Report,
}

impl Moment {
    /// In words.
    pub fn words(self) -> &'static str {
        match self {
            Self::Text => "while text is tokenized",
            Self::Cut => "while the student is cut from the teacher",
            Self::Calibration => "on the way to the grid",
            Self::Teacher => "while the teacher reads",
            Self::Loss => "at the loss",
            Self::Gradients => "at the last gradients",
            Self::Checkpoint => "while a checkpoint is written",
            Self::Verification => "while the export is verified",
            Self::Report => "while the export is measured",
        }
    }
}

/// The moment with the most memory, and what is there at the time. `baseline` is what the process
/// has without models.
pub fn peak(work: &Workload<'_>, baseline: u64) -> (Moment, Memory) {
    let [first, rest @ ..] = moments(work);
    let larger = |a: (Moment, Memory), b: (Moment, Memory)| match a.1.total() < b.1.total() {
        true => b,
        false => a,
    };
    let (moment, memory) = rest.into_iter().fold(first, larger);
    (moment, Memory { baseline, ..memory })
}

/// What is there at each moment, the baseline left out.
pub fn moments(work: &Workload<'_>) -> [(Moment, Memory); 9] {
    let text = Memory { text: TOKENIZED_BYTE * work.document_bytes, ..Memory::default() };
    [
        (Moment::Text, text),
        (Moment::Cut, cut(work)),
        (Moment::Calibration, calibration(work)),
        (Moment::Teacher, teacher_reads(work)),
        (Moment::Loss, loss(work)),
        (Moment::Gradients, gradients(work)),
        (Moment::Checkpoint, checkpoint(work)),
        (Moment::Verification, verification(work)),
        (Moment::Report, report(work)),
    ]
}

/// What is there all the time.
fn always(work: &Workload<'_>) -> Memory {
    let trained = trained(work);
    Memory {
        masters: ELEMENT * work.student.parameters() as u64,
        moments: match work.optimizer_state {
            OptimizerState::F32 => 8 * trained,
            OptimizerState::Bf16 => 4 * trained,
            // Two codes, and two scales for 256 of them.
            OptimizerState::EightBit => 2 * trained + trained / 32,
        },
        teacher_weights: work.teacher.map_or(0, |teacher| teacher_weights(work, teacher)),
        ..Memory::default()
    }
}

/// The teacher's weights; in the edge runtime its file, the head in f32, and a session.
fn teacher_weights(work: &Workload<'_>, teacher: &LlamaConfig) -> u64 {
    let Some(file) = work.teacher_file else { return ELEMENT * teacher.parameters() as u64 };
    let [_, keys] = widths(teacher);
    let cache = 2 * ELEMENT as usize * work.sequence * keys * teacher.num_hidden_layers;
    let head = ELEMENT as usize * work.vocabulary * teacher.hidden_size;
    let logits = ELEMENT as usize * RUNTIME_HEAD_TILE * teacher.vocab_size;
    file.bytes + (cache + head + logits) as u64
}

/// Numbers that the optimiser moves.
fn trained(work: &Workload<'_>) -> u64 {
    work.factors.unwrap_or_else(|| work.student.parameters()) as u64
}

/// What is there during a micro-batch, the most that there is before one: gradients of those that
/// went before.
fn step(work: &Workload<'_>) -> Memory {
    let rounded = |grid: WeightGrid, elements: usize| match grid {
        WeightGrid::Float => 0,
        WeightGrid::Q4_0 | WeightGrid::Q8_0 => ELEMENT * elements as u64,
    };
    let all = always(work);
    let linears = work.student.num_hidden_layers * linear_elements(work.student);
    let tables = tables(work.student) * table_elements(work.student);
    Memory {
        rounded: rounded(work.grids.linears, linears) + rounded(work.grids.embeddings, tables),
        gradients: if work.accumulation > 1 { ELEMENT * trained(work) } else { 0 },
        // Final hidden states; its logits are made with the student's.
        teacher_activations: tokens_of(work, |teacher| teacher.hidden_size),
        ..all
    }
}

/// A teacher in the runtime is read once more, in f32, where the student takes layers of it.
fn cut(work: &Workload<'_>) -> Memory {
    match work.teacher.filter(|_| work.cut && work.teacher_file.is_some()) {
        Some(teacher) => Memory {
            teacher_weights: teacher_weights(work, teacher),
            masters: ELEMENT * teacher.parameters() as u64,
            ..Memory::default()
        },
        None => Memory::default(),
    }
}

/// The weights as they come to the grid beside the masters, and all of the text on its way through the
/// layers: the residual stream and the input of a linear, as it becomes and as it was.
fn calibration(work: &Workload<'_>) -> Memory {
    let Some(calibration) = work.calibration else { return Memory::default() };
    let (student, always) = (work.student, always(work));
    let [queries, _] = widths(student);
    let widest = student.intermediate_size.max(queries);
    let tokens = calibration.sequences * work.sequence;
    let text = ELEMENT * (tokens * (student.hidden_size + widest)) as u64;
    let linears = ELEMENT * (student.num_hidden_layers * linear_elements(student)) as u64;
    let square = (widest * widest) as u64;
    let live = always.masters;
    let (texts, sums, found) = match calibration.feeds_back {
        // H and its factor in f32; H, its copy and the factor in f64; drift of both halves.
        true => (2 * text, (2 + 2) * ELEMENT * square + 3 * 8 * square, linears),
        false => (text, ELEMENT * square, 0),
    };
    let moments = if calibration.in_training { always.moments } else { 0 };
    Memory { moments, rounded: live + found, activations: texts + sums, ..always }
}

fn teacher_reads(work: &Workload<'_>) -> Memory {
    let step = step(work);
    if work.teacher_file.is_some() {
        return step;
    }
    let busiest = |teacher: &LlamaConfig| {
        let LlamaConfig { hidden_size, intermediate_size, .. } = *teacher;
        let [queries, keys] = widths(teacher);
        // Queries, keys and values as they come and head by head, and what they mix.
        let attention = 2 * hidden_size + 2 * (queries + 2 * keys) + queries;
        attention.max(2 * hidden_size + 3 * intermediate_size)
    };
    Memory { teacher_activations: tokens_of(work, busiest), ..step }
}

fn loss(work: &Workload<'_>) -> Memory {
    let (student, step) = (work.student, step(work));
    let tokens = work.tokens() as u64;
    let layers = student.num_hidden_layers as u64;
    let kept = ELEMENT * tokens * layer_activations(student);
    let hidden = ELEMENT * tokens * student.hidden_size as u64;
    let kept = if work.activation_checkpointing { layers * hidden + kept } else { layers * kept };
    let tiles = if work.teacher.is_some() { 2 } else { 1 };
    let tile = ELEMENT * (HEAD_TILE.min(work.tokens()) * work.vocabulary) as u64;
    let head_gradient =
        if work.factors.is_some() { 0 } else { ELEMENT * table_elements(student) as u64 };
    Memory {
        gradients: step.gradients + head_gradient,
        // The final norm's input and output, and the gradient of that.
        activations: kept + 3 * hidden,
        // The tiles go before the top layer's gradients come.
        head: (tiles * tile).max(layer_gradients(work)),
        ..step
    }
}

fn gradients(work: &Workload<'_>) -> Memory {
    let (student, step) = (work.student, step(work));
    let tokens = work.tokens() as u64;
    let kept = ELEMENT * tokens * layer_activations(student);
    // Those of this micro-batch are handed over when a graph has been walked: of a layer with
    // checkpointing, of all layers without.
    let layer = ELEMENT * layer_elements(student) as u64;
    let layers = if work.activation_checkpointing { 1 } else { student.num_hidden_layers as u64 };
    let second = match (work.accumulation > 1, work.factors) {
        (true, None) => layers * layer,
        (true, Some(factors)) => ELEMENT * factors as u64,
        (false, _) => 0,
    };
    // The gradient of one frozen matrix, and its weights with their factors.
    let frozen = match work.factors {
        Some(_) => 2 * ELEMENT * (student.hidden_size * student.intermediate_size) as u64,
        None => 0,
    };
    let gradients = ELEMENT * trained(work) + second + frozen;
    Memory { gradients, activations: kept + layer_gradients(work), ..step }
}

fn checkpoint(work: &Workload<'_>) -> Memory {
    let all = always(work);
    let largest =
        table_elements(work.student).max(work.student.hidden_size * work.student.intermediate_size);
    Memory { checkpoint: CHECKPOINT_COPIES * ELEMENT * largest as u64, ..all }
}

/// The optimiser is gone; the masters were read back from the checkpoint.
fn verification(work: &Workload<'_>) -> Memory {
    if !work.exports_gguf {
        return Memory::default();
    }
    let step = Memory { gradients: 0, moments: 0, teacher_activations: 0, ..step(work) };
    // The file and its copy in the order of the kernels, with the runtime's logits of a text and
    // some of the graph's; then both files, each with its logits, without the graph.
    let file = 2 * shipped_bytes(work.student, work);
    let some = 2 * ELEMENT * (HEAD_TILE.min(work.sequence) * work.vocabulary) as u64;
    let against_graph = Memory { verification: file + logits(work) + some, ..step };
    let both_files = Memory { rounded: 0, verification: file + 2 * logits(work), ..step };
    if against_graph.total() > both_files.total() { against_graph } else { both_files }
}

fn report(work: &Workload<'_>) -> Memory {
    if !work.exports_gguf {
        return Memory::default();
    }
    let file = 2 * shipped_bytes(work.student, work);
    // The teacher's as a tensor and as numbers, and the runtime's.
    let copies = if work.teacher.is_some() { 3 } else { 1 };
    let teacher_weights = always(work).teacher_weights;
    Memory { teacher_weights, verification: file + copies * logits(work), ..Memory::default() }
}

/// Bytes of the logits of a sequence.
fn logits(work: &Workload<'_>) -> u64 {
    ELEMENT * (work.sequence * work.vocabulary) as u64
}

/// Elements for each token that a layer keeps until its gradients are made.
pub fn layer_activations(config: &LlamaConfig) -> u64 {
    let [queries, keys] = widths(config);
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    let norm = hidden; // its input, the residual stream
    let projections = hidden; // the input that q, k and v share
    // Queries, keys and values with positions, and the logarithms of the sums.
    let attention = queries + 2 * keys + config.num_attention_heads;
    let output = queries; // what attention gives, rounded or not
    let second_norm = hidden;
    let gate_and_up = hidden; // the input that they share
    let gated = 2 * inner; // what they give
    let down = inner; // its input, rounded or not
    let all = norm + projections + attention + output + second_norm + gate_and_up + gated + down;
    all as u64
}

/// Bytes to compute the gradients of a layer: those of gate and up, beside the residual's.
fn layer_gradients(work: &Workload<'_>) -> u64 {
    let width = 2 * (work.student.hidden_size + work.student.intermediate_size);
    ELEMENT * (work.tokens() * width) as u64
}

fn tokens_of(work: &Workload<'_>, width: impl Fn(&LlamaConfig) -> usize) -> u64 {
    work.teacher.map_or(0, |teacher| ELEMENT * (work.tokens() * width(teacher)) as u64)
}

/// Widths of all queries and of all keys of a token.
fn widths(config: &LlamaConfig) -> [usize; 2] {
    [config.num_attention_heads, config.num_key_value_heads].map(|heads| heads * config.head_dim)
}

/// Elements of the matrices of a layer.
pub(super) fn linear_elements(config: &LlamaConfig) -> usize {
    let [queries, keys] = widths(config);
    2 * config.hidden_size * (queries + keys) + 3 * config.hidden_size * config.intermediate_size
}

fn layer_elements(config: &LlamaConfig) -> usize {
    linear_elements(config) + 2 * config.hidden_size
}

/// Elements of the embedding, or of the head.
pub(super) fn table_elements(config: &LlamaConfig) -> usize {
    config.vocab_size * config.hidden_size
}

/// Embedding and head.
pub(super) fn tables(config: &LlamaConfig) -> usize {
    if config.tie_word_embeddings { 1 } else { 2 }
}
