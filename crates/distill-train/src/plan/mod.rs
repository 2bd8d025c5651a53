//! What a recipe will do, before it is done: tokens, memory, time, disk.
//!
//! Memory is counted ([`memory`]), time is measured on a part of a step (`time`), and neither
//! needs the weights of a model: its shape is enough. Deliberately absent: the device that the
//! student is made for, which `distill_edge::predict` knows.

mod asking;
mod disk;
pub mod machine;
pub mod memory;
mod text;
mod time;

use std::path::PathBuf;

use burn::tensor::Device;
use distill_models::{LlamaConfig, WeightGrids};
use distill_recipe::{
    Backend, Engine, Method, OptimizerState, Recipe, StudentInit, TokenizerChoice,
};
use serde::Serialize;

pub use asking::Asking;
pub use disk::Disk;
pub use memory::{Memory, Moment};
pub use text::Text;
pub use time::Time;

use crate::TrainError;
use crate::loss::Distillation;
use crate::prepare::{
    self, LocalPaths, check_shape, check_teacher_tokenizer, named_tokenizer, shape_of,
    student_config,
};

/// What a token of the text takes: itself, once more while the text is split.
const TOKEN_BYTES: u64 = 8;
/// What training touches of the program and a plan has not yet: code, buffers of the products.
const TRAINING_BYTES: u64 = 8 << 20;

/// The shapes of a recipe's models, read without their weights.
#[derive(Clone, Debug, PartialEq)]
pub struct Shapes {
    /// The student.
    pub student: LlamaConfig,
    /// The teacher.
    pub teacher: Option<LlamaConfig>,
    /// Where the teacher lies, if the edge runtime computes it.
    pub teacher_file: Option<TeacherFile>,
    /// Tokens that exist. Of a tokenizer that the recipe trains, those that it asks for.
    pub vocabulary: usize,
}

/// The file of a teacher that the edge runtime computes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TeacherFile {
    /// Where it lies.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
}

impl Shapes {
    /// Reads what says the shapes: `config.json`, the header of a GGUF file, the tokenizer.
    ///
    /// # Errors
    /// [`TrainError`]: a file that cannot be read, a shape that is none.
    pub fn read(recipe: &Recipe, paths: &LocalPaths) -> Result<Self, TrainError> {
        let vocabulary = match recipe.student.tokenizer {
            TokenizerChoice::Train { vocab_size } => vocab_size,
            _ => {
                let tokenizer = named_tokenizer(recipe, paths)?;
                check_teacher_tokenizer(paths, &tokenizer)?;
                tokenizer.vocab_size()
            }
        };
        let read = |path: &std::path::PathBuf| distill_models::weights::read_config(path);
        let teacher = paths.teacher.as_ref().map(read).transpose()?;
        let student =
            student_config(recipe, paths, teacher.as_ref(), |new| shape_of(new, vocabulary))?;
        check_shape(recipe, &student)?;
        let local = recipe.teacher.as_ref().and_then(|teacher| teacher.local());
        let teacher_file = match (local, &paths.teacher) {
            (Some(local), Some(path)) if local.engine == Engine::Runtime => {
                let source = |source| TrainError::Io {
                    action: "reading the size of",
                    path: path.clone(),
                    source,
                };
                let bytes = std::fs::metadata(path).map_err(source)?.len();
                Some(TeacherFile { path: path.clone(), bytes })
            }
            _ => None,
        };
        Ok(Self { student, teacher, teacher_file, vocabulary })
    }
}

/// What a step computes.
#[derive(Clone, Debug)]
pub struct Workload<'a> {
    /// The student's shape.
    pub student: &'a LlamaConfig,
    /// The teacher's.
    pub teacher: Option<&'a LlamaConfig>,
    /// Where the teacher lies, if the edge runtime computes it.
    pub teacher_file: Option<&'a TeacherFile>,
    /// Whether the student is made of some of the teacher's layers.
    pub cut: bool,
    /// Tokens that exist.
    pub vocabulary: usize,
    /// The grids trained on.
    pub grids: WeightGrids,
    /// The loss beside cross-entropy.
    pub distillation: Option<Distillation>,
    /// Sequences of a micro-batch.
    pub batch: usize,
    /// Tokens of a sequence.
    pub sequence: usize,
    /// Micro-batches of a step.
    pub accumulation: usize,
    /// Whether layers are computed again for their gradients.
    pub activation_checkpointing: bool,
    /// How the moments are kept.
    pub optimizer_state: OptimizerState,
    /// Numbers that are trained beside frozen weights; `None` where all weights are trained.
    pub factors: Option<usize>,
    /// What puts the weights on the grid, if it looks at text.
    pub calibration: Option<Calibration>,
    /// Whether a GGUF is exported, and verified.
    pub exports_gguf: bool,
    /// The longest document, in bytes.
    pub document_bytes: u64,
}

