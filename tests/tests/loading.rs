//! Models from disk: every tensor in its place, and what is not there or not expected is named.

mod tiny;

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::Device;
use distill_models::{LlamaForCausalLM, ModelError, load_pretrained, save};
use safetensors::SafeTensors;
use tiny::{tiny_config, weights_of};

const WEIGHTS: &str = "model.safetensors";

fn saved(directory: &Path) -> LlamaForCausalLM {
    let model = tiny::model(&tiny_config(), &Device::flex());
    save::save(&model, directory).expect("saves");
    model
}

fn load(directory: &Path) -> Result<LlamaForCausalLM, ModelError> {
    load_pretrained(directory, &Device::flex()).map(|(model, _)| model)
}

#[test]
fn a_saved_model_loads_with_the_same_bits() {
    let device = Device::flex();
    let model = tiny::model(&tiny_config(), &device);
    let directory = tempfile::tempdir().expect("temp dir");
    distill_models::save::save(&model, directory.path()).expect("saves");
    let (again, report) =
        distill_models::load_pretrained(directory.path(), &device).expect("loads");
    assert_eq!(weights_of(&again), weights_of(&model));
    assert_eq!(again.config, model.config);
    assert_eq!(report.elements, model.config.parameters());
}

#[test]
fn shards_load_as_the_whole() {
    let directory = tempfile::tempdir().expect("temp dir");
    let model = saved(directory.path());
    let whole = directory.path().join(WEIGHTS);
    let bytes = std::fs::read(&whole).expect("weights");
    let tensors = SafeTensors::deserialize(&bytes).expect("safetensors");
    let mut map = BTreeMap::new();
    for shard in 0..2 {
        let file = format!("model-{:05}-of-00002.safetensors", shard + 1);
        let part: Vec<_> =
            tensors.iter().filter(|(name, _)| name.contains("layers.1") == (shard == 1)).collect();
        map.extend(part.iter().map(|(name, _)| (name.to_string(), file.clone())));
        safetensors::serialize_to_file(part, None, &directory.path().join(&file)).expect("writes");
    }
    std::fs::remove_file(&whole).expect("removes");
    let index = directory.path().join("model.safetensors.index.json");
    let json = serde_json::json!({ "metadata": {}, "weight_map": map });
    std::fs::write(index, json.to_string()).expect("writes");
    assert_eq!(weights_of(&load(directory.path()).expect("loads")), weights_of(&model));

    std::fs::remove_file(directory.path().join("model-00002-of-00002.safetensors"))
        .expect("removes");
    let error = load(directory.path()).expect_err("a shard is gone").to_string();
    assert!(error.contains("model-00002-of-00002.safetensors"), "{error}");
}

#[test]
fn missing_and_unexpected_tensors_are_all_named() {
    let directory = tempfile::tempdir().expect("temp dir");
    saved(directory.path());
    let path = directory.path().join(WEIGHTS);
    let mut bytes = std::fs::read(&path).expect("weights");
    for (from, to) in
        [("model.norm.weight", "model.mean.weight"), ("1.mlp.up_proj", "1.mlp.xx_proj")]
    {
        let at = bytes.windows(from.len()).position(|w| w == from.as_bytes()).expect("a tensor");
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
    }
    std::fs::write(&path, bytes).expect("writes");
    let error = load(directory.path()).expect_err("renamed").to_string();
    let error = error.replace(&directory.path().display().to_string(), "<dir>");
    insta::assert_snapshot!(error);
}

#[test]
fn a_cut_model_keeps_the_layers_it_was_told_to() {
    let model = tiny::model(&tiny_config(), &Device::flex());
    let whole = weights_of(&model);
    let cut = weights_of(&model.clone().cut(&[1]).expect("layer 1 exists"));
    for (name, weights) in &cut {
        assert_eq!(weights, &whole[&name.replace("layers.0.", "layers.1.")], "{name}");
    }
    assert_eq!(cut.len(), whole.len() - 9);
    for keep in [&[][..], &[2], &[1, 0], &[0, 0]] {
        assert!(model.clone().cut(keep).is_err(), "{keep:?}");
    }
}
