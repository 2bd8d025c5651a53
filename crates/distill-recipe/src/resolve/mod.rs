//! From what is written to what runs: defaults are filled in, and keys are held against each
//! other. (One key by itself has been checked by `shape`.)

mod data;
mod student;
mod teacher;
mod train;

use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::de::Deserializer;

use crate::defaults;
use crate::document::{self, Document, Sources};
use crate::error::{Problem, RecipeError};
use crate::problem::ProblemKind;
use crate::raw::{self, Loss, Written};
use crate::resolved::{
    ActivationGrid, Device, Distill, DivergenceKind, Eval, Export, Method, ModelRef, Quantize,
    Recipe, Scales, StraightThrough, Tasks, WeightGrid,
};
use crate::shape;

/// Width of a quantized block: rows are a multiple of it.
const BLOCK: usize = 32;

impl Recipe {
    /// Reads, checks and resolves a recipe. Each override is `table.key=value`: the value is
    /// TOML, or else is taken as a string, and replaces what the file says.
    ///
    /// # Errors
    ///
    /// A file that cannot be read, or everything that is wrong with what it says:
    /// [`RecipeError::Invalid`] carries all problems that were found, each with its place. Keys
    /// are compared with each other only when each is right by itself.
    pub fn from_path(path: &Path, overrides: &[String]) -> Result<(Document, Self), RecipeError> {
        let document = Document::read(path)?;
        let recipe = Self::from_document(&document, overrides)?;
        Ok((document, recipe))
    }

    /// As [`Recipe::from_path`], for a recipe that has been read.
    ///
    /// # Errors
    ///
    /// [`RecipeError::Invalid`].
    pub fn from_document(document: &Document, overrides: &[String]) -> Result<Self, RecipeError> {
        resolve(document, overrides)
            .map_err(|problems| RecipeError::Invalid { path: document.path.clone(), problems })
    }

    /// The recipe as TOML, every default written out. It is a recipe itself, and the same.
    pub fn to_toml(&self) -> Result<String, toml::ser::Error> {
        toml::to_string(self)
    }
}

fn resolve(document: &Document, overrides: &[String]) -> Result<Recipe, Vec<Problem>> {
    let tree = document::parse(document, overrides)?;
    let mut problems = shape::check(&tree);
    if problems.is_empty() {
        let written: Result<raw::Recipe, _> =
            serde::Deserialize::deserialize(Deserializer::from(tree.root));
        match written {
            Ok(written) => {
                let mut resolver = Resolver { sources: &tree.sources, problems: Vec::new() };
                let recipe = resolver.recipe(&written);
                problems = resolver.problems;
                if let (Some(recipe), true) = (recipe, problems.is_empty()) {
                    return Ok(recipe);
                }
            }
            Err(error) => {
                let message = error.message().to_owned();
                let span = error.span().unwrap_or(0..0);
                problems.push(tree.sources.problem(ProblemKind::Refused { message }, span, &[]));
            }
        }
    }
    problems.sort_by_key(|problem| problem.place);
    Err(problems)
}

struct Resolver<'a> {
    sources: &'a Sources,
    problems: Vec<Problem>,
}

/// The value written, or the default.
fn or<T: Clone>(written: &Option<Written<T>>, default: T) -> T {
    match written {
        Some(written) => written.value().clone(),
        None => default,
    }
}

/// A place that is shown because the problem is with it too.
type Other<'a> = (Range<usize>, &'a str);

/// The span of a key that may be left out, for a second label.
fn place<'a, T>(written: &Option<Written<T>>, words: &'a str) -> Vec<Other<'a>> {
    written.iter().map(|written| (written.span(), words)).collect()
}

