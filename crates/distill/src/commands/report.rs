//! The last step of a run: measure what ships beside what was trained, and tell.

use std::fs;
use std::path::Path;

use burn::tensor::Device;
use distill_edge::bench::{BenchOptions, bench};
use distill_edge::{
    KvType, LoadOptions, Model, Sampler, SamplerOptions, Session, SessionOptions, generate,
};
use distill_eval::benchmark::benchmarks;
use distill_eval::report::{
    Cost, Curve, ExportedFile, Row, RowKind, RunReport, Sample, html, markdown, model_card, table,
};
use distill_eval::{Parity, Reference, Score, runtime};
use distill_recipe::{Method, Recipe, StudentInit};
use distill_train::TeacherModel;
use distill_train::evaluate::evaluate;
use distill_train::metrics::{self, Record};
use distill_train::prepare::Prepared;
use distill_train::trainer::record_of;

use super::export::Exported;
use crate::failure::Failure;
use crate::output::{put, put_line};
use crate::progress::spinner;
use crate::{hardware, run_directory};

/// Measures the tasks, writes `report.json`, `report.html`, `report.md` and the card of the Hugging
/// Face export, and prints the table.
pub fn report(
    recipe: &Recipe,
    run: &Path,
    checkpoint: &Path,
    prepared: &Prepared,
    exported: &Exported,
    parity: Option<Parity>,
    device: &Device,
) -> Result<(), Failure> {
    let bar = spinner("measuring what ships");
    let records = metrics::read(run)?;
    let model = match &exported.gguf {
        None => None,
        Some(path) => {
            let load = LoadOptions { threads: hardware::threads(), ..LoadOptions::default() };
            Some(Model::load(path, &load)?)
        }
    };
    let mut rows = graph_rows(recipe, checkpoint, prepared, exported, &records, device)?;
    let mut samples = Vec::new();
    if let Some(model) = &model {
        rows.push(runtime_row(recipe, prepared, exported, model)?);
        samples = continuations(recipe, model)?;
    }
    bar.finish_and_clear();
    keep_held_out(run, &rows)?;
    let began_finished = matches!(recipe.student.init, StudentInit::From(_))
        && recipe.quantize.as_ref().is_none_or(|quantize| quantize.start_step == 0);
    // The rest of the report does not wait for a file that is no longer there.
    let measured = match &recipe.eval.tasks {
        Some(tasks) => super::benchmark::benchmark(recipe, run, tasks),
        None => Ok(Vec::new()),
    };
    let (models, failure) = match measured {
        Ok(models) => (models, None),
        Err(failure) => (Vec::new(), Some(failure)),
    };
    let benchmarks = benchmarks(&models, began_finished);
    let kernels = model.as_ref().map_or("", |m| m.kernel_name());
    let held_out = &prepared.dataset.held_out;
    let measured: Vec<usize> = (0..recipe.eval.sequences.min(held_out.len())).collect();
    let command = run.join(run_directory::COMMAND);
    let mut report = RunReport {
        name: recipe.name.clone(),
        run: run.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default(),
        version: env!("CARGO_PKG_VERSION").into(),
        finished: run_directory::timestamp(),
        hardware: hardware::describe(recipe.backend, kernels),
        recipe: run_directory::resolved(recipe)?,
        // Of a run that began before this was kept there is none.
        command: fs::read_to_string(&command).unwrap_or_default(),
        cost: cost(&records, &metrics::read_timings(run)?),
        positions: held_out.batch(&measured).valid_tokens(),
        began_finished,
        rows,
        benchmarks,
        curves: curves(&records),
        parity,
        samples,
        files: Vec::new(),
    };
    if let Some(directory) = &exported.huggingface {
        let card = model_card(&report, base(recipe), recipe.quantize.is_some());
        run_directory::write(&directory.join("README.md"), &card)?;
    }
    report.files = files(run)?;
    run_directory::write_json(&run.join("report.json"), &report)?;
    run_directory::write(&run.join("report.md"), &markdown(&report))?;
    let page = run.join("report.html");
    run_directory::write(&page, &html(&report)?)?;
    put!("{}", table(&report))?;
    put_line!("report {}", page.display())?;
    failure.map_or(Ok(()), Err)
}

/// The rows' raw figures, where no log of the run has them.
const HELD_OUT: &str = "evaluation/held_out.jsonl";

/// Writes the figures that were measured just now.
fn keep_held_out(run: &Path, rows: &[Row]) -> Result<(), Failure> {
    let mut lines = String::new();
    for row in rows.iter().filter(|row| row.records == HELD_OUT) {
        let split = if row.kind == RowKind::Teacher { "teacher" } else { "exported" };
        let figures = [
            ("perplexity", row.perplexity),
            ("kl", row.kl),
            ("same_top", row.same_top),
            ("tokens_per_second", row.tokens_per_second),
        ];
        let record = figures.into_iter().filter_map(|(name, value)| Some((name, value?)));
        let record = record.fold(Record::new(0, split), |record, (name, v)| record.with(name, v));
        lines.push_str(&record.to_line());
    }
    let path = run.join(HELD_OUT);
    let directory = path.parent().unwrap_or(run);
    fs::create_dir_all(directory).map_err(Failure::io("creating", directory))?;
    run_directory::write(&path, &lines)
}

