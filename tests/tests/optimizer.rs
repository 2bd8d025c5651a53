//! AdamW against its formula in float64.

mod tiny;

use burn::tensor::{Device, Tensor, TensorData};
use distill_models::parameters::NamedTensors;
use distill_recipe::Recipe;
use distill_train::optimizer::AdamW;
use tiny::{tiny_config, weights_of};

const RECIPE: &str = r#"
name = "adamw"
[student]
train_tokenizer = 300
config = { hidden_size = 64, intermediate_size = 96, num_hidden_layers = 2, num_attention_heads = 4 }
[data]
sources = ["text.txt"]
[train]
steps = 3
learning_rate = 1e-2
beta1 = 0.8
beta2 = 0.95
epsilon = 1e-4
weight_decay = 0.1
"#;

fn gradient(step: usize, name: &str, index: usize) -> f64 {
    ((step * 31 + name.len() * 7 + index) as f64 * 0.7).sin() / (1.0 + index as f64 % 5.0)
}

#[test]
fn three_updates_equal_the_formula_in_float64_and_norms_do_not_decay() {
    let directory = tempfile::tempdir().expect("temp dir");
    let path = directory.path().join("recipe.toml");
    std::fs::write(&path, RECIPE).expect("writes");
    let train = Recipe::from_path(&path, &[]).expect("a good recipe").1.train;
    let device = Device::flex();
    let mut model = tiny::model(&tiny_config(), &device);
    let first = weights_of(&model);
    let mut optimizer = AdamW::new(&train, 0);
    let rates = [1e-2, 5e-3, 2e-3];
    for (step, rate) in rates.into_iter().enumerate() {
        let gradients: NamedTensors = first
            .iter()
            .map(|(name, (_, values))| {
                let values: Vec<f32> =
                    (0..values.len()).map(|i| gradient(step, name, i) as f32).collect();
                let count = values.len();
                let tensor = Tensor::from_data(TensorData::new(values, [count]), &device);
                (name.clone(), tensor)
            })
            .collect();
        model = optimizer.update(model, gradients, 1.0, rate);
    }
    let found = weights_of(&model);
    let (beta1, beta2, epsilon, decay) = (0.8, 0.95, 1e-4, 0.1);
    for (name, (dims, values)) in &first {
        for (index, &start) in values.iter().enumerate() {
            let (mut w, mut m, mut v) = (f64::from(start), 0.0, 0.0);
            for (step, rate) in rates.into_iter().enumerate() {
                let g = gradient(step, name, index);
                m = beta1 * m + (1.0 - beta1) * g;
                v = beta2 * v + (1.0 - beta2) * g * g;
                if dims.len() > 1 {
                    w -= rate * decay * w;
                }
                let t = step as i32 + 1;
                let (m_hat, v_hat) =
                    (m / (1.0 - f64::powi(beta1, t)), v / (1.0 - f64::powi(beta2, t)));
                w -= rate * m_hat / (v_hat.sqrt() + epsilon);
            }
            let found = f64::from(found[name].1[index]);
            assert!((found - w).abs() < 1e-6 * (1.0 + w.abs()), "{name}[{index}]: {found} {w}");
        }
    }
}
