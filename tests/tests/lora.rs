//! Low-rank adaptation: its gradients, what is frozen, what ships, and that a run goes on in the same
//! bits.

mod tiny;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::tensor::{Device, Tensor, TensorData};
use distill_data::Batch;
use distill_export::{Activations, GgufOptions, Grid, export_gguf};
use distill_gguf::{GgufFile, names};
use distill_models::parameters::{self, NamedTensors};
use distill_models::quantized::{quantize, straight_through};
use distill_models::{
    ActivationGrid, Backend, LlamaForCausalLM, Lora, LoraOptions, ModelError, WeightGrid,
    WeightGrids, load_pretrained,
};
use distill_recipe::{Precision, Recipe};
use distill_train::backward::MicroBatch;
use distill_train::{TrainError, prepare};
use tiny::{tiny_config, train, weights_of};

const RANK: usize = 4;
const GRIDS: [WeightGrid; 3] = [WeightGrid::Float, WeightGrid::Q8_0, WeightGrid::Q4_0];

fn grids(linears: WeightGrid) -> WeightGrids {
    let embeddings = match linears {
        WeightGrid::Float => WeightGrid::Float,
        _ => WeightGrid::Q8_0,
    };
    WeightGrids { linears, embeddings, activations: ActivationGrid::Float }
}

fn options() -> LoraOptions {
    let targets = ["q_proj", "v_proj", "down_proj"].map(str::to_owned).to_vec();
    LoraOptions { rank: RANK, alpha: 6.0, targets }
}

/// Factors as they may be in the middle of training: B is not zero.
fn lora(model: &LlamaForCausalLM) -> Lora {
    let mut lora = Lora::init(model, &options(), 5).expect("the rank is small");
    lora.map(|name, _, factor| {
        let values: Vec<f32> = (0..factor.dims()[0])
            .map(|i| 0.1 * (i as f32 * 0.7 + name.len() as f32).sin())
            .collect();
        let count = values.len();
        factor.clone() + Tensor::from_data(TensorData::new(values, [count]), &factor.device())
    });
    lora
}

/// Two sequences of packed documents.
fn batch() -> Batch {
    const TOKENS: usize = 40;
    let count = 2 * TOKENS;
    Batch {
        batch: 2,
        sequence: TOKENS,
        input_ids: (0..count).map(|i| (i * 7 % 31) as u32).collect(),
        labels: (0..count).map(|i| ((i + 1) * 7 % 31) as u32).collect(),
        loss_mask: (0..count).map(|i| i % 6 != 2).collect(),
        document_ids: (0..count).map(|i| (i % TOKENS / 25) as u32).collect(),
        position_ids: (0..count).map(|i| (i % TOKENS % 25) as u32).collect(),
    }
}

fn gradients(model: &LlamaForCausalLM, activation_checkpointing: bool) -> (f64, NamedTensors) {
    let batch = batch();
    let mut gradients = NamedTensors::new();
    let sums = MicroBatch {
        batch: &batch,
        distillation: None,
        vocabulary: model.config.vocab_size,
        denominator: batch.valid_tokens(),
        activation_checkpointing,
        precision: Precision::F32,
    }
    .backward(model, &mut gradients);
    (sums.loss, gradients)
}

/// Values of every factor by name.
fn factors(lora: &Lora) -> BTreeMap<String, Vec<f32>> {
    let mut all = BTreeMap::new();
    lora.clone().map(|name, _, factor| {
        all.insert(name.to_string(), parameters::values(factor.clone()));
        factor
    });
    all
}

fn close(found: &[f32], want: &[f64], bound: f64, what: &str) {
    assert_eq!(found.len(), want.len(), "{what}");
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    let error = norm(&mut found.iter().zip(want).map(|(f, w)| f64::from(*f) - w));
    let size = norm(&mut want.iter().copied());
    assert!(size > 0.0 && error <= bound * size, "{what}: {error} of {size}");
}

