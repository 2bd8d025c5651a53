//! The optimiser's moments in f32, bfloat16 and 8 bits: they learn alike, take less, and a run goes on
//! in the same bits.

mod tiny;

use std::path::Path;

use burn::tensor::{Tensor, TensorData};
use distill_models::Backend;
use distill_models::parameters::NamedTensors;
use distill_recipe::Recipe;
use distill_train::optimizer::AdamW;
use tiny::{tiny_config, train, weights_of};

const STATES: [&str; 3] = ["f32", "bf16", "8bit"];

/// Sentences of a small grammar, so that there is something to learn.
fn text() -> String {
    let subjects = ["the sun", "a river", "the old house", "my bird"];
    let verbs = ["sees", "follows", "carries", "leaves"];
    let mut state = 5u32;
    let mut text = String::new();
    for sentence in 0..1500 {
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 16) as usize % 4
        };
        let (subject, verb, object) = (next(), next(), next());
        text += &format!("{} {} {}", subjects[subject], verbs[verb], subjects[object]);
        text.push_str(if sentence % 20 == 19 { "\n%%\n" } else { ". " });
    }
    text
}

fn recipe(directory: &Path, state: &str, steps: usize) -> Recipe {
    let data = directory.join("text.txt");
    std::fs::write(&data, text()).expect("write");
    let toml = format!(
        r#"
name = "state"
seed = 3
[student]
train_tokenizer = 300
config = {{ hidden_size = 64, intermediate_size = 96, num_hidden_layers = 2, num_attention_heads = 2, num_key_value_heads = 1 }}
[data]
sources = [{data:?}]
document_separator = "\n%%\n"
sequence_length = 64
held_out = 0.1
[quantize]
linears = "q4_0"
embeddings = "q8_0"
[train]
steps = {steps}
batch_size = 4
learning_rate = 3e-3
beta2 = 0.999
optimizer_state = "{state}"
checkpoint_every = 5
keep_checkpoints = 99
"#
    );
    let path = directory.join("recipe.toml");
    std::fs::write(&path, toml).expect("write");
    Recipe::from_path(&path, &[]).unwrap_or_else(|error| panic!("{error:?}")).1
}

#[test]
fn small_moments_learn_what_whole_ones_do_and_take_a_half_and_a_quarter() {
    let directory = tempfile::tempdir().expect("temp dir");
    let found = STATES.map(|state| {
        let run = directory.path().join(state);
        let last = train(&recipe(directory.path(), state, 120), None, &run).expect("trains");
        let records = distill_train::metrics::read(&run).expect("metrics");
        let evals = records.iter().filter(|record| record.split == "eval");
        let losses: Vec<f64> = evals.filter_map(|record| record.get("loss")).collect();
        let bytes = std::fs::metadata(last.join("train_state/optimizer.safetensors"));
        (losses[0], losses[losses.len() - 1], bytes.expect("a file").len() as f64)
    });
    let [(start, whole, bytes), small @ ..] = found;
    assert!(whole < 0.5 * start, "it learned: {start} {whole}");
    for ((_, loss, _), state) in small.iter().zip(["bf16", "8bit"]) {
        println!("{state}: {loss} nats, f32 {whole}");
        // In f32, other orders of the data end 2 % apart; twice that and a little.
        assert!((loss - whole).abs() < 0.05 * whole, "{state}: {loss} nats, f32 {whole}");
    }
    // 4, 2 and 1 + 4/256 bytes a moment, and the names.
    let share = small.map(|(_, _, small)| small / bytes);
    assert!(share[0] < 0.52 && share[1] < 0.29, "{share:?} of {bytes} bytes");
}

#[test]
fn a_resumed_run_ends_in_the_same_bits_in_every_type_and_refuses_another() {
    let directory = tempfile::tempdir().expect("temp dir");
    for state in STATES {
        let recipe = recipe(directory.path(), state, 10);
        let (whole, resumed) = (
            directory.path().join(format!("{state}-whole")),
            directory.path().join(format!("{state}-resumed")),
        );
        let last = train(&recipe, None, &whole).expect("trains");
        for part in ["step-5", "step-5/train_state", "tokenizer"] {
            std::fs::create_dir_all(resumed.join(part)).expect("create");
            for entry in std::fs::read_dir(whole.join(part)).expect("list") {
                let path = entry.expect("an entry").path();
                if path.is_file() {
                    let name = path.file_name().expect("a name");
                    std::fs::copy(&path, resumed.join(part).join(name)).expect("copy");
                }
            }
        }
        std::fs::copy(whole.join("metrics.jsonl"), resumed.join("metrics.jsonl")).expect("copy");
        let again = train(&recipe, None, &resumed).expect("continues");
        for file in ["model.safetensors", "train_state/optimizer.safetensors"] {
            let read = |path: &Path| std::fs::read(path.join(file)).expect(file);
            assert!(read(&last) == read(&again), "{state}: {file} differs");
        }
        for other in STATES.into_iter().filter(|other| *other != state) {
            let recipe = self::recipe(directory.path(), other, 15);
            let error = train(&recipe, None, &whole).expect_err("other moments").to_string();
            let words =
                format!("the optimiser's state is {state}, and the recipe asks for {other};");
            assert!(error.contains(&words), "{error}");
            let way_out = format!("`train.optimizer_state = \"{state}\"`");
            assert!(error.contains(&way_out), "{error}");
        }
    }
}

#[test]
fn small_moments_take_the_same_steps_on_every_backend() {
    let directory = tempfile::tempdir().expect("temp dir");
    for state in ["bf16", "8bit"] {
        let train = recipe(directory.path(), state, 3).train;
        let run = |backend: Backend, seed| {
            let device = backend.device().expect("this build has it");
            let mut model = tiny::model(&tiny_config(), &device);
            let mut optimizer = AdamW::new(&train, seed);
            for step in 0..3 {
                let gradient = |(name, (_, values)): (&String, &(Vec<usize>, Vec<f32>))| {
                    let count = values.len();
                    let values = (0..count).map(|i| ((i + step * 31) as f32 * 0.7).sin()).collect();
                    let values: Vec<f32> = values;
                    let tensor = Tensor::from_data(TensorData::new(values, [count]), &device);
                    (name.clone(), tensor)
                };
                let gradients: NamedTensors = weights_of(&model).iter().map(gradient).collect();
                model = optimizer.update(model, gradients, 0.5, 1e-2);
            }
            weights_of(&model)
        };
        let flex = run(Backend::Flex, 1);
        assert_eq!(flex, run(Backend::Ndarray, 1), "{state}");
        assert_ne!(flex, run(Backend::Flex, 2), "{state}: what is drawn comes from the seed");
    }
}
