//! A run killed at any moment and resumed ends in the same bits as one that was not.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const KILLS: usize = 5;

/// A corpus of short documents, made by a fixed generator.
fn corpus() -> String {
    let words = ["the", "people", "of", "this", "great", "nation", "have", "peace", "law", "trade"];
    let mut state = 11u32;
    let mut text = String::new();
    for _ in 0..60 {
        for _ in 0..120 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            text.push_str(words[(state >> 16) as usize % words.len()]);
            text.push(' ');
        }
        text.push_str("\n%%\n");
    }
    text
}

fn write_recipe(directory: &Path) -> PathBuf {
    std::fs::write(directory.join("text.txt"), corpus()).expect("write");
    let recipe = directory.join("recipe.toml");
    let toml = r#"
name = "killed"
seed = 9
[student]
train_tokenizer = 320
config = { hidden_size = 64, intermediate_size = 96, num_hidden_layers = 2, num_attention_heads = 2, num_key_value_heads = 1 }
[data]
sources = ["text.txt"]
document_separator = "\n%%\n"
sequence_length = 64
held_out = 0.2
[quantize]
linears = "q4_0"
embeddings = "q8_0"
activations = "q8_0"
start_step = 20
method = "gptq"
calibration_sequences = 8
[train]
steps = 240
batch_size = 2
gradient_accumulation = 2
learning_rate = 3e-3
warmup_steps = 5
eval_every = 30
checkpoint_every = 4
[eval]
sequences = 3
prompts = ["the people"]
max_new_tokens = 4
[export]
parity_positions = 128
"#;
    std::fs::write(&recipe, toml).expect("write");
    recipe
}

fn start(directory: &Path, resume: bool) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_distill"));
    command.current_dir(directory).args(["run", "recipe.toml"]);
    if resume {
        command.arg("--resume");
    }
    command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the binary starts")
}

fn finish(child: Child) {
    let output = child.wait_with_output().expect("it ends");
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{stderr}");
}

fn the_run(directory: &Path) -> PathBuf {
    let runs: Vec<PathBuf> = std::fs::read_dir(directory.join("checkpoints/killed"))
        .expect("runs")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    assert_eq!(runs.len(), 1, "a resumed run must not begin another: {runs:?}");
    runs[0].clone()
}

/// Whether there is a run to resume: before its recipe is saved, nothing is lost.
fn has_begun(directory: &Path) -> bool {
    let runs = std::fs::read_dir(directory.join("checkpoints/killed"));
    runs.is_ok_and(|mut runs| {
        runs.any(|r| r.is_ok_and(|r| r.path().join("resolved.toml").is_file()))
    })
}

#[test]
fn a_run_killed_at_five_random_moments_ends_in_the_same_bits() {
    let (whole, killed) = (tempfile::tempdir().expect("dir"), tempfile::tempdir().expect("dir"));
    write_recipe(whole.path());
    write_recipe(killed.path());

    let began = std::time::Instant::now();
    finish(start(whole.path(), false));
    let whole_ms = began.elapsed().as_millis() as u64;

    let seed = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(1, |d| d.as_nanos() as u64);
    eprintln!("moments drawn from seed {seed}");
    let mut state = seed;
    for attempt in 0..=KILLS {
        let mut child = start(killed.path(), attempt > 0);
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        // Five of these at most add up to less than the whole run.
        let delay = 50 + (state >> 33) % (whole_ms / 5).max(1);
        if attempt == KILLS {
            finish(child);
            break;
        }
        while !has_begun(killed.path()) {
            std::thread::sleep(Duration::from_millis(5));
        }
        std::thread::sleep(Duration::from_millis(delay));
        child.kill().expect("SIGKILL");
        child.wait().expect("reaped");
    }

    let (whole, killed) = (the_run(whole.path()), the_run(killed.path()));
    for file in [
        "step-240/model.safetensors",
        "step-240/train_state/optimizer.safetensors",
        "step-240/train_state/state.json",
        "step-240/tokenizer.json",
        "metrics.jsonl",
        "export/model.gguf",
    ] {
        let read = |run: &Path| std::fs::read(run.join(file)).expect(file);
        assert!(read(&whole) == read(&killed), "{file} differs");
    }
}
