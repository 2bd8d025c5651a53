//! `distill teacher`: asking, looking into what was said.

use std::path::Path;
use std::time::Duration;

use burn::tensor::Device;
use distill_edge::{LoadOptions, Model};
use distill_export::{Activations as GgufActivations, GgufOptions, Grid};
use distill_recipe::Recipe;
use distill_teacher::serve::ServeOptions;
use distill_teacher::{Cache, CacheStatistics, Choice, ProbeReport, Secret, parquet};
use distill_train::teach::{Teaching, budget, client};
use distill_train::teacher::CachedTeacher;
use distill_train::{LocalPaths, Prepared, TrainError, prepare};

use crate::cli::{self, TeacherCommand};
use crate::failure::Failure;
use crate::output::put_line;
use crate::progress::{TeachingBar, spinner};
use crate::{hub, writer};

/// Does what was typed.
pub fn teacher(command: &TeacherCommand) -> Result<(), Failure> {
    match command {
        TeacherCommand::Probe(args) => probe(args),
        TeacherCommand::Cache(args) => cache(args),
        TeacherCommand::Inspect(args) => inspect(&args.cache),
        TeacherCommand::Verify(args) => verify(&args.cache),
        TeacherCommand::Merge(args) => merge(args),
        TeacherCommand::Export(args) => export(args),
        TeacherCommand::Serve(args) => serve(args),
    }
}

/// The teacher that a run hears, if it is one that is asked beforehand: what is not known yet is asked
/// now.
pub fn ask(
    recipe: &Recipe,
    paths: &LocalPaths,
    prepared: &Prepared,
    device: &Device,
) -> Result<Option<CachedTeacher>, Failure> {
    let (tokenizer, dataset) = (&prepared.tokenizer, &prepared.dataset);
    let Some(teaching) = Teaching::of(recipe, paths, tokenizer, dataset)? else { return Ok(None) };
    let cache = fill(&teaching, device)?;
    Ok(Some(CachedTeacher::new(cache, teaching.kind())))
}

/// Asks for what a cache lacks, and says where it lies.
fn fill(teaching: &Teaching<'_>, device: &Device) -> Result<Cache, Failure> {
    let mut bar = TeachingBar::new();
    let (mut silent, mut positions) = (0, 0);
    let cache = teaching.cache(device, &mut |asked| {
        (silent, positions) = (asked.silent, asked.positions);
        bar.show(&asked);
    });
    drop(bar);
    let cache = cache?;
    eprintln!("teacher {}, kept in {}", cache.about().teacher, cache.path().display());
    if silent > 0 {
        let share = 100.0 * silent as f64 / positions as f64;
        eprintln!("at {share:.1} % of the positions it said nothing; there, only the text teaches");
    }
    Ok(cache)
}

