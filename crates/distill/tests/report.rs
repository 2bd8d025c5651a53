//! Every figure of a report is made again from the files that it names.

mod common;

use std::path::Path;

use common::{TEACHER, distill, done, json, only_run, words, write};
use distill_eval::benchmark::{self, ModelRecords};
use serde_json::Value;

const QUESTIONS: &str = r#"{"query": "law peace", "choices": ["trade", "great"], "gold": 0}
{"query": "nation people", "choices": ["great", "law"], "gold": 1}
{"query": "great law", "choices": ["nation", "peace"], "gold": 1}
"#;
const PASSAGES: &str = r#"{"context": "law peace trade", "continuation": "nation"}
{"context": "people great", "continuation": "law"}
"#;
const TASKS: &str = r#"
[eval.tasks]
perplexity = ["other.txt"]
choice = ["questions.jsonl"]
last_word = ["passages.jsonl"]
context = 32
chunks = 5
"#;

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("a number: {value}"))
}

fn list(value: &Value) -> &[Value] {
    value.as_array().unwrap_or_else(|| panic!("a list: {value}"))
}

fn close(found: &Value, expected: f64, what: &str) {
    let found = number(found);
    // Sums of a few hundred terms in another order.
    assert!(
        (found - expected).abs() <= 1e-9 * expected.abs().max(1.0),
        "{what}: {found}, {expected}"
    );
}

/// A figure, from the records of `evaluation/<model>.json`.
fn figure(run: &Path, file: &str, task: usize, name: &str) -> f64 {
    let records = json(&run.join(file));
    let task = &records["tasks"][task];
    let of = match name {
        "kl" | "same_top" => &task["divergence"],
        _ => &task["model"],
    };
    let sum = |list: &[Value], of: &dyn Fn(&Value) -> f64| list.iter().map(of).sum::<f64>();
    match (task["task"].as_str().expect("a task"), name) {
        ("perplexity", "perplexity") => {
            let chunks = list(&of["chunks"]);
            let nll = sum(chunks, &|chunk| number(&chunk["nll"]));
            (nll / sum(chunks, &|chunk| number(&chunk["tokens"]))).exp()
        }
        ("perplexity", "kl") => {
            let all: Vec<f64> =
                list(&of["chunks"]).iter().flat_map(|c| list(&c["kl"])).map(number).collect();
            all.iter().sum::<f64>() / all.len() as f64
        }
        ("perplexity", "same_top") => {
            let chunks = list(&of["chunks"]);
            let positions = sum(chunks, &|chunk| list(&chunk["kl"]).len() as f64);
            sum(chunks, &|chunk| number(&chunk["same_top"])) / positions
        }
        ("choice", name) => {
            let length = match name {
                "acc" => None,
                "acc_norm" => Some("characters"),
                "acc_bytes" => Some("bytes"),
                other => panic!("{other}"),
            };
            let worth = |choice: &Value| {
                number(&choice["log_likelihood"]) / length.map_or(1.0, |key| number(&choice[key]))
            };
            let right = |item: &Value| {
                let worths: Vec<f64> = list(&item["choices"]).iter().map(worth).collect();
                let best = worths.iter().copied().fold(f64::MIN, f64::max);
                let first = worths.iter().position(|worth| *worth == best);
                f64::from(u8::from(first.map(|i| i as u64) == item["gold"].as_u64()))
            };
            let items = list(&of["items"]);
            sum(items, &right) / items.len() as f64
        }
        ("last_word", "acc") => {
            let items = list(&of["items"]);
            sum(items, &|item| f64::from(u8::from(item["greedy"] == true))) / items.len() as f64
        }
        ("last_word", "perplexity") => {
            let items = list(&of["items"]);
            (-sum(items, &|item| number(&item["log_likelihood"])) / items.len() as f64).exp()
        }
        other => panic!("{other:?}"),
    }
}

/// Lines of JSON.
fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).expect("a log");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

