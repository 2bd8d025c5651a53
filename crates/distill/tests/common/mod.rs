//! A tiny run: a model that learns six words in seconds.

#![allow(dead_code, reason = "each test binary uses a part")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The recipe of a teacher, trained from nothing on `text.txt`.
pub const TEACHER: &str = r#"
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

/// So many of six words, in an order that can be learned.
pub fn words(count: usize) -> String {
    let words = ["law", "peace", "trade", "nation", "people", "great"];
    (0..count).map(|i| words[i * i % 35 % 6].to_owned() + " ").collect()
}

pub fn write(directory: &Path, name: &str, text: &str) {
    std::fs::write(directory.join(name), text).expect("write");
}

pub fn command(directory: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_distill"));
    command.current_dir(directory).env("NO_COLOR", "1").args(args);
    command
}

pub fn distill(directory: &Path, args: &[&str]) -> Output {
    command(directory, args).output().expect("the binary starts")
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// What a command that must succeed said on stderr.
pub fn done(output: &Output) -> String {
    assert!(output.status.success(), "{}", stderr(output));
    stderr(output)
}

/// The directory of the only run of a name.
pub fn only_run(directory: &Path, name: &str) -> PathBuf {
    let runs = std::fs::read_dir(directory.join("checkpoints").join(name)).expect("runs");
    let mut runs = runs.map(|run| run.expect("a run").path());
    let run = runs.next().expect("one");
    assert!(runs.next().is_none());
    run
}

/// A file of a run, as JSON.
pub fn json(path: &Path) -> serde_json::Value {
    let text = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&text).expect("JSON")
}