/// Tokenizer and text of a recipe, without its student.
fn with_text<T>(
    args: &cli::Recipe,
    with: impl FnOnce(&Recipe, &LocalPaths, &Teaching<'_>) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let (_, recipe) = Recipe::from_path(&args.recipe, &args.set)?;
    let mut paths = hub::local_paths(&recipe)?;
    if let Some(generation) = writer::open(&recipe, &mut paths)? {
        writer::write(&recipe, &generation, u64::MAX)?;
    }
    let scratch = tempfile::tempdir()
        .map_err(Failure::io("creating a directory in", &std::env::temp_dir()))?;
    let bar = spinner("reading the data");
    let text = prepare::text(&recipe, &paths, scratch.path(), &mut |_| bar.tick());
    bar.finish_and_clear();
    let (tokenizer, dataset) = text?;
    prepare::check_teacher_tokenizer(&paths, &tokenizer)?;
    match Teaching::of(&recipe, &paths, &tokenizer, &dataset)? {
        Some(teaching) => with(&recipe, &paths, &teaching),
        None => Err(Failure::Usage(
            "the recipe's teacher says everything in every step, and nothing of it is kept; add \
             [teacher.signal] with `top_k` or `draws`, or [teacher.remote]"
                .to_owned(),
        )),
    }
}

fn cache(args: &cli::Recipe) -> Result<(), Failure> {
    with_text(args, |recipe, _, teaching| {
        let device = prepare::device(recipe.backend).map_err(TrainError::from)?;
        let cache = fill(teaching, &device)?;
        let held = cache.verify()?;
        put_line!("{}", cache.path().display())?;
        statistics(&held)
    })
}

fn probe(args: &cli::Recipe) -> Result<(), Failure> {
    with_text(args, |recipe, _, teaching| {
        let Some(remote) = recipe.teacher.as_ref().and_then(|teacher| teacher.remote()) else {
            return Err(Failure::Usage(
                "the recipe has no [teacher.remote]; a local teacher needs no probe".to_owned(),
            ));
        };
        let mut client = client(remote, teaching.tokenizer())?;
        let report = teaching.probe(&mut client)?;
        show(&report, client.may_be_shifted())?;
        if let Some(tokens) = budget(remote) {
            put_line!("at most {tokens} tokens will be sent")?;
        }
        report.into_result()?;
        Ok(())
    })
}

fn show(report: &ProbeReport, may_be_shifted: bool) -> Result<(), Failure> {
    for finding in &report.findings {
        let mark = if finding.passed { "ok  " } else { "FAIL" };
        put_line!("{mark} {}  {}: {}", finding.endpoint, finding.check, finding.found)?;
    }
    if may_be_shifted {
        put_line!("rows are read as {:?}", report.rows)?;
    }
    Ok(())
}

fn inspect(path: &Path) -> Result<(), Failure> {
    let cache = Cache::open_as_it_is(path)?;
    let about = cache.about();
    let template = about.template.as_deref().unwrap_or("none");
    let signal = match about.signal.choice {
        Choice::TopK { k } => format!("the {k} likeliest tokens, and a bucket of all others"),
        Choice::Sampled { draws, power } => format!("{draws} draws from p^{power}"),
    };
    put_line!("teacher      {}", about.teacher)?;
    put_line!("tokenizer    {}", about.tokenizer)?;
    put_line!("template     {template}")?;
    put_line!("signal       {signal}, at temperature {}", about.signal.temperature)?;
    put_line!("made by      {}, format {}", about.library, about.format)?;
    statistics(&cache.statistics()?)
}

fn verify(path: &Path) -> Result<(), Failure> {
    statistics(&Cache::open_as_it_is(path)?.verify()?)?;
    put_line!("every shard is as it was written")
}

fn statistics(held: &CacheStatistics) -> Result<(), Failure> {
    let each = |n: u64| n as f64 / held.positions.max(1) as f64;
    put_line!("holds        {} sequences in {} shards", held.texts, held.shards)?;
    put_line!(
        "of them      {} positions, {:.1} tokens and {:.1} bytes each",
        held.positions,
        each(held.entries),
        each(held.bytes)
    )
}

fn merge(args: &cli::Merge) -> Result<(), Failure> {
    let mut into = Cache::open_as_it_is(&args.into)?;
    for path in &args.from {
        let came = into.merge(&Cache::open_as_it_is(path)?)?;
        put_line!("{came} sequences from {}", path.display())?;
    }
    Ok(())
}

fn export(args: &cli::CacheExport) -> Result<(), Failure> {
    let rows = parquet::export(&Cache::open_as_it_is(&args.cache)?, &args.out)?;
    put_line!("{rows} rows in {}", args.out.display())
}

fn serve(args: &cli::Serve) -> Result<(), Failure> {
    let path = hub::local_model(&args.model)?;
    // What the runtime does not read is written as a file that it does, in full precision.
    let scratch = tempfile::tempdir()
        .map_err(Failure::io("creating a directory in", &std::env::temp_dir()))?;
    let file = match path.is_dir() {
        false => path,
        true => {
            let bar = spinner(&format!("converting {}", path.display()));
            let file = scratch.path().join("model.gguf");
            let grid = Grid::F32;
            let activations = GgufActivations::Float;
            let name = args.model.clone();
            let options = GgufOptions { linears: grid, embeddings: grid, activations, name };
            let converted = distill_export::export_gguf(&path, &file, &options);
            bar.finish_and_clear();
            converted?;
            file
        }
    };
    let activations = args.activations.map(Into::into);
    let load = LoadOptions { activations, threads: args.threads, ..LoadOptions::default() };
    let model = Model::load(&file, &load)?;
    let options = ServeOptions {
        address: (args.host, args.port).into(),
        model: args.name.clone().unwrap_or_else(|| args.model.clone()),
        key: args.api_key_env.as_deref().map(Secret::from_env).transpose()?,
        context: args.context.min(model.config().context_length),
        queue: args.queue,
        timeout: Duration::from_secs_f64(args.timeout_s.clamp(0.001, 86_400.0)),
        body_bytes: args.body_mb << 20,
    };
    let name = options.model.clone();
    distill_teacher::serve::serve(&model, options, |address| {
        eprintln!("{name} at http://{address}, protocol \"distill\" or any of OpenAI's clients");
    })?;
    Ok(())
}