#[test]
fn gradients_of_the_factors_are_those_of_the_merged_weights_times_the_other_factor() {
    for backend in [Backend::Flex, Backend::Ndarray] {
        let device = backend.device().expect("this build has it");
        let base = tiny::model(&tiny_config(), &device);
        let lora = lora(&base);
        let (values, scale) = (factors(&lora), f64::from(options().scale()));
        for linears in GRIDS {
            let grids = grids(linears);
            // All weights trained: the gradient of each whole matrix.
            let merged = lora.merge(&base);
            let (loss, mut dense) = gradients(&quantize(&merged, &grids), false);
            straight_through(&merged, &grids, &mut dense);
            let live = lora.live(&base, &grids);
            for checkpointing in [false, true] {
                let what = format!("{backend:?} {linears:?} checkpointing {checkpointing}");
                let (found_loss, found) = gradients(&live, checkpointing);
                assert!((found_loss - loss).abs() < 1e-5 * loss, "{what}: {found_loss} {loss}");
                let names: Vec<&String> = found.keys().collect();
                assert_eq!(names, values.keys().collect::<Vec<_>>(), "{what}: nothing else");
                for (name, linear) in base.linears() {
                    let [out, input] = linear.weight.val().dims();
                    let (a, b) = (format!("{name}.lora_A.weight"), format!("{name}.lora_B.weight"));
                    let Some(gradient) = found.get(&a).cloned() else { continue };
                    let d = parameters::values(dense[&format!("{name}.weight")].clone());
                    let d = |o: usize, i: usize| f64::from(d[o * input + i]);
                    let (of_a, of_b) = (&values[&a], &values[&b]);
                    let want: Vec<f64> = (0..RANK * input)
                        .map(|at| {
                            let (r, i) = (at / input, at % input);
                            let sum = (0..out).map(|o| f64::from(of_b[o * RANK + r]) * d(o, i));
                            scale * sum.sum::<f64>()
                        })
                        .collect();
                    close(&parameters::values(gradient), &want, 2e-5, &format!("{what} {a}"));
                    let want: Vec<f64> = (0..out * RANK)
                        .map(|at| {
                            let (o, r) = (at / RANK, at % RANK);
                            let sum = (0..input).map(|i| d(o, i) * f64::from(of_a[r * input + i]));
                            scale * sum.sum::<f64>()
                        })
                        .collect();
                    let gradient = parameters::values(found[&b].clone());
                    close(&gradient, &want, 2e-5, &format!("{what} {b}"));
                }
            }
        }
    }
}

#[test]
fn gradients_of_the_factors_equal_differences_of_the_loss() {
    // In f32, whose rounding a step of 1 % of each factor's own direction exceeds by far: along the
    // gradient of one factor at a time, the loss rises by |g|² a step.
    let device = Device::flex();
    let base = tiny::model(&tiny_config(), &device);
    let lora = lora(&base);
    let float = WeightGrids::default();
    let (_, found) = gradients(&lora.live(&base, &float), false);
    let denominator = batch().valid_tokens() as f64;
    for (name, gradient) in found {
        let gradient = parameters::values(gradient);
        let square: f64 = gradient.iter().map(|&g| f64::from(g).powi(2)).sum();
        let step = 2e-3 / square.sqrt();
        let at = |by: f64| {
            let mut moved = lora.clone();
            moved.map(|other, _, factor| {
                if other != name {
                    return factor;
                }
                let step: Vec<f32> = gradient.iter().map(|&g| (by * f64::from(g)) as f32).collect();
                let count = step.len();
                factor + Tensor::from_data(TensorData::new(step, [count]), &device)
            });
            gradients(&moved.live(&base, &float), false).0 / denominator
        };
        let slope = (at(step) - at(-step)) / (2.0 * step);
        assert!((slope - square).abs() < 2e-2 * square, "{name}: {slope} {square}");
    }
}

