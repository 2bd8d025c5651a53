//! `distill run`: plan, prepare, train, export, verify, report. Each step leaves files behind that
//! the next one reads, so a run that was cut short goes on with `--resume`.

use distill_data::Dataset;
use distill_eval::runtime;
use distill_models::LoadReport;
use distill_recipe::Recipe;
use distill_train::teacher::RuntimeTeacher;
use distill_train::{TeacherModel, Trainer, checkpoint, prepare};

use super::plan::WholePlan;
use super::{benchmark, export, report, verify};
use crate::failure::Failure;
use crate::progress::spinner;
use crate::{cli, hub, run_directory, writer};

/// The plan, in the run directory.
const PLAN: &str = "plan.json";

/// Bytes of stack of the threads that compute, as many as the first thread of a process has.
const STACK: usize = 8 << 20;

/// Runs the recipe; a run whose parity fails is an error, after its report was written.
pub fn run(args: &cli::Run) -> Result<(), Failure> {
    distill_ops::memory::keep_what_is_freed();
    // On one of the pool's own threads: an operator wakes one thread less. A pool that is there
    // already is as good.
    let _ = rayon::ThreadPoolBuilder::new().stack_size(STACK).build_global();
    rayon::scope(|_| on_this_thread(args))
}

fn on_this_thread(args: &cli::Run) -> Result<(), Failure> {
    let (document, recipe) = Recipe::from_path(&args.recipe.recipe, &args.recipe.set)?;
    let device = prepare::device(recipe.backend).map_err(distill_train::TrainError::from)?;
    let mut paths = hub::local_paths(&recipe)?;
    let generation = writer::open(&recipe, &mut paths)?;
    let run = if args.resume {
        run_directory::newest(&recipe)?
    } else {
        let (set, generation) = (&args.recipe.set, generation.as_ref());
        let plan = WholePlan::new(&recipe, &document, set, &paths, generation, &device)?;
        eprint!("{}", plan.text());
        let run = run_directory::create(&recipe, &document.text)?;
        run_directory::write_json(&run.join(PLAN), &plan)?;
        run
    };
    eprintln!("run {}", run.display());
    if let Some(generation) = &generation {
        writer::write(&recipe, generation, u64::MAX)?;
    }
    drop(generation);

    let bar = spinner("reading models and data");
    let prepared = prepare::prepare(&recipe, &paths, &run, &device, &mut |_| bar.tick());
    bar.finish_and_clear();
    let mut prepared = prepared?;
    prepared.teacher = match super::teacher::ask(&recipe, &paths, &prepared, &device)? {
        Some(teacher) => Some(Box::new(teacher)),
        None => prepared.teacher,
    };
    if recipe.export.gguf {
        // Better now than after all training.
        let directory = run.join("tokenizer");
        if !directory.is_dir() {
            checkpoint::write_tokenizer(&directory, &prepared.tokenizer)?;
        }
        distill_export::check_tokenizer(&directory, prepared.student.vocab_size)
            .map_err(|error| Failure::Usage(format!("the student cannot be exported: {error}")))?;
    }
    benchmark::check(&recipe, prepared.student.max_position_embeddings)?;
    eprintln!(
        "student {:.1} M parameters · {} training sequences of {} tokens, {} held out",
        prepared.student.parameters() as f64 / 1e6,
        prepared.dataset.train.len(),
        recipe.data.sequence_length,
        prepared.dataset.held_out.len()
    );
    mix(&recipe, &prepared.dataset);
    match &prepared.teacher_model {
        Some(TeacherModel::Graph(_, report)) => loaded("teacher", report),
        Some(TeacherModel::Runtime(model)) => {
            let computes = runtime::configuration(model, RuntimeTeacher::cache(model));
            eprintln!("teacher {} in the edge runtime ({computes})", model.path().display());
        }
        None => {}
    }

    let first = || {
        let (student, report) = prepared.first_student(&recipe, &paths, &device)?;
        if let Some(report) = &report {
            loaded("student", report);
        }
        Ok(student)
    };
    let trainer = Trainer::open(&recipe, &prepared, first, run.clone(), device.clone())?;
    if let Some(lora) = &recipe.train.lora {
        let trained = trainer.trained() as f64 / 1e6;
        eprintln!("LoRA of rank {}: {trained:.2} M numbers trained, all weights frozen", lora.rank);
    }
    if args.profile {
        distill_ops::profile::start();
    }
    let last = trainer.run(&mut benchmark::Keeper::new(&recipe, &run, &prepared.tokenizer))?;
    if let Some(profile) = distill_ops::profile::stop() {
        super::profile::report(&profile, &run)?;
    }

    let files = export::export(&recipe, &run, &last)?;
    let parity = match files.gguf.is_some() {
        true => Some(verify::verify(&recipe, &run, &last, &prepared.tokenizer, &prepared.dataset)?),
        false => None,
    };
    report::report(&recipe, &run, &last, &prepared, &files, parity.clone(), &device)?;
    match parity {
        Some(parity) if !parity.passed => Err(verify::failure(&run, &parity)),
        _ => Ok(()),
    }
}

/// Says what an epoch is mixed of.
fn mix(recipe: &Recipe, dataset: &Dataset) {
    let (parts, epoch) = (dataset.train.parts(), dataset.train.len() as f64);
    if parts.len() < 2 {
        return;
    }
    for (name, (sequences, quota)) in prepare::part_names(recipe).iter().zip(parts) {
        let (share, times) = (100.0 * quota as f64 / epoch, quota as f64 / sequences as f64);
        eprintln!("  {share:.0} % of {name}: {sequences} sequences, {times:.1} times an epoch");
    }
}

/// Says what a model was read from. Missing and unexpected tensors are errors before this.
fn loaded(role: &str, report: &LoadReport) {
    let types: Vec<String> = report.types.iter().map(|(ty, n)| format!("{n} × {ty}")).collect();
    let ignored = match report.ignored.as_slice() {
        [] => String::new(),
        names => format!("; not needed: {}", names.join(", ")),
    };
    eprintln!("{role} {} ({}{ignored})", report.path.display(), types.join(", "));
}
