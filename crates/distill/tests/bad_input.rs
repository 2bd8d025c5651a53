//! What a user can get wrong: each ends with a message that names the file, the place and the
//! way out, and with exit code 2; what fails on the way ends with 1. Nothing panics.

use std::path::Path;
use std::process::{Command, Output};

fn distill(directory: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_distill"))
        .current_dir(directory)
        .env("HF_HUB_OFFLINE", "1")
        .env("HF_HOME", directory.join("hub"))
        .env("NO_COLOR", "1")
        .args(args)
        .output()
        .expect("the binary starts")
}

/// The exit code and stderr, without what changes from run to run.
fn failure(directory: &Path, args: &[&str]) -> String {
    let output = distill(directory, args);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!stderr.contains("panicked"), "{stderr}");
    // What happened before; the plan ends with an empty line of its own.
    let planned = stderr.split_once("plan of ").and_then(|(_, plan)| {
        let rows = plan.split_once("\n\n")?.1;
        Some(rows.split_once("\n\n")?.1)
    });
    let before = |line: &&str| !line.starts_with("run ") && *line != "planning";
    let stderr: Vec<&str> = planned.unwrap_or(&stderr).lines().filter(before).collect();
    let code = output.status.code().expect("no signal");
    format!("exit code {code}\n{}", settled(&stderr.join("\n"), directory))
}

/// The message with names in place of the directory and of the times in run names.
fn settled(message: &str, directory: &Path) -> String {
    const TIME: &[u8] = b"dddd-dd-ddTdd-dd-dd";
    let message = message.replace(&directory.display().to_string(), "<dir>");
    let is_time = |word: &[u8]| {
        word.iter().zip(TIME).all(|(c, form)| match form {
            b'd' => c.is_ascii_digit(),
            form => c == form,
        })
    };
    let times: Vec<&[u8]> =
        message.as_bytes().windows(TIME.len()).filter(|word| is_time(word)).collect();
    times.into_iter().fold(message.clone(), |message, time| {
        message.replace(std::str::from_utf8(time).expect("digits"), "<time>")
    })
}

const RECIPE: &str = r#"
name = "bad"
[student]
train_tokenizer = 300
config = { hidden_size = 32, intermediate_size = 32, num_hidden_layers = 1, num_attention_heads = 1, num_key_value_heads = 1 }
[data]
sources = ["text.txt"]
document_separator = "%%"
sequence_length = 16
held_out = 0.3
[train]
steps = 2
learning_rate = 1e-3
[eval]
sequences = 1
prompts = ["a"]
max_new_tokens = 2
[export]
parity_positions = 16
"#;

/// A directory with a good recipe and text, changed by the caller.
fn workspace() -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("temp dir");
    write(directory.path(), "recipe.toml", RECIPE);
    let text = "alpha beta gamma delta epsilon zeta eta theta iota kappa %% ".repeat(30);
    write(directory.path(), "text.txt", &text);
    directory
}

fn write(directory: &Path, name: &str, text: &str) {
    std::fs::write(directory.join(name), text).expect("write");
}

fn recipe_with(from: &str, to: &str) -> String {
    assert!(RECIPE.contains(from), "{from}");
    RECIPE.replace(from, to)
}

