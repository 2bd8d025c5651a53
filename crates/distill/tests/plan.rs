//! What `distill plan` says, and what it refuses.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn distill(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_distill"))
        .current_dir(root())
        .env("NO_COLOR", "1")
        .args(args)
        .output()
        .expect("the binary starts")
}

const QUICKSTART: &str = "recipes/quickstart.toml";

/// The plan without what this machine has to say to it.
fn settled(text: &str) -> String {
    const MEASURED: [&str; 7] = [
        "memory  ",
        "program and text",
        "time",
        "layers",
        "head and loss",
        "teacher     ",
        "rounding, update",
    ];
    let line = |line: &str| {
        let name = MEASURED.iter().find(|name| line.trim_start().starts_with(**name));
        match name {
            // Of those that are counted and of those that are timed, one name is the same.
            Some(name) if line.ends_with('%') || !name.starts_with("teacher") => {
                let indent = line.len() - line.trim_start().len();
                format!("{:indent$}{} <measured>", "", name.trim_end())
            }
            _ => line.to_owned(),
        }
    };
    text.lines().map(line).collect::<Vec<String>>().join("\n")
}

#[test]
fn the_plan_of_the_quickstart_says_what_it_takes_and_what_the_device_will_do() {
    let device = "device={ bandwidth_gbps = 10, ram_mb = 16, min_tokens_per_s = 5000, \
                  first_token_ms = 50, context_length = 512 }";
    let output = distill(&["plan", QUICKSTART, "--set", device]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    insta::assert_snapshot!(settled(&String::from_utf8_lossy(&output.stdout)));
}

#[test]
fn the_plan_as_json_has_its_parts_in_bytes_and_seconds() {
    let output = distill(&["plan", QUICKSTART, "--json"]);
    let plan: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let number = |pointer: &str| {
        plan.pointer(pointer).and_then(Value::as_f64).unwrap_or_else(|| panic!("{pointer}: {plan}"))
    };
    let parts = plan["memory"]["parts"].as_object().expect("parts");
    let sum: f64 = parts.values().map(|bytes| bytes.as_f64().expect("bytes")).sum();
    assert_eq!(sum, number("/memory/peak"));
    assert_eq!(number("/memory/parts/masters"), 4.0 * number("/student_parameters"));
    let time = |part: &str| number(&format!("/time/{part}"));
    let sum: f64 = ["layers", "ends", "teacher", "update"].map(time).iter().sum();
    assert!((sum / time("step") - 1.0).abs() < 1e-6);
    assert!(time("step") > 0.0 && time("probe") > 0.0);
    assert_eq!(plan["device"]["first_token_ms"], Value::Null);
}

#[test]
fn a_budget_that_cannot_be_met_is_refused_before_anything_is_done() {
    let directory = tempfile::tempdir().expect("temp dir");
    let output = directory.path().join("runs");
    let set = format!("output={:?}", output.display().to_string());
    let budget = [
        ("ram_mb", "device={ bandwidth_gbps = 1, ram_mb = 5 }"),
        (
            "tokens_per_s",
            "device={ bandwidth_gbps = 1, min_tokens_per_s = 1800, context_length = 256 }",
        ),
        ("first_token", "device={ bandwidth_gbps = 1, tops = 0.001, first_token_ms = 100 }"),
    ];
    for (name, device) in budget {
        for verb in ["plan", "run"] {
            let refused = distill(&[verb, QUICKSTART, "--set", &set, "--set", device]);
            assert_eq!(refused.status.code(), Some(1));
            assert!(refused.stdout.is_empty());
            let stderr = String::from_utf8_lossy(&refused.stderr);
            insta::assert_snapshot!(format!("beyond_{name}"), stderr);
        }
    }
    assert!(!output.exists(), "something was done");
}
