//! The loop.

use std::path::PathBuf;
use std::time::Instant;

use burn::tensor::Device;
use distill_data::{Batch, Cursor};
use distill_eval::Score;
use distill_models::parameters::NamedTensors;
use distill_models::quantized::with_own_scales;
use distill_models::{LlamaForCausalLM, WeightGrids};
use distill_recipe::{Choice, Method, Quantize, Recipe, Scales, StudentInit, Tasks};

use crate::TrainError;
use crate::approach::Approach;
use crate::backward::MicroBatch;
use crate::checkpoint::{self, Best, Contents, TrainState};
use crate::energy::EnergyMeter;
use crate::evaluate::evaluate;
use crate::head::LossSums;
use crate::loss::Distillation;
use crate::metrics::{MetricsLog, Record};
use crate::optimizer::{AdamW, clip, global_norm};
use crate::post_training;
use crate::prepare::Prepared;
use crate::schedule::learning_rate;
use crate::student::Student;

/// Hears what the loop does; the CLI draws a bar, a test nothing.
pub trait Observer {
    /// A record was written; `tokens_per_second` comes with those of training steps.
    fn record(&mut self, record: &Record, tokens_per_second: Option<f64>) {
        let _ = (record, tokens_per_second);
    }
    /// So many of so many layers have come to the grid.
    fn quantized(&mut self, layers: usize, of: usize) {
        let _ = (layers, of);
    }
    /// A model before it is trained on the grid: in full precision (`None`), or as a method brings it
    /// there. Heard of only where the recipe has tasks.
    ///
    /// # Errors
    /// Whatever keeping it fails with, which ends the run.
    fn untrained(
        &mut self,
        method: Option<Method>,
        model: &LlamaForCausalLM,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let _ = (method, model);
        Ok(())
    }
    /// A checkpoint was written.
    fn checkpoint(&mut self, path: &std::path::Path) {
        let _ = path;
    }
}

impl Observer for () {}

/// A run in progress.
pub struct Trainer<'a> {
    recipe: &'a Recipe,
    prepared: &'a Prepared,
    run: PathBuf,
    device: Device,
    /// What the optimiser moves.
    student: Student,
    /// Fingerprint of the frozen weights, if there are any.
    base: Option<u64>,
    optimizer: AdamW,
    grids: WeightGrids,
    distillation: Option<Distillation>,
    cursor: Cursor,
    step: usize,
    /// Whether this step begins on the grid with what the method has found.
    begins: bool,
    best: Option<Best>,
    log: MetricsLog,
    energy: Option<EnergyMeter>,
}

impl<'a> Trainer<'a> {
    /// Starts a run in `run`, or continues it from its newest checkpoint.
    ///
    /// # Errors
    /// [`TrainError`]: an unreadable checkpoint, an unwritable run directory.
    pub fn open(
        recipe: &'a Recipe,
        prepared: &'a Prepared,
        student: impl FnOnce() -> Result<LlamaForCausalLM, TrainError>,
        run: PathBuf,
        device: Device,
    ) -> Result<Self, TrainError> {
        let train = &recipe.train;
        let mut optimizer = AdamW::new(train, recipe.seed);
        if let Some(quantize) = &recipe.quantize {
            optimizer = optimizer.with_scales_from(quantize.start_step);
            if quantize.scales == Scales::Fixed {
                optimizer = optimizer.with_fixed_scales();
            }
        }
        let (student, optimizer, state) = match checkpoint::newest(&run)? {
            Some(path) => checkpoint::read(&path, optimizer, train, student, &device)?,
            None => {
                let student = Student::first(student()?, train, recipe.seed)?;
                let cursor = prepared.dataset.train.cursor(recipe.seed);
                let base = student.base().map(checkpoint::fingerprint);
                (
                    student,
                    optimizer,
                    TrainState {
                        step: 0,
                        cursor,
                        metrics_bytes: 0,
                        begins: false,
                        best: None,
                        base,
                    },
                )
            }
        };
        let cursor = prepared.dataset.train.resume(state.cursor)?;
        Ok(Self {
            recipe,
            prepared,
            log: MetricsLog::open(&run, state.metrics_bytes)?,
            energy: EnergyMeter::new(),
            run,
            device,
            student,
            base: state.base,
            optimizer,
            grids: prepared.grids,
            distillation: prepared.distillation,
            cursor,
            step: state.step,
            begins: state.begins,
            best: state.best,
        })
    }

