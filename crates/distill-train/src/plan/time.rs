//! The time of a step, by doing a part of one: the same operators, on this machine, now.
//!
//! ```text
//! step       = micro-batches · (layers · layer + ends) + rounding and update
//! layer      = (t(k layers) − t(no layers)) / k
//! ends       = t(no layers, all of the vocabulary): embedding, final norm, head, loss
//! ```
//! t is the time of [`MicroBatch::backward`] on a model of random weights with k of the student's
//! layers; there is nothing in it to calibrate, so that it stays right when an operator becomes
//! faster. The first has a vocabulary of one block, the second no layers. The teacher's layers and
//! the update are taken in proportion likewise; a teacher in the edge runtime reads the batch.

use std::time::Instant;

use burn::tensor::Device;
use distill_data::Batch;
use distill_edge::{LoadOptions, Model};
use distill_eval::Score;
use distill_models::parameters::{self, NamedTensors};
use distill_models::{LlamaConfig, LlamaForCausalLM, WeightGrids};
use distill_recipe::{Precision, Recipe, Train};
use serde::Serialize;

use super::Workload;
use super::memory::linear_elements;
use crate::TrainError;
use crate::backward::MicroBatch;
use crate::optimizer::{AdamW, clip, global_norm};
use crate::student::Student;
use crate::teacher::{LocalTeacher, RuntimeTeacher, Teacher, forward};

/// Layers of the model that is timed, where the student has as many.
const LAYERS: usize = 4;
/// Its vocabulary: one block.
const VOCABULARY: usize = 32;
/// Tokens that the ends are timed with, at most: their time is proportional to the tokens.
const END_TOKENS: usize = 512;
/// Multiplications and additions of one pass that are too many for a probe; sequences are then left
/// out, down to one.
const OPERATIONS: usize = 400_000_000_000;
/// A figure is the least of so many measurements, after one that does not count…
const REPETITIONS: usize = 3;
/// … but not of more once they took so many seconds together.
const SECONDS: f64 = 1.5;
/// Positions scored at a time in an evaluation.
const SCORE_TILE: usize = 128;

/// Seconds of a run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Time {
    /// An optimiser step.
    pub step: f64,
    /// Of it, the student's layers.
    pub layers: f64,
    /// Of it, embedding, head and loss.
    pub ends: f64,
    /// Of it, the teacher's layers.
    pub teacher: f64,
    /// Of it, rounding weights, the gradients' norm, the optimiser.
    pub update: f64,
    /// One evaluation.
    pub evaluation: f64,
    /// All steps.
    pub training: f64,
    /// All evaluations.
    pub evaluations: f64,
    /// Tokens trained on a second.
    pub tokens_per_second: f64,
    /// What it took to find out.
    pub probe: f64,
}

impl Time {
    /// Times a part of a step.
    ///
    /// # Errors
    /// What the teacher fails with.
    pub fn probe(
        recipe: &Recipe,
        work: &Workload<'_>,
        device: &Device,
    ) -> Result<Self, TrainError> {
        let began = Instant::now();
        let layers = Layers::time(work, &recipe.train, device)?;
        let ends = Ends::time(work, &recipe.train, device)?;
        let micro_batches = work.accumulation as f64;
        let (train, student) = (&recipe.train, work.student.num_hidden_layers as f64);
        let of_layers = micro_batches * student * layers.backward
            + if work.activation_checkpointing { -micro_batches * layers.forward } else { 0.0 };
        let of_ends = micro_batches * ends.backward;
        let of_teacher = work
            .teacher
            .map_or(0.0, |t| micro_batches * t.num_hidden_layers as f64 * layers.teacher);
        let update = student * layers.update + ends.update;
        let step = of_layers + of_ends + of_teacher + update;

        let sequences = recipe.eval.sequences as f64;
        let share = 1.0 / work.batch as f64;
        let teacher = of_teacher / micro_batches * share;
        let sequence = student * layers.forward * share + teacher + ends.score;
        let evaluation = sequences * sequence;
        let count = evaluations(recipe) as f64;
        Ok(Self {
            step,
            layers: of_layers,
            ends: of_ends,
            teacher: of_teacher,
            update,
            evaluation,
            training: step * train.steps as f64,
            evaluations: evaluation * count,
            tokens_per_second: micro_batches * work.tokens() as f64 / step,
            probe: began.elapsed().as_secs_f64(),
        })
    }

    /// Training and evaluations.
    pub fn total(&self) -> f64 {
        self.training + self.evaluations
    }
}

