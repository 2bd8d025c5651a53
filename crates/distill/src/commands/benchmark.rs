//! The tasks of a run: of its student in full precision, on the grid without training, and as
//! exported. Models lie in `baselines/<name>/model.gguf`, what was measured in
//! `evaluation/<name>.json`.

use std::error::Error;
use std::path::{Path, PathBuf};

use distill_data::TextTokenizer;
use distill_edge::{LoadOptions, Model};
use distill_eval::benchmark::{ModelRecords, Role, TaskRecords};
use distill_eval::evaluation::{Options, Task, TaskFile};
use distill_eval::{Bootstrap, EvalError, LanguageModel, RuntimeModel};
use distill_export::{Activations, GgufOptions, Grid};
use distill_models::{LlamaForCausalLM, save};
use distill_recipe::{Method, Recipe, Tasks};
use distill_train::{Observer, Record};

use super::export::options;
use crate::failure::Failure;
use crate::progress::{ItemBar, TrainingBar};
use crate::run_directory::sha256;
use crate::{hardware, run_directory};

/// Hears of a run's training, and keeps the models that the trained one is held against.
pub struct Keeper<'a> {
    bar: TrainingBar,
    recipe: &'a Recipe,
    run: &'a Path,
    tokenizer: &'a TextTokenizer,
}

impl<'a> Keeper<'a> {
    /// For the run of a recipe.
    pub fn new(recipe: &'a Recipe, run: &'a Path, tokenizer: &'a TextTokenizer) -> Self {
        Self { bar: TrainingBar::new(recipe.train.steps), recipe, run, tokenizer }
    }

    fn keep(&self, role: Role, model: &LlamaForCausalLM) -> Result<(), Failure> {
        let path = gguf(self.run, role);
        let masters = path.with_file_name("masters");
        std::fs::create_dir_all(&masters).map_err(Failure::io("creating", &masters))?;
        save::save(model, &masters).map_err(distill_train::TrainError::from)?;
        self.tokenizer.save(&masters).map_err(distill_train::TrainError::from)?;
        let options = match role {
            // What the other programs of the field take for it.
            Role::FullPrecision => GgufOptions {
                linears: Grid::F16,
                embeddings: Grid::F16,
                activations: Activations::Float,
                name: self.recipe.name.clone(),
            },
            _ => options(self.recipe),
        };
        distill_export::export_gguf(&masters, &path, &options)?;
        std::fs::remove_dir_all(&masters).map_err(Failure::io("removing", &masters))
    }
}

impl Observer for Keeper<'_> {
    fn record(&mut self, record: &Record, tokens_per_second: Option<f64>) {
        self.bar.record(record, tokens_per_second);
    }

    fn quantized(&mut self, layers: usize, of: usize) {
        self.bar.quantized(layers, of);
    }

    fn untrained(
        &mut self,
        method: Option<Method>,
        model: &LlamaForCausalLM,
    ) -> Result<(), Box<dyn Error + Send + Sync>> {
        let role = method.map_or(Role::FullPrecision, role);
        Ok(self.keep(role, model)?)
    }

    fn checkpoint(&mut self, path: &Path) {
        self.bar.checkpoint(path);
    }
}

fn role(method: Method) -> Role {
    match method {
        Method::Round => Role::Round,
        Method::Search => Role::Search,
        Method::Gptq => Role::Gptq,
    }
}

fn gguf(run: &Path, role: Role) -> PathBuf {
    match role {
        Role::Exported => run.join("export/model.gguf"),
        _ => run.join(format!("baselines/{}/model.gguf", role.name())),
    }
}

fn options_of(recipe: &Recipe, tasks: &Tasks) -> Options {
    Options {
        context: tasks.context,
        chunks: tasks.chunks.unwrap_or(usize::MAX),
        limit: tasks.limit.unwrap_or(usize::MAX),
        bootstrap: Bootstrap { seed: recipe.seed, ..Bootstrap::default() },
    }
}

/// Reads the tasks' files for a student of so many positions: better now than after all training.
pub fn check(recipe: &Recipe, positions: usize) -> Result<(), Failure> {
    let Some(tasks) = &recipe.eval.tasks else { return Ok(()) };
    if !tasks.perplexity.is_empty() && tasks.context > positions {
        let tokens = tasks.context;
        return Err(EvalError::Context { tokens, context: positions }.into());
    }
    let options = options_of(recipe, tasks);
    files(tasks).iter().try_for_each(|file| Ok(file.check(&options)?))
}