/// A teacher in the layout of Hugging Face, made by a run.
fn trained(directory: &Path) -> std::path::PathBuf {
    let output = distill(directory, &["run", "recipe.toml"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let runs = std::fs::read_dir(directory.join("checkpoints/bad")).expect("runs");
    runs.flatten().next().expect("one run").path()
}

#[test]
fn the_recipe_itself() {
    let dir = workspace();
    let check = |text: &str| {
        write(dir.path(), "bad.toml", text);
        failure(dir.path(), &["check", "bad.toml"])
    };
    insta::assert_snapshot!("unknown_key", check(&recipe_with("steps = 2", "stepz = 2")));
    insta::assert_snapshot!("wrong_type", check(&recipe_with("steps = 2", "steps = \"two\"")));
    insta::assert_snapshot!("missing_recipe", failure(dir.path(), &["check", "nowhere.toml"]));
    let args = ["check", "recipe.toml", "--set", "train.lerning_rate=1"];
    insta::assert_snapshot!("unknown_override", failure(dir.path(), &args));
    let args = ["check", "recipe.toml", "--set", "backend=\"cuda\""];
    insta::assert_snapshot!("backend_not_built_in", failure(dir.path(), &args));
}

#[test]
fn the_data() {
    let dir = workspace();
    let run = |text: &str| {
        write(dir.path(), "bad.toml", text);
        failure(dir.path(), &["run", "bad.toml"])
    };
    insta::assert_snapshot!("missing_data_file", run(&recipe_with("text.txt", "nowhere.txt")));
    write(dir.path(), "empty.txt", "");
    insta::assert_snapshot!("empty_data", run(&recipe_with("text.txt", "empty.txt")));
    std::fs::write(dir.path().join("latin.txt"), [b'a', 0xe9, b'b']).expect("write");
    insta::assert_snapshot!("not_utf8", run(&recipe_with("text.txt", "latin.txt")));
    write(dir.path(), "rows.jsonl", "{\"txt\": \"hello\"}\n");
    insta::assert_snapshot!("missing_field", run(&recipe_with("text.txt", "rows.jsonl")));
}

#[test]
fn models() {
    let dir = workspace();
    let run = trained(dir.path());
    let checkpoint = run.join("step-2");
    let with_teacher = |teacher: &str| {
        let toml = recipe_with("[data]", &format!("[teacher.local]\nfrom = {teacher:?}\n[data]"));
        write(dir.path(), "bad.toml", &toml.replace("train_tokenizer = 300", ""));
        failure(dir.path(), &["run", "bad.toml"])
    };
    insta::assert_snapshot!("missing_model", with_teacher("./nowhere"));
    insta::assert_snapshot!("offline_hub", with_teacher("owner/model"));
    write(dir.path(), "text.gguf", "this is no model at all, only text");
    insta::assert_snapshot!("not_a_gguf", with_teacher("text.gguf"));

    // A teacher with another tokenizer.
    write(dir.path(), "other.txt", &"one two three four five six seven %% ".repeat(60));
    let toml = recipe_with("text.txt", "other.txt")
        .replace("[data]", &format!("[teacher.local]\nfrom = {:?}\n[data]", checkpoint));
    write(dir.path(), "bad.toml", &toml);
    insta::assert_snapshot!("other_tokenizer", failure(dir.path(), &["run", "bad.toml"]));

    // A tensor of another shape.
    let config = checkpoint.join("config.json");
    let json = std::fs::read_to_string(&config).expect("config");
    let teacher = checkpoint.display().to_string();
    let sized = |key: &str, size: u64| {
        let was = format!("\"{key}\": 32");
        assert!(json.contains(&was), "{json}");
        std::fs::write(&config, json.replace(&was, &format!("\"{key}\": {size}"))).expect("write");
        with_teacher(&teacher)
    };
    insta::assert_snapshot!("wrong_shape", sized("intermediate_size", 64));
    insta::assert_snapshot!("absurd_size", sized("hidden_size", 1 << 40));
    std::fs::write(&config, &json).expect("write");

    // A checkpoint cut short.
    let weights = checkpoint.join("model.safetensors");
    let bytes = std::fs::read(&weights).expect("weights");
    std::fs::write(&weights, &bytes[..bytes.len() / 2]).expect("write");
    insta::assert_snapshot!("cut_checkpoint", with_teacher(&teacher));
    let mut absurd = bytes.clone();
    absurd[..8].copy_from_slice(&(u64::MAX / 2).to_le_bytes());
    std::fs::write(&weights, &absurd).expect("write");
    insta::assert_snapshot!("absurd_header", with_teacher(&teacher));
}

/// Bytes 8..16 of a GGUF file count its tensors, 16..24 its metadata.
#[test]
fn absurd_counts_in_a_model_file_are_refused() {
    let dir = workspace();
    let whole = std::fs::read(trained(dir.path()).join("export/model.gguf")).expect("export");
    for (name, at) in [("absurd_tensor_count", 8), ("absurd_metadata_count", 16)] {
        let mut bytes = whole.clone();
        bytes[at..at + 8].copy_from_slice(&(u64::MAX / 64).to_le_bytes());
        std::fs::write(dir.path().join("absurd.gguf"), bytes).expect("write");
        let args = ["generate", "absurd.gguf", "--prompt", "a"];
        insta::assert_snapshot!(name, failure(dir.path(), &args));
    }
}

#[test]
fn an_exported_file_cut_at_any_byte_is_refused() {
    let dir = workspace();
    let run = trained(dir.path());
    let whole = std::fs::read(run.join("export/model.gguf")).expect("export");
    let path = dir.path().join("cut.gguf");
    for cut in (0..whole.len()).step_by(whole.len() / 40 + 1) {
        std::fs::write(&path, &whole[..cut]).expect("write");
        let message = failure(dir.path(), &["generate", "cut.gguf", "--prompt", "a"]);
        assert!(message.starts_with("exit code 2"), "{cut}: {message}");
        assert!(message.contains("cut.gguf"), "{cut}: {message}");
    }
}

#[test]
fn a_loss_that_is_no_number_stops_before_the_weights_are_touched() {
    let dir = workspace();
    // Weights that are finite, but so large that the logits are not.
    let checkpoint = trained(dir.path()).join("step-2");
    let path = checkpoint.join("model.safetensors");
    let mut bytes = std::fs::read(&path).expect("weights");
    let header = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize;
    let json: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header]).expect("JSON");
    let at =
        |i: usize| json["model.norm.weight"]["data_offsets"][i].as_u64().expect("offset") as usize;
    for value in bytes[8 + header + at(0)..8 + header + at(1)].chunks_exact_mut(4) {
        value.copy_from_slice(&3e38f32.to_le_bytes());
    }
    std::fs::write(&path, bytes).expect("write");
    let config = RECIPE.lines().find(|line| line.starts_with("config")).expect("a config");
    let toml = RECIPE
        .replace(config, &format!("from = {checkpoint:?}"))
        .replace("train_tokenizer = 300", "");
    write(dir.path(), "bad.toml", &toml);
    insta::assert_snapshot!("nan_loss", failure(dir.path(), &["run", "bad.toml"]));
}

