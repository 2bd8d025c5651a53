//! The checkpoint that is exported is the one whose weights, as they ship, were measured best; training
//! ends when nothing better comes.

mod tiny;

use std::path::{Path, PathBuf};

use distill_recipe::{Choice, Recipe};
use distill_train::checkpoint;
use distill_train::trainer::Observer;

/// Text with little to learn, so that a learning rate that is too high soon spoils what was.
fn text() -> String {
    let words = ["sun", "river", "house", "bird", "tree"];
    let mut state = 5u32;
    let mut text = String::new();
    for word in 0..6000 {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        text.push_str(words[(state >> 16) as usize % 5]);
        text.push_str(if word % 100 == 99 { "\n%%\n" } else { " " });
    }
    text
}

fn recipe(directory: &Path, more: &[&str]) -> Recipe {
    let data = directory.join("text.txt");
    std::fs::write(&data, text()).expect("write");
    let toml = format!(
        r#"
name = "best"
seed = 3
[student]
train_tokenizer = 280
config = {{ hidden_size = 32, intermediate_size = 64, num_hidden_layers = 1, num_attention_heads = 2, num_key_value_heads = 1 }}
[data]
sources = [{data:?}]
document_separator = "\n%%\n"
sequence_length = 32
held_out = 0.1
[quantize]
linears = "q4_0"
embeddings = "q8_0"
method = "search"
start_step = 2
[train]
steps = 40
batch_size = 4
learning_rate = 0.05
schedule = "wsd"
decay_steps = 0
eval_every = 2
checkpoint_every = 4
keep_checkpoints = 1
[export]
checkpoint = "best"
"#
    );
    let path = directory.join("recipe.toml");
    std::fs::write(&path, toml).expect("write");
    let more: Vec<String> = more.iter().map(|&set| set.to_owned()).collect();
    Recipe::from_path(&path, &more).unwrap_or_else(|error| panic!("{error:?}")).1
}

fn train(recipe: &Recipe, run: &Path) -> PathBuf {
    tiny::train(recipe, None, run).expect("trained")
}

/// Step and loss of every evaluation on the grid.
fn evaluations(run: &Path) -> Vec<(u64, f64)> {
    let log = std::fs::read_to_string(run.join("metrics.jsonl")).expect("metrics");
    let records = log.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let on_grid = |r: &serde_json::Value| r["split"] == "eval" && r["step"].as_u64() > Some(2);
    records
        .filter(on_grid)
        .map(|r| (r["step"].as_u64().unwrap(), r["loss"].as_f64().unwrap()))
        .collect()
}

fn steps_on_disk(run: &Path) -> Vec<u64> {
    let names = std::fs::read_dir(run).expect("run").map(|e| e.unwrap().file_name());
    let step = |name: std::ffi::OsString| name.to_str()?.strip_prefix("step-")?.parse().ok();
    let mut steps: Vec<u64> = names.filter_map(step).collect();
    steps.sort_unstable();
    steps
}

#[test]
fn the_best_evaluation_is_kept_and_chosen() {
    let directory = tempfile::tempdir().expect("temp dir");
    let (whole, parts) = (directory.path().join("whole"), directory.path().join("parts"));
    let chosen = train(&recipe(directory.path(), &[]), &whole);
    let evaluations = evaluations(&whole);
    let best = evaluations.iter().min_by(|a, b| a.1.total_cmp(&b.1)).expect("evaluations").0;
    assert_ne!(best, 40, "a rate this high must spoil something: {evaluations:?}");
    assert_eq!(chosen, whole.join(format!("step-{best}")));
    assert_eq!(steps_on_disk(&whole), [best, 40]);
    assert_eq!(checkpoint::chosen(&whole, Choice::Last).unwrap(), Some(whole.join("step-40")));

    // Cut short after the best and continued, it is still known.
    let cut = (best + 4).min(36);
    train(&recipe(directory.path(), &[&format!("train.steps={cut}")]), &parts);
    let chosen = train(&recipe(directory.path(), &[]), &parts);
    assert_eq!(chosen, parts.join(format!("step-{best}")));
    assert_eq!(steps_on_disk(&parts), [best, 40]);
}