/// Measures the tasks of every model, writing each one's records when they are there.
pub fn benchmark(recipe: &Recipe, run: &Path, tasks: &Tasks) -> Result<Vec<ModelRecords>, Failure> {
    let options = options_of(recipe, tasks);
    let mut roles = Vec::new();
    if recipe.quantize.is_some() {
        roles.push(Role::FullPrecision);
        roles.extend(tasks.baselines.iter().map(|&method| role(method)));
    }
    roles.push(Role::Exported);
    let directory = run.join("evaluation");
    std::fs::create_dir_all(&directory).map_err(Failure::io("creating", &directory))?;
    let full_precision = gguf(run, Role::FullPrecision);
    let full_precision = Some(full_precision).filter(|_| recipe.quantize.is_some());
    let files = files(tasks);
    let mut all = Vec::with_capacity(roles.len());
    // What a report that was cut short has measured stays; of other weights before it nothing does.
    let mut stays = true;
    for role in roles {
        let kept = if stays { kept(run, role, &files, options)? } else { None };
        let records = match kept {
            Some(records) => records,
            None => {
                stays = false;
                let reference = full_precision.as_deref().filter(|_| role != Role::FullPrecision);
                let records = measure(run, role, reference, &files, options)?;
                run_directory::write_json(&run.join(records.file()), &records)?;
                records
            }
        };
        all.push(records);
    }
    Ok(all)
}

/// A model's records, if they are there and of the same model, files and options.
fn kept(
    run: &Path,
    role: Role,
    files: &[TaskFile],
    options: Options,
) -> Result<Option<ModelRecords>, Failure> {
    let path = run.join(role.records());
    let Ok(text) = std::fs::read_to_string(&path) else { return Ok(None) };
    let Ok(records) = serde_json::from_str::<ModelRecords>(&text) else { return Ok(None) };
    let same = records.version == env!("CARGO_PKG_VERSION")
        && records.options == options
        && records.tasks.iter().map(|task| &task.outcome.task).eq(files)
        && records.sha256 == sha256(&gguf(run, role))?;
    if !same {
        return Ok(None);
    }
    for task in &records.tasks {
        if task.sha256 != sha256(&task.outcome.task.file)? {
            return Ok(None);
        }
    }
    Ok(Some(records))
}

/// The tasks, one a file.
pub fn files(tasks: &Tasks) -> Vec<TaskFile> {
    let of = |task, files: &[String]| -> Vec<TaskFile> {
        files.iter().map(|file| TaskFile { task, file: file.into() }).collect()
    };
    [
        of(Task::Perplexity, &tasks.perplexity),
        of(Task::Choice, &tasks.choice),
        of(Task::LastWord, &tasks.last_word),
    ]
    .concat()
}

fn measure(
    run: &Path,
    role: Role,
    reference: Option<&Path>,
    files: &[TaskFile],
    options: Options,
) -> Result<ModelRecords, Failure> {
    let path = gguf(run, role);
    let mut model = load(&path)?;
    let mut reference = reference.map(load).transpose()?;
    let mut tasks = Vec::with_capacity(files.len());
    for task in files {
        let bar = ItemBar::new(&format!("{}: {}", role.title(), task.name()));
        let mut progress = |done, all| bar.set(done, all);
        // Items are compared by their records; a divergence takes both models at once.
        let reference = match task.task {
            Task::Perplexity => reference.as_mut().map(|model| model as &mut dyn LanguageModel),
            Task::Choice | Task::LastWord => None,
        };
        let outcome = task.measure(&options, &mut model, reference, &mut progress)?;
        tasks.push(TaskRecords { sha256: sha256(&task.file)?, outcome });
    }
    Ok(ModelRecords {
        role,
        version: env!("CARGO_PKG_VERSION").into(),
        path: path.strip_prefix(run).unwrap_or(&path).display().to_string(),
        sha256: sha256(&path)?,
        bytes: std::fs::metadata(&path).map_err(Failure::io("reading", &path))?.len(),
        through: model.through(),
        options,
        tasks,
    })
}

fn load(path: &Path) -> Result<RuntimeModel, Failure> {
    let threads = hardware::threads();
    let model = Model::load(path, &LoadOptions { threads, ..LoadOptions::default() })?;
    Ok(RuntimeModel::new(&model, distill_edge::KvType::default(), threads)?)
}
