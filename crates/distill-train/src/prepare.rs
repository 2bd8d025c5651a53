//! From a resolved recipe to everything the loop needs: tokenizer, data, teacher, student.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::tensor::Device;
use distill_data::{
    DataError, Dataset, PackingOptions, Part, Progress, SampleDirectory, Source, SourceOptions,
    SpecialTokens, TextTokenizer, documents,
};
use distill_edge::LoadOptions;
use distill_gguf::GgufFile;
use distill_models::weights::read_config;
use distill_models::{
    ActivationGrid, Backend, LlamaConfig, LlamaForCausalLM, LoadReport, LoraOptions, ModelError,
    TokenIds, WeightGrid, WeightGrids, load_pretrained,
};
use distill_recipe::{
    DivergenceKind, Engine, Method, NewModel, Recipe, Scales, StudentInit, TokenizerChoice,
};

use crate::TrainError;
use crate::checkpoint::write_tokenizer;
use crate::generate::filters;
use crate::loss::{Distillation, Divergence};
use crate::teacher::{LocalTeacher, RuntimeTeacher, Teacher};

/// Where the recipe's models and data lie on this machine, hub ids already downloaded.
#[derive(Clone, Debug, Default)]
pub struct LocalPaths {
    /// The student's first weights, if it starts from a model.
    pub student: Option<PathBuf>,
    /// The teacher.
    pub teacher: Option<PathBuf>,
    /// The tokenizer of a teacher of which there are no weights.
    pub teacher_tokenizer: Option<PathBuf>,
    /// The tokenizer, if it is named apart from the models.
    pub tokenizer: Option<PathBuf>,
    /// The text: for each source of the recipe, where it lies.
    pub sources: Vec<Vec<String>>,
    /// The model that writes text.
    pub writer: Option<PathBuf>,
    /// What it is prompted with.
    pub prompts: Vec<String>,
    /// What it wrote.
    pub samples: Option<SampleDirectory>,
}

/// What a run works with and never changes.
pub struct Prepared {
    /// The student's tokenizer.
    pub tokenizer: TextTokenizer,
    /// Packed text, split.
    pub dataset: Dataset,
    /// The teacher, if there is one; one that was asked beforehand is put here by
    /// [`teach`](crate::teach).
    pub teacher: Option<Box<dyn Teacher>>,
    /// Tokens that exist; embedding rows beyond are padding and take no part in any loss.
    pub vocabulary: usize,
    /// The grids that ship.
    pub grids: WeightGrids,
    /// How the student is held against the teacher.
    pub distillation: Option<Distillation>,
    /// The shape of the student.
    pub student: LlamaConfig,
    /// The teacher's weights: the report measures them.
    pub teacher_model: Option<TeacherModel>,
}

/// The weights of a local teacher.
pub enum TeacherModel {
    /// In the training graph, with what was read.
    Graph(Box<LlamaForCausalLM>, LoadReport),
    /// In the edge runtime.
    Runtime(distill_edge::Model),
}

impl TeacherModel {
    /// Reads a teacher for an engine.
    ///
    /// # Errors
    /// [`TrainError`].
    pub fn load(path: &Path, engine: Engine, device: &Device) -> Result<Self, TrainError> {
        Ok(match engine {
            Engine::Graph => {
                let (model, report) = load_pretrained(path, device)?;
                Self::Graph(Box::new(model), report)
            }
            Engine::Runtime => {
                Self::Runtime(distill_edge::Model::load(path, &LoadOptions::default())?)
            }
        })
    }

    /// A teacher over the first tokens, for sequences of up to so many.
    ///
    /// # Errors
    /// [`TrainError::Runtime`].
    pub fn teacher(
        &self,
        vocabulary: usize,
        sequence: usize,
        device: &Device,
    ) -> Result<Box<dyn Teacher>, TrainError> {
        let device = device.clone();
        Ok(match self {
            Self::Graph(model, _) => {
                Box::new(LocalTeacher::new(LlamaForCausalLM::clone(model), vocabulary, device))
            }
            Self::Runtime(model) => {
                Box::new(RuntimeTeacher::new(model, vocabulary, sequence, device)?)
            }
        })
    }
}

