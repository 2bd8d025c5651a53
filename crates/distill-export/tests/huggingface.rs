//! A checkpoint through `export_huggingface`, read back by the safetensors crate.

mod tiny;

use distill_export::{FloatType, HuggingFaceOptions, export_huggingface};
use distill_quant::{bf16, f16};
use safetensors::SafeTensors;
use safetensors::tensor::Dtype;
use tiny::Tiny;

#[test]
fn every_type_holds_the_masters_rounded_once() {
    let tiny = Tiny::new(false, 16);
    for sharded in [false, true] {
        for (ty, dtype, word) in [
            (FloatType::F32, Dtype::F32, "float32"),
            (FloatType::F16, Dtype::F16, "float16"),
            (FloatType::BF16, Dtype::BF16, "bfloat16"),
        ] {
            let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            match sharded {
                false => tiny.write(from.path()),
                true => tiny.write_sharded(from.path()),
            }
            std::fs::write(from.path().join("chat_template.jinja"), "{{ x }}").unwrap();
            let out = to.path().join("hf");
            let summary =
                export_huggingface(from.path(), &out, &HuggingFaceOptions::unrounded(ty)).unwrap();

            let bytes = std::fs::read(out.join("model.safetensors")).unwrap();
            assert_eq!(summary.bytes, bytes.len() as u64);
            assert_eq!(bytes[0] % 8, 0, "the data begin at a multiple of 8");
            let read = SafeTensors::deserialize(&bytes).unwrap();
            assert_eq!((read.len(), summary.tensors), (tiny.tensors.len(), tiny.tensors.len()));
            for (name, (shape, master)) in &tiny.tensors {
                let tensor = read.tensor(name).unwrap();
                assert_eq!((tensor.dtype(), tensor.shape()), (dtype, shape.as_slice()));
                let expected: Vec<u8> = match ty {
                    FloatType::F32 => master.iter().flat_map(|x| x.to_le_bytes()).collect(),
                    FloatType::F16 => {
                        master.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect()
                    }
                    FloatType::BF16 => {
                        master.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect()
                    }
                };
                assert_eq!(tensor.data(), expected, "{name}");
            }
            let config = std::fs::read_to_string(out.join("config.json")).unwrap();
            let config: serde_json::Value = serde_json::from_str(&config).unwrap();
            assert_eq!(config["torch_dtype"], word);
            assert_eq!(config["hidden_size"], tiny.config["hidden_size"]);
            for name in ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"] {
                let read =
                    |directory: &std::path::Path| std::fs::read(directory.join(name)).unwrap();
                assert_eq!(read(&out), read(from.path()));
            }
            let files = std::fs::read_dir(&out).unwrap().count();
            assert_eq!(files, 5, "nothing temporary is left");
        }
    }
}

#[test]
fn a_place_that_cannot_be_written_is_named() {
    let from = tempfile::tempdir().unwrap();
    Tiny::new(true, 16).write(from.path());
    let taken = from.path().join("config.json/hf");
    let error =
        export_huggingface(from.path(), &taken, &HuggingFaceOptions::unrounded(FloatType::F32))
            .unwrap_err()
            .to_string();
    let expected = format!("{}: cannot create the directory: ", taken.display());
    assert!(error.starts_with(&expected), "{error}");
}
