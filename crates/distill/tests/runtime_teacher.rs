//! What one run exported teaches the next one's student, computed by the edge runtime.

mod common;

use common::{TEACHER, distill, done, json, only_run, words, write};

#[test]
fn an_exported_file_teaches_through_the_runtime() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let at = directory.path();
    write(at, "text.txt", &words(9000));
    write(at, "teacher.toml", TEACHER);
    done(&distill(at, &["run", "teacher.toml"]));
    let gguf = only_run(at, "teacher").join("export/model.gguf");

    let second = TEACHER
        .replace("name = \"teacher\"", "name = \"student\"")
        .replace("steps = 40", "steps = 12")
        .lines()
        .filter(|line| !line.starts_with("train_tokenizer") && !line.starts_with("config"))
        .collect::<Vec<_>>()
        .join("\n")
        .replace("[student]", "[student]\nkeep_layers = [0, 2]")
        + &format!("\n[teacher.local]\nfrom = {gguf:?}\nengine = \"runtime\"\n");
    write(at, "student.toml", &second);
    let stderr = done(&distill(at, &["run", "student.toml"]));
    assert!(stderr.contains("in the edge runtime (Q8_0 activations, f16 KV cache)"), "{stderr}");

    let report = json(&only_run(at, "student").join("report.json"));
    let row = |kind: &str| {
        let rows = report["rows"].as_array().expect("rows");
        rows.iter().find(|row| row["kind"] == kind).unwrap_or_else(|| panic!("{kind}: {rows:?}"))
    };
    let teacher = row("teacher");
    assert_eq!(teacher["through"], "runtime, Q8_0 activations, f16 KV cache");
    assert!(teacher["perplexity"].as_f64().is_some_and(|found| found < 100.0), "{teacher}");
    assert!(row("exported_runtime")["kl"].as_f64().is_some_and(|kl| kl < 1.0), "{report}");
}