#[test]
fn merged_weights_are_those_of_float64_and_run_as_the_factors_do_beside_them() {
    let device = Device::flex();
    let base = tiny::model(&tiny_config(), &device);
    let lora = lora(&base);
    let (before, merged, values) =
        (weights_of(&base), weights_of(&lora.merge(&base)), factors(&lora));
    let scale = f64::from(options().scale());
    for (name, (dims, found)) in &merged {
        let linear = name.strip_suffix(".weight").expect("every parameter is a weight");
        let Some(a) = values.get(&format!("{linear}.lora_A.weight")) else {
            assert_eq!(found, &before[name].1, "{name} is frozen");
            continue;
        };
        let (b, input) = (&values[&format!("{linear}.lora_B.weight")], dims[1]);
        for (at, found) in found.iter().enumerate() {
            let (o, i) = (at / input, at % input);
            let product: f64 =
                (0..RANK).map(|r| f64::from(b[o * RANK + r]) * f64::from(a[r * input + i])).sum();
            let want = f64::from(before[name].1[at]) + scale * product;
            assert!((f64::from(*found) - want).abs() < 1e-6, "{name}[{at}]: {found} {want}");
        }
    }
    let loss = |model: &LlamaForCausalLM| gradients(model, false).0;
    let (beside, together) =
        (loss(&lora.live(&base, &WeightGrids::default())), loss(&lora.merge(&base)));
    assert!((beside - together).abs() < 1e-5 * together, "{beside} {together}");
    // On a grid it is the merged weight that is rounded, bit for bit.
    for linears in [WeightGrid::Q4_0, WeightGrid::Q8_0] {
        let grids = grids(linears);
        let (live, rounded) = (lora.live(&base, &grids), quantize(&lora.merge(&base), &grids));
        assert_eq!(weights_of(&live), weights_of(&rounded));
    }
}

#[test]
fn new_factors_change_nothing_and_come_from_the_seed() {
    let device = Device::flex();
    let base = tiny::model(&tiny_config(), &device);
    let new = |seed| Lora::init(&base, &options(), seed).expect("the rank is small");
    assert_eq!(weights_of(&new(1).merge(&base)), weights_of(&base));
    assert_eq!(factors(&new(1)), factors(&new(1)));
    assert_ne!(factors(&new(1)), factors(&new(2)));
    let bound = 1.0 / (tiny_config().hidden_size as f32).sqrt();
    let a = &factors(&new(1))["model.layers.0.self_attn.q_proj.lora_A.weight"];
    let most = a.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
    assert!(most <= bound && most > 0.9 * bound, "{most} of {bound}");
}

#[test]
fn a_rank_above_the_dimensions_is_refused_by_name() {
    let base = tiny::model(&tiny_config(), &Device::flex());
    let options = LoraOptions { rank: 33, ..options() };
    for error in [
        Lora::init(&base, &options, 1).expect_err("v_proj is 32 × 64"),
        options.check(&tiny_config()).expect_err("v_proj is 32 × 64"),
    ] {
        let text = error.to_string();
        assert!(
            matches!(error, ModelError::LoraRank { rank: 33, out: 32, input: 64, .. }),
            "{text}"
        );
        assert!(
            text.contains("v_proj` is a matrix of 32 × 64; choose a rank of at most 32"),
            "{text}"
        );
    }
}

/// A text of a few words, in documents.
fn text() -> String {
    let words = ["sun", "river", "stone", "bird", "green", "old", "house", "runs", "far", "sky"];
    let mut state = 5u32;
    let mut text = String::new();
    for word in 0..6000 {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        text.push_str(words[(state >> 16) as usize % words.len()]);
        text.push_str(if word % 60 == 59 { "\n%%\n" } else { " " });
    }
    text
}