/// Steps, tokens and time of training.
fn cost(records: &[Record], timings: &[Record]) -> Cost {
    let sum = |records: &[Record], split: &str, figure: &str| -> Option<f64> {
        let found = records.iter().filter(|record| record.split == split);
        found.map(|record| record.get(figure)).sum()
    };
    Cost {
        steps: records.iter().filter(|record| record.split == "train").count(),
        tokens: sum(records, "train", "tokens").unwrap_or(0.0) as u64,
        seconds: sum(timings, "timing", "seconds").unwrap_or(0.0),
        method_seconds: sum(timings, "method", "seconds").unwrap_or(0.0),
        evaluation_seconds: sum(timings, "evaluation", "seconds").unwrap_or(0.0),
        joules: sum(timings, "timing", "joules").filter(|joules| *joules > 0.0),
    }
}

/// The hub's name of the model that the student began as.
fn base(recipe: &Recipe) -> Option<&str> {
    let StudentInit::From(model) = &recipe.student.init else { return None };
    // A path would have been taken before a name of the hub was looked for.
    let is_id = !Path::new(&model.from).exists() && model.from.split('/').count() == 2;
    is_id.then_some(&model.from[..])
}

/// Teacher, full precision, post-training quantised, quantisation-aware: through the graph.
fn graph_rows(
    recipe: &Recipe,
    checkpoint: &Path,
    prepared: &Prepared,
    exported: &Exported,
    records: &[Record],
    device: &Device,
) -> Result<Vec<Row>, Failure> {
    let mut rows = Vec::new();
    if let Some(teacher) = &prepared.teacher_model {
        let (held_out, vocabulary) = (&prepared.dataset.held_out, prepared.vocabulary);
        let count = recipe.eval.sequences;
        let (score, through, path) = match teacher {
            TeacherModel::Graph(model, report) => {
                let score = evaluate(model, None, held_out, count, vocabulary, device)?;
                (score, "graph".to_owned(), report.path.as_path())
            }
            TeacherModel::Runtime(model) => {
                let threads = hardware::threads();
                let score = runtime::evaluate(model, held_out, count, vocabulary, threads, None)?;
                (score, through_runtime(model), model.path())
            }
        };
        let record = record_of(&score, 0, "teacher");
        let row = row(RowKind::Teacher, "teacher", &through, &record, weights_bytes(path));
        rows.push(Row { records: HELD_OUT.into(), ..row });
    }
    let newest = |split: &str| records.iter().rev().find(|r| r.split == split);
    let graph = |record: &Record| format!("graph, step {}", record.step);
    let masters = weights_bytes(checkpoint);
    let shipped = exported.gguf.as_deref().and_then(weights_bytes);
    if recipe.quantize.is_none() {
        let record = newest("eval");
        rows.extend(record.map(|r| row(RowKind::FullPrecision, "student", &graph(r), r, masters)));
        return Ok(rows);
    }
    let start = match recipe.quantize.as_ref().map(|quantize| quantize.method) {
        Some(Method::Gptq) => "student, by GPTQ",
        Some(Method::Search) => "student, scales searched",
        Some(Method::Round) | None => "student, rounded, scales its own",
    };
    for (split, kind, name, bytes) in [
        ("full_precision", RowKind::FullPrecision, "student, full precision", masters),
        (
            "post_training_quantized",
            RowKind::PostTrainingQuantized,
            "student, rounded to nearest",
            shipped,
        ),
        ("start", RowKind::Start, start, shipped),
    ] {
        rows.extend(newest(split).map(|r| row(kind, name, &graph(r), r, bytes)));
    }
    // Of the checkpoint that was exported, which need not be the last.
    let step =
        checkpoint.file_name().and_then(|name| name.to_str()?.strip_prefix("step-")?.parse().ok());
    let at_step = |r: &&Record| {
        matches!(r.split.as_str(), "eval" | "start")
            && step.is_none_or(|step: usize| r.step == step)
    };
    let trained = records.iter().rev().find(at_step).or_else(|| newest("eval"));
    let (kind, name) = (RowKind::QuantizationAware, "student, quantisation-aware");
    rows.extend(trained.map(|r| row(kind, name, &graph(r), r, shipped)));
    Ok(rows)
}

fn through_runtime(model: &Model) -> String {
    format!("runtime, {}", runtime::configuration(model, KvType::default()))
}

