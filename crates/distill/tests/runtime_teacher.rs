//! What one run exported teaches the next one's student, computed by the edge runtime.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const FIRST: &str = r#"
name = "teacher"
[student]
train_tokenizer = 320
config = { hidden_size = 64, intermediate_size = 96, num_hidden_layers = 3, num_attention_heads = 2 }
[data]
sources = ["text.txt"]
sequence_length = 64
held_out = 0.2
[quantize]
linears = "q4_0"
embeddings = "q8_0"
activations = "q8_0"
[train]
steps = 40
batch_size = 4
learning_rate = 3e-3
[eval]
sequences = 3
prompts = []
[export]
parity_positions = 128
huggingface = false
"#;

fn write(directory: &Path, name: &str, text: &str) {
    std::fs::write(directory.join(name), text).expect("write");
}

fn distill(directory: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_distill"));
    command.current_dir(directory).args(args).output().expect("the binary starts")
}

fn run(directory: &Path, recipe: &str) -> String {
    let output = distill(directory, &["run", recipe]);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{stderr}");
    stderr
}

/// The directory of the only run of a name.
fn only_run(directory: &Path, name: &str) -> PathBuf {
    let runs = std::fs::read_dir(directory.join("checkpoints").join(name)).expect("runs");
    let mut runs = runs.map(|run| run.expect("a run").path());
    let run = runs.next().expect("one");
    assert!(runs.next().is_none());
    run
}

#[test]
fn an_exported_file_teaches_through_the_runtime() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let at = directory.path();
    let words = ["law", "peace", "trade", "nation", "people", "great"];
    let text: String = (0..9000_usize).map(|i| words[i * i % 35 % 6].to_owned() + " ").collect();
    write(at, "text.txt", &text);
    write(at, "teacher.toml", FIRST);
    run(at, "teacher.toml");
    let gguf = only_run(at, "teacher").join("export/model.gguf");

    let second = FIRST
        .replace("name = \"teacher\"", "name = \"student\"")
        .replace("steps = 40", "steps = 12")
        .lines()
        .filter(|line| !line.starts_with("train_tokenizer") && !line.starts_with("config"))
        .collect::<Vec<_>>()
        .join("\n")
        .replace("[student]", "[student]\nkeep_layers = [0, 2]")
        + &format!("\n[teacher.local]\nfrom = {gguf:?}\nengine = \"runtime\"\n");
    write(at, "student.toml", &second);
    let stderr = run(at, "student.toml");
    assert!(stderr.contains("in the edge runtime (Q8_0 activations, f16 KV cache)"), "{stderr}");

    let report = std::fs::read(only_run(at, "student").join("report.json")).expect("a report");
    let report: serde_json::Value = serde_json::from_slice(&report).expect("JSON");
    let row = |kind: &str| {
        let rows = report["rows"].as_array().expect("rows");
        rows.iter().find(|row| row["kind"] == kind).unwrap_or_else(|| panic!("{kind}: {rows:?}"))
    };
    let teacher = row("teacher");
    assert_eq!(teacher["through"], "runtime, Q8_0 activations, f16 KV cache");
    assert!(teacher["perplexity"].as_f64().is_some_and(|found| found < 100.0), "{teacher}");
    assert!(row("exported_runtime")["kl"].as_f64().is_some_and(|kl| kl < 1.0), "{report}");
}
