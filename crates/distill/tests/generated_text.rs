//! Text that the teacher makes up, from the recipe to the batches.

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use common::{TEACHER, command, distill, done, stderr, words, write};

/// A directory with text and a teacher that was trained on it: `export/model.gguf`, and the
/// checkpoint `step-40`.
fn teacher() -> &'static Path {
    static RUN: LazyLock<(tempfile::TempDir, PathBuf)> = LazyLock::new(|| {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let at = directory.path();
        write(at, "text.txt", &words(9000));
        write(at, "teacher.toml", TEACHER);
        done(&distill(at, &["run", "teacher.toml"]));
        let runs = std::fs::read_dir(at.join("checkpoints/teacher")).expect("runs");
        let run = runs.map(|run| run.expect("a run").path()).next().expect("one");
        (directory, run)
    });
    &RUN.1
}

/// A directory with a recipe whose text is the teacher's alone.
fn student(generate: &str) -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let gguf = teacher().join("export/model.gguf");
    let head = "name = \"student\"\n[student]\nkeep_layers = [0, 2]\n";
    let teacher = format!("[teacher.local]\nfrom = {gguf:?}\nengine = \"runtime\"\n");
    let rest = TEACHER.split_once("[data]").expect("a table").1;
    let rest = rest.replace("sources = [\"text.txt\"]\n", "").replace("steps = 40", "steps = 6");
    let recipe = format!("{head}{teacher}[data]{rest}[data.generate]\n{generate}\n");
    std::fs::write(directory.path().join("student.toml"), recipe).expect("write");
    directory
}

/// The files of generated texts below a directory.
fn texts(directory: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let homes = std::fs::read_dir(directory.join("checkpoints/generated"));
    for home in homes.into_iter().flatten().map(|home| home.expect("an entry").path()) {
        for file in
            std::fs::read_dir(&home).expect("files").map(|file| file.expect("a file").path())
        {
            let name = file.strip_prefix(directory).expect("below").display().to_string();
            if name.ends_with(".jsonl") {
                found.insert(name, std::fs::read_to_string(&file).expect("text"));
            }
        }
    }
    found
}

#[test]
fn the_teachers_text_trains_a_student_without_a_corpus() {
    let at = student("tokens = 12_000\nmax_tokens = 48\nmax_repetition = 1");
    let said = done(&distill(at.path(), &["run", "student.toml"]));
    assert!(said.contains("generated    12,000 tokens: "), "{said}");
    assert!(said.contains("generated texts of 12"), "{said}");
    let files = texts(at.path());
    assert!(files.len() >= 4, "12,000 tokens are 250 texts of 48: {:?}", files.keys());
    let line: serde_json::Value = serde_json::from_str(
        files.values().next().and_then(|file| file.lines().next()).expect("a line"),
    )
    .expect("JSON");
    assert_eq!((&line["index"], &line["begin"]), (&0.into(), &1.into()));
    assert!(line["text"].as_str().is_some_and(|text| text.contains("peace")), "{line}");
    // Nothing is made twice.
    let plan = distill(at.path(), &["plan", "student.toml", "--json"]);
    done(&plan);
    let plan: serde_json::Value = serde_json::from_slice(&plan.stdout).expect("JSON");
    assert_eq!(plan["generation"]["there"], 12_000, "{plan}");
    assert_eq!(plan["text"]["tokens"], 12_000, "{plan}");
    let preview = distill(at.path(), &["preview", "student.toml"]);
    done(&preview);
    let shown = String::from_utf8_lossy(&preview.stdout).into_owned();
    assert!(shown.contains("| peace|"), "{shown}");
    assert_eq!(texts(at.path()), files);
}

