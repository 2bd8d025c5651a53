//! The denominator of a step is the valid tokens of its whole window, however it is cut.

mod tiny;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use distill_models::load_pretrained;
use distill_recipe::Recipe;
use distill_train::{LocalPaths, Trainer, prepare};
use tiny::weights_of;

/// Documents of very different lengths, so that sequences have very different masks.
fn text() -> String {
    let words = ["sun", "river", "stone", "bird", "green", "old", "house", "runs", "far", "sky"];
    let mut state = 5u32;
    let mut documents = Vec::new();
    for length in (1..40).cycle().take(160) {
        let mut document = String::new();
        for _ in 0..length {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            document.push_str(words[(state >> 16) as usize % words.len()]);
            document.push(' ');
        }
        documents.push(document);
    }
    documents.join("\n%%\n")
}

/// A recipe that trains from text alone, or is taught by the model of a checkpoint.
fn recipe(
    directory: &Path,
    teacher: Option<&Path>,
    batch_size: usize,
    accumulation: usize,
) -> Recipe {
    let tied = teacher.is_none();
    let (tokenizer, teacher) = match teacher {
        None => ("train_tokenizer = 300", String::new()),
        Some(path) => (
            "",
            format!(
                "[teacher.local]\nfrom = {path:?}\n[distill]\nloss = \"reverse_kl\"\ncross_entropy = 0.3"
            ),
        ),
    };
    let data = directory.join("text.txt");
    std::fs::write(&data, text()).expect("write");
    let toml = format!(
        r#"
name = "accumulation"
seed = 3
{teacher}
[student]
{tokenizer}
config = {{ hidden_size = 64, intermediate_size = 96, num_hidden_layers = 2, num_attention_heads = 2, num_key_value_heads = 1, tie_word_embeddings = {tied} }}
[data]
sources = [{data:?}]
document_separator = "\n%%\n"
sequence_length = 48
held_out = 0.1
[quantize]
linears = "q4_0"
embeddings = "q8_0"
activations = "q8_0"
[train]
steps = 1
batch_size = {batch_size}
gradient_accumulation = {accumulation}
learning_rate = 1e-2
epsilon = 1e-3
weight_decay = 0.1
"#
    );
    let path = directory.join("recipe.toml");
    std::fs::write(&path, toml).expect("write");
    Recipe::from_path(&path, &[]).expect("a good recipe").1
}

/// What one step did.
struct Update {
    /// Each weight's change.
    change: BTreeMap<String, Vec<f64>>,
    loss: f64,
    checkpoint: PathBuf,
}

fn update(
    directory: &Path,
    teacher: Option<&Path>,
    batch_size: usize,
    accumulation: usize,
) -> Update {
    let recipe = recipe(directory, teacher, batch_size, accumulation);
    let device = prepare::device(recipe.backend).expect("flex");
    let paths = LocalPaths {
        sources: vec![recipe.data.sources.clone()],
        teacher: teacher.map(Path::to_path_buf),
        ..LocalPaths::default()
    };
    let run = directory.join("run");
    std::fs::create_dir(&run).expect("create");
    let prepared = prepare::prepare(&recipe, &paths, &run, &device, &mut |_| {}).expect("prepares");
    let mut cursor = prepared.dataset.train.cursor(recipe.seed);
    let valid = [(); 4].map(|()| prepared.dataset.train.next_batch(&mut cursor, 1).valid_tokens());
    assert!(valid.iter().any(|&v| v != valid[0]), "the masks must be unequal: {valid:?}");
    let (first, _) = prepared.first_student(&recipe, &paths, &device).expect("student");
    let before = weights_of(&first);
    let trainer = Trainer::open(&recipe, &prepared, || Ok(first), run.clone(), device.clone())
        .expect("opens");
    let checkpoint = trainer.run(&mut ()).expect("trains");
    let after = weights_of(&load_pretrained(&checkpoint, &device).expect("loads").0);
    let records = distill_train::metrics::read(&run).expect("metrics");
    let loss = records.iter().find(|r| r.split == "train").and_then(|r| r.get("loss"));
    let change = before
        .iter()
        .map(|(name, (_, old))| {
            let new = &after[name].1;
            (
                name.clone(),
                new.iter().zip(old).map(|(n, o)| f64::from(*n) - f64::from(*o)).collect(),
            )
        })
        .collect();
    Update { change, loss: loss.expect("a loss"), checkpoint }
}

fn assert_one_update(whole: &Update, parts: &Update) {
    assert!((whole.loss - parts.loss).abs() < 1e-6 * whole.loss, "{} {}", whole.loss, parts.loss);
    let norm = |d: &mut dyn Iterator<Item = f64>| d.map(|v| v * v).sum::<f64>().sqrt();
    let apart = whole
        .change
        .iter()
        .flat_map(|(name, change)| change.iter().zip(&parts.change[name]).map(|(a, b)| a - b));
    let difference = norm(&mut apart.into_iter());
    let size = norm(&mut whole.change.values().flatten().copied());
    assert!(size > 0.0);
    assert!(difference <= 1e-5 * size, "relative difference {:.2e}", difference / size);
}

#[test]
fn four_micro_batches_of_one_update_as_one_of_four_with_and_without_a_teacher() {
    let [whole, parts, taught_whole, taught_parts] =
        [(); 4].map(|()| tempfile::tempdir().expect("temp dir"));
    let whole = update(whole.path(), None, 4, 1);
    assert_one_update(&whole, &update(parts.path(), None, 1, 4));
    let teacher = Some(whole.checkpoint.as_path());
    let taught = update(taught_whole.path(), teacher, 4, 1);
    assert_one_update(&taught, &update(taught_parts.path(), teacher, 1, 4));
    for name in ["model.embed_tokens.weight", "lm_head.weight"] {
        assert!(taught.change[name].iter().any(|&change| change != 0.0), "{name} did not move");
    }
    assert!(taught.loss < 0.9 * whole.loss, "the teacher took part: {}", taught.loss);
}