impl Resolver<'_> {
    fn push(&mut self, kind: ProblemKind, span: Range<usize>, others: &[Other<'_>]) {
        self.problems.push(self.sources.problem(kind, span, others));
    }

    /// `None` only where a problem was pushed.
    fn recipe(&mut self, written: &raw::Recipe) -> Option<Recipe> {
        self.name(&written.name);
        let train = self.train(&written.train);
        self.precision(written, &train);
        let quantize =
            written.quantize.as_ref().map(|quantize| self.quantize(quantize, &written.train));
        let student = self.student(written, quantize.as_ref());
        if let Some(student) = &student {
            self.lora_rank(written, student, &train);
        }
        let teacher = self.teacher(written);
        let distill = self.distill(written);
        let device = written.device.as_ref().map(|device| self.device(device));
        let data = self.data(written);
        let eval = written.eval.clone().unwrap_or_default();
        let export = written.export.clone().unwrap_or_default();
        Some(Recipe {
            name: written.name.value().clone(),
            seed: or(&written.seed, defaults::SEED),
            backend: or(&written.backend, defaults::BACKEND),
            output: PathBuf::from(or(&written.output, defaults::OUTPUT.to_owned())),
            student: student?,
            teacher,
            data: data?,
            distill,
            quantize,
            device,
            train,
            eval: Eval {
                sequences: or(&eval.sequences, defaults::EVAL_SEQUENCES),
                prompts: or(&eval.prompts, defaults::PROMPTS.map(str::to_owned).to_vec()),
                max_new_tokens: or(&eval.max_new_tokens, defaults::MAX_NEW_TOKENS),
                tasks: eval.tasks.as_ref().and_then(|tasks| self.tasks(written, tasks)),
            },
            export: Export {
                gguf: or(&export.gguf, defaults::GGUF),
                checkpoint: or(&export.checkpoint, defaults::CHECKPOINT),
                huggingface: or(&export.huggingface, defaults::HUGGINGFACE),
                parity_positions: or(&export.parity_positions, defaults::PARITY_POSITIONS),
            },
        })
    }

    fn name(&mut self, name: &Written<String>) {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let text = name.value();
        if !text.chars().all(allowed) || !text.starts_with(|c: char| c.is_ascii_alphanumeric()) {
            let name_text = text.clone();
            self.push(ProblemKind::Name { name: name_text }, name.span(), &[]);
        }
    }

    fn distill(&mut self, recipe: &raw::Recipe) -> Option<Distill> {
        if let (Some(distill), None) = (&recipe.distill, &recipe.teacher) {
            self.push(ProblemKind::DistillWithoutTeacher, distill.span(), &[]);
        }
        recipe.teacher.as_ref()?;
        let default = raw::Distill::default();
        let written = recipe.distill.as_ref().map_or(&default, Written::value);
        let kind = or(&written.loss, Loss::default());
        if let (Some(beta), Loss::ForwardKl | Loss::ReverseKl) = (&written.beta, kind) {
            let loss = match kind {
                Loss::ReverseKl => "reverse_kl",
                _ => "forward_kl",
            };
            let others = place(&written.loss, "the loss");
            self.push(ProblemKind::BetaWithoutJsd { loss }, beta.span(), &others);
        }
        Some(Distill {
            loss: match kind {
                Loss::ForwardKl => DivergenceKind::ForwardKl,
                Loss::ReverseKl => DivergenceKind::ReverseKl,
                Loss::Jsd => DivergenceKind::Jsd { beta: or(&written.beta, defaults::BETA) },
            },
            temperature: or(&written.temperature, defaults::TEMPERATURE),
            scale_by_temperature_squared: or(
                &written.scale_by_temperature_squared,
                defaults::SCALE_BY_TEMPERATURE_SQUARED,
            ),
            cross_entropy: or(&written.cross_entropy, defaults::CROSS_ENTROPY),
        })
    }

    fn quantize(&mut self, written: &raw::Quantize, train: &raw::Train) -> Quantize {
        let steps = *train.steps.value();
        let start_step = or(&written.start_step, defaults::START_STEP);
        if let Some(start) = &written.start_step
            && start_step >= steps
        {
            let others = [(train.steps.span(), "steps")];
            self.push(ProblemKind::StartStep { start_step, steps }, start.span(), &others);
        }
        let linears = *written.linears.value();
        let activations = or(&written.activations, defaults::ACTIVATIONS);
        if let (Some(place), ActivationGrid::Q8_0, WeightGrid::None) =
            (&written.activations, activations, linears)
        {
            let others = [(written.linears.span(), "not quantized")];
            self.push(ProblemKind::ActivationsWithoutLinears, place.span(), &others);
        }
        let method = or(&written.method, defaults::METHOD);
        let scales = match method {
            Method::Round => Scales::Weights,
            Method::Search | Method::Gptq => Scales::Learned,
        };
        let scales = or(&written.scales, scales);
        let found = written.method.as_ref().filter(|_| method != Method::Round).map(Written::span);
        let kept = written.scales.as_ref().filter(|_| scales != Scales::Weights).map(Written::span);
        if let (Some(place), Some(lora)) = (found.or(kept), &train.lora) {
            let others = [(lora.span(), "factors beside frozen weights")];
            self.push(ProblemKind::ScalesWithLora, place, &others);
        } else if let (Some(place), Scales::Weights) = (&written.scales, scales)
            && method != Method::Round
        {
            let others = self::place(&written.method, "finds scales of its own");
            self.push(ProblemKind::ScalesThrownAway, place.span(), &others);
        }
        let ramp_steps = or(&written.ramp_steps, defaults::RAMP_STEPS);
        let straight_through = or(&written.straight_through, defaults::STRAIGHT_THROUGH);
        let ramp = written.ramp_steps.as_ref().filter(|_| ramp_steps > 0).map(Written::span);
        if let (Some(place), true) =
            (ramp.clone(), start_step < steps && ramp_steps > steps - start_step)
        {
            let others = [(train.steps.span(), "steps")];
            self.push(ProblemKind::Ramp { ramp_steps, start_step, steps }, place, &others);
        }
        let passed = written.straight_through.as_ref();
        let passed = passed.filter(|_| straight_through != StraightThrough::Clipped);
        if let (Some(place), Some(lora)) = (ramp.or(passed.map(Written::span)), &train.lora) {
            let others = [(lora.span(), "factors beside frozen weights")];
            self.push(ProblemKind::ApproachWithLora, place, &others);
        }
        Quantize {
            linears,
            embeddings: *written.embeddings.value(),
            activations,
            start_step,
            method,
            scales,
            ramp_steps,
            straight_through,
            calibration_sequences: or(
                &written.calibration_sequences,
                defaults::CALIBRATION_SEQUENCES,
            ),
        }
    }

    fn tasks(&mut self, recipe: &raw::Recipe, table: &Written<raw::Tasks>) -> Option<Tasks> {
        let written = table.value();
        let files = |written: &Option<Written<Vec<Written<String>>>>| {
            written.as_ref().map(|files| strings(files.value())).unwrap_or_default()
        };
        let perplexity = files(&written.perplexity);
        let choice = files(&written.choice);
        let last_word = files(&written.last_word);
        if perplexity.is_empty() && choice.is_empty() && last_word.is_empty() {
            self.push(ProblemKind::NoTask, table.span(), &[]);
        }
        let gguf = recipe.export.as_ref().and_then(|export| export.gguf.as_ref());
        if let Some(gguf) = gguf.filter(|gguf| !gguf.value()) {
            let others = [(gguf.span(), "no file to measure")];
            self.push(ProblemKind::TasksWithoutExport, table.span(), &others);
        }
        if let (Some(baselines), None) = (&written.baselines, &recipe.quantize) {
            self.push(ProblemKind::BaselinesWithoutGrid, baselines.span(), &[]);
        }
        let mut baselines: Vec<Method> = Vec::new();
        for method in written.baselines.iter().flat_map(|methods| methods.value()) {
            if !baselines.contains(method.value()) {
                baselines.push(*method.value());
            }
        }
        if written.baselines.is_none() && recipe.quantize.is_some() {
            baselines = defaults::BASELINES.to_vec();
        }
        Some(Tasks {
            perplexity,
            choice,
            last_word,
            context: or(&written.context, defaults::TASK_CONTEXT),
            chunks: written.chunks.as_ref().map(|chunks| *chunks.value()),
            limit: written.limit.as_ref().map(|limit| *limit.value()),
            baselines,
        })
    }

    fn device(&mut self, written: &raw::Device) -> Device {
        let context_length = or(&written.context_length, defaults::CONTEXT_LENGTH);
        if let Some(prompt) = &written.prompt_tokens
            && *prompt.value() > context_length
        {
            let prompt_tokens = *prompt.value();
            let others = place(&written.context_length, "context");
            let kind = ProblemKind::PromptTooLong { prompt_tokens, context_length };
            self.push(kind, prompt.span(), &others);
        }
        let limit = |written: &Option<Written<f64>>| written.as_ref().map(|limit| *limit.value());
        Device {
            bandwidth_gbps: *written.bandwidth_gbps.value(),
            tops: or(&written.tops, defaults::TOPS),
            ram_mb: limit(&written.ram_mb),
            min_tokens_per_s: limit(&written.min_tokens_per_s),
            first_token_ms: limit(&written.first_token_ms),
            context_length,
            prompt_tokens: or(&written.prompt_tokens, defaults::PROMPT_TOKENS.min(context_length)),
            kv_cache: or(&written.kv_cache, defaults::KV_CACHE),
        }
    }
}

fn strings(written: &[Written<String>]) -> Vec<String> {
    written.iter().map(|text| text.value().clone()).collect()
}

fn model_ref(from: &Written<String>, revision: &Option<Written<String>>) -> ModelRef {
    ModelRef { from: from.value().clone(), revision: or(revision, defaults::REVISION.to_owned()) }
}