    /// Numbers that are trained: all weights, or those of the low-rank factors.
    pub fn trained(&self) -> usize {
        self.student.trained()
    }

    /// Trains to the last step, or until evaluations have not become better for as long as the recipe
    /// waits. The masters that are exported stand in the checkpoint that is returned.
    ///
    /// # Errors
    /// [`TrainError::Diverged`] with the last good checkpoint intact; disk and teacher errors.
    pub fn run(mut self, observer: &mut dyn Observer) -> Result<PathBuf, TrainError> {
        let train = &self.recipe.train;
        if self.step == 0 && !self.begins {
            self.evaluate(observer)?;
        }
        while self.step < train.steps && !self.is_out_of_patience() {
            if let Some(quantize) = &self.recipe.quantize
                && quantize.start_step == self.step
                && !self.begins
            {
                self.evaluate_before_quantization(observer)?;
                self.begin_on_the_grid(quantize, observer)?;
            }
            let started = Instant::now();
            self.energy.as_mut().map(EnergyMeter::joules);
            let (record, tokens) = self.train_step()?;
            self.log.write(&record)?;
            let seconds = started.elapsed().as_secs_f64();
            let speed = tokens as f64 / seconds;
            let mut timing = Record::new(self.step, "timing")
                .with("seconds", seconds)
                .with("tokens_per_second", speed);
            if let Some(joules) = self.energy.as_mut().and_then(EnergyMeter::joules) {
                timing = timing.with("joules", joules);
            }
            self.log.write_timing(&timing)?;
            observer.record(&record, Some(speed));

            let last = self.step == train.steps;
            let mut is_kept = last || self.step.is_multiple_of(train.checkpoint_every);
            if last || self.step.is_multiple_of(train.eval_every) {
                self.evaluate(observer)?;
                is_kept |= self.is_best() || self.is_out_of_patience();
            }
            if is_kept {
                observer.checkpoint(&self.checkpoint()?);
            }
        }
        let chosen = checkpoint::chosen(&self.run, self.recipe.export.checkpoint)?;
        Ok(chosen.expect("the last step has written one"))
    }

    /// Whether the recipe wants to know which evaluation was best.
    fn looks_for_the_best(&self) -> bool {
        self.recipe.export.checkpoint == Choice::Best || self.recipe.train.patience.is_some()
    }

    fn is_best(&self) -> bool {
        self.best.is_some_and(|best| best.step == self.step)
    }

    fn is_out_of_patience(&self) -> bool {
        let waited = self.best.map_or(0, |best| best.since);
        self.recipe.train.patience.is_some_and(|patience| waited >= patience)
    }

    /// One update from one accumulation window. Returns its record and the tokens it saw.
    fn train_step(&mut self) -> Result<(Record, usize), TrainError> {
        let train = &self.recipe.train;
        let split = &self.prepared.dataset.train;
        let window: Vec<Batch> = (0..train.gradient_accumulation)
            .map(|_| split.next_batch(&mut self.cursor, train.batch_size))
            .collect();
        let valid: usize = window.iter().map(Batch::valid_tokens).sum();
        let grids = self.grids_now();
        let approach = Approach::at(self.recipe.quantize.as_ref(), self.step);
        let live = self.student.live(&grids);
        let live = approach.weights(self.student.masters(), live);

        let mut gradients = NamedTensors::new();
        let mut sums = LossSums::default();
        for batch in &window {
            sums += self.micro_batch(&live, batch, valid, &mut gradients)?;
        }
        approach.gradients(&mut gradients, |gradients| {
            self.student.straight_through(&grids, gradients);
        });
        gradients.retain(|name, _| self.optimizer.trains(name));
        self.student.reclaim(live, &grids);
        let norm = global_norm(&gradients);
        let mean = |sum: f64| sum / valid.max(1) as f64;
        self.refuse_non_finite("loss", mean(sums.loss))?;
        self.refuse_non_finite("gradient norm", norm)?;

        let rate = learning_rate(train, self.step);
        let clip = clip(norm, train.clip_norm);
        self.student.update(&mut self.optimizer, gradients, clip, rate);
        self.step += 1;
        self.begins = false;
        let mut record = Record::new(self.step, "train").with("loss", mean(sums.loss));
        if self.distillation.is_some() {
            record = record.with("divergence", mean(sums.divergence));
        }
        record = record
            .with("cross_entropy", mean(sums.cross_entropy))
            .with("gradient_norm", norm)
            .with("learning_rate", rate)
            .with("tokens", valid as f64);
        let tokens = window.iter().map(|b| b.input_ids.len()).sum();
        Ok((record, tokens))
    }

