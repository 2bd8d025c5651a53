//! What `distill eval` measures is what other programs measure, and the same through the runtime
//! and through the training graph.

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use distill_data::TextTokenizer;
use distill_edge::{Activations, KvType, LoadOptions, Model};
use distill_eval::tasks::choice::Question;
use distill_eval::tasks::{Choice, Divergence, Perplexity, Windows};
use distill_eval::{GraphModel, LanguageModel, RuntimeModel};
use distill_export::{GgufOptions, Grid, export_gguf};
use distill_models::{WeightGrids, load_pretrained};
use serde_json::Value;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn teacher() -> PathBuf {
    root().join("checkpoints/quickstart-teacher")
}

fn text() -> PathBuf {
    root().join("datasets/state-of-the-union.txt")
}

/// The quickstart's teacher, every matrix on one grid, in the runtime.
fn runtime(directory: &Path, grid: Grid, kv: KvType) -> RuntimeModel {
    let path = directory.join("model.gguf");
    let activations = match grid {
        Grid::F32 => distill_export::Activations::Float,
        _ => distill_export::Activations::Q8_0,
    };
    let options = GgufOptions { linears: grid, embeddings: grid, activations, name: String::new() };
    export_gguf(&teacher(), &path, &options).expect("exports");
    let model = Model::load(&path, &LoadOptions::default()).expect("loads");
    let float = model.activations() == Activations::Float;
    assert_eq!(float, matches!(grid, Grid::F32));
    RuntimeModel::new(&model, kv, 2).expect("a session")
}

/// The same in the training graph.
fn graph() -> GraphModel {
    let device = Device::flex();
    let tokenizer = TextTokenizer::from_directory(&teacher()).expect("a tokenizer");
    let (masters, _) = load_pretrained(&teacher(), &device).expect("loads");
    GraphModel::new(&masters, WeightGrids::default(), tokenizer, &device).expect("a model")
}

fn questions() -> Vec<Question> {
    let question = |(line, (query, choices)): (u64, (&str, &[&str]))| Question {
        line,
        query: query.into(),
        choices: choices.iter().map(|&choice| choice.into()).collect(),
        gold: 0,
    };
    let texts: [(&str, &[&str]); 3] = [
        ("The President of the United", &["States", "Nations of the world", "Kingdom"]),
        ("Fellow citizens of the Senate and of the House of", &["Representatives", "cards"]),
        ("", &["We", "The people of this country "]),
    ];
    (1..).zip(texts).map(question).collect()
}

#[test]
fn perplexity_after_each_chunk_is_llama_cpps() {
    let fixture = std::fs::read(root().join("tests/fixtures/llama-perplexity.json"));
    let fixture: Value = serde_json::from_slice(&fixture.expect("a fixture")).expect("JSON");
    let size = |key: &str| fixture[key].as_u64().expect("a number") as usize;
    // llama.cpp prints four decimals. Rounded activations flip codes in either program.
    for (name, grid, limit) in
        [("f32", Grid::F32, 1e-4), ("q8_0", Grid::Q8_0, 1e-3), ("q4_0", Grid::Q4_0, 1e-3)]
    {
        let directory = tempfile::tempdir().expect("temp dir");
        let mut model = runtime(directory.path(), grid, KvType::F16);
        let windows =
            Windows::read(&model, &text(), size("context"), size("chunks")).expect("windows");
        let found = Perplexity::measure(&mut model, &windows, &mut |_, _| {}).expect("measured");
        let theirs = &fixture["models"][name];
        let running = theirs["perplexity_after_each_chunk"].as_array().expect("figures");
        assert_eq!((found.chunks.len(), windows.len()), (running.len(), size("chunks")));
        for (index, expected) in running.iter().enumerate() {
            let so_far = Perplexity { chunks: found.chunks[..=index].to_vec() };
            let apart = so_far.perplexity() / expected.as_f64().expect("a number") - 1.0;
            assert!(apart.abs() < limit, "{name}, chunk {index}: apart by {apart:e}");
        }
        let expected = theirs["standard_error"].as_f64().expect("a number");
        assert!((found.standard_error() / expected - 1.0).abs() < 5e-3, "{name}");
    }
}

#[test]
fn what_choices_share_is_read_once_and_changes_nothing() {
    let directory = tempfile::tempdir().expect("temp dir");
    let mut shared = runtime(directory.path(), Grid::Q4_0, KvType::F16);
    let questions = questions();
    let together =
        Choice::measure(&mut shared, Path::new(""), &questions, &mut |_, _| {}).expect("measured");
    for (item, question) in together.items.iter().zip(&questions) {
        for (answer, choice) in item.choices.iter().zip(&question.choices) {
            let mut fresh = runtime(directory.path(), Grid::Q4_0, KvType::F16);
            let alone = Question { choices: vec![choice.clone()], ..question.clone() };
            let alone = Choice::measure(&mut fresh, Path::new(""), &[alone], &mut |_, _| {});
            assert_eq!(alone.expect("measured").items[0].choices, [*answer], "{choice}");
        }
    }
}

#[test]
fn graph_and_runtime_measure_the_same() {
    let directory = tempfile::tempdir().expect("temp dir");
    let (mut graph, mut runtime) = (graph(), runtime(directory.path(), Grid::F32, KvType::F32));
    let windows = Windows::read(&graph, &text(), 200, 3).expect("windows");
    assert_eq!(Windows::read(&runtime, &text(), 200, 3).expect("windows"), windows);
    let compared =
        Divergence::measure(&mut runtime, &mut graph, &windows, &mut |_, _| {}).expect("measured");
    // Two orders of summation in f32.
    let apart = compared.model.perplexity() / compared.reference.perplexity() - 1.0;
    assert!(apart.abs() < 1e-5, "{apart:e}");
    for chunk in &compared.divergence.chunks {
        assert_eq!(chunk.kl.len(), 99);
        assert!(chunk.kl.iter().all(|&kl| kl < 1e-7), "{:?}", chunk.kl);
        assert!(chunk.same_top >= 98);
    }
    let measure = |model: &mut dyn LanguageModel| {
        Choice::measure(model, Path::new(""), &questions(), &mut |_, _| {}).expect("measured")
    };
    let (ours, theirs) = (measure(&mut runtime), measure(&mut graph));
    for (ours, theirs) in ours.items.iter().zip(&theirs.items) {
        for (ours, theirs) in ours.choices.iter().zip(&theirs.choices) {
            let apart = ours.likelihood.log_likelihood - theirs.likelihood.log_likelihood;
            assert!(apart.abs() < 1e-3, "{ours:?} {theirs:?}");
            assert_eq!(ours.likelihood.tokens, theirs.likelihood.tokens);
        }
    }
}

#[test]
fn a_session_grows_with_the_text_and_ends_at_the_models_context() {
    let directory = tempfile::tempdir().expect("temp dir");
    let mut model = runtime(directory.path(), Grid::Q8_0, KvType::F16);
    let context = model.context();
    let tokens = vec![7; context + 1];
    let mut seen = 0;
    model.logits(&tokens, 0..context, &mut |_, logits| seen += logits.len()).expect("fits");
    assert_eq!(seen, context * model.vocab_size());
    let error = model.logits(&tokens, 0..context + 1, &mut |_, _| {}).expect_err("too long");
    assert!(error.is_input(), "{error}");
}