/// Reads everything a recipe names. `run` keeps a trained tokenizer, so that a resumed run
/// has the very same one.
///
/// # Errors
/// [`TrainError`]: a model or data file that cannot be read, tokenizers that differ, a student
/// whose rows are no whole blocks.
pub fn prepare(
    recipe: &Recipe,
    paths: &LocalPaths,
    run: &Path,
    device: &Device,
    progress: &mut dyn FnMut(Progress),
) -> Result<Prepared, TrainError> {
    let tokenizer = tokenizer(recipe, paths, run)?;
    if let (StudentInit::From(_), Some(path)) = (&recipe.student.init, &paths.student)
        && let Some(problem) = difference(&read_tokenizer(path)?, &tokenizer)
    {
        return Err(TrainError::OwnTokenizer { problem });
    }
    check_teacher_tokenizer(paths, &tokenizer)?;
    let (mut teacher_model, mut teacher_config) = (None, None);
    if let (Some(teacher), Some(path)) = (&recipe.teacher, &paths.teacher)
        && let Some(local) = teacher.local()
    {
        let config = read_config(path)?;
        covers("teacher", &config, &tokenizer)?;
        teacher_config = Some(config);
        // What it says may be known already: then its weights are not needed.
        if teacher.signal.is_none() {
            teacher_model = Some(TeacherModel::load(path, local.engine, device)?);
        }
    }
    let teacher_config = teacher_config.as_ref();
    let student = student_config(recipe, paths, teacher_config, |new| new_config(new, &tokenizer))?;
    check_shape(recipe, &student)?;
    covers("student", &student, &tokenizer)?;
    let grids = grids(recipe);

    let dataset = dataset(recipe, paths, &tokenizer, progress)?;
    let vocabulary = tokenizer.vocab_size();
    let sequence = recipe.data.sequence_length;
    let teacher = teacher_model
        .as_ref()
        .map(|model| model.teacher(vocabulary, sequence, device))
        .transpose()?;
    Ok(Prepared {
        distillation: distillation(recipe),
        tokenizer,
        dataset,
        teacher,
        vocabulary,
        grids,
        student,
        teacher_model,
    })
}

/// Holds the teacher's tokenizer, where it is at hand, against the student's.
///
/// # Errors
/// [`TrainError::Tokenizers`] if they differ; [`TrainError::Data`].
pub fn check_teacher_tokenizer(
    paths: &LocalPaths,
    tokenizer: &TextTokenizer,
) -> Result<(), TrainError> {
    let Some(path) = paths.teacher.as_ref().or(paths.teacher_tokenizer.as_ref()) else {
        return Ok(());
    };
    match difference(tokenizer, &read_tokenizer(path)?) {
        Some(problem) => Err(TrainError::Tokenizers { problem }),
        None => Ok(()),
    }
}