#[test]
fn every_figure_is_in_a_file_of_the_run() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let at = directory.path();
    write(at, "text.txt", &words(9000));
    write(at, "other.txt", &words(700));
    write(at, "questions.jsonl", QUESTIONS);
    write(at, "passages.jsonl", PASSAGES);
    write(at, "teacher.toml", TEACHER);
    done(&distill(at, &["run", "teacher.toml"]));
    let teacher = only_run(at, "teacher").join("step-40");
    let (_, rest) = TEACHER.split_once("[data]").expect("a table");
    let recipe = format!(
        "name = \"student\"\n[student]\nfrom = {teacher:?}\n[teacher.local]\nfrom = {teacher:?}\n[data]{rest}"
    );
    let recipe = recipe
        .replace("steps = 40", "steps = 6")
        .replace("[quantize]", "[quantize]\nmethod = \"gptq\"\ncalibration_sequences = 8")
        .replace("huggingface = false", "")
        + TASKS;
    write(at, "student.toml", &recipe);
    let output = distill(at, &["run", "student.toml"]);
    done(&output);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let run = only_run(at, "student");
    let report = json(&run.join("report.json"));

    benchmarks(&run, &report);
    intervals(&run, &report);
    held_out(&run, &report);

    let cost = &report["cost"];
    let steps: Vec<Value> =
        lines(&run.join("metrics.jsonl")).into_iter().filter(|r| r["split"] == "train").collect();
    assert_eq!(cost["steps"], steps.len());
    close(&cost["tokens"], steps.iter().map(|step| number(&step["tokens"])).sum(), "tokens");
    let timings = lines(&run.join("timings.jsonl"));
    for (figure, split) in
        [("seconds", "timing"), ("method_seconds", "method"), ("evaluation_seconds", "evaluation")]
    {
        let of = timings.iter().filter(|timing| timing["split"] == split);
        let sum: f64 = of.map(|timing| number(&timing["seconds"])).sum();
        assert!(sum > 0.0, "{split}");
        close(&cost[figure], sum, figure);
    }
    assert_eq!(report["command"], "distill run student.toml");

    // Told again, nothing is measured again.
    let written = |name: &str| {
        let path = run.join("evaluation").join(name);
        path.metadata().and_then(|found| found.modified()).expect("a time")
    };
    let before = ["full_precision.json", "gptq.json", "exported.json"].map(written);
    done(&distill(at, &["run", "student.toml", "--resume"]));
    assert_eq!(["full_precision.json", "gptq.json", "exported.json"].map(written), before);
    alike(&json(&run.join("report.json"))["benchmarks"], &report["benchmarks"], "told again");

    // The three ways to read it say the same.
    let perplexity = list(&report["benchmarks"][0]["rows"]).last().expect("a row");
    let told = format!("{:.2} [", number(&perplexity["figures"][0]["value"]));
    let page = std::fs::read_to_string(run.join("report.html")).expect("a page");
    let text = std::fs::read_to_string(run.join("report.md")).expect("a text");
    let card = std::fs::read_to_string(run.join("export/huggingface/README.md")).expect("a card");
    assert!(said.contains(&told) && page.contains(&told), "{told}\n{said}");
    for text in [text, card] {
        assert!(text.contains(&told.replace('[', "\\[")), "{told}\n{text}");
    }
}

