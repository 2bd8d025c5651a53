//! What ships is the scalar rule on the masters, in GGUF's order, with complete metadata.

mod tiny;

use std::path::Path;

use distill_export::{
    Activations, ExportError, GgufOptions, Grid, HuggingFaceOptions, Summary, export_gguf,
};
use distill_gguf::{Array, GgufFile, Value, names};
use distill_quant::{f16, q4_0, q8_0};
use proptest::prelude::*;
use serde_json::json;
use tiny::{HEADS, HIDDEN, KV_HEADS, Tiny};

fn options(linears: Grid, embeddings: Grid) -> GgufOptions {
    GgufOptions { linears, embeddings, activations: Activations::Q8_0, name: "tiny".to_owned() }
}

fn export(tiny: &Tiny, options: &GgufOptions) -> (tempfile::TempDir, Result<Summary, ExportError>) {
    let directory = tempfile::tempdir().unwrap();
    tiny.write(directory.path());
    let summary = export_gguf(directory.path(), &directory.path().join("model.gguf"), options);
    (directory, summary)
}

fn open(directory: &Path) -> GgufFile {
    GgufFile::open(&directory.join("model.gguf")).unwrap()
}

/// What training would compute with, in the checkpoint's order.
fn fake_quantized(grid: Grid, values: &[f32]) -> Vec<f32> {
    let mut out = vec![0.0; values.len()];
    match grid {
        Grid::F32 => out.copy_from_slice(values),
        Grid::F16 => {
            out = values.iter().map(|&x| f16::to_f32(f16::from_f32_saturating(x))).collect();
        }
        Grid::Q4_0 => q4_0::fake_quantize(values, &mut out),
        Grid::Q8_0 => q8_0::fake_quantize(values, &mut out),
    }
    out
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

/// Every tensor of the file, row order undone, against `fake_quantized` of its master.
fn assert_ships_what_was_trained(tiny: &Tiny, file: &GgufFile, options: &GgufOptions) {
    for (name, (shape, master)) in &tiny.tensors {
        let (gguf_name, layout) = names::to_gguf(name).unwrap();
        let tensor = file.require(&gguf_name).unwrap();
        let grid = match gguf_name.as_str() {
            "token_embd.weight" | "output.weight" => options.embeddings,
            _ if shape.len() == 1 => Grid::F32,
            _ => options.linears,
        };
        assert_eq!(tensor.info.ty, grid.ggml_type(), "{name}");
        let dims: Vec<u64> = shape.iter().rev().map(|&dim| dim as u64).collect();
        assert_eq!(tensor.info.dims, dims, "{name}");
        let mut values = tensor.dequantize().unwrap();
        if let names::RowLayout::RopeHalves { heads } = layout {
            let heads = match heads {
                names::Heads::Query => HEADS,
                names::Heads::Key => KV_HEADS,
            };
            values = names::unpermute_rows(&values, shape[0], heads);
        }
        assert_eq!(bits(&values), bits(&fake_quantized(grid, master)), "{name}");
    }
}

#[test]
fn every_tensor_is_the_fake_quantized_master_bit_for_bit() {
    for (tied, head_dim) in [(true, 16), (false, 16), (false, 24)] {
        for linears in [Grid::F32, Grid::F16, Grid::Q4_0, Grid::Q8_0] {
            for embeddings in [Grid::F16, Grid::Q4_0, Grid::Q8_0] {
                let tiny = Tiny::new(tied, head_dim);
                let options = options(linears, embeddings);
                let (directory, summary) = export(&tiny, &options);
                let summary = summary.unwrap();
                let file = open(directory.path());
                assert_eq!(summary.tensors, file.tensors().len());
                assert_eq!(summary.tensors, tiny.tensors.len());
                assert_eq!(summary.bytes, file.bytes().len() as u64);
                assert_ships_what_was_trained(&tiny, &file, &options);
            }
        }
    }
}

#[test]
fn blocks_with_scales_of_their_own_ship_with_them_in_both_exports() {
    for (tied, head_dim) in [(true, 16), (false, 24)] {
        let mut tiny = Tiny::new(tied, head_dim);
        let plain = tiny.tensors.clone();
        let mut want = std::collections::BTreeMap::new();
        for (name, (shape, values)) in &plain {
            if shape.len() != 2 {
                continue;
            }
            let blocks = values.as_chunks::<32>().0;
            let scales: Vec<f32> = (0..blocks.len())
                .map(|i| [0.11f32, -0.07, 0.0][i % 3] * (1.0 + i as f32 / 64.0))
                .collect();
            let rounded = blocks.iter().zip(&scales);
            let rounded =
                rounded.flat_map(|(b, &s)| q4_0::BlockQ4_0::quantize_scaled(b, s).dequantize());
            want.insert(name.clone(), rounded.collect::<Vec<f32>>());
            let shape = vec![shape[0], shape[1] / 32];
            tiny.tensors.insert(format!("{name}_scale"), (shape, scales));
        }
        let options = options(Grid::Q4_0, Grid::Q4_0);
        let (directory, summary) = export(&tiny, &options);
        assert_eq!(summary.unwrap().tensors, plain.len());
        let file = open(directory.path());
        let huggingface = directory.path().join("hf");
        let hf = HuggingFaceOptions {
            ty: distill_export::FloatType::F32,
            linears: Grid::Q4_0,
            embeddings: Grid::Q4_0,
        };
        distill_export::export_huggingface(directory.path(), &huggingface, &hf).unwrap();
        let bytes = std::fs::read(huggingface.join("model.safetensors")).unwrap();
        let read = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(read.len(), plain.len(), "the scales are in the values");
        for (name, want) in &want {
            let (gguf_name, layout) = names::to_gguf(name).unwrap();
            let mut values = file.require(&gguf_name).unwrap().dequantize().unwrap();
            if let names::RowLayout::RopeHalves { heads } = layout {
                let heads = match heads {
                    names::Heads::Query => HEADS,
                    names::Heads::Key => KV_HEADS,
                };
                values = names::unpermute_rows(&values, plain[name].0[0], heads);
            }
            assert_eq!(bits(&values), bits(want), "{name}");
            let expected: Vec<u8> = want.iter().flat_map(|x| x.to_le_bytes()).collect();
            assert_eq!(read.tensor(name).unwrap().data(), expected, "{name}");
        }
        // Scales of another shape, or of no matrix, are refused by name.
        let name = "model.layers.0.mlp.down_proj.weight_scale";
        tiny.tensors.get_mut(name).unwrap().0 = vec![1, 1];
        tiny.tensors.get_mut(name).unwrap().1 = vec![1.0];
        let error = export(&tiny, &options).1.unwrap_err().to_string();
        assert!(error.contains(name), "{error}");
        tiny.tensors.remove(name);
        tiny.tensors.insert("model.norm.weights_scale".into(), (vec![1], vec![1.0]));
        let error = export(&tiny, &options).1.unwrap_err().to_string();
        assert!(error.contains("model.norm.weights_scale"), "{error}");
    }
}

/// A block as training may leave it: plain, all zero, tied extremes, tiny or huge scales.
fn any_block() -> impl Strategy<Value = Vec<f32>> {
    let element = prop_oneof![
        6 => -1.0f32..=1.0,
        1 => Just(1.0f32),
        1 => Just(-1.0f32),
        1 => Just(0.0f32),
        1 => Just(-0.0f32),
    ];
    let scale = prop_oneof![4 => -8i32..4, 2 => -30i32..-18, 1 => 10i32..24];
    (prop::collection::vec(element, 32), scale)
        .prop_map(|(x, exponent)| x.into_iter().map(|x| x * 2f32.powi(exponent)).collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn dequantize_of_export_is_fake_quantize_for_any_weights(
        blocks in prop::collection::vec(any_block(), 2 * HEADS * 16),
        q4 in any::<bool>(),
    ) {
        let mut tiny = Tiny::new(true, 16);
        let name = "model.layers.0.self_attn.q_proj.weight";
        tiny.tensors.get_mut(name).unwrap().1 = blocks.concat();
        let grid = if q4 { Grid::Q4_0 } else { Grid::Q8_0 };
        let options = options(grid, grid);
        let (directory, summary) = export(&tiny, &options);
        prop_assert!(summary.is_ok());
        assert_ships_what_was_trained(&tiny, &open(directory.path()), &options);
    }
}

#[test]
fn tensors_of_many_pieces_are_put_together_again() {
    // Pieces are 2^18 elements: 5000 rows of the embedding, and 4 heads of 1280 rows.
    let mut tiny = Tiny::new(true, 16);
    tiny.config["vocab_size"] = json!(5000);
    let embedding = tiny::noise(99).take(5000 * HIDDEN).collect();
    tiny.tensors.insert("model.embed_tokens.weight".into(), (vec![5000, HIDDEN], embedding));
    let head_dim = 1280;
    tiny.config["head_dim"] = json!(head_dim);
    for layer in 0..2 {
        for (name, heads) in [("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS)] {
            let name = format!("model.layers.{layer}.self_attn.{name}_proj.weight");
            let rows = heads * head_dim;
            let values = tiny::noise(layer + 100).take(rows * HIDDEN).collect();
            tiny.tensors.insert(name, (vec![rows, HIDDEN], values));
        }
        let name = format!("model.layers.{layer}.self_attn.o_proj.weight");
        let values = tiny::noise(layer + 200).take(HIDDEN * HEADS * head_dim).collect();
        tiny.tensors.insert(name, (vec![HIDDEN, HEADS * head_dim], values));
    }
    let options = options(Grid::Q4_0, Grid::Q8_0);
    let (directory, summary) = export(&tiny, &options);
    summary.unwrap();
    assert_ships_what_was_trained(&tiny, &open(directory.path()), &options);
}

#[test]
fn the_metadata_are_complete() {
    let (directory, _) = export(&Tiny::new(true, 16), &options(Grid::Q4_0, Grid::Q8_0));
    let file = open(directory.path());
    let lines = file.metadata().iter().map(|(key, value)| match value {
        Value::Array(Array::String(x)) => {
            format!("{key} = {} strings: {}", x.len(), x.iter().collect::<Vec<_>>().join("·"))
        }
        Value::Array(Array::I32(x)) => format!("{key} = {x:?}"),
        other => format!("{key} = {other:?}"),
    });
    let text = lines.collect::<Vec<_>>().join("\n").replace(env!("CARGO_PKG_VERSION"), "VERSION");
    insta::assert_snapshot!(text);
}

#[test]
fn heads_wider_than_their_share_are_told_and_so_are_other_grids() {
    let (directory, _) = export(&Tiny::new(false, 24), &options(Grid::Q8_0, Grid::F16));
    let file = open(directory.path());
    let metadata = file.metadata();
    assert_eq!(metadata.u32("llama.attention.key_length").unwrap(), 24);
    assert_eq!(metadata.u32("llama.attention.value_length").unwrap(), 24);
    assert_eq!(metadata.u32("llama.rope.dimension_count").unwrap(), 24);
    assert_eq!(metadata.u32("general.file_type").unwrap(), 7);
}

#[test]
fn llama_3_scaling_becomes_the_tensor_of_divisors() {
    let mut tiny = Tiny::new(true, 16);
    tiny.config["rope_theta"] = json!(500_000.0);
    tiny.config["rope_scaling"] = json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    });
    let (directory, summary) = export(&tiny, &options(Grid::Q4_0, Grid::Q4_0));
    assert_eq!(summary.unwrap().tensors, tiny.tensors.len() + 1);
    let file = open(directory.path());
    let divisors = file.require("rope_freqs.weight").unwrap().dequantize().unwrap();
    assert_eq!(divisors.len(), 8);
    assert_eq!((divisors[0], divisors[7]), (1.0, 8.0));
    assert!(divisors.is_sorted());

    // The form in which a model imported from a GGUF carries them.
    tiny.config["rope_scaling"] = json!({ "rope_divisors": divisors });
    let (again, _) = export(&tiny, &options(Grid::Q4_0, Grid::Q4_0));
    assert_eq!(open(again.path()).bytes(), file.bytes());
}

#[test]
fn every_token_that_ends_a_turn_is_told() {
    let mut tiny = Tiny::new(true, 16);
    // The id of `<|end|>` among others, as in Llama 3.2's configuration.
    let (directory, _) = export(&tiny, &options(Grid::Q4_0, Grid::Q4_0));
    let end = open(directory.path()).metadata().u32("tokenizer.ggml.eos_token_id").unwrap();
    tiny.config["eos_token_id"] = json!([4, end, 5, 4_000_000]);
    let (directory, _) = export(&tiny, &options(Grid::Q4_0, Grid::Q4_0));
    let file = open(directory.path());
    let id = |key: &str| file.metadata().u32(&format!("tokenizer.ggml.{key}_token_id")).unwrap();
    assert_eq!([id("eos"), id("eot"), id("eom")], [end, 4, 5]);
}

#[test]
fn shards_half_floats_and_merges_as_pairs_give_the_same_file() {
    let options = options(Grid::Q4_0, Grid::Q8_0);
    let mut tiny = Tiny::new(false, 16);
    // Values that bf16 and f16 both hold.
    for (_, values) in tiny.tensors.values_mut() {
        values.iter_mut().for_each(|x| *x = (*x * 64.0).round() / 64.0);
    }
    let (directory, summary) = export(&tiny, &options);
    let summary = summary.unwrap();
    let model = directory.path().join("model.gguf");

    let sharded = tempfile::tempdir().unwrap();
    tiny.write_sharded(sharded.path());
    let out = sharded.path().join("model.gguf");
    assert_eq!(export_gguf(sharded.path(), &out, &options).unwrap(), summary);
    assert_eq!(std::fs::read(&out).unwrap(), std::fs::read(&model).unwrap());

    for ty in [distill_export::FloatType::F16, distill_export::FloatType::BF16] {
        let half = tempfile::tempdir().unwrap();
        distill_export::export_huggingface(
            directory.path(),
            half.path(),
            &HuggingFaceOptions::unrounded(ty),
        )
        .unwrap();
        let out = half.path().join("model.gguf");
        assert_eq!(export_gguf(half.path(), &out, &options).unwrap(), summary, "{ty:?}");
    }

    tiny.tokenizer["model"]["merges"] = json!([["t", "h"], ["th", "e"], ["Ġ", "the"]]);
    assert_eq!(export(&tiny, &options).1.unwrap(), summary);
}

#[test]
fn the_checksum_is_that_of_the_file_and_a_second_export_is_the_same() {
    let tiny = Tiny::new(true, 16);
    let (directory, first) = export(&tiny, &options(Grid::Q4_0, Grid::Q8_0));
    let first = first.unwrap();
    let bytes = std::fs::read(directory.path().join("model.gguf")).unwrap();
    let digest = <sha2::Sha256 as sha2::Digest>::digest(&bytes);
    assert_eq!(first.sha256, digest.iter().map(|x| format!("{x:02x}")).collect::<String>());
    assert_eq!(export(&tiny, &options(Grid::Q4_0, Grid::Q8_0)).1.unwrap(), first);
}

#[test]
fn a_template_file_comes_before_the_key_and_bos_follows_the_post_processor() {
    let mut tiny = Tiny::new(true, 16);
    tiny.tokenizer["post_processor"] = json!({ "type": "ByteLevel", "trim_offsets": true });
    let directory = tempfile::tempdir().unwrap();
    tiny.write(directory.path());
    std::fs::write(directory.path().join("chat_template.jinja"), "from the file").unwrap();
    let out = directory.path().join("model.gguf");
    export_gguf(directory.path(), &out, &options(Grid::Q4_0, Grid::Q8_0)).unwrap();
    let file = open(directory.path());
    assert_eq!(file.metadata().string("tokenizer.chat_template").unwrap(), "from the file");
    assert!(!file.metadata().bool("tokenizer.ggml.add_bos_token").unwrap());
    assert_eq!(file.tensor("token_embd.weight").unwrap().info.row_elements(), HIDDEN);
}

#[test]
fn fillers_stay_apart_from_tokens_and_take_no_role() {
    let mut tiny = Tiny::new(true, 16);
    tiny.tokenizer["model"]["vocab"]["[PAD76]"] = json!(75);
    tiny.tokenizer_config["bos_token"] = json!(null);
    tiny.tokenizer_config["unk_token"] = json!(null);
    tiny.config["bos_token_id"] = json!(79);
    tiny.config["unk_token_id"] = json!([75, 1]);
    let (directory, summary) = export(&tiny, &options(Grid::Q4_0, Grid::Q4_0));
    summary.unwrap();
    let file = open(directory.path());
    let metadata = file.metadata();
    let tokens = metadata.strings("tokenizer.ggml.tokens").unwrap().iter().skip(75);
    let tokens: Vec<&str> = tokens.collect();
    assert_eq!(tokens, ["[PAD76]", "[PAD76]_", "[PAD77]", "[PAD78]", "[PAD79]"]);
    assert_eq!(metadata.optional_u32("tokenizer.ggml.bos_token_id").unwrap(), None);
    assert_eq!(metadata.u32("tokenizer.ggml.unknown_token_id").unwrap(), 75);
    assert!(!metadata.bool("tokenizer.ggml.add_bos_token").unwrap());
}
