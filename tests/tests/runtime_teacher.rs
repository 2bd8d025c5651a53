//! A teacher in the edge runtime says what the same file says in the training graph.

mod tiny;

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use distill_data::{Batch, SpecialTokens, TextTokenizer};
use distill_edge::{Activations, LoadOptions, Model};
use distill_export::{GgufOptions, Grid, export_gguf};
use distill_models::{LlamaConfig, load_pretrained, parameters};
use distill_train::teacher::{LocalTeacher, RuntimeTeacher, Signal, Teacher};

/// Tokens of a sequence: more than the runtime computes at a time.
const TOKENS: usize = 150;

/// A random model on the grids, as a file.
fn export(directory: &Path, grid: Grid, tied: bool) -> PathBuf {
    let checkpoint = directory.join("checkpoint");
    std::fs::create_dir(&checkpoint).expect("create");
    let texts = std::iter::once(Ok("a teacher of few words and of many numbers".to_owned()));
    let tokenizer =
        TextTokenizer::train(texts, 280, &SpecialTokens::default()).expect("a tokenizer");
    let config = LlamaConfig {
        vocab_size: tokenizer.vocab_size(),
        hidden_size: 128,
        intermediate_size: 192,
        num_hidden_layers: 3,
        head_dim: 32,
        tie_word_embeddings: tied,
        ..tiny::tiny_config()
    };
    let model = tiny::model(&config, &Device::flex());
    distill_models::save::save(&model, &checkpoint).expect("saves");
    tokenizer.save(&checkpoint).expect("saves");
    let path = directory.join("teacher.gguf");
    let options = GgufOptions {
        linears: grid,
        embeddings: grid,
        activations: distill_export::Activations::Q8_0,
        name: "tiny".into(),
    };
    export_gguf(&checkpoint, &path, &options).expect("exports");
    path
}

/// Two sequences of documents of 40 tokens, the last of each cut short.
fn batch(vocabulary: usize) -> Batch {
    let count = 2 * TOKENS;
    let id = |i: usize| ((i * 37 + i * i) % vocabulary) as u32;
    Batch {
        batch: 2,
        sequence: TOKENS,
        input_ids: (0..count).map(id).collect(),
        labels: (0..count).map(|i| id(i + 1)).collect(),
        loss_mask: vec![true; count],
        document_ids: (0..count).map(|i| (i % TOKENS / 40) as u32).collect(),
        position_ids: (0..count).map(|i| (i % TOKENS % 40) as u32).collect(),
    }
}

/// Logits of both, in the graph and in the runtime.
fn logits(path: &Path, activations: Activations) -> (usize, [Vec<f32>; 2]) {
    let device = Device::flex();
    let (graph, _) = load_pretrained(path, &device).expect("loads");
    let vocabulary = graph.config.vocab_size - 3;
    let options = LoadOptions { activations: Some(activations), ..LoadOptions::default() };
    let model = Model::load(path, &options).expect("loads");
    let runtime =
        RuntimeTeacher::new(&model, vocabulary, TOKENS, device.clone()).expect("a session");
    let batch = batch(vocabulary);
    let values = |teacher: &dyn Teacher| {
        let signal = teacher.signal(&batch).expect("a signal");
        let Signal::Dense(dense) = signal else { panic!("a local teacher says everything") };
        parameters::values(dense.logits(0..batch.input_ids.len()))
    };
    let graph = values(&LocalTeacher::new(graph, vocabulary, device));
    // A second batch finds the session as the first did.
    let first = values(&runtime);
    assert_eq!(first, values(&runtime));
    assert_eq!(graph.len(), batch.input_ids.len() * vocabulary);
    (vocabulary, [graph, first])
}

fn spread(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |most, value| most.max(value.abs()))
}

#[test]
fn with_float_activations_logits_are_the_same() {
    for (grid, tied) in [(Grid::F32, true), (Grid::Q4_0, true), (Grid::Q8_0, false)] {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = export(directory.path(), grid, tied);
        let (_, [graph, runtime]) = logits(&path, Activations::Float);
        let scale = spread(&graph);
        let worst = graph.iter().zip(&runtime).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        println!("{grid:?}: {worst} of {scale}");
        assert!(worst <= 1e-5 * scale, "{grid:?}: {worst} of {scale}");
    }
}

#[test]
fn with_integer_products_it_says_nearly_the_same() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = export(directory.path(), Grid::Q4_0, true);
    let (vocabulary, [graph, runtime]) = logits(&path, Activations::Q8_0);
    let rows = graph.chunks_exact(vocabulary).zip(runtime.chunks_exact(vocabulary));
    let kls: Vec<f64> = rows.map(|(p, q)| distill_eval::score::kl(p, q)).collect();
    let mean = kls.iter().sum::<f64>() / kls.len() as f64;
    println!("KL {mean}");
    assert!(mean > 0.0 && mean < 2e-3, "{mean}");
}