/// How the weights come to the grid before training there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Calibration {
    /// Sequences that are looked at.
    pub sequences: usize,
    /// Whether errors are fed back, and drift made up for.
    pub feeds_back: bool,
    /// Whether the optimiser has moments by then.
    pub in_training: bool,
}

impl Calibration {
    /// The one with the most memory among a recipe's method and its baselines.
    fn of(recipe: &Recipe) -> Option<Self> {
        let quantize = recipe.quantize.as_ref()?;
        let baselines = recipe.eval.tasks.iter().flat_map(|tasks| &tasks.baselines);
        let methods = || std::iter::once(&quantize.method).chain(baselines.clone());
        methods().any(|method| *method != Method::Round).then(|| Self {
            sequences: quantize.calibration_sequences,
            feeds_back: methods().any(|method| *method == Method::Gptq),
            in_training: quantize.start_step > 0,
        })
    }
}

impl<'a> Workload<'a> {
    /// That of a recipe.
    pub fn of(recipe: &Recipe, shapes: &'a Shapes, text: &Text) -> Self {
        let rows = [Some(&shapes.student), shapes.teacher.as_ref()]
            .into_iter()
            .flatten()
            .map(|model| model.vocab_size)
            .fold(usize::MAX, usize::min);
        // Then what it has said is read from disk, step by step.
        let asked = recipe.teacher.as_ref().is_some_and(|teacher| teacher.signal.is_some());
        Self {
            student: &shapes.student,
            teacher: shapes.teacher.as_ref().filter(|_| !asked),
            teacher_file: shapes.teacher_file.as_ref().filter(|_| !asked),
            cut: matches!(recipe.student.init, StudentInit::KeepLayers(_)),
            // A model that has fewer rows is refused when it is read.
            vocabulary: rows.min(shapes.vocabulary),
            grids: prepare::grids(recipe),
            distillation: prepare::distillation(recipe),
            batch: recipe.train.batch_size,
            sequence: recipe.data.sequence_length,
            accumulation: recipe.train.gradient_accumulation,
            activation_checkpointing: recipe.train.activation_checkpointing,
            optimizer_state: recipe.train.optimizer_state,
            factors: recipe
                .train
                .lora
                .as_ref()
                .map(|options| prepare::lora(options).elements(&shapes.student)),
            calibration: Calibration::of(recipe),
            exports_gguf: recipe.export.gguf,
            document_bytes: text.longest_bytes,
        }
    }

    /// Tokens of a micro-batch.
    pub fn tokens(&self) -> usize {
        self.batch * self.sequence
    }
}

/// A plan.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Plan {
    /// Parameters of the student.
    pub student_parameters: u64,
    /// Parameters of the teacher.
    pub teacher_parameters: Option<u64>,
    /// What computes the teacher.
    pub teacher_engine: Option<Engine>,
    /// What a teacher that is asked beforehand is asked.
    pub asking: Option<Asking>,
    /// The text.
    pub text: Text,
    /// Optimiser steps.
    pub steps: u64,
    /// Tokens of a step.
    pub step_tokens: u64,
    /// How often the text is read.
    pub epochs: f64,
    /// The most memory, where the backend's is known.
    pub memory: Option<MemoryPlan>,
    /// Time, where the backend is a CPU.
    pub time: Option<Time>,
    /// What stays on disk.
    pub disk: Disk,
}

/// The most memory of a run, and what would take less.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MemoryPlan {
    /// The most at a time.
    pub peak: u64,
    /// When.
    pub at: Moment,
    /// What is there then.
    pub parts: Memory,
    /// What this machine can give.
    pub available: Option<u64>,
    /// Settings that need less, if this is too much.
    pub advice: Vec<Advice>,
}