/// Evaluations of a run: at the beginning, on the way, at the end, and two when the grid begins.
fn evaluations(recipe: &Recipe) -> usize {
    let train = &recipe.train;
    let grid = if recipe.quantize.is_some() { 2 } else { 0 };
    1 + train.steps.div_ceil(train.eval_every) + grid
}

/// Seconds that a layer takes.
struct Layers {
    /// Of a micro-batch, forward and backward.
    backward: f64,
    /// Of a micro-batch, forward only.
    forward: f64,
    /// The teacher's, of a micro-batch.
    teacher: f64,
    /// Of an update.
    update: f64,
}

impl Layers {
    fn time(work: &Workload<'_>, train: &Train, device: &Device) -> Result<Self, TrainError> {
        let count = work.student.num_hidden_layers.min(LAYERS);
        // Forward and backward take six operations for a weight and token, and eight with
        // checkpointing.
        let operations = 8 * linear_elements(work.student) * count * work.sequence;
        let sequences = (OPERATIONS / operations.max(1)).clamp(1, work.batch);
        let batch = random_batch(sequences, work.sequence, VOCABULARY);
        // The time of `count` layers is what they add to that of none.
        let [all, none] = [count, 0].map(|layers| {
            let mut timed = Timed::new(&block_of(work.student, layers), work, train, device)?;
            let update = timed.update(&batch);
            let live = timed.student.live(&work.grids);
            let forward = least(|| drop(forward(&live, &batch, device)));
            Ok::<_, TrainError>([timed.backward(&batch, None)?, forward, update])
        });
        let (all, none) = (all?, none?);
        let batches = work.batch as f64 / sequences as f64;
        let layer = |i: usize| (all[i] - none[i]).max(0.0) / count as f64;
        let (backward, forward) = (batches * layer(0), batches * layer(1));
        // With checkpointing the last layer is not computed twice: it is one of those timed, but
        // none of those that the student has more.
        let again = if work.activation_checkpointing { forward / count as f64 } else { 0.0 };
        let teacher = match (work.teacher, work.teacher_file) {
            (None, _) => 0.0,
            (Some(teacher), None) => {
                let count = teacher.num_hidden_layers.min(LAYERS);
                let [all, none] = [count, 0].map(|layers| {
                    let model = random_model(&block_of(teacher, layers), device);
                    least(|| drop(crate::teacher::forward(&model, &batch, device)))
                });
                batches * (all - none).max(0.0) / count as f64
            }
            // The runtime has layers of no other model than the file's.
            (Some(teacher), Some(file)) => {
                let model = Model::load(&file.path, &LoadOptions::default())?;
                let device = device.clone();
                let runtime = RuntimeTeacher::new(&model, VOCABULARY, work.sequence, device)?;
                // One sequence, for the teacher may be large; an error shows at once.
                let batch = random_batch(1, work.sequence, VOCABULARY);
                runtime.signal(&batch)?;
                let all = least(|| drop(runtime.signal(&batch)));
                work.batch as f64 * all / teacher.num_hidden_layers.max(1) as f64
            }
        };
        // Norms and a block of the embedding are nothing beside the layers' matrices.
        let update = all[2] / count as f64;
        Ok(Self { backward: backward + again, forward, teacher, update })
    }
}

/// The shape of so many layers between tables of one block.
fn block_of(config: &LlamaConfig, layers: usize) -> LlamaConfig {
    LlamaConfig { num_hidden_layers: layers, vocab_size: VOCABULARY, ..config.clone() }
}

/// Seconds of what comes before and behind the layers.
struct Ends {
    /// Embedding, final norm, head and loss of a micro-batch, forward and backward.
    backward: f64,
    /// Of an update: embedding and head.
    update: f64,
    /// Logits and their score, of one sequence.
    score: f64,
}

impl Ends {
    fn time(work: &Workload<'_>, train: &Train, device: &Device) -> Result<Self, TrainError> {
        let without_layers =
            |config: &LlamaConfig| LlamaConfig { num_hidden_layers: 0, ..config.clone() };
        let tokens = work.tokens().min(END_TOKENS);
        let batch = random_batch(1, tokens, work.vocabulary);
        let mut timed = Timed::new(&without_layers(work.student), work, train, device)?;
        let teacher = work.teacher.map(|config| {
            let model = random_model(&without_layers(config), device);
            LocalTeacher::new(model, work.vocabulary, device.clone())
        });
        let update = timed.update(&batch);
        let backward = timed.backward(&batch, teacher.as_ref())?;

        let tile = SCORE_TILE.min(tokens);
        let live = timed.student.live(&WeightGrids::default());
        let hidden = forward(&live, &batch, device).narrow(0, 0, tile);
        let head = live.head().narrow(0, 0, work.vocabulary);
        let signal = teacher.as_ref().map(|teacher| teacher.signal(&batch)).transpose()?;
        let score = least(|| {
            let logits = hidden.clone().matmul(head.clone().transpose());
            let logits = parameters::values(logits);
            let teacher = signal.as_ref().map(|signal| signal.reference(0..tile));
            let (labels, mask) = (&batch.labels[..tile], &batch.loss_mask[..tile]);
            Score::default().add(&logits, teacher.as_ref(), labels, mask);
        });
        Ok(Self {
            backward: backward * work.tokens() as f64 / tokens as f64,
            update,
            score: score * work.sequence as f64 / tile as f64,
        })
    }
}