/// Tokenizer and data alone, for a look at them.
///
/// # Errors
/// As [`prepare`].
pub fn text(
    recipe: &Recipe,
    paths: &LocalPaths,
    run: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<(TextTokenizer, Dataset), TrainError> {
    let tokenizer = tokenizer(recipe, paths, run)?;
    let dataset = dataset(recipe, paths, &tokenizer, progress)?;
    Ok((tokenizer, dataset))
}

/// The recipe's text, packed and split.
///
/// # Errors
/// [`TrainError::Data`].
pub fn dataset(
    recipe: &Recipe,
    paths: &LocalPaths,
    tokenizer: &TextTokenizer,
    progress: &mut dyn FnMut(Progress),
) -> Result<Dataset, TrainError> {
    let packing = PackingOptions {
        sequence_length: recipe.data.sequence_length,
        held_out_fraction: recipe.data.held_out,
        seed: recipe.seed,
    };
    let parts = parts(recipe, paths, tokenizer.vocab_size())?;
    Ok(Dataset::mixed(tokenizer, parts, &packing, progress)?)
}

/// What the parts of the text are called that have a weight of their own; one where there is
/// nothing to mix.
pub fn part_names(recipe: &Recipe) -> Vec<String> {
    let data = &recipe.data;
    let mut names = match &data.weights {
        Some(_) => data.sources.clone(),
        None if data.sources.is_empty() => Vec::new(),
        None => vec!["data.sources".to_owned()],
    };
    if data.generate.as_ref().is_some_and(|g| g.weight.is_some() || names.is_empty()) {
        names.push("data.generate".to_owned());
    }
    names
}

/// Those parts. `tokens` is the size of the vocabulary.
fn parts(recipe: &Recipe, paths: &LocalPaths, tokens: usize) -> Result<Vec<Part>, TrainError> {
    let data = &recipe.data;
    let mut parts = Vec::new();
    match &data.weights {
        Some(weights) => {
            for (source, &weight) in paths.sources.iter().zip(weights) {
                let sources = files(recipe, source)?;
                parts.push(Part { sources, weight, ..Part::default() });
            }
        }
        None if paths.sources.is_empty() && data.generate.is_some() => {}
        None => {
            let sources = sources(recipe, paths)?;
            parts.push(Part { sources, weight: 1.0, ..Part::default() });
        }
    }
    if let (Some(generate), Some(samples)) = (&data.generate, &paths.samples) {
        let mut documents = Vec::new();
        samples.choose(&filters(generate), generate.tokens, |ids| {
            // Rows of a model beyond its vocabulary are padding.
            if ids.iter().all(|&id| (id as usize) < tokens) {
                documents.push(ids);
            }
        })?;
        match (generate.weight, parts.last_mut()) {
            (None, Some(all)) => all.documents = documents,
            (weight, _) => {
                let weight = weight.unwrap_or(1.0);
                parts.push(Part { documents, weight, ..Part::default() });
            }
        }
    }
    parts.iter_mut().zip(part_names(recipe)).for_each(|(part, name)| part.name = name);
    Ok(parts)
}

impl Prepared {
    /// The student's first weights, and what was read if they came from a file.
    ///
    /// # Errors
    /// [`TrainError::Model`].
    pub fn first_student(
        &self,
        recipe: &Recipe,
        paths: &LocalPaths,
        device: &Device,
    ) -> Result<(LlamaForCausalLM, Option<LoadReport>), TrainError> {
        match (&recipe.student.init, &paths.student, &paths.teacher) {
            (StudentInit::From(_), Some(path), _) => {
                let (mut model, report) = load_pretrained(path, device)?;
                let keeps_scales = |q: &distill_recipe::Quantize| {
                    q.method == Method::Round && q.scales != Scales::Weights
                };
                if !recipe.quantize.as_ref().is_some_and(keeps_scales) {
                    model = model.with_block_scales(BTreeMap::new());
                }
                Ok((model, Some(report)))
            }
            (StudentInit::KeepLayers(keep), _, Some(path)) => {
                let teacher = match &self.teacher_model {
                    Some(TeacherModel::Graph(model, _)) => LlamaForCausalLM::clone(model),
                    _ => load_pretrained(path, device)?.0,
                };
                Ok((teacher.cut(keep)?, None))
            }
            _ => Ok((LlamaForCausalLM::init(&self.student, recipe.seed, device), None)),
        }
    }
}

/// Checks that a student's sizes fit each other, the grids and the sequences.
///
/// # Errors
/// [`TrainError::Model`] naming the size, [`TrainError::SequenceTooLong`].
pub fn check_shape(recipe: &Recipe, student: &LlamaConfig) -> Result<(), TrainError> {
    student.validate("student.config")?;
    let (sequence_length, positions) =
        (recipe.data.sequence_length, student.max_position_embeddings);
    if sequence_length > positions {
        return Err(TrainError::SequenceTooLong { sequence_length, positions });
    }
    if let Some(options) = &recipe.train.lora {
        lora(options).check(student)?;
    }
    Ok(grids(recipe).check(student)?)
}

/// The backend's device, by the recipe's name for it.
///
/// # Errors
/// [`ModelError::BackendMissing`] if this build does not contain it.
pub fn device(backend: distill_recipe::Backend) -> Result<Device, ModelError> {
    match backend {
        distill_recipe::Backend::Flex => Backend::Flex,
        distill_recipe::Backend::Ndarray => Backend::Ndarray,
        distill_recipe::Backend::Wgpu => Backend::Wgpu,
        distill_recipe::Backend::Cuda => Backend::Cuda,
    }
    .device()
}

/// How the student is held against the teacher.
pub fn distillation(recipe: &Recipe) -> Option<Distillation> {
    recipe.distill.as_ref().map(|d| Distillation {
        divergence: match d.loss {
            DivergenceKind::ForwardKl => Divergence::ForwardKl,
            DivergenceKind::ReverseKl => Divergence::ReverseKl,
            DivergenceKind::Jsd { beta } => Divergence::Jsd { beta },
        },
        temperature: d.temperature,
        scale_by_temperature_squared: d.scale_by_temperature_squared,
        cross_entropy: d.cross_entropy,
    })
}

/// The grids that ship.
pub fn grids(recipe: &Recipe) -> WeightGrids {
    let weights = |grid| match grid {
        distill_recipe::WeightGrid::Q4_0 => WeightGrid::Q4_0,
        distill_recipe::WeightGrid::Q8_0 => WeightGrid::Q8_0,
        distill_recipe::WeightGrid::None => WeightGrid::Float,
    };
    recipe.quantize.as_ref().map_or(WeightGrids::default(), |q| WeightGrids {
        linears: weights(q.linears),
        embeddings: weights(q.embeddings),
        activations: match q.activations {
            distill_recipe::ActivationGrid::Q8_0 => ActivationGrid::Q8_0,
            distill_recipe::ActivationGrid::Float => ActivationGrid::Float,
        },
    })
}

/// The recipe's low-rank factors.
pub fn lora(lora: &distill_recipe::Lora) -> LoraOptions {
    LoraOptions {
        rank: lora.rank,
        alpha: lora.alpha,
        targets: lora.targets.iter().map(|target| target.name().to_string()).collect(),
    }
}

/// The tokenizer of a model directory or GGUF file.
///
/// # Errors
/// [`TrainError::Data`] if there is none or it does not parse.
pub fn read_tokenizer(path: &Path) -> Result<TextTokenizer, TrainError> {
    if path.extension().is_some_and(|e| e == "gguf") {
        let file = GgufFile::open(path).map_err(ModelError::from)?;
        Ok(TextTokenizer::from_gguf(&file)?)
    } else {
        Ok(TextTokenizer::from_directory(path)?)
    }
}

/// The files of the recipe's text.
///
/// # Errors
/// [`TrainError::Data`].
pub fn sources(recipe: &Recipe, paths: &LocalPaths) -> Result<Vec<Source>, TrainError> {
    files(recipe, paths.sources.iter().flatten())
}

fn files<'a>(
    recipe: &Recipe,
    specs: impl IntoIterator<Item = &'a String>,
) -> Result<Vec<Source>, TrainError> {
    let options = SourceOptions {
        text_field: recipe.data.text_field.clone(),
        document_separator: recipe.data.document_separator.clone(),
    };
    let mut sources = Vec::new();
    for spec in specs {
        sources.extend(Source::resolve(spec, &options)?);
    }
    Ok(sources)
}