    /// Adds a micro-batch's gradients, already divided by the window's valid tokens.
    fn micro_batch(
        &self,
        live: &LlamaForCausalLM,
        batch: &Batch,
        valid: usize,
        gradients: &mut NamedTensors,
    ) -> Result<LossSums, TrainError> {
        let teacher = self.prepared.teacher.as_deref();
        let signal = teacher.map(|teacher| teacher.signal(batch)).transpose()?;
        let micro_batch = MicroBatch {
            batch,
            distillation: signal.as_ref().zip(self.distillation.as_ref()),
            vocabulary: self.prepared.vocabulary,
            denominator: valid,
            activation_checkpointing: self.recipe.train.activation_checkpointing,
            precision: self.recipe.train.precision,
        };
        Ok(micro_batch.backward(live, gradients))
    }

    /// The grids of the coming step: none before `quantize.start_step`.
    fn grids_now(&self) -> WeightGrids {
        let start = self.recipe.quantize.as_ref().map_or(0, |q| q.start_step);
        if self.step >= start { self.grids } else { WeightGrids::default() }
    }

    fn refuse_non_finite(&self, what: &'static str, value: f64) -> Result<(), TrainError> {
        if value.is_finite() {
            return Ok(());
        }
        let checkpoint = checkpoint::newest(&self.run)?;
        Err(TrainError::Diverged { step: self.step, what, value, checkpoint })
    }

    /// The model as it would ship now, on held-out text.
    fn evaluate(&mut self, observer: &mut dyn Observer) -> Result<(), TrainError> {
        let grids = self.grids_now();
        let score = self.measure("eval", &grids, observer)?;
        // Before the grid, and of weights that were never trained, nothing could be exported.
        if grids == self.grids && self.step > 0 {
            self.compare_with_the_best(&score);
        }
        Ok(())
    }

    fn compare_with_the_best(&mut self, score: &Score) {
        if self.looks_for_the_best() {
            let value = score.kl().unwrap_or(score.loss());
            self.best = Some(match self.best {
                Some(best) if best.value <= value => Best { since: best.since + 1, ..best },
                _ => Best { step: self.step, value, since: 0 },
            });
        }
    }

    /// What quantisation-aware training is held against: the weights as they are when it
    /// begins, in full precision and simply rounded.
    fn evaluate_before_quantization(
        &mut self,
        observer: &mut dyn Observer,
    ) -> Result<(), TrainError> {
        self.measure("full_precision", &WeightGrids::default(), observer)?;
        self.measure("post_training_quantized", &self.grids.clone(), observer)?;
        Ok(())
    }

    /// Finds what training on the grid begins with, and measures and keeps it where it is not just
    /// rounding: it took its time, and may turn out to be the best of the run. Where there are tasks to
    /// measure them on, full precision and all baselines are handed over.
    fn begin_on_the_grid(
        &mut self,
        quantize: &Quantize,
        observer: &mut dyn Observer,
    ) -> Result<(), TrainError> {
        let baseline = match &self.recipe.eval.tasks {
            Some(tasks) => self.hand_over_baselines(tasks, quantize, observer)?,
            None => None,
        };
        if quantize.scales == Scales::Weights {
            return Ok(());
        }
        let grids = self.grids;
        let start = match (baseline, quantize.method) {
            (_, Method::Round) => with_own_scales(self.student.merged(), &grids),
            (Some(model), _) => model,
            (None, method) => self.by(method, quantize, observer)?,
        };
        self.student.replace(|_| start);
        let score = self.measure("start", &grids, observer)?;
        self.begins = true;
        // The checkpoint takes the place of one that was simply rounded.
        self.best = None;
        self.compare_with_the_best(&score);
        observer.checkpoint(&self.checkpoint()?);
        Ok(())
    }

