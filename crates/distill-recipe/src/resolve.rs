//! From what is written to what runs: defaults are filled in, and keys are held against each
//! other. (One key by itself has been checked by `shape`.)

use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::de::Deserializer;

use crate::defaults;
use crate::document::{self, Document, Sources};
use crate::error::{Problem, RecipeError};
use crate::problem::ProblemKind;
use crate::raw::{self, Loss, ScheduleKind, Written};
use crate::resolved::{
    ActivationGrid, Backend, Data, Device, Distill, DivergenceKind, Engine, Eval, Export, Generate,
    LearningRateFactors, LocalTeacher, Lora, LoraTarget, Method, ModelRef, NewModel, Precision,
    Quantize, Recipe, Scales, Schedule, Student, StudentInit, Teacher, TokenizerChoice, Train,
    WeightGrid,
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

    fn student(&mut self, recipe: &raw::Recipe, quantize: Option<&Quantize>) -> Option<Student> {
        let student = recipe.student.value();
        let teacher = recipe.teacher.is_some();
        if let (Some(revision), None) = (&student.revision, &student.from) {
            self.push(ProblemKind::RevisionWithoutFrom, revision.span(), &[]);
        }
        let init = self.student_init(recipe, quantize)?;
        let inherited = match (&init, teacher) {
            (StudentInit::From(_), _) => Some(TokenizerChoice::Student),
            (_, true) => Some(TokenizerChoice::Teacher),
            (_, false) => None,
        };
        let tokenizer = match (&student.tokenizer, &student.train_tokenizer) {
            (Some(tokenizer), None) => TokenizerChoice::From(tokenizer.value().clone()),
            (None, Some(size)) => TokenizerChoice::Train { vocab_size: *size.value() },
            (None, None) => match inherited {
                Some(tokenizer) => tokenizer,
                None => {
                    // Without a teacher to cut from, that is the problem already pushed.
                    if matches!(init, StudentInit::Config(_)) {
                        self.push(ProblemKind::NoTokenizer, recipe.student.span(), &[]);
                    }
                    return None;
                }
            },
            (Some(tokenizer), Some(size)) => {
                let others = [(tokenizer.span(), "one tokenizer")];
                self.push(ProblemKind::TwoTokenizers, size.span(), &others);
                return None;
            }
        };
        Some(Student { init, tokenizer })
    }

    fn student_init(
        &mut self,
        recipe: &raw::Recipe,
        quantize: Option<&Quantize>,
    ) -> Option<StudentInit> {
        let student = recipe.student.value();
        match (&student.from, &student.config, &student.keep_layers) {
            (Some(from), None, None) => Some(StudentInit::From(model_ref(from, &student.revision))),
            (None, Some(config), None) => {
                Some(StudentInit::Config(self.new_model(config, recipe, quantize)?))
            }
            (None, None, Some(layers)) => {
                if recipe.teacher.is_none() {
                    self.push(ProblemKind::KeepLayersWithoutTeacher, layers.span(), &[]);
                }
                let disorder = layers.value().windows(2).find(|pair| pair[0] >= pair[1]);
                if let Some(&[previous, next]) = disorder {
                    let kind = ProblemKind::KeepLayersOrder { previous, next };
                    self.push(kind, layers.span(), &[]);
                }
                Some(StudentInit::KeepLayers(layers.value().clone()))
            }
            (from, config, layers) => {
                let mut given = Vec::new();
                let mut spans = Vec::new();
                let written = [
                    ("from", from.as_ref().map(Written::span)),
                    ("config", config.as_ref().map(Written::span)),
                    ("keep_layers", layers.as_ref().map(Written::span)),
                ];
                for (key, span) in written {
                    if let Some(span) = span {
                        given.push(key);
                        spans.push((span, "one place"));
                    }
                }
                let (primary, others) = match spans.split_last() {
                    Some(((span, _), others)) => (span.clone(), others),
                    None => (recipe.student.span(), [].as_slice()),
                };
                self.push(ProblemKind::StudentInit { given }, primary, others);
                None
            }
        }
    }

    fn new_model(
        &mut self,
        config: &Written<raw::NewModel>,
        recipe: &raw::Recipe,
        quantize: Option<&Quantize>,
    ) -> Option<NewModel> {
        let written = config.value();
        let hidden_size = *written.hidden_size.value();
        let heads = *written.num_attention_heads.value();
        let kv_heads = or(&written.num_key_value_heads, heads);
        let intermediate_size = *written.intermediate_size.value();
        let positions = or(&written.max_position_embeddings, defaults::MAX_POSITION_EMBEDDINGS);

        if let Some(kv) = &written.num_key_value_heads
            && !heads.is_multiple_of(kv_heads)
        {
            let others = [(written.num_attention_heads.span(), "query heads")];
            self.push(ProblemKind::KeyValueHeads { heads, kv_heads }, kv.span(), &others);
        }
        let head_dim = match &written.head_dim {
            Some(head_dim) => {
                if !head_dim.value().is_multiple_of(2) {
                    let kind = ProblemKind::OddHeadDim { head_dim: *head_dim.value() };
                    self.push(kind, head_dim.span(), &[]);
                }
                *head_dim.value()
            }
            None if !hidden_size.is_multiple_of(heads) => {
                let others = [(written.num_attention_heads.span(), "heads")];
                let kind = ProblemKind::HeadDim { hidden_size, heads };
                self.push(kind, written.hidden_size.span(), &others);
                return None;
            }
            None => {
                let head_dim = hidden_size / heads;
                if !head_dim.is_multiple_of(2) {
                    let others = [(written.num_attention_heads.span(), "heads")];
                    let kind = ProblemKind::OddHeadDim { head_dim };
                    self.push(kind, written.hidden_size.span(), &others);
                }
                head_dim
            }
        };

        let linears = quantize.is_some_and(|grid| grid.linears != WeightGrid::None);
        let embeddings = quantize.is_some_and(|grid| grid.embeddings != WeightGrid::None);
        let activations = quantize.is_some_and(|grid| grid.activations != ActivationGrid::Float);
        let rows = [
            (
                linears || embeddings || activations,
                "`hidden_size`",
                hidden_size,
                written.hidden_size.span(),
            ),
            (
                linears || activations,
                "`intermediate_size`",
                intermediate_size,
                written.intermediate_size.span(),
            ),
            (
                linears || activations,
                "`num_attention_heads` · `head_dim`",
                heads * head_dim,
                written.num_attention_heads.span(),
            ),
        ];
        for (quantized, what, value, span) in rows {
            // The product is the hidden size again where `head_dim` is left out.
            let repeated = written.head_dim.is_none() && value == hidden_size && what.contains('·');
            if quantized && !value.is_multiple_of(BLOCK) && !repeated {
                self.push(ProblemKind::NotBlocks { what, value }, span, &[]);
            }
        }

        let sequence_length = or(&recipe.data.value().sequence_length, defaults::SEQUENCE_LENGTH);
        if sequence_length > positions {
            let kind = ProblemKind::SequenceTooLong { sequence_length, positions };
            match (&recipe.data.value().sequence_length, &written.max_position_embeddings) {
                (Some(length), limit) => {
                    let others = place(limit, "positions");
                    self.push(kind, length.span(), &others);
                }
                (None, Some(limit)) => self.push(kind, limit.span(), &[]),
                (None, None) => self.push(kind, config.span(), &[]),
            }
        }

        Some(NewModel {
            hidden_size,
            intermediate_size,
            num_hidden_layers: *written.num_hidden_layers.value(),
            num_attention_heads: heads,
            num_key_value_heads: kv_heads,
            head_dim,
            rope_theta: or(&written.rope_theta, defaults::ROPE_THETA),
            rms_norm_eps: or(&written.rms_norm_eps, defaults::RMS_NORM_EPS),
            max_position_embeddings: positions,
            tie_word_embeddings: or(&written.tie_word_embeddings, defaults::TIE_WORD_EMBEDDINGS),
        })
    }

    fn teacher(&mut self, recipe: &raw::Recipe) -> Option<Teacher> {
        let written = &recipe.teacher.as_ref()?.value().local;
        let engine = or(&written.engine, defaults::ENGINE);
        if let (Engine::Runtime, Some(place)) = (engine, &written.engine)
            && !written.from.value().ends_with(".gguf")
        {
            let others = [(written.from.span(), "no `.gguf` file")];
            self.push(ProblemKind::EngineNeedsGguf, place.span(), &others);
        }
        let model = model_ref(&written.from, &written.revision);
        Some(Teacher { local: LocalTeacher { model, engine } })
    }

    fn data(&mut self, recipe: &raw::Recipe) -> Option<Data> {
        let written = recipe.data.value();
        let sources = written.sources.as_ref().map(|sources| strings(sources.value()));
        if sources.is_none() && written.generate.is_none() {
            self.push(ProblemKind::NoText, recipe.data.span(), &[]);
            return None;
        }
        let sources = sources.unwrap_or_default();
        let weights = written.weights.as_ref().map(|weights| {
            let values: Vec<f64> = weights.value().iter().map(|weight| *weight.value()).collect();
            if values.len() != sources.len() {
                let kind = ProblemKind::Weights { weights: values.len(), sources: sources.len() };
                let others = place(&written.sources, "the sources");
                self.push(kind, weights.span(), &others);
            }
            values
        });
        let sequence_length = or(&written.sequence_length, defaults::SEQUENCE_LENGTH);
        let generate = match &written.generate {
            Some(generate) => {
                let weighed = weights.is_some() && !sources.is_empty();
                Some(self.generate(recipe, generate, weighed, sequence_length)?)
            }
            None => None,
        };
        Some(Data {
            sources,
            weights,
            text_field: or(&written.text_field, defaults::TEXT_FIELD.to_owned()),
            document_separator: written.document_separator.as_ref().map(|t| t.value().clone()),
            sequence_length,
            held_out: or(&written.held_out, defaults::HELD_OUT),
            generate,
        })
    }

    fn generate(
        &mut self,
        recipe: &raw::Recipe,
        table: &Written<raw::Generate>,
        weighed: bool,
        sequence_length: usize,
    ) -> Option<Generate> {
        let written = table.value();
        if let (Some(revision), None) = (&written.revision, &written.from) {
            self.push(ProblemKind::GenerateRevisionWithoutFrom, revision.span(), &[]);
        }
        if let Some(size) = &recipe.student.value().train_tokenizer {
            let others = [(table.span(), "writes in its own tokens")];
            self.push(ProblemKind::GenerateForNewTokenizer, size.span(), &others);
        }
        let max_tokens = or(&written.max_tokens, sequence_length);
        let min_tokens = or(&written.min_tokens, defaults::GENERATE_MIN_TOKENS.min(max_tokens - 1));
        if let Some(place) = &written.min_tokens
            && min_tokens >= max_tokens
        {
            let others = self::place(&written.max_tokens, "the longest");
            self.push(
                ProblemKind::GenerateLengths { min_tokens, max_tokens },
                place.span(),
                &others,
            );
        }
        let log_prob =
            |written: &Option<Written<f64>>| written.as_ref().map(|value| *value.value());
        let (min_log_prob, max_log_prob) =
            (log_prob(&written.min_log_prob), log_prob(&written.max_log_prob));
        if let (Some(min), Some(max), Some(place)) =
            (min_log_prob, max_log_prob, &written.min_log_prob)
            && min >= max
        {
            let others = self::place(&written.max_log_prob, "the greatest");
            self.push(ProblemKind::GenerateLogProbs { min, max }, place.span(), &others);
        }
        let teacher = recipe.teacher.as_ref().map(|teacher| &teacher.value().local);
        let student = recipe.student.value();
        let model = match (&written.from, teacher, &student.from) {
            (Some(from), _, _) => model_ref(from, &written.revision),
            (None, Some(teacher), _) => model_ref(&teacher.from, &teacher.revision),
            (None, None, Some(from)) => model_ref(from, &student.revision),
            (None, None, None) => {
                self.push(ProblemKind::GenerateFromNobody, table.span(), &[]);
                return None;
            }
        };
        let list = |written: &Option<Written<Vec<Written<String>>>>| {
            written.as_ref().map(|texts| strings(texts.value())).unwrap_or_default()
        };
        let weight = written.weight.as_ref().map(|weight| *weight.value());
        Some(Generate {
            model,
            tokens: *written.tokens.value(),
            weight: weight.or(weighed.then_some(defaults::GENERATE_WEIGHT)),
            begin: list(&written.begin),
            prompts: list(&written.prompts),
            end: list(&written.end),
            max_tokens,
            temperature: or(&written.temperature, defaults::GENERATE_TEMPERATURE),
            top_p: or(&written.top_p, defaults::GENERATE_TOP_P),
            min_tokens,
            max_repetition: or(&written.max_repetition, defaults::GENERATE_MAX_REPETITION),
            min_log_prob,
            max_log_prob,
        })
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
        Quantize {
            linears,
            embeddings: *written.embeddings.value(),
            activations,
            start_step,
            method,
            scales,
            calibration_sequences: or(
                &written.calibration_sequences,
                defaults::CALIBRATION_SEQUENCES,
            ),
        }
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

    fn train(&mut self, written: &raw::Train) -> Train {
        let steps = *written.steps.value();
        let warmup_steps = or(&written.warmup_steps, defaults::WARMUP_STEPS);
        let learning_rate = *written.learning_rate.value();
        let eval_every = or(&written.eval_every, (steps / defaults::EVAL_PART).max(1));
        if let Some(warmup) = &written.warmup_steps
            && warmup_steps > steps
        {
            let others = [(written.steps.span(), "steps")];
            self.push(ProblemKind::Warmup { warmup_steps, steps }, warmup.span(), &others);
        }
        let min_learning_rate =
            or(&written.min_learning_rate, learning_rate * defaults::MIN_LEARNING_RATE_RATIO);
        if let Some(place) = &written.min_learning_rate
            && min_learning_rate > learning_rate
        {
            let kind = ProblemKind::MinLearningRate { min: min_learning_rate, max: learning_rate };
            let others = [(written.learning_rate.span(), "the highest")];
            self.push(kind, place.span(), &others);
        }
        Train {
            steps,
            batch_size: or(&written.batch_size, defaults::BATCH_SIZE),
            gradient_accumulation: or(
                &written.gradient_accumulation,
                defaults::GRADIENT_ACCUMULATION,
            ),
            activation_checkpointing: or(&written.activation_checkpointing, false),
            learning_rate,
            min_learning_rate,
            schedule: self.schedule(written, steps, warmup_steps),
            warmup_steps,
            weight_decay: or(&written.weight_decay, defaults::WEIGHT_DECAY),
            beta1: or(&written.beta1, defaults::BETA1),
            beta2: or(&written.beta2, defaults::BETA2),
            epsilon: or(&written.epsilon, defaults::EPSILON),
            precision: or(&written.precision, defaults::PRECISION),
            optimizer_state: or(&written.optimizer_state, defaults::OPTIMIZER_STATE),
            clip_norm: or(&written.clip_norm, defaults::CLIP_NORM),
            eval_every,
            checkpoint_every: or(&written.checkpoint_every, eval_every),
            keep_checkpoints: or(&written.keep_checkpoints, defaults::KEEP_CHECKPOINTS),
            patience: written.patience.as_ref().map(|patience| *patience.value()),
            learning_rate_factors: written
                .learning_rate_factors
                .as_ref()
                .map_or(LearningRateFactors::default(), learning_rate_factors),
            lora: written.lora.as_ref().map(|lora| self.lora(lora.value())),
        }
    }

    fn precision(&mut self, recipe: &raw::Recipe, train: &Train) {
        let written = &recipe.train;
        let Some(place) = written.precision.as_ref().filter(|_| train.precision == Precision::Bf16)
        else {
            return;
        };
        if or(&recipe.backend, defaults::BACKEND) != Backend::Cuda {
            let others = self::place(&recipe.backend, "another backend");
            self.push(ProblemKind::Bf16 { with: "this backend" }, place.span(), &others);
        } else if recipe.quantize.is_some() {
            self.push(ProblemKind::Bf16 { with: "[quantize]" }, place.span(), &[]);
        } else if let Some(lora) = &written.lora {
            let others = [(lora.span(), "factors beside frozen weights")];
            self.push(ProblemKind::Bf16 { with: "[train.lora]" }, place.span(), &others);
        }
    }

    fn lora(&mut self, written: &raw::Lora) -> Lora {
        let rank = or(&written.rank, defaults::LORA_RANK);
        let mut targets: Vec<LoraTarget> = Vec::new();
        for target in written.targets.iter().flat_map(|targets| targets.value()) {
            if targets.contains(target.value()) {
                let target_name = target.value().name();
                self.push(ProblemKind::LoraTargetTwice { target: target_name }, target.span(), &[]);
            }
            targets.push(*target.value());
        }
        if targets.is_empty() {
            targets = defaults::LORA_TARGETS.to_vec();
        }
        Lora { rank, alpha: or(&written.alpha, rank as f64), targets }
    }

    /// Factors that are no smaller than the matrices of a new student, whose shape is known here.
    fn lora_rank(&mut self, written: &raw::Recipe, student: &Student, train: &Train) {
        let (Some(raw), Some(lora), StudentInit::Config(config)) =
            (&written.train.lora, &train.lora, &student.init)
        else {
            return;
        };
        let queries = config.num_attention_heads * config.head_dim;
        let keys = config.num_key_value_heads * config.head_dim;
        let least = |target: &LoraTarget| match target {
            LoraTarget::QProj | LoraTarget::OProj => queries.min(config.hidden_size),
            LoraTarget::KProj | LoraTarget::VProj => keys.min(config.hidden_size),
            LoraTarget::GateProj | LoraTarget::UpProj | LoraTarget::DownProj => {
                config.intermediate_size.min(config.hidden_size)
            }
        };
        let smallest = lora.targets.iter().map(|target| (least(target), target.name())).min();
        if let Some((limit, target)) = smallest
            && lora.rank > limit
        {
            let kind = ProblemKind::LoraRank { rank: lora.rank, limit, target };
            let span = raw.value().rank.as_ref().map_or(raw.span(), Written::span);
            self.push(kind, span, &[]);
        }
    }

    fn schedule(&mut self, written: &raw::Train, steps: usize, warmup_steps: usize) -> Schedule {
        match (or(&written.schedule, ScheduleKind::default()), &written.decay_steps) {
            (ScheduleKind::Cosine, None) => Schedule::Cosine,
            (ScheduleKind::Cosine, Some(decay)) => {
                let others = place(&written.schedule, "the schedule");
                self.push(ProblemKind::DecayWithoutWsd, decay.span(), &others);
                Schedule::Cosine
            }
            (ScheduleKind::Wsd, None) => {
                let fifth = (steps / defaults::DECAY_PART).max(1);
                Schedule::Wsd { decay_steps: fifth.min(steps.saturating_sub(warmup_steps)) }
            }
            (ScheduleKind::Wsd, Some(decay)) => {
                let decay_steps = *decay.value();
                if warmup_steps <= steps && decay_steps > steps - warmup_steps {
                    let mut others = place(&written.warmup_steps, "warm-up");
                    others.push((written.steps.span(), "steps"));
                    let kind = ProblemKind::Decay { warmup_steps, decay_steps, steps };
                    self.push(kind, decay.span(), &others);
                }
                Schedule::Wsd { decay_steps }
            }
        }
    }
}

fn learning_rate_factors(written: &raw::LearningRateFactors) -> LearningRateFactors {
    let factor = |written| or(written, defaults::LEARNING_RATE_FACTOR);
    LearningRateFactors {
        linears: factor(&written.linears),
        embeddings: factor(&written.embeddings),
        norms: factor(&written.norms),
        scales: factor(&written.scales),
    }
}

fn strings(written: &[Written<String>]) -> Vec<String> {
    written.iter().map(|text| text.value().clone()).collect()
}

fn model_ref(from: &Written<String>, revision: &Option<Written<String>>) -> ModelRef {
    ModelRef { from: from.value().clone(), revision: or(revision, defaults::REVISION.to_owned()) }
}