fn tokenizer(recipe: &Recipe, paths: &LocalPaths, run: &Path) -> Result<TextTokenizer, TrainError> {
    let TokenizerChoice::Train { vocab_size } = recipe.student.tokenizer else {
        return named_tokenizer(recipe, paths);
    };
    let kept = run.join("tokenizer");
    if kept.join("tokenizer.json").is_file() {
        return Ok(TextTokenizer::from_directory(&kept)?);
    }
    let special = SpecialTokens::default();
    let sources = sources(recipe, paths)?;
    let trained = TextTokenizer::train(documents(&sources)?, vocab_size, &special)
        .map_err(|error| empty(error, &sources))?;
    write_tokenizer(&kept, &trained)?;
    Ok(trained)
}

/// The tokenizer that the recipe names; not one that it has trained.
///
/// # Errors
/// [`TrainError::Data`] if it does not parse, [`TrainError::Tokenizers`] if none is named.
pub fn named_tokenizer(recipe: &Recipe, paths: &LocalPaths) -> Result<TextTokenizer, TrainError> {
    let named = match &recipe.student.tokenizer {
        TokenizerChoice::From(_) => &paths.tokenizer,
        TokenizerChoice::Student => &paths.student,
        TokenizerChoice::Teacher if paths.teacher.is_none() => &paths.teacher_tokenizer,
        TokenizerChoice::Teacher => &paths.teacher,
        TokenizerChoice::Train { .. } => &None,
    };
    match named.as_ref().or(paths.student.as_ref()).or(paths.teacher.as_ref()) {
        Some(path) => read_tokenizer(path),
        None => Err(TrainError::Tokenizers {
            problem: "the recipe names none; set `student.tokenizer` or `student.train_tokenizer`"
                .into(),
        }),
    }
}

