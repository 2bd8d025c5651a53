//! Broken checkpoints: an error that names the file and the place, never a panic, and never a
//! file left half written.

mod tiny;

use std::path::Path;

use distill_export::{Activations, ExportError, FloatType, GgufOptions, Grid, HuggingFaceOptions};
use distill_export::{export_gguf, export_huggingface};
use proptest::prelude::*;
use serde_json::{Value, json};
use tiny::Tiny;

const OPTIONS: GgufOptions = GgufOptions {
    linears: Grid::Q4_0,
    embeddings: Grid::Q8_0,
    activations: Activations::Float,
    name: String::new(),
};

/// Exports what `prepare` leaves of a good checkpoint; checks that nothing is left behind.
fn outcome(prepare: impl FnOnce(&Path)) -> Result<(), ExportError> {
    let (directory, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    Tiny::new(true, 16).write(directory.path());
    prepare(directory.path());
    let result = export_gguf(directory.path(), &out.path().join("model.gguf"), &OPTIONS);
    let files = std::fs::read_dir(out.path()).unwrap().count();
    assert_eq!(files, usize::from(result.is_ok()), "a partial file was left");
    result.map(drop)
}

/// The error's text with the directory's name taken out.
fn message(prepare: impl FnOnce(&Path)) -> String {
    let mut place = String::new();
    let error = outcome(|directory| {
        place = directory.display().to_string();
        prepare(directory);
    });
    error.unwrap_err().to_string().replace(&place, "DIR")
}

fn edit(directory: &Path, file: &str, change: impl FnOnce(&mut Value)) {
    let path = directory.join(file);
    let mut json = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    change(&mut json);
    std::fs::write(path, json.to_string()).unwrap();
}

fn with_tensors(change: impl FnOnce(&mut Tiny)) -> impl FnOnce(&Path) {
    |directory| {
        let mut tiny = Tiny::new(true, 16);
        change(&mut tiny);
        tiny.write(directory);
    }
}

#[test]
fn what_is_wrong_with_the_weights_is_said() {
    let q = "model.layers.1.self_attn.q_proj.weight";
    let messages = [
        message(|dir| std::fs::remove_file(dir.join("model.safetensors")).unwrap()),
        message(with_tensors(|tiny| {
            tiny.tensors.remove(q);
            tiny.tensors.insert("model.layers.7.extra".into(), (vec![1], vec![0.0]));
        })),
        message(with_tensors(|tiny| tiny.config["num_hidden_layers"] = json!(3))),
        message(with_tensors(|tiny| tiny.config["num_hidden_layers"] = json!(1_000_000))),
        message(with_tensors(|tiny| tiny.config["vocab_size"] = json!(1_000_000))),
        message(with_tensors(|tiny| tiny.tensors.get_mut(q).unwrap().0 = vec![32, 128])),
        message(with_tensors(|tiny| tiny.tensors.get_mut(q).unwrap().1[100] = f32::NAN)),
        message(with_tensors(|tiny| {
            tiny.tensors.get_mut("model.norm.weight").unwrap().1[63] = f32::INFINITY;
        })),
        message(|dir| std::fs::write(dir.join("model.safetensors"), "short").unwrap()),
        message(|dir| std::fs::write(dir.join("model.safetensors"), [0xFF; 64]).unwrap()),
        message(|dir| {
            std::fs::write(dir.join("model.safetensors"), [2, 0, 0, 0, 0, 0, 0, 0, b'{', b'x'])
                .unwrap()
        }),
    ];
    insta::assert_snapshot!(messages.join("\n"));
}

#[test]
fn a_defect_deep_in_a_large_tensor_is_found_with_its_index() {
    let mut tiny = Tiny::new(true, 16);
    tiny.config["vocab_size"] = json!(5000);
    let mut embedding = vec![0.25; 5000 * 64];
    embedding[300_000] = f32::NEG_INFINITY;
    tiny.tensors.insert("model.embed_tokens.weight".into(), (vec![5000, 64], embedding));
    assert_eq!(
        message(|directory| tiny.write(directory)),
        "DIR/model.safetensors: tensor `model.embed_tokens.weight` holds -inf at element 300000; \
         export a checkpoint from before training diverged"
    );
}

#[test]
fn rows_that_are_not_whole_blocks_are_refused_before_anything_is_written() {
    let mut tiny = Tiny::new(true, 16);
    // 40 is no multiple of 32: the down projection reads the inner width.
    tiny.config["intermediate_size"] = json!(40);
    for layer in 0..2 {
        for (name, shape) in [("gate", [40, 64]), ("up", [40, 64]), ("down", [64, 40])] {
            let name = format!("model.layers.{layer}.mlp.{name}_proj.weight");
            tiny.tensors.insert(name, (shape.to_vec(), vec![0.5; 40 * 64]));
        }
    }
    assert_eq!(
        message(|directory| tiny.write(directory)),
        "DIR/model.safetensors: tensor `model.layers.0.mlp.down_proj.weight` has rows of 40 \
         elements, and Q4_0 needs multiples of 32; choose f16 or f32 for it"
    );
}

#[test]
fn what_is_wrong_with_a_header_is_said() {
    let header = |json: &str, data: usize| {
        let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
        bytes.extend(json.as_bytes());
        bytes.extend(vec![0; data]);
        message(|dir| std::fs::write(dir.join("model.safetensors"), bytes).unwrap())
    };
    let messages = [
        header(r#"{"a":7}"#, 0),
        header(r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}"#, 4),
        header(r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, 4),
        header(r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}"#, 4),
        header(r#"{"a":{"dtype":"BF16","shape":[4294967296,4294967296],"data_offsets":[0,4]}}"#, 4),
        header(r#"{"a":{"dtype":"I64","shape":[1],"data_offsets":[0,8]}}"#, 8),
        header(r#"{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}"#, 4),
    ];
    insta::assert_snapshot!(messages.join("\n"));
}

#[test]
fn what_is_wrong_with_shards_is_said() {
    let sharded = |change: &dyn Fn(&Path)| {
        message(|directory| {
            std::fs::remove_file(directory.join("model.safetensors")).unwrap();
            Tiny::new(true, 16).write_sharded(directory);
            change(directory);
        })
    };
    let index = "model.safetensors.index.json";
    let messages = [
        sharded(&|dir| {
            std::fs::remove_file(dir.join("model-00002-of-00002.safetensors")).unwrap();
        }),
        sharded(&|dir| edit(dir, index, |json| json["weight_map"] = json!([1, 2]))),
        sharded(&|dir| {
            edit(dir, index, |json| json["weight_map"]["model.norm.weight"] = json!("../x"));
        }),
        sharded(&|dir| {
            edit(dir, index, |json| {
                json["weight_map"]["nowhere"] = json!("model-00001-of-00002.safetensors");
            });
        }),
        sharded(&|dir| std::fs::write(dir.join(index), "{").unwrap()),
    ];
    insta::assert_snapshot!(messages.join("\n"));
}

#[test]
fn what_is_wrong_with_the_tokenizer_is_said() {
    let tokenizer = |change: &dyn Fn(&mut Value)| {
        message(|directory| edit(directory, "tokenizer.json", change))
    };
    let messages = [
        message(|dir| std::fs::remove_file(dir.join("tokenizer.json")).unwrap()),
        message(|dir| std::fs::write(dir.join("tokenizer.json"), "[]").unwrap()),
        tokenizer(&|json| json["model"]["type"] = json!("Unigram")),
        tokenizer(&|json| json["model"]["byte_fallback"] = json!(true)),
        tokenizer(&|json| json["pre_tokenizer"] = json!({ "type": "Whitespace" })),
        tokenizer(&|json| json["normalizer"] = json!({ "type": "NFKC" })),
        tokenizer(&|json| json["model"]["vocab"]["far"] = json!(80)),
        tokenizer(&|json| json["model"]["vocab"]["far"] = json!(u64::MAX)),
        tokenizer(&|json| json["model"]["vocab"]["neg"] = json!(-1)),
        tokenizer(&|json| json["model"]["vocab"]["again"] = json!(5)),
        tokenizer(&|json| json["added_tokens"][2]["id"] = json!(5)),
        tokenizer(&|json| json["added_tokens"][2]["content"] = json!("the")),
        tokenizer(&|json| json["added_tokens"][0] = json!("x")),
        tokenizer(&|json| json["model"]["ignore_merges"] = json!(true)),
        tokenizer(&|json| json["model"]["end_of_word_suffix"] = json!("</w>")),
        tokenizer(&|json| json["model"]["merges"][1] = json!("the")),
        tokenizer(&|json| json["model"]["merges"][1] = json!(["t", "h", "e"])),
        tokenizer(&|json| json["model"]["merges"][1] = json!(["a b", "c"])),
        message(|dir| edit(dir, "tokenizer_config.json", |json| json["eos_token"] = json!("<no>"))),
        message(|dir| edit(dir, "tokenizer_config.json", |json| json["eos_token"] = json!(3))),
        message(|dir| edit(dir, "tokenizer_config.json", |json| json["chat_template"] = json!(3))),
    ];
    insta::assert_snapshot!(messages.join("\n"));
}

#[test]
fn a_file_cut_anywhere_ends_in_an_error_that_names_it() {
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"] {
        let tiny = Tiny::new(true, 16);
        let directory = tempfile::tempdir().unwrap();
        tiny.write(directory.path());
        let path = directory.path().join(name);
        let whole = std::fs::read(&path).unwrap();
        // Every byte of the configuration; elsewhere steps that meet every kind of place, and all
        // of the last bytes.
        let step = if name == "config.json" { 1 } else { 1 + whole.len() / 200 };
        let cuts = (0..whole.len()).step_by(step).chain(whole.len() - 20..whole.len());
        for len in cuts {
            std::fs::write(&path, &whole[..len]).unwrap();
            let out = directory.path().join("model.gguf");
            let error = export_gguf(directory.path(), &out, &OPTIONS).unwrap_err().to_string();
            let named = path.display().to_string();
            assert!(error.starts_with(&named), "{name} cut at {len}: {error}");
            assert!(!out.exists());
        }
    }
}

#[test]
fn an_output_that_cannot_be_written_is_named_and_the_checkpoint_stays() {
    let directory = tempfile::tempdir().unwrap();
    Tiny::new(true, 16).write(directory.path());
    let out = directory.path().join("missing/model.gguf");
    let error = export_gguf(directory.path(), &out, &OPTIONS).unwrap_err().to_string();
    assert!(error.starts_with(&format!("{}: cannot create", out.display())), "{error}");
    let out = directory.path().join("hf");
    export_huggingface(directory.path(), &out, &HuggingFaceOptions::unrounded(FloatType::F32))
        .unwrap();
}

#[test]
fn exporting_a_hugging_face_directory_onto_itself_keeps_its_values() {
    let directory = tempfile::tempdir().unwrap();
    Tiny::new(true, 16).write(directory.path());
    let first = export_huggingface(
        directory.path(),
        directory.path(),
        &HuggingFaceOptions::unrounded(FloatType::F32),
    )
    .unwrap();
    let second = export_huggingface(
        directory.path(),
        directory.path(),
        &HuggingFaceOptions::unrounded(FloatType::F32),
    )
    .unwrap();
    assert_eq!(first, second);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn changed_bytes_in_any_file_never_panic(
        file in prop::sample::select(vec![
            "config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors",
        ]),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..5),
        header_only in any::<bool>(),
    ) {
        let _ = outcome(|directory| {
            let path = directory.join(file);
            let mut bytes = std::fs::read(&path).unwrap();
            let len = if header_only { bytes.len().min(3000) } else { bytes.len() };
            for (at, byte) in changes {
                bytes[at.index(len)] = byte;
            }
            std::fs::write(path, bytes).unwrap();
        });
    }
}