fn benchmarks(run: &Path, report: &Value) {
    let benchmarks = list(&report["benchmarks"]);
    assert_eq!(benchmarks.len(), 3);
    for (task, benchmark) in benchmarks.iter().enumerate() {
        let rows = list(&benchmark["rows"]);
        let roles: Vec<&str> = rows.iter().filter_map(|row| row["role"].as_str()).collect();
        assert_eq!(roles, ["full_precision", "round", "search", "gptq", "exported"]);
        for row in rows {
            let file = row["records"].as_str().expect("a file");
            let model = json(&run.join(file));
            let bytes = std::fs::metadata(run.join(model["path"].as_str().expect("a model")));
            assert_eq!(model["bytes"], bytes.expect("the model is there").len());
            for found in list(&row["figures"]) {
                let name = found["figure"].as_str().expect("a name");
                let what = format!("{file} {name}");
                let mine = figure(run, file, task, name);
                close(&found["value"], mine, &what);
                assert!(number(&found["low"]) <= mine && mine <= number(&found["high"]), "{found}");
                let ideal = |role: &str| match (name, role) {
                    ("kl", "full_precision") => 0.0,
                    ("same_top", "full_precision") => 1.0,
                    _ => figure(run, &format!("evaluation/{role}.json"), task, name),
                };
                if !found["difference"].is_null() {
                    close(&found["difference"]["value"], mine - ideal("full_precision"), &what);
                }
                if !found["recovered"].is_null() {
                    let (rounded, full) = (ideal("round"), ideal("full_precision"));
                    close(&found["recovered"]["value"], (rounded - mine) / (rounded - full), &what);
                }
            }
        }
        let names = |row: &Value| list(&row["figures"]).len();
        assert_eq!(names(&rows[0]), [1, 3, 2][task], "full precision has no KL from itself");
        assert_eq!(names(&rows[4]), [3, 3, 2][task]);
        assert!(!rows[4]["figures"][0]["difference"].is_null(), "{benchmark}");
    }
    let exported = list(&benchmarks[0]["rows"]).last().expect("a row");
    assert!(!exported["figures"][1]["recovered"].is_null(), "rounding has a KL: {exported}");
}

/// The tables with all of their intervals, drawn again from the records with the seed that they name.
fn intervals(run: &Path, report: &Value) {
    let rows = list(&report["benchmarks"][0]["rows"]);
    let models: Vec<ModelRecords> = rows
        .iter()
        .map(|row| run.join(row["records"].as_str().expect("a file")))
        .map(|path| {
            serde_json::from_value(json(&path)).unwrap_or_else(|error| panic!("{path:?}: {error}"))
        })
        .collect();
    for model in &models {
        for task in &model.tasks {
            let of = std::iter::once(&task.outcome.model).chain(&task.outcome.divergence);
            for measured in of {
                let again = model.options.bootstrap.estimates(measured.records.sample());
                let [told, again] = [&measured.figures, &again].map(value);
                alike(&told, &again, model.role.name());
            }
        }
    }
    let again = benchmark::benchmarks(&models, report["began_finished"] == true);
    alike(&report["benchmarks"], &value(&again), "benchmarks");
}

fn value(of: &impl serde::Serialize) -> Value {
    serde_json::to_value(of).expect("JSON")
}

/// That two values differ in the last digits of numbers at most, which JSON has rounded.
fn alike(found: &Value, expected: &Value, what: &str) {
    match (found, expected) {
        (Value::Array(found), Value::Array(expected)) => {
            assert_eq!(found.len(), expected.len(), "{what}");
            found.iter().zip(expected).for_each(|(f, e)| alike(f, e, what));
        }
        (Value::Object(found), Value::Object(expected)) => {
            assert_eq!(found.len(), expected.len(), "{what}");
            found.iter().for_each(|(key, f)| alike(f, &expected[key], &format!("{what}.{key}")));
        }
        (Value::Number(_), Value::Number(_)) => close(found, number(expected), what),
        _ => assert_eq!(found, expected, "{what}"),
    }
}

fn held_out(run: &Path, report: &Value) {
    for row in list(&report["rows"]) {
        let records = lines(&run.join(row["records"].as_str().expect("a file")));
        let split = match row["kind"].as_str().expect("a kind") {
            "quantization_aware" => "eval",
            "exported_runtime" => "exported",
            kind => kind,
        };
        let record = records.iter().rfind(|record| record["split"] == split);
        let record = record.unwrap_or_else(|| panic!("no record of {split}"));
        for figure in ["perplexity", "kl", "same_top", "tokens_per_second"] {
            if !row[figure].is_null() {
                close(&row[figure], number(&record[figure]), &format!("{split} {figure}"));
            }
        }
        assert!(!row["perplexity"].is_null());
    }
    for file in list(&report["files"]) {
        let path = run.join(file["path"].as_str().expect("a path"));
        assert_eq!(file["bytes"], std::fs::metadata(path).expect("the file is there").len());
    }
}