/// A recipe for a new student, or one for a student of which low-rank factors are trained.
fn recipe(directory: &Path, base: Option<&Path>, train: &str) -> Recipe {
    let data = directory.join("text.txt");
    std::fs::write(&data, text()).expect("write");
    let student = match base {
        Some(path) => format!("from = {path:?}"),
        None => "train_tokenizer = 300\nconfig = { hidden_size = 64, intermediate_size = 96, \
                 num_hidden_layers = 2, num_attention_heads = 2, num_key_value_heads = 1 }"
            .to_string(),
    };
    let toml = format!(
        "name = \"lora\"\nseed = 3\n[student]\n{student}\n[data]\nsources = [{data:?}]\n\
         document_separator = \"\\n%%\\n\"\nsequence_length = 48\nheld_out = 0.1\n[quantize]\n\
         linears = \"q4_0\"\nembeddings = \"q8_0\"\nactivations = \"q8_0\"\n[train]\nbatch_size = 2\n\
         checkpoint_every = 6\nkeep_checkpoints = 9\n{train}\n"
    );
    let path = directory.join("recipe.toml");
    std::fs::write(&path, toml).expect("write");
    Recipe::from_path(&path, &[]).unwrap_or_else(|error| panic!("{error:?}")).1
}

/// Trains in `run`, or continues there.
/// A student that has learned a little, to be adapted.
fn base(directory: &Path) -> PathBuf {
    let recipe = recipe(directory, None, "steps = 6\nlearning_rate = 3e-3");
    train(&recipe, None, &directory.join("base")).expect("trains")
}

const LORA: &str = "steps = 12\nlearning_rate = 5e-3\nweight_decay = 0.1\noptimizer_state = \"8bit\"\n\
                    lora = { rank = 4, alpha = 8, targets = [\"q_proj\", \"down_proj\"] }";

#[test]
fn what_ships_is_the_rounded_sum_and_what_is_frozen_keeps_every_bit() {
    let directory = tempfile::tempdir().expect("temp dir");
    let base = base(directory.path());
    let recipe = recipe(directory.path(), Some(&base), LORA);
    let last = train(&recipe, Some(&base), &directory.path().join("run")).expect("trains");
    let device = Device::flex();
    let load = |path: &Path| load_pretrained(path, &device).expect("a Hugging Face directory").0;
    let (first, merged) = (load(&base), load(&last));
    let (before, after) = (weights_of(&first), weights_of(&merged));
    for (name, (_, values)) in &after {
        let trained = name.contains("q_proj") || name.contains("down_proj");
        assert_eq!(values != &before[name].1, trained, "{name}");
    }
    // The adapter gives the checkpoint's weights, and its weights on the grid those that ship.
    let options = prepare::lora(recipe.train.lora.as_ref().expect("it has a table"));
    let lora = Lora::load(&first, &options, &last.join("adapter")).expect("an adapter");
    assert_eq!(weights_of(&lora.merge(&first)), after);
    let live = weights_of(&lora.live(&first, &prepare::grids(&recipe)));
    let gguf = directory.path().join("model.gguf");
    let shipped = GgufOptions {
        linears: Grid::Q4_0,
        embeddings: Grid::Q8_0,
        activations: Activations::Q8_0,
        name: "lora".into(),
    };
    export_gguf(&last, &gguf, &shipped).expect("exports");
    let file = GgufFile::open(&gguf).expect("a GGUF");
    let mut compared = 0;
    for tensor in file.tensors() {
        let (name, layout) = names::to_hf(&tensor.name).expect("a known name");
        let view = file.tensor(&tensor.name).expect("it is there");
        let values = view.dequantize().expect("values");
        let heads = match layout {
            names::RowLayout::Plain => 0,
            names::RowLayout::RopeHalves { heads: names::Heads::Query } => 2,
            names::RowLayout::RopeHalves { heads: names::Heads::Key } => 1,
        };
        let rows =
            if heads == 0 { values } else { names::unpermute_rows(&values, view.rows(), heads) };
        assert_eq!(rows, live[&name].1, "{name}");
        compared += 1;
    }
    assert_eq!(compared, live.len());
    // Something was learned.
    let records = distill_train::metrics::read(&directory.path().join("run")).expect("metrics");
    let losses: Vec<f64> =
        records.iter().filter(|r| r.split == "eval").filter_map(|r| r.get("loss")).collect();
    assert!(losses.last() < losses.first(), "{losses:?}");
}