#[test]
fn a_killed_generation_goes_on_to_the_same_texts() {
    let keys = "tokens = 40_000\nmax_tokens = 64\nmax_repetition = 1\ntop_p = 0.95";
    let (whole, cut) = (student(keys), student(keys));
    done(&distill(whole.path(), &["run", "student.toml", "--set", "train.steps=1"]));
    let args = ["run", "student.toml", "--set", "train.steps=1"];
    let mut child =
        command(cut.path(), &args).stderr(Stdio::null()).spawn().expect("the binary starts");
    let begun = Instant::now();
    while texts(cut.path()).len() < 2 && begun.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().expect("kill");
    child.wait().expect("wait");
    let half = texts(cut.path()).len();
    assert!((2..texts(whole.path()).len()).contains(&half), "{half} files were there");
    done(&distill(cut.path(), &args));
    assert_eq!(texts(cut.path()), texts(whole.path()));
}

#[test]
fn text_and_generated_text_are_mixed_by_their_weights() {
    let at = student("tokens = 12_000\nmax_tokens = 48\nmax_repetition = 1\nweight = 3");
    let text = teacher().ancestors().nth(3).expect("the directory").join("text.txt");
    let sources = format!("data.sources=[{text:?}]");
    let args = |verb| [verb, "student.toml", "--set", &sources].map(str::to_owned);
    let run = |verb| {
        let args = args(verb);
        done(&distill(at.path(), &args.iter().map(String::as_str).collect::<Vec<_>>()))
    };
    let said = run("run");
    assert!(said.contains("25 % of data.sources: "), "{said}");
    assert!(said.contains("75 % of data.generate: "), "{said}");
    assert!(said.contains("data.generate           75 % of training, read"), "{said}");
    let weights = distill(
        at.path(),
        &["plan", "student.toml", "--set", &sources, "--set", "data.weights=[1, 2]"],
    );
    assert!(stderr(&weights).contains("`data.weights` has length 2"), "{}", stderr(&weights));
}

#[test]
fn a_directory_is_converted_once_for_the_runtime() {
    let checkpoint = teacher().join("step-40");
    let at = student(&format!(
        "from = {checkpoint:?}\ntokens = 3000\nmax_tokens = 40\nmax_repetition = 1\nbegin = [\"law\", \"peace \"]"
    ));
    done(&distill(at.path(), &["preview", "student.toml"]));
    let models = at.path().join("checkpoints/generated/models");
    let files = || -> Vec<(PathBuf, std::time::SystemTime)> {
        let files = std::fs::read_dir(&models).expect("models").map(|file| file.expect("a file"));
        files
            .map(|f| (f.path(), f.metadata().expect("times").modified().expect("a time")))
            .collect()
    };
    let first = files();
    assert_eq!(first.len(), 1);
    done(&distill(at.path(), &["preview", "student.toml"]));
    assert_eq!(files(), first);
    for file in texts(at.path()).values() {
        for (n, line) in file.lines().enumerate() {
            let begin = if n % 2 == 0 { "law" } else { "peace " };
            let line: serde_json::Value = serde_json::from_str(line).expect("JSON");
            assert!(line["text"].as_str().is_some_and(|text| text.starts_with(begin)), "{line}");
        }
    }
}

#[test]
fn what_cannot_be_generated_is_said_with_the_way_out() {
    let failure = |generate: &str| {
        let output = distill(student(generate).path(), &["preview", "student.toml"]);
        assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
        stderr(&output)
    };
    let said = failure("tokens = 9\nend = [\"law peace\"]");
    assert!(said.contains("[data.generate]: `end` names \"law peace\", which is "), "{said}");
    let said = failure("tokens = 9\nmax_tokens = 5000");
    assert!(said.contains("`max_tokens` is 5000, and its model is made for "), "{said}");
    let said = failure("tokens = 9\nprompts = [\"nothing.txt\"]");
    assert!(said.contains("nothing.txt: no such file"), "{said}");
    let long = format!("tokens = 9\nmax_tokens = 20\nbegin = [{:?}]", "law peace ".repeat(30));
    let said = failure(&long);
    assert!(said.contains("text 0 begins with ") && said.contains("`max_tokens` is 20"), "{said}");

    let at = student("tokens = 9000\nmax_tokens = 48\nmax_log_prob = -50");
    let output = distill(at.path(), &["run", "student.toml"]);
    let said = stderr(&output);
    assert!(said.contains("of 256 texts 0 pass the filters: "), "{said}");
    assert_eq!(output.status.code(), Some(2));
}
