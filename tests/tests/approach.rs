//! Weights that come to the grid by degrees, and the gradients that they and clamped ones get.

mod tiny;

use burn::tensor::{Device, Tensor, TensorData};
use distill_models::parameters::{self, NamedTensors};
use distill_models::quantized::{is_block_scale, quantize, straight_through, with_own_scales};
use distill_models::{ActivationGrid, LlamaForCausalLM, WeightGrid, WeightGrids};
use distill_recipe::{Document, Recipe};
use distill_train::approach::Approach;
use tiny::{tiny_config, weights_of};

const GRIDS: WeightGrids = WeightGrids {
    linears: WeightGrid::Q4_0,
    embeddings: WeightGrid::Q8_0,
    activations: ActivationGrid::Float,
};

fn flex() -> Device {
    distill_models::Backend::Flex.device().expect("flex")
}

/// What a recipe with these keys in [quantize] does at a step.
fn at(keys: &str, step: usize) -> Approach {
    let text = format!(
        "name = \"t\"\n[student]\nfrom = \"m\"\n[data]\nsources = [\"t\"]\n[train]\nsteps = 50\nlearning_rate = 1e-3\n\
         [quantize]\nlinears = \"q4_0\"\nembeddings = \"q8_0\"\n{keys}"
    );
    let document = Document { path: "recipe.toml".into(), text };
    let recipe = Recipe::from_document(&document, &[]).unwrap_or_else(|error| panic!("{error:?}"));
    Approach::at(recipe.quantize.as_ref(), step)
}

/// A model with learned scales, some of which are too small for their blocks.
fn model() -> LlamaForCausalLM {
    let model = with_own_scales(tiny::model(&tiny_config(), &flex()), &GRIDS);
    parameters::map(model, |name, _, values| match is_block_scale(name) {
        true => values * 0.7,
        false => values,
    })
}

/// Gradients of everything, no two alike.
fn gradients(model: &LlamaForCausalLM) -> NamedTensors {
    let mut gradients = NamedTensors::new();
    parameters::for_each_tensor(model, |name, weights| {
        if !is_block_scale(name) {
            let count = weights.dims()[0];
            let values: Vec<f32> = (0..count).map(|i| ((i * 31 + 7) % 97) as f32 - 48.0).collect();
            let values = Tensor::from_data(TensorData::new(values, [count]), &flex());
            gradients.insert(name.to_string(), values);
        }
    });
    gradients
}

fn passed(approach: Approach) -> NamedTensors {
    let model = model();
    let mut of = gradients(&model);
    approach.gradients(&mut of, |of| straight_through(&model, &GRIDS, of));
    of
}

#[test]
fn the_rounding_error_comes_in_equal_parts() {
    let masters = model();
    let rounded = weights_of(&quantize(&masters, &GRIDS));
    let ramp = "start_step = 10\nramp_steps = 4";
    for (step, share) in [(10, 0.25f32), (11, 0.5), (13, 1.0), (49, 1.0)] {
        let live = at(ramp, step).weights(&masters, quantize(&masters, &GRIDS));
        for (name, (_, found)) in weights_of(&live) {
            let (of, to) = (&weights_of(&masters)[&name].1, &rounded[&name].1);
            for ((found, of), to) in found.iter().zip(of).zip(to) {
                let expected = if share == 1.0 { *to } else { of + (to - of) * share };
                assert_eq!(found.to_bits(), expected.to_bits(), "{name} at step {step}");
            }
        }
    }
    let at_once = at("", 0).weights(&masters, quantize(&masters, &GRIDS));
    assert_eq!(weights_of(&at_once), rounded);
}

#[test]
fn gradients_are_those_of_weights_on_their_way() {
    let whole = gradients(&model());
    let clipped = passed(at("", 0));
    let mut zeros = 0;
    for (keys, share) in [
        ("ramp_steps = 4", 0.25),
        ("straight_through = \"identity\"", 1.0),
        ("straight_through = \"identity\"\nramp_steps = 2", 0.5),
    ] {
        let found = passed(at(keys, 0));
        assert_eq!(found.keys().collect::<Vec<_>>(), clipped.keys().collect::<Vec<_>>());
        for (name, found) in found {
            let found = parameters::values(found);
            let clipped = parameters::values(clipped[&name].clone());
            let whole = whole.get(&name).map(|whole| parameters::values(whole.clone()));
            for (i, found) in found.iter().enumerate() {
                let expected = match &whole {
                    // Of the scale of a block.
                    None => clipped[i] * share,
                    // Inside the grid, or an end of it: of the part that is not rounded.
                    Some(whole) if clipped[i] == whole[i] => whole[i],
                    Some(whole) => {
                        zeros += 1;
                        assert_eq!(clipped[i], 0.0, "{name}");
                        if keys.starts_with("ramp") { whole[i] * (1.0 - share) } else { whole[i] }
                    }
                };
                assert!((found - expected).abs() <= 1e-6 * expected.abs(), "{keys}, {name} {i}");
            }
        }
    }
    assert!(zeros > 1000, "{zeros} clamped weights");
}

/// Losses of the first two steps of a run.
fn losses(quantize: &str) -> Vec<f64> {
    let directory = tempfile::tempdir().expect("temp dir");
    let train = "[train]\nsteps = 2\nlearning_rate = 1e-2\n";
    let recipe = tiny::recipe(directory.path(), &format!("{train}{quantize}"));
    let run = directory.path().join("run");
    tiny::train(&recipe, None, &run).expect("trains");
    let log = std::fs::read_to_string(run.join("metrics.jsonl")).expect("metrics");
    let records = log.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let train = records.filter(|record| record["split"] == "train");
    train.map(|record| record["loss"].as_f64().expect("a loss")).collect()
}

#[test]
fn training_computes_with_the_weights_of_the_ramp() {
    let grid = "[quantize]\nlinears = \"q4_0\"\nembeddings = \"q4_0\"\nactivations = \"float\"\n";
    let (float, at_once) = (losses(""), losses(grid));
    let ramp = losses(&format!("{grid}ramp_steps = 2\n"));
    // Half of the rounding error makes about half of the difference.
    let share = (ramp[0] - float[0]) / (at_once[0] - float[0]);
    assert!((0.2..0.8).contains(&share), "{float:?} {ramp:?} {at_once:?}");
    let none = losses(&format!("{grid}ramp_steps = 1\n"));
    assert_eq!(none, at_once);
}