#[test]
fn a_resumed_run_ends_in_the_same_bits() {
    let directory = tempfile::tempdir().expect("temp dir");
    let base = base(directory.path());
    let recipe = recipe(directory.path(), Some(&base), LORA);
    let (whole, resumed) = (directory.path().join("whole"), directory.path().join("resumed"));
    let last = train(&recipe, Some(&base), &whole).expect("trains");
    copy(&whole.join("step-6"), &resumed.join("step-6"));
    std::fs::copy(whole.join("metrics.jsonl"), resumed.join("metrics.jsonl")).expect("copy");
    let again = train(&recipe, Some(&base), &resumed).expect("continues");
    for file in [
        "model.safetensors",
        "adapter/adapter_model.safetensors",
        "adapter/adapter_config.json",
        "train_state/optimizer.safetensors",
        "train_state/state.json",
    ] {
        let read = |path: &Path| std::fs::read(path.join(file)).expect(file);
        assert!(read(&last) == read(&again), "{file} differs");
    }

    // Beside other weights the adapter means something else: refused.
    let recipe = Recipe { seed: 4, ..recipe };
    let elsewhere = tempfile::tempdir().expect("temp dir");
    let other = train(&recipe, Some(&last), &elsewhere.path().join("run")).expect("trains");
    let refused = directory.path().join("refused");
    copy(&whole.join("step-6"), &refused.join("step-6"));
    std::fs::copy(whole.join("metrics.jsonl"), refused.join("metrics.jsonl")).expect("copy");
    match train(&recipe, Some(&other), &refused) {
        Err(TrainError::OtherBase { path }) => assert_eq!(path, refused.join("step-6")),
        answer => panic!("{answer:?}"),
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("create");
    for entry in std::fs::read_dir(from).expect("list") {
        let path = entry.expect("an entry").path();
        let target = to.join(path.file_name().expect("a name"));
        if path.is_dir() {
            copy(&path, &target);
        } else {
            std::fs::copy(&path, &target).expect("copy");
        }
    }
}

#[test]
fn the_adapter_lies_as_peft_has_it() {
    let directory = tempfile::tempdir().expect("temp dir");
    let base = tiny::model(&tiny_config(), &Device::flex());
    lora(&base).save("owner/name", directory.path()).expect("saves");
    let file = std::fs::read(directory.path().join("adapter_model.safetensors")).expect("a file");
    let file = safetensors::SafeTensors::deserialize(&file).expect("safetensors");
    let shape = |name: &str| file.tensor(name).expect(name).shape().to_vec();
    let down = "base_model.model.model.layers.1.mlp.down_proj";
    assert_eq!(shape(&format!("{down}.lora_A.weight")), [RANK, 96]);
    assert_eq!(shape(&format!("{down}.lora_B.weight")), [64, RANK]);
    assert_eq!(file.names().len(), 2 * 3 * 2);
    let config = std::fs::read(directory.path().join("adapter_config.json")).expect("a file");
    let config: serde_json::Value = serde_json::from_slice(&config).expect("JSON");
    for (key, value) in [
        ("peft_type", serde_json::json!("LORA")),
        ("task_type", serde_json::json!("CAUSAL_LM")),
        ("base_model_name_or_path", serde_json::json!("owner/name")),
        ("r", serde_json::json!(4)),
        ("lora_alpha", serde_json::json!(6)),
        ("target_modules", serde_json::json!(["q_proj", "v_proj", "down_proj"])),
        ("bias", serde_json::json!("none")),
    ] {
        assert_eq!(config[key], value, "{key}");
    }
}