/// Names the files where the tokenizer only knows that there was no text.
fn empty(error: DataError, sources: &[Source]) -> DataError {
    match (error, sources.first()) {
        (DataError::NoTrainingText, Some(first)) => {
            DataError::NoText { files: sources.len(), first: first.path().to_path_buf() }
        }
        (error, _) => error,
    }
}

/// The shape of the student, without its weights; `new` makes that of one that is not cut or read.
///
/// # Errors
/// [`TrainError::Model`].
pub fn student_config(
    recipe: &Recipe,
    paths: &LocalPaths,
    teacher: Option<&LlamaConfig>,
    new: impl FnOnce(&NewModel) -> LlamaConfig,
) -> Result<LlamaConfig, TrainError> {
    match (&recipe.student.init, &paths.student, teacher) {
        (StudentInit::From(_), Some(path), _) => Ok(read_config(path)?),
        (StudentInit::KeepLayers(keep), _, Some(teacher)) => Ok(teacher.cut(keep)?),
        (StudentInit::Config(shape), _, _) => Ok(new(shape)),
        _ => Err(TrainError::Model(ModelError::KeepLayers {
            problem: "there is no teacher to cut from".into(),
        })),
    }
}

fn new_config(new: &NewModel, tokenizer: &TextTokenizer) -> LlamaConfig {
    LlamaConfig {
        bos_token_id: tokenizer.bos(),
        eos_token_id: tokenizer.eos().map(TokenIds::One),
        ..shape_of(new, tokenizer.vocab_size())
    }
}

/// The shape of a new model of that many tokens.
pub fn shape_of(new: &NewModel, vocab_size: usize) -> LlamaConfig {
    LlamaConfig {
        vocab_size,
        hidden_size: new.hidden_size,
        intermediate_size: new.intermediate_size,
        num_hidden_layers: new.num_hidden_layers,
        num_attention_heads: new.num_attention_heads,
        num_key_value_heads: new.num_key_value_heads,
        head_dim: new.head_dim,
        rope_theta: new.rope_theta,
        rope_scaling: None,
        rms_norm_eps: new.rms_norm_eps,
        max_position_embeddings: new.max_position_embeddings,
        tie_word_embeddings: new.tie_word_embeddings,
        bos_token_id: None,
        eos_token_id: None,
    }
}

/// How a tokenizer differs from the student's; `None` if it does not.
pub(crate) fn difference(student: &TextTokenizer, other: &TextTokenizer) -> Option<String> {
    if student.fingerprint() == other.fingerprint() {
        return None;
    }
    let (ours, theirs) = (student.vocab_size(), other.vocab_size());
    if ours != theirs {
        return Some(format!("it has {theirs} tokens, the student's {ours}"));
    }
    let same = |id: &u32| student.token(*id) == other.token(*id);
    Some(match (0..ours as u32).find(|id| !same(id)) {
        Some(id) => format!(
            "token {id} is {:?} there and {:?} for the student",
            other.token(id).unwrap_or_default(),
            student.token(id).unwrap_or_default()
        ),
        None => "the tokens are the same but the merges are not".into(),
    })
}

fn covers(
    model: &'static str,
    config: &LlamaConfig,
    tokenizer: &TextTokenizer,
) -> Result<(), TrainError> {
    let (rows, tokens) = (config.vocab_size, tokenizer.vocab_size());
    if rows < tokens {
        return Err(TrainError::Vocabulary { model, rows, tokens });
    }
    Ok(())
}