#[test]
fn training_ends_when_patience_does() {
    let directory = tempfile::tempdir().expect("temp dir");
    let run = directory.path().join("run");
    let recipe = recipe(directory.path(), &["train.patience=2"]);
    let chosen = train(&recipe, &run);
    let evaluations = evaluations(&run);
    let (best, _) = *evaluations.iter().min_by(|a, b| a.1.total_cmp(&b.1)).expect("evaluations");
    let last = evaluations.last().expect("evaluations").0;
    assert_eq!(last, best + 4, "two evaluations after the best: {evaluations:?}");
    assert!(last < 40);
    assert_eq!(chosen, run.join(format!("step-{best}")));
    assert_eq!(train(&recipe, &run), chosen, "there is nothing to continue");
}

/// Counts layers that come to the grid, and may be killed by its first checkpoint.
struct Watch {
    layers: usize,
    dies: bool,
}

impl Observer for Watch {
    fn quantized(&mut self, _: usize, _: usize) {
        self.layers += 1;
    }

    fn checkpoint(&mut self, path: &Path) {
        assert!(!self.dies, "killed at {}", path.display());
    }
}

/// Kills a run by its first checkpoint, which is what training on the grid begins with at `step`, and
/// continues it, without another look at the calibration text.
fn killed_and_continued(recipe: &Recipe, run: &Path, step: u64) -> PathBuf {
    let mut killed = Watch { layers: 0, dies: true };
    let training =
        std::panic::AssertUnwindSafe(|| tiny::train_before(recipe, None, run, &mut killed));
    assert!(std::panic::catch_unwind(training).is_err());
    assert_eq!((killed.layers, steps_on_disk(run)), (2, vec![step]));

    let mut resumed = Watch { layers: 0, dies: false };
    let chosen = tiny::train_before(recipe, None, run, &mut resumed).expect("trains");
    assert_eq!(resumed.layers, 0, "the method has done its work");
    let log = std::fs::read_to_string(run.join("metrics.jsonl")).expect("metrics");
    assert_eq!(log.matches("\"start\"").count(), 1);
    chosen
}

#[test]
fn what_training_on_the_grid_begins_with_may_be_the_best() {
    let directory = tempfile::tempdir().expect("temp dir");
    let run = directory.path().join("run");
    // Nothing is learnt, so that nothing becomes better.
    let still = "train.learning_rate_factors={linears=0,embeddings=0,norms=0,scales=0}";
    let recipe = recipe(directory.path(), &[still, "quantize.start_step=0"]);
    assert_eq!(killed_and_continued(&recipe, &run, 0), run.join("step-0"));
    assert_eq!(steps_on_disk(&run), [0, 40]);
    // Nothing is measured twice.
    let whole = directory.path().join("whole");
    train(&recipe, &whole);
    let [whole, parts] =
        [&whole, &run].map(|run| std::fs::read_to_string(run.join("metrics.jsonl")).expect("it"));
    assert_eq!(whole, parts);
}

#[test]
fn a_checkpoint_that_was_being_replaced_counts_until_its_successor_is_there() {
    let directory = tempfile::tempdir().expect("temp dir");
    let run = directory.path();
    for name in ["step-4", ".step-8.old", ".step-8.tmp"] {
        std::fs::create_dir(run.join(name)).expect("create");
    }
    assert_eq!(checkpoint::newest(run).unwrap(), Some(run.join(".step-8.old")));
    std::fs::create_dir(run.join("step-8")).expect("create");
    assert_eq!(checkpoint::newest(run).unwrap(), Some(run.join("step-8")));
}

#[test]
fn a_run_killed_where_it_comes_to_the_grid_ends_in_the_same_bits() {
    let directory = tempfile::tempdir().expect("temp dir");
    let (whole, parts) = (directory.path().join("whole"), directory.path().join("parts"));
    // Weights have been updated once then, scales of blocks never.
    let recipe = recipe(directory.path(), &["quantize.start_step=1"]);
    let chosen = [train(&recipe, &whole), killed_and_continued(&recipe, &parts, 1)];
    let [whole, parts] =
        chosen.map(|path| std::fs::read(path.join("model.safetensors")).expect("weights"));
    assert!(whole == parts);
}
