//! Groups of weights learn at rates of their own, and what is not to learn stays as it is.

mod tiny;

use std::path::Path;

use distill_models::quantized::is_block_scale;
use distill_models::{Backend, load_pretrained};
use distill_recipe::Recipe;
use tiny::{Weights, weights_of};

const RATE: f64 = 1e-3;

/// One step of AdamW, whose first update of a weight is the learning rate, up or down.
fn recipe(directory: &Path, quantize: &str, factors: &str) -> Recipe {
    let tables = format!(
        r#"
[quantize]
linears = "q4_0"
embeddings = "q8_0"
{quantize}
[train]
steps = 1
learning_rate = {RATE}
schedule = "wsd"
decay_steps = 0
warmup_steps = 0
weight_decay = 0
clip_norm = 1e9
[train.learning_rate_factors]
{factors}
"#
    );
    tiny::recipe(directory, &tables)
}

/// All weights after the step.
fn trained(quantize: &str, factors: &str) -> Weights {
    let directory = tempfile::tempdir().expect("temp dir");
    let recipe = recipe(directory.path(), quantize, factors);
    let run = directory.path().join("run");
    let last = tiny::train(&recipe, None, &run).expect("trains");
    let device = Backend::Flex.device().expect("flex");
    weights_of(&load_pretrained(&last, &device).expect("a checkpoint").0)
}

fn group(name: &str) -> &'static str {
    match name {
        _ if is_block_scale(name) => "scales",
        _ if name.ends_with("norm.weight") => "norms",
        "model.embed_tokens.weight" => "embeddings",
        _ => "linears",
    }
}

/// The largest change in each group: of a scale relative to itself.
fn moved(from: &Weights, to: &Weights, of: &str) -> f64 {
    let names = from.keys().filter(|name| group(name) == of);
    let changes = names.flat_map(|name| {
        let relative = is_block_scale(name);
        from[name].1.iter().zip(&to[name].1).map(move |(from, to)| {
            let change = f64::from((to - from).abs());
            if relative && change > 0.0 { change / f64::from(from.abs()) } else { change }
        })
    });
    changes.fold(0.0, f64::max)
}

#[test]
fn each_group_moves_by_its_rate_or_not_at_all() {
    let quantize = "method = \"search\"\ncalibration_sequences = 4";
    let still = "linears = 0\nembeddings = 0\nnorms = 0\nscales = 0";
    let start = trained(quantize, still);
    let end = trained(quantize, "linears = 0.5\nembeddings = 0\nnorms = 3\nscales = 10");
    assert_eq!(moved(&start, &end, "embeddings"), 0.0);
    for (of, factor) in [("linears", 0.5), ("norms", 3.0), ("scales", 10.0)] {
        let found = moved(&start, &end, of) / (factor * RATE);
        assert!((0.95..1.05).contains(&found), "{of} moved {found} times what it should");
    }
}

#[test]
fn fixed_scales_stay_as_they_were_found() {
    let quantize = "method = \"search\"\ncalibration_sequences = 4\n";
    let start = trained(quantize, "linears = 0\nembeddings = 0\nnorms = 0\nscales = 0");
    let fixed = trained(&format!("{quantize}scales = \"fixed\""), "scales = 10");
    assert!(fixed.keys().any(|name| is_block_scale(name)));
    assert_eq!(moved(&start, &fixed, "scales"), 0.0);
    assert!(moved(&start, &fixed, "linears") > 0.0);
}
