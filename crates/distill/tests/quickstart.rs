//! The quickstart recipe, cut to a few steps: every stage runs and leaves its files.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn distill(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_distill"))
        .current_dir(root())
        .args(args)
        .output()
        .expect("the binary starts")
}

fn succeed(args: &[&str]) -> String {
    let output = distill(args);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {stderr}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn the_quickstart_trains_exports_verifies_and_reports() {
    let output = tempfile::tempdir().expect("temp dir");
    let set = |key: &str| format!("{key}={:?}", output.path().display().to_string());
    let table = succeed(&[
        "run",
        "recipes/quickstart.toml",
        "--set",
        &set("output"),
        "--set",
        "train.steps=6",
        "--set",
        "quantize.start_step=3",
        "--set",
        "train.warmup_steps=1",
        "--set",
        "eval.sequences=2",
        "--set",
        "export.parity_positions=512",
    ]);
    for row in ["teacher", "full precision", "rounded to nearest", "exported"] {
        assert!(table.contains(row), "no row `{row}` in\n{table}");
    }
    let runs = std::fs::read_dir(output.path().join("quickstart")).expect("runs");
    let run = runs.flatten().next().expect("one run").path();
    for file in [
        "recipe.toml",
        "resolved.toml",
        "plan.json",
        "metrics.jsonl",
        "timings.jsonl",
        "step-6/model.safetensors",
        "export/model.gguf",
        "export/model.edge",
        "export/huggingface/model.safetensors",
        "export/parity.json",
        "report.json",
        "report.html",
    ] {
        assert!(run.join(file).is_file(), "{file} is missing");
    }
    let plan = std::fs::read(run.join("plan.json")).expect("a plan");
    let plan: serde_json::Value = serde_json::from_slice(&plan).expect("JSON");
    let run = run.display().to_string();
    assert_eq!(succeed(&["verify", &run]).matches("agree").count(), 3);

    let model = format!("{run}/export/model.gguf");
    let args = [
        "generate",
        &model,
        "--prompt",
        "The Congress",
        "--max-tokens",
        "8",
        "--temperature",
        "0",
        "--json",
    ];
    let json: serde_json::Value = serde_json::from_str(&succeed(&args)).expect("JSON");
    assert_eq!(json["ids"].as_array().map(Vec::len), Some(8));
    let bench = ["bench", &model, "--prompt", "16", "--generate", "4", "--repeat", "1", "--json"];
    let json: serde_json::Value = serde_json::from_str(&succeed(&bench)).expect("JSON");
    assert_eq!(json["weight_bytes"], plan["device"]["token_weight_bytes"]);
    assert!(
        json["runs"][0]["decode"][0]["tokens_per_second"].as_f64().is_some_and(|speed| speed > 0.0)
    );
}

#[test]
fn preview_shows_tokens_and_mask_of_real_samples() {
    let shown = succeed(&["preview", "recipes/quickstart.toml", "--samples", "1"]);
    assert!(shown.contains("256 of 256 positions are counted"), "{shown}");
    assert!(shown.contains("held out"), "{shown}");
}

#[test]
fn every_committed_recipe_is_valid() {
    for entry in std::fs::read_dir(root().join("recipes")).expect("recipes").flatten() {
        if entry.path().extension().is_some_and(|e| e == "toml") {
            succeed(&["check", &entry.path().display().to_string()]);
        }
    }
}