fn row(kind: RowKind, model: &str, through: &str, record: &Record, bytes: Option<u64>) -> Row {
    Row {
        kind,
        model: model.into(),
        through: through.into(),
        perplexity: record.get("perplexity"),
        kl: record.get("kl"),
        same_top: record.get("same_top"),
        bytes,
        tokens_per_second: None,
        records: metrics::METRICS.into(),
    }
}

/// What an app gets: the exported file in the runtime's default configuration.
fn runtime_row(
    recipe: &Recipe,
    prepared: &Prepared,
    exported: &Exported,
    model: &Model,
) -> Result<Row, Failure> {
    let threads = hardware::threads();
    let mut failure = None;
    let mut of_teacher =
        |batch: &distill_data::Batch| match prepared.teacher.as_ref().map(|t| t.signal(batch)) {
            Some(Ok(signal)) => signal.reference(0..batch.input_ids.len()),
            Some(Err(error)) => {
                failure.get_or_insert(error);
                Reference::Top(vec![Vec::new(); batch.input_ids.len()])
            }
            None => Reference::Logits(Vec::new()),
        };
    let teacher: Option<&mut runtime::OfTeacher<'_>> =
        prepared.teacher.is_some().then_some(&mut of_teacher);
    let held_out = &prepared.dataset.held_out;
    let count = recipe.eval.sequences;
    let score: Score =
        runtime::evaluate(model, held_out, count, prepared.vocabulary, threads, teacher)?;
    if let Some(error) = failure {
        return Err(error.into());
    }
    let options =
        BenchOptions { prompt: 0, generate: 64, depth: 64, threads, ..BenchOptions::default() };
    let speed = bench(model, &options)?;
    let record = record_of(&score, 0, "runtime");
    let through = through_runtime(model);
    let bytes = exported.gguf.as_deref().and_then(weights_bytes);
    let mut row = row(RowKind::ExportedRuntime, "student, exported", &through, &record, bytes);
    row.tokens_per_second = Some(speed.decode.median());
    row.records = HELD_OUT.into();
    Ok(row)
}

fn continuations(recipe: &Recipe, model: &Model) -> Result<Vec<Sample>, Failure> {
    let tokenizer = model.tokenizer();
    let mut samples = Vec::new();
    for prompt in &recipe.eval.prompts {
        let ids = tokenizer.encode(prompt, true);
        if ids.is_empty() {
            continue;
        }
        let context = ids.len() + recipe.eval.max_new_tokens + 1;
        let threads = hardware::threads();
        let options = SessionOptions { context, threads, ..SessionOptions::default() };
        let mut session = Session::new(model, options)?;
        let options = SamplerOptions {
            temperature: 0.8,
            top_p: 0.9,
            seed: recipe.seed,
            ..Default::default()
        };
        let mut sampler = Sampler::new(options);
        let answer =
            generate(&mut session, &ids, recipe.eval.max_new_tokens, &mut sampler, |_, _| true)?;
        samples.push(Sample { prompt: prompt.clone(), continuation: answer.text });
    }
    Ok(samples)
}

/// Every figure of every split over its steps.
fn curves(records: &[Record]) -> Vec<Curve> {
    let mut curves: Vec<Curve> = Vec::new();
    for record in records {
        for (name, value) in &record.values {
            let same = |c: &&mut Curve| c.split == record.split && &c.name == name;
            match curves.iter_mut().find(same) {
                Some(curve) => curve.points.push((record.step, *value)),
                None => curves.push(Curve {
                    split: record.split.clone(),
                    name: name.clone(),
                    points: vec![(record.step, *value)],
                }),
            }
        }
    }
    curves
}

/// Everything under `export/`, with checksums.
fn files(run: &Path) -> Result<Vec<ExportedFile>, Failure> {
    let mut files = Vec::new();
    let mut pending = vec![run.join("export")];
    while let Some(directory) = pending.pop() {
        let entries = fs::read_dir(&directory).map_err(Failure::io("listing", &directory))?;
        for path in entries.flatten().map(|entry| entry.path()) {
            if path.is_dir() {
                pending.push(path);
                continue;
            }
            let bytes = fs::metadata(&path).map_err(Failure::io("reading", &path))?.len();
            let sha256 = run_directory::sha256(&path)?;
            let path = path.strip_prefix(run).unwrap_or(&path).display().to_string();
            files.push(ExportedFile { path, bytes, sha256 });
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
}

/// Size of the weights: a GGUF file, or the safetensors of a directory.
fn weights_bytes(path: &Path) -> Option<u64> {
    if path.is_file() {
        return Some(fs::metadata(path).ok()?.len());
    }
    let weights = fs::read_dir(path).ok()?.flatten().map(|entry| entry.path());
    let sizes = weights
        .filter(|p| p.extension().is_some_and(|e| e == "safetensors"))
        .filter_map(|p| Some(fs::metadata(p).ok()?.len()));
    Some(sizes.sum()).filter(|&bytes: &u64| bytes > 0)
}