#[test]
fn an_unwritable_run_directory_is_named() {
    let dir = workspace();
    write(dir.path(), "occupied", "a file where a directory should be");
    let args = ["run", "recipe.toml", "--set", "output=\"occupied\""];
    insta::assert_snapshot!("unwritable_run_directory", failure(dir.path(), &args));
}

/// TensorBoard's events outgrow everything else that a run without checkpoints writes.
#[test]
fn metrics_that_cannot_be_written_are_an_error_and_no_panic() {
    let dir = workspace();
    let binary = env!("CARGO_BIN_EXE_distill");
    let long =
        "--set train.steps=2000 --set train.checkpoint_every=2000 --set train.eval_every=2000";
    let script = format!("trap '' XFSZ; ulimit -f 24; exec {binary} run recipe.toml {long}");
    let output = Command::new("bash")
        .current_dir(dir.path())
        .args(["-c", &script])
        .output()
        .expect("bash starts");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
    let error = stderr.lines().find(|line| line.starts_with("error")).expect("an error");
    insta::assert_snapshot!("metrics_not_writable", settled(error, dir.path()));
}

/// A limit on the size of files stands for a full disk: the write of the weights fails half-way.
#[test]
fn a_checkpoint_that_does_not_fit_is_an_error_and_leaves_nothing_half_written() {
    let dir = workspace();
    let binary = env!("CARGO_BIN_EXE_distill");
    // With the signal ignored, the system answers such a write with an error.
    let script = format!("trap '' XFSZ; ulimit -f 40; exec {binary} run recipe.toml");
    let output = Command::new("bash")
        .current_dir(dir.path())
        .args(["-c", &script])
        .output()
        .expect("bash starts");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    let error = stderr.lines().find(|line| line.starts_with("error")).expect("an error");
    insta::assert_snapshot!("file_size_limit", settled(error, dir.path()));
    let runs = std::fs::read_dir(dir.path().join("checkpoints/bad")).expect("runs");
    let run = runs.flatten().next().expect("one run").path();
    let left = std::fs::read_dir(&run).expect("the run").flatten();
    let left: Vec<String> = left.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    assert!(!left.iter().any(|name| name.contains("step-")), "{left:?}");
    let metrics = std::fs::read_to_string(run.join("metrics.jsonl")).expect("metrics");
    assert!(metrics.contains("\"split\":\"train\""), "what was computed stays: {metrics}");
}

#[test]
fn a_start_that_failed_does_not_hide_the_run_before_it() {
    let dir = workspace();
    let run = trained(dir.path());
    let text = dir.path().join("text.txt");
    std::fs::rename(&text, dir.path().join("away.txt")).expect("rename");
    // Runs of the same second are told apart by a number behind the time.
    assert!(failure(dir.path(), &["run", "recipe.toml"]).starts_with("exit code 2"));
    std::fs::rename(dir.path().join("away.txt"), &text).expect("rename");
    let output = distill(dir.path(), &["run", "recipe.toml", "--resume"]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    let name = run.file_name().expect("a name").to_string_lossy().into_owned();
    assert!(stderr.lines().any(|line| line.ends_with(&name)), "{name}: {stderr}");
    assert!(output.status.success(), "{stderr}");
}

#[test]
fn a_new_export_takes_away_what_was_said_of_the_old_one() {
    let dir = workspace();
    let run = trained(dir.path());
    let parity = run.join("export/parity.json");
    let verdict: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&parity).expect("a verdict")).expect("JSON");
    assert_eq!(verdict["checkpoint"], "step-2");
    assert_eq!(verdict["gguf_sha256"].as_str().map(str::len), Some(64));
    let run = run.display().to_string();
    assert!(distill(dir.path(), &["export", &run]).status.success());
    assert!(!parity.exists(), "the verdict is of the file before");
    assert!(distill(dir.path(), &["verify", &run]).status.success());
    assert!(parity.exists());
}

#[test]
fn resuming_with_another_recipe_is_refused() {
    let dir = workspace();
    trained(dir.path());
    let args = ["run", "recipe.toml", "--resume", "--set", "train.learning_rate=0.5"];
    insta::assert_snapshot!("recipe_changed", failure(dir.path(), &args));
}

#[test]
fn a_directory_that_is_no_run_is_named() {
    let dir = workspace();
    insta::assert_snapshot!("not_a_run", failure(dir.path(), &["verify", "."]));
}
