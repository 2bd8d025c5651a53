//! `distill eval`: tasks on files, on what ships or on what trains.

use std::io::Write;
use std::path::{Path, PathBuf};

use distill_edge::{LoadOptions, Model};
use distill_eval::evaluation::{Options, Outcome, table};
use distill_eval::{Bootstrap, GraphModel, LanguageModel, RuntimeModel};
use distill_models::{Backend, WeightGrids, load_pretrained};
use distill_train::{TrainError, prepare};
use serde::Serialize;

use crate::failure::Failure;
use crate::output::{put, put_line};
use crate::progress::{ItemBar, spinner};
use crate::run_directory::sha256;
use crate::{cli, hardware, run_directory};

/// What was measured, of what, and how: the JSON file.
#[derive(Serialize)]
struct Evaluation<'a> {
    version: &'a str,
    finished: String,
    cpu: String,
    threads: usize,
    model: Measured,
    reference: Option<Measured>,
    options: Options,
    confidence: f64,
    tasks: Vec<Recorded>,
}

/// A model that was measured.
#[derive(Clone, Serialize)]
struct Measured {
    /// The file or directory that was read.
    path: PathBuf,
    through: String,
    kernels: Option<&'static str>,
    /// Of a file.
    sha256: Option<String>,
}

/// A task's outcome, and what its file was.
#[derive(Serialize)]
struct Recorded {
    sha256: String,
    #[serde(flatten)]
    outcome: Outcome,
}

/// Measures every task, prints a table, and writes what it was made of.
pub fn eval(args: &cli::Eval) -> Result<(), Failure> {
    if let Some(path) = &args.json {
        writable(path)?;
    }
    let options = Options {
        context: args.context,
        chunks: args.chunks,
        limit: args.limit.unwrap_or(usize::MAX),
        bootstrap: Bootstrap { resamples: args.resamples, seed: args.seed },
    };
    let (mut model, measured) = open(args, &args.model)?;
    let reference = args.reference.as_ref().map(|path| open(args, path)).transpose()?;
    let (mut reference, compared) = reference.unzip();
    put_line!("model      {}", measured.line())?;
    if let Some(compared) = &compared {
        put_line!("reference  {}", compared.line())?;
    }
    let mut tasks = Vec::with_capacity(args.tasks.len());
    for task in &args.tasks {
        let bar = ItemBar::new(&task.file.display().to_string());
        let reference: Option<&mut dyn LanguageModel> = match &mut reference {
            Some(reference) => Some(reference.as_mut()),
            None => None,
        };
        let mut progress = |done, all| bar.set(done, all);
        let outcome = task.measure(&options, model.as_mut(), reference, &mut progress)?;
        drop(bar);
        put!("\n{}", table(std::slice::from_ref(&outcome)))?;
        tasks.push(Recorded { sha256: sha256(&task.file)?, outcome });
    }
    let Bootstrap { resamples, seed } = options.bootstrap;
    let share = 100.0 * Bootstrap::CONFIDENCE;
    put_line!("\n[low, high]: {share} % of {resamples} draws of chunks or items, seed {seed}")?;
    let Some(path) = &args.json else { return Ok(()) };
    let evaluation = Evaluation {
        version: env!("CARGO_PKG_VERSION"),
        finished: run_directory::timestamp(),
        cpu: hardware::describe(distill_recipe::Backend::Flex, "").cpu,
        threads: args.threads,
        model: measured,
        reference: compared,
        options,
        confidence: Bootstrap::CONFIDENCE,
        tasks,
    };
    run_directory::write_json(path, &evaluation)
}

/// The model that a path names: what ships, unless the training graph is asked for or all there is.
fn open(args: &cli::Eval, path: &Path) -> Result<(Box<dyn LanguageModel>, Measured), Failure> {
    if !path.join(run_directory::RESOLVED).is_file() {
        return match args.graph || path.is_dir() {
            true => graph(path, WeightGrids::default()),
            false => runtime(args, path),
        };
    }
    if args.graph {
        let recipe = run_directory::recipe(path)?;
        return graph(&super::export::chosen(path, &recipe)?, prepare::grids(&recipe));
    }
    let exported = path.join("export/model.gguf");
    if !exported.is_file() {
        return Err(Failure::NotARun {
            path: exported,
            problem: "the run has no exported model; make one with `distill export`, or measure \
                      its checkpoint with --graph"
                .into(),
        });
    }
    runtime(args, &exported)
}

fn runtime(args: &cli::Eval, path: &Path) -> Result<(Box<dyn LanguageModel>, Measured), Failure> {
    let activations = args.activations.map(Into::into);
    let load = LoadOptions { activations, threads: args.threads, ..LoadOptions::default() };
    let model = Model::load(path, &load)?;
    let kernels = Some(model.kernel_name());
    let model = RuntimeModel::new(&model, args.kv.into(), args.threads)?;
    let (through, sha256) = (model.through(), Some(sha256(path)?));
    Ok((Box::new(model), Measured { path: path.to_path_buf(), through, kernels, sha256 }))
}

fn graph(path: &Path, grids: WeightGrids) -> Result<(Box<dyn LanguageModel>, Measured), Failure> {
    let bar = spinner(&format!("reading {}", path.display()));
    let device = Backend::Flex.device().map_err(TrainError::from)?;
    let tokenizer = prepare::read_tokenizer(path)?;
    let (masters, _) = load_pretrained(path, &device).map_err(TrainError::from)?;
    let model = GraphModel::new(&masters, grids, tokenizer, &device)?;
    bar.finish_and_clear();
    let through = model.through();
    let sha256 = path.is_file().then(|| sha256(path)).transpose()?;
    Ok((Box::new(model), Measured { path: path.to_path_buf(), through, kernels: None, sha256 }))
}

impl Measured {
    fn line(&self) -> String {
        let kernels = self.kernels.map_or(String::new(), |name| format!(", {name} kernels"));
        format!("{} · {}{kernels}", self.path.display(), self.through)
    }
}

/// Whether a file can be written there: to be known before the work.
fn writable(path: &Path) -> Result<(), Failure> {
    let probe = path.with_extension("tmp");
    let mut file = std::fs::File::create(&probe).map_err(Failure::io("creating", &probe))?;
    file.flush().map_err(Failure::io("writing", &probe))?;
    std::fs::remove_file(&probe).map_err(Failure::io("removing", &probe))
}
