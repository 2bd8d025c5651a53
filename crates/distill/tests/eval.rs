//! What `distill eval` prints, what it writes, and what it refuses.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

/// The quickstart's teacher: a Hugging Face directory, so that it runs through the training graph.
fn teacher() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../checkpoints/quickstart-teacher")
}

fn distill(directory: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_distill"))
        .current_dir(directory)
        .env("NO_COLOR", "1")
        .arg("eval")
        .args(args)
        .output()
        .expect("the binary starts")
}

const QUESTIONS: &str = r#"{"query": "The President of the United", "choices": ["States", "cards"], "gold": 0}
{"query": "The Congress of the United", "choices": ["States", "cards"], "gold": 1}
"#;
const PASSAGES: &str = r#"{"context": "The President of the United", "continuation": "States"}
"#;

/// A directory with a model and a file for every task.
fn place() -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("temp dir");
    std::fs::create_dir(directory.path().join("teacher")).expect("create");
    for file in std::fs::read_dir(teacher()).expect("the teacher").flatten() {
        let copy = directory.path().join("teacher").join(file.file_name());
        std::fs::copy(file.path(), copy).expect("copy");
    }
    let words = "the people of this country and their representatives have met again, ";
    let files = [
        ("text.txt", words.repeat(20)),
        ("short.txt", words.to_owned()),
        ("questions.jsonl", QUESTIONS.to_owned()),
        ("passages.jsonl", PASSAGES.to_owned()),
        ("broken.jsonl", QUESTIONS.replace(r#""gold": 1"#, r#""gold": 2"#)),
    ];
    for (name, text) in files {
        std::fs::write(directory.path().join(name), text).expect("write");
    }
    directory
}

#[test]
fn a_model_beside_a_reference_has_figures_intervals_and_differences() {
    let directory = place();
    let args = [
        "teacher",
        "--reference",
        "teacher",
        "--tasks",
        "perplexity=text.txt,choice=questions.jsonl",
        "--tasks",
        "last_word=passages.jsonl",
        "--context",
        "64",
        "--chunks",
        "3",
        "--resamples",
        "100",
        "--json",
        "eval.json",
    ];
    let output = distill(directory.path(), &args);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    assert!(stderr.contains("questions.jsonl: 2/2"), "progress goes to stderr: {stderr}");
    insta::assert_snapshot!("table", String::from_utf8_lossy(&output.stdout));

    let json = std::fs::read(directory.path().join("eval.json")).expect("a file");
    let json: Value = serde_json::from_slice(&json).expect("JSON");
    let [text, questions, passages] = &json["tasks"].as_array().expect("tasks")[..] else {
        panic!("three tasks")
    };
    // The figures can be made again of the records alone.
    let chunks = text["model"]["chunks"].as_array().expect("chunks");
    let sum = |key: &str| chunks.iter().map(|c| c[key].as_f64().expect("a number")).sum::<f64>();
    assert_eq!((chunks.len(), sum("tokens")), (3, 3.0 * 31.0));
    let perplexity = text["model"]["figures"][0]["value"].as_f64().expect("a number");
    assert!((perplexity - (sum("nll") / sum("tokens")).exp()).abs() < 1e-9);
    assert_eq!(text["divergence"]["chunks"][0]["kl"].as_array().map(Vec::len), Some(31));
    assert_eq!(questions["model"]["items"][1]["line"], 2);
    assert_eq!(questions["model"]["items"][1]["choices"].as_array().map(Vec::len), Some(2));
    assert_eq!(questions["difference"][0]["value"], 0.0);
    assert!(passages["model"]["items"][0]["log_likelihood"].as_f64().is_some_and(|l| l < 0.0));
    assert_eq!(passages["sha256"].as_str().map(str::len), Some(64));
}

/// The exit code and what is said on stderr.
fn failure(directory: &Path, args: &[&str]) -> String {
    let output = distill(directory, args);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!stderr.contains("panicked"), "{stderr}");
    let code = output.status.code().expect("no signal");
    let said = stderr.lines().filter(|line| !line.starts_with("reading "));
    format!("exit code {code}\n{}\n", said.collect::<Vec<_>>().join("\n"))
}

#[test]
fn what_cannot_be_measured_says_why_and_what_to_do() {
    let directory = place();
    let cases: [&[&str]; 9] = [
        &["teacher", "--tasks", "perplexity=short.txt"],
        &["teacher", "--tasks", "perplexity=text.txt", "--context", "1024"],
        &["teacher", "--tasks", "perplexity=none.txt"],
        &["teacher", "--tasks", "choice=broken.jsonl"],
        &["teacher", "--tasks", "choice=passages.jsonl"],
        &["teacher", "--tasks", "last_word=text.txt"],
        &["teacher", "--tasks", "choice=none.jsonl"],
        &["none.gguf", "--tasks", "choice=questions.jsonl"],
        &["teacher", "--tasks", "choices=questions.jsonl"],
    ];
    let said: Vec<String> = cases
        .iter()
        .map(|args| {
            format!("$ distill eval {}\n{}", args.join(" "), failure(directory.path(), args))
        })
        .collect();
    insta::assert_snapshot!("refused", said.join("\n"));
    assert!(!directory.path().join("eval.json").exists());
}