    /// Full precision and every baseline, for the tasks. Returns the one that training begins with, if it
    /// is among them.
    fn hand_over_baselines(
        &mut self,
        tasks: &Tasks,
        quantize: &Quantize,
        observer: &mut dyn Observer,
    ) -> Result<Option<LlamaForCausalLM>, TrainError> {
        observer.untrained(None, &self.student.merged()).map_err(TrainError::Untrained)?;
        let mut start = None;
        for &method in &tasks.baselines {
            let model = self.by(method, quantize, observer)?;
            observer.untrained(Some(method), &model).map_err(TrainError::Untrained)?;
            if method == quantize.method {
                start = Some(model);
            }
        }
        Ok(start)
    }

    /// What a method makes of the student.
    fn by(
        &mut self,
        method: Method,
        quantize: &Quantize,
        observer: &mut dyn Observer,
    ) -> Result<LlamaForCausalLM, TrainError> {
        let started = Instant::now();
        let (student, train) = (self.student.merged(), &self.prepared.dataset.train);
        let text = post_training::calibration(train, quantize.calibration_sequences);
        let mut progress = |done, of| observer.quantized(done, of);
        let (grids, device) = (&self.grids, &self.device);
        let model = post_training::quantize(student, grids, method, &text, device, &mut progress);
        let split = if method == quantize.method { "method" } else { "baseline" };
        self.log_seconds(split, started)?;
        Ok(model)
    }

    fn log_seconds(&mut self, split: &str, since: Instant) -> Result<(), TrainError> {
        let seconds = since.elapsed().as_secs_f64();
        self.log.write_timing(&Record::new(self.step, split).with("seconds", seconds))
    }

    fn measure(
        &mut self,
        split: &str,
        grids: &WeightGrids,
        observer: &mut dyn Observer,
    ) -> Result<Score, TrainError> {
        let started = Instant::now();
        let score = self.score(grids)?;
        self.log_seconds("evaluation", started)?;
        let record = record_of(&score, self.step, split);
        self.log.write(&record)?;
        observer.record(&record, None);
        Ok(score)
    }

    fn score(&mut self, grids: &WeightGrids) -> Result<Score, TrainError> {
        let live = self.student.live(grids);
        let score = evaluate(
            &live,
            self.prepared.teacher.as_deref(),
            &self.prepared.dataset.held_out,
            self.recipe.eval.sequences,
            self.prepared.vocabulary,
            &self.device,
        );
        self.student.reclaim(live, grids);
        score
    }

    fn checkpoint(&mut self) -> Result<PathBuf, TrainError> {
        self.student.release();
        self.log.sync()?;
        let state = TrainState {
            step: self.step,
            cursor: self.cursor.clone(),
            metrics_bytes: self.log.bytes(),
            begins: self.begins,
            best: self.best,
            base: self.base,
        };
        let keep = self.recipe.train.keep_checkpoints;
        let contents = Contents {
            student: &self.student,
            from: match &self.recipe.student.init {
                StudentInit::From(model) => &model.from,
                StudentInit::Config(_) | StudentInit::KeepLayers(_) => "",
            },
            tokenizer: &self.prepared.tokenizer,
            optimizer: &self.optimizer,
        };
        checkpoint::write(&self.run, contents, &state, keep)
    }
}

/// A score as a record.
pub fn record_of(score: &Score, step: usize, split: &str) -> Record {
    let mut record =
        Record::new(step, split).with("loss", score.loss()).with("perplexity", score.perplexity());
    if let (Some(kl), Some(same_top)) = (score.kl(), score.same_top()) {
        record = record.with("kl", kl).with("same_top", same_top);
    }
    record.with("tokens", score.tokens() as f64)
}