/// A setting that needs less memory.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Advice {
    /// As it is written in a recipe, e.g. `train.activation_checkpointing = true`.
    pub set: String,
    /// The peak with it.
    pub peak: u64,
}

impl Plan {
    /// Reads the text and times a part of a step on `device`: a few seconds.
    ///
    /// # Errors
    /// [`TrainError::Data`].
    pub fn new(
        recipe: &Recipe,
        paths: &LocalPaths,
        shapes: &Shapes,
        device: &Device,
    ) -> Result<Self, TrainError> {
        // Now: later this process keeps what it has used.
        let available = machine::available_bytes();
        let (text, tokenizer) = Text::count(recipe, paths)?;
        // Of what the text took, the system has not got everything back yet.
        let tokens = TOKEN_BYTES * text.tokens;
        let baseline = machine::resident_bytes().unwrap_or(0) + tokens + TRAINING_BYTES;
        drop(tokenizer);
        let work = Workload::of(recipe, shapes, &text);
        let cpu = matches!(recipe.backend, Backend::Flex | Backend::Ndarray);
        let time = cpu.then(|| Time::probe(recipe, &work, device)).transpose()?;
        let memory =
            (recipe.backend == Backend::Flex).then(|| MemoryPlan::new(&work, baseline, available));
        let step_tokens = (work.accumulation * work.tokens()) as u64;
        let steps = recipe.train.steps as u64;
        let local = recipe.teacher.as_ref().and_then(|teacher| teacher.local());
        let trained_on = text.tokens as f64 * (1.0 - recipe.data.held_out);
        Ok(Self {
            student_parameters: shapes.student.parameters() as u64,
            teacher_parameters: shapes.teacher.as_ref().map(|t| t.parameters() as u64),
            asking: Asking::of(recipe, text.tokens),
            teacher_engine: local.map(|local| local.engine),
            epochs: (steps * step_tokens) as f64 / trained_on.max(1.0),
            text,
            steps,
            step_tokens,
            memory,
            time,
            disk: Disk::of(recipe, &work),
        })
    }
}

impl MemoryPlan {
    fn new(work: &Workload<'_>, baseline: u64, available: Option<u64>) -> Self {
        let (at, parts) = memory::peak(work, baseline);
        let peak = parts.total();
        let advice = match available {
            Some(available) if peak > available => advice(work, baseline, peak),
            _ => Vec::new(),
        };
        Self { peak, at, parts, available, advice }
    }
}

/// Settings that need less than `peak`, the least first.
fn advice(work: &Workload<'_>, baseline: u64, peak: u64) -> Vec<Advice> {
    let sequences = work.accumulation * work.batch;
    let checkpointing = Workload { activation_checkpointing: true, ..work.clone() };
    let one = Workload { batch: 1, accumulation: sequences, ..work.clone() };
    let both = Workload { activation_checkpointing: true, ..one.clone() };
    let moments = Workload { optimizer_state: OptimizerState::EightBit, ..work.clone() };
    let all = Workload { optimizer_state: OptimizerState::EightBit, ..both.clone() };
    let set_moments = "train.optimizer_state = \"8bit\"";
    let shorter = Workload { sequence: work.sequence / 2, ..work.clone() };
    let set_checkpointing = "train.activation_checkpointing = true";
    let set_one = format!("train.batch_size = 1, train.gradient_accumulation = {sequences}");
    let mut advice: Vec<Advice> = [
        (format!("{set_moments}, {set_checkpointing}, {set_one}"), all),
        (format!("{set_checkpointing}, {set_one}"), both),
        (set_moments.to_owned(), moments),
        (set_checkpointing.to_owned(), checkpointing),
        (set_one, one),
        (format!("data.sequence_length = {}", shorter.sequence), shorter),
    ]
    .into_iter()
    .map(|(set, work)| Advice { set, peak: memory::peak(&work, baseline).1.total() })
    .filter(|advice| advice.peak < peak)
    .collect();
    // Of two that come to the same, the shorter to write.
    advice.sort_by_key(|advice| (advice.peak, advice.set.len()));
    advice.dedup_by_key(|advice| advice.peak);
    advice
}