/// A model of random weights and its optimiser.
struct Timed<'a> {
    work: &'a Workload<'a>,
    student: Student,
    optimizer: AdamW,
    vocabulary: usize,
}

impl<'a> Timed<'a> {
    fn new(
        config: &LlamaConfig,
        work: &'a Workload<'a>,
        train: &Train,
        device: &Device,
    ) -> Result<Self, TrainError> {
        Ok(Self {
            work,
            student: Student::first(random_model(config, device), train, 0)?,
            optimizer: AdamW::new(train, 0),
            vocabulary: work.vocabulary.min(config.vocab_size),
        })
    }

    /// Seconds of the gradients of a micro-batch. Where several are added up, so they are here.
    fn backward(
        &mut self,
        batch: &Batch,
        teacher: Option<&LocalTeacher>,
    ) -> Result<f64, TrainError> {
        let live = self.student.live(&self.work.grids);
        let signal = teacher.map(|teacher| teacher.signal(batch)).transpose()?;
        let micro_batch = MicroBatch {
            batch,
            distillation: signal.as_ref().zip(self.work.distillation.as_ref()),
            vocabulary: self.vocabulary,
            denominator: batch.valid_tokens(),
            activation_checkpointing: self.work.activation_checkpointing,
            precision: Precision::F32,
        };
        let mut gradients = NamedTensors::new();
        Ok(least(|| {
            if self.work.accumulation == 1 {
                gradients.clear();
            }
            micro_batch.backward(&live, &mut gradients);
        }))
    }

    /// Seconds of an update from gradients that are there: rounding, their norm, AdamW.
    fn update(&mut self, batch: &Batch) -> f64 {
        let grids = &self.work.grids;
        let micro_batch = MicroBatch {
            batch,
            distillation: None,
            vocabulary: self.vocabulary,
            denominator: batch.valid_tokens(),
            activation_checkpointing: false,
            precision: Precision::F32,
        };
        let mut gradients = NamedTensors::new();
        micro_batch.backward(&self.student.live(grids), &mut gradients);
        least(|| {
            let live = self.student.live(grids);
            let mut gradients = gradients.clone();
            self.student.straight_through(grids, &mut gradients);
            self.student.reclaim(live, grids);
            let clip = clip(global_norm(&gradients), 1.0);
            self.student.update(&mut self.optimizer, gradients, clip, 1e-6);
        })
    }
}

/// The least of a few measurements of `work`, after one that does not count: memory is new then, and
/// what disturbs only adds.
fn least(mut work: impl FnMut()) -> f64 {
    let began = Instant::now();
    work();
    let mut least = f64::INFINITY;
    for repetition in 0..REPETITIONS {
        if repetition > 0 && began.elapsed().as_secs_f64() > SECONDS {
            break;
        }
        let start = Instant::now();
        work();
        least = least.min(start.elapsed().as_secs_f64());
    }
    least
}

/// Weights of the size that training begins with.
fn random_model(config: &LlamaConfig, device: &Device) -> LlamaForCausalLM {
    let mut state = 1u32;
    LlamaForCausalLM::build(config, device, |_, dims| {
        let elements = dims.iter().product();
        if dims.len() == 1 {
            return vec![1.0; elements];
        }
        let next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32 * 0.06 - 0.03
        };
        std::iter::repeat_with(next).take(elements).collect()
    })
}

/// One document a sequence.
fn random_batch(sequences: usize, tokens: usize, vocabulary: usize) -> Batch {
    let count = sequences * tokens;
    let id = |i: usize| (i * 7919 % vocabulary) as u32;
    Batch {
        batch: sequences,
        sequence: tokens,
        input_ids: (0..count).map(id).collect(),
        labels: (0..count).map(|i| id(i + 1)).collect(),
        loss_mask: vec![true; count],
        document_ids: vec![0; count],
        position_ids: (0..count).map(|i| (i % tokens) as u32).collect(),
    }
}
