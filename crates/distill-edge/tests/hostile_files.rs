//! Files that are damaged or lie: each ends in an error that names the file and the place.

mod tiny_model;

use distill_edge::{Activations, EdgeError, LoadOptions, Model};
use distill_gguf::{GgmlType, Value};
use proptest::prelude::*;
use tiny_model::{Draft, SHAPE, Shape};

const SMALL: Shape = Shape {
    hidden: 32,
    layers: 1,
    heads: 1,
    kv_heads: 1,
    head_dim: 32,
    feed_forward: 32,
    vocab: 40,
    ..SHAPE
};

fn draft() -> Draft {
    Draft::new(SMALL, GgmlType::Q4_0, GgmlType::Q8_0)
}

/// The error of loading a draft, the file's own path replaced.
fn error(draft: &Draft) -> String {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.gguf");
    draft.write_to(&path);
    let error = Model::load(&path, &LoadOptions::default()).unwrap_err().to_string();
    error.replace(&path.display().to_string(), "model.gguf")
}

#[test]
fn a_file_cut_at_any_byte_is_refused() {
    let tiny = draft().finish();
    let whole = std::fs::read(&tiny.path).unwrap();
    let path = tiny.directory.path().join("cut.gguf");
    let file = std::fs::File::create(&path).unwrap();
    std::fs::write(&path, &whole).unwrap();
    for length in (0..whole.len()).rev() {
        // The last tensor's padding may be missing without harm.
        file.set_len(length as u64).unwrap();
        match Model::load(&path, &LoadOptions::default()) {
            Err(error) => assert!(error.to_string().contains("cut.gguf"), "{error}"),
            Ok(_) => {
                assert!(whole.len() - length < 32, "{length} of {} bytes were enough", whole.len())
            }
        }
    }
}

#[test]
fn missing_unexpected_and_misshapen_tensors_are_named() {
    let mut missing = draft();
    missing.tensors.retain(|t| t.name != "blk.0.ffn_up.weight");
    insta::assert_snapshot!(error(&missing), @"model.gguf: tensor `blk.0.ffn_up.weight` is missing; expected shape [32, 32]");

    let mut unexpected = draft();
    let bias = tiny_model::Tensor {
        name: "blk.0.attn_q.bias".into(),
        dims: vec![1],
        ty: GgmlType::F32,
        bytes: vec![0; 4],
    };
    unexpected.tensors.push(bias);
    insta::assert_snapshot!(error(&unexpected), @"model.gguf: unexpected tensor `blk.0.attn_q.bias`: the plain llama architecture has none of that name, so this is another kind of model");

    let mut wide = draft();
    wide.set("llama.feed_forward_length", 64_u32);
    insta::assert_snapshot!(error(&wide), @"model.gguf: tensor `blk.0.ffn_gate.weight` has shape [32, 32]; expected [32, 64] (row length first)");

    let mut layers = draft();
    layers.set("llama.block_count", u32::MAX);
    insta::assert_snapshot!(error(&layers), @"model.gguf: tensor `blk.1.attn_norm.weight` is missing; expected shape [32]");

    let mut q4_1 = draft();
    let down = q4_1.tensors.iter_mut().find(|t| t.name == "blk.0.ffn_down.weight").unwrap();
    (down.ty, down.bytes) = (GgmlType::Q4_1, vec![0; 32 * 20]);
    insta::assert_snapshot!(error(&q4_1), @"model.gguf: tensor `blk.0.ffn_down.weight` is Q4_1; expected F32, F16, Q4_0 or Q8_0. Export the model again in one of these types");

    let mut nan = draft();
    let norm = nan.tensors.iter_mut().find(|t| t.name == "output_norm.weight").unwrap();
    norm.bytes[20..24].copy_from_slice(&f32::NAN.to_le_bytes());
    insta::assert_snapshot!(error(&nan), @"model.gguf: tensor `output_norm.weight` holds NaN at index 5; expected finite numbers");
}

#[test]
fn metadata_the_runtime_cannot_run_is_named() {
    let broken = |key: &str, value: Value| {
        let mut draft = draft();
        draft.set(key, value);
        error(&draft)
    };
    let text = |s: &str| Value::String(s.to_owned());
    insta::assert_snapshot!(broken("general.architecture", text("gemma3")), @"model.gguf: general.architecture is `gemma3`; this runtime runs `llama`");
    insta::assert_snapshot!(broken("llama.attention.head_count", Value::U32(0)), @"model.gguf: llama.attention.head_count is 0; expected at least 1");
    insta::assert_snapshot!(broken("llama.attention.head_count_kv", Value::U32(2)), @"model.gguf: llama.attention.head_count_kv is 2; expected a divisor of llama.attention.head_count, 1");
    insta::assert_snapshot!(broken("llama.attention.key_length", Value::U32(31)), @"model.gguf: llama.attention.key_length is 31; expected an even number: RoPE turns pairs");
    insta::assert_snapshot!(broken("llama.rope.dimension_count", Value::U32(16)), @"model.gguf: llama.rope.dimension_count is 16; expected the head's length, 32");
    insta::assert_snapshot!(broken("llama.rope.scaling.type", text("yarn")), @"model.gguf: llama.rope.scaling.type is `yarn`; expected `none` (Llama 3's scaling is the tensor rope_freqs.weight)");
    insta::assert_snapshot!(broken("llama.rope.freq_base", Value::F32(f32::NAN)), @"model.gguf: llama.rope.freq_base is NaN; expected a positive finite number");
    insta::assert_snapshot!(broken("llama.vocab_size", Value::U32(41)), @"model.gguf: llama.vocab_size is 41; expected the length of tokenizer.ggml.tokens, 40");
    insta::assert_snapshot!(broken("llama.expert_count", Value::U32(8)), @"model.gguf: llama.expert_count is 8; expected 0: a dense model");
    insta::assert_snapshot!(broken("distill.activations", text("int8")), @"model.gguf: distill.activations is `int8`; expected `q8_0` or `float`");
    insta::assert_snapshot!(broken("tokenizer.ggml.pre", text("tekken")), @"model.gguf: tokenizer.ggml.pre is `tekken`; this runtime knows gpt-2, smollm, llama-bpe, qwen2, qwen35");
    insta::assert_snapshot!(broken("tokenizer.ggml.model", text("t5")), @"model.gguf: tokenizer.ggml.model is `t5`; expected `gpt2` (byte-level BPE), `llama` (SentencePiece BPE) or `gemma4`");
    insta::assert_snapshot!(broken("tokenizer.ggml.merges", Value::from(vec!["a b".to_owned(), "a zz".to_owned()])), @"model.gguf: tokenizer.ggml.merges[1] is `a zz`; expected two tokens of the vocabulary, separated by a space, whose joined text is a token too");
    insta::assert_snapshot!(broken("tokenizer.ggml.eos_token_id", Value::U32(40)), @"model.gguf: tokenizer.ggml (eos token id) is 40; expected an id below 40, the size of the vocabulary");
}

#[test]
fn a_vocabulary_with_scores_that_does_not_fit_is_named() {
    let broken = |changes: &[(&str, Value)]| {
        let mut draft = draft();
        draft.set("tokenizer.ggml.model", Value::String("llama".to_owned()));
        draft.set("tokenizer.ggml.scores", Value::from(vec![0.0_f32; SMALL.vocab]));
        for (key, value) in changes {
            draft.set(key, value.clone());
        }
        error(&draft)
    };
    let scores = |change: &dyn Fn(&mut Vec<f32>)| {
        let mut scores = vec![0.0; SMALL.vocab];
        change(&mut scores);
        broken(&[("tokenizer.ggml.scores", Value::from(scores))])
    };
    insta::assert_snapshot!(scores(&|scores| scores.truncate(39)), @"model.gguf: tokenizer.ggml.scores is an array of 39; expected one entry for each of the 40 tokens");
    insta::assert_snapshot!(scores(&|scores| scores[7] = f32::NAN), @"model.gguf: tokenizer.ggml.scores[7] is NaN; expected a finite number");
    insta::assert_snapshot!(scores(&|scores| scores[0] = f32::NEG_INFINITY), @"model.gguf: tokenizer.ggml.scores[0] is -inf; expected a finite number");
    insta::assert_snapshot!(broken(&[("tokenizer.ggml.scores", Value::from(vec![1_i32]))]), @"model.gguf: metadata key `tokenizer.ggml.scores` is an array of 1 I32; expected an array of F32");
    let mut types = vec![1_i32; SMALL.vocab];
    types[3] = 6;
    insta::assert_snapshot!(broken(&[("tokenizer.ggml.token_type", Value::from(types))]), @"model.gguf: tokenizer.ggml.tokens[3] is `d`, by its type a byte; expected a byte from `<0x00>` to `<0xFF>`");
    let mut tokens = vec![String::new(); SMALL.vocab];
    tokens[5] = "x".repeat(1 << 20);
    insta::assert_snapshot!(broken(&[("tokenizer.ggml.tokens", Value::from(tokens.clone()))]), @"model.gguf: tokenizer.ggml.tokens[5] is 1048576 bytes long; expected a token of at most 1024 bytes");
    insta::assert_snapshot!(broken(&[("tokenizer.ggml.unknown_token_id", Value::U32(40))]), @"model.gguf: tokenizer.ggml (unknown token id) is 40; expected an id below 40, the size of the vocabulary");
    insta::assert_snapshot!(broken(&[("tokenizer.ggml.add_space_prefix", Value::U32(1))]), @"model.gguf: metadata key `tokenizer.ggml.add_space_prefix` is U32 1; expected a boolean");
    let gemma4 = ("tokenizer.ggml.model", Value::String("gemma4".to_owned()));
    insta::assert_snapshot!(broken(&[gemma4.clone(), ("tokenizer.ggml.merges", Value::from(vec!["a zz".to_owned()]))]), @"model.gguf: tokenizer.ggml.merges[0] is `a zz`; expected two tokens of the vocabulary, separated by a space, whose joined text is a token too");
}

#[test]
fn odd_vocabularies_load_and_encode_without_a_panic() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.gguf");
    for model in ["gpt2", "llama", "gemma4"] {
        for odd in ["", "▁", " ", "a▁▁b", "<0x0A>", "\u{10ffff}", "a"] {
            for kind in 0..8 {
                // Every token alike: empty, doubled, or of one kind.
                let mut draft = draft();
                draft.set("tokenizer.ggml.model", Value::String(model.to_owned()));
                draft.set("tokenizer.ggml.scores", Value::from(vec![0.0_f32; SMALL.vocab]));
                draft.set("tokenizer.ggml.tokens", Value::from(vec![odd.to_owned(); SMALL.vocab]));
                draft.set("tokenizer.ggml.token_type", Value::from(vec![kind; SMALL.vocab]));
                draft.set("tokenizer.ggml.merges", Value::from(vec![format!("{odd} {odd}"); 2]));
                draft.write_to(&path);
                let Ok(model) =
                    Model::load(&path, &LoadOptions { threads: 1, ..LoadOptions::default() })
                else {
                    continue;
                };
                for text in ["", "a b▁\n", "<0x0A>", &odd.repeat(70)] {
                    let ids = model.tokenizer().encode(text, true);
                    model.tokenizer().encode_plain(text);
                    model.tokenizer().decode(&ids);
                }
            }
        }
    }
}

#[test]
fn rows_that_are_not_whole_blocks_are_refused_in_the_integer_path_only() {
    let shape = Shape { head_dim: 6, ..SMALL };
    let tiny = Draft::new(shape, GgmlType::F32, GgmlType::Q8_0).finish();
    let load = |activations| {
        Model::load(
            &tiny.path,
            &LoadOptions { activations: Some(activations), ..LoadOptions::default() },
        )
    };
    assert!(load(Activations::Float).is_ok());
    let error = load(Activations::Q8_0).unwrap_err();
    assert!(matches!(error, EdgeError::NotWholeBlocks { columns: 6, .. }), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn no_changed_bytes_make_loading_or_running_panic(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6), header: bool, sentence_piece: bool) {
        let mut draft = draft();
        if sentence_piece {
            draft.set("tokenizer.ggml.model", Value::String("llama".to_owned()));
            draft.set("tokenizer.ggml.scores", Value::from(vec![-1.5_f32; SMALL.vocab]));
        }
        let tiny = draft.finish();
        let mut bytes = std::fs::read(&tiny.path).unwrap();
        // Half of the cases aim at the header, where the structure is.
        let end = if header { 1500 } else { bytes.len() };
        for (at, byte) in changes {
            let at = at.index(end);
            bytes[at] = byte;
        }
        let path = tiny.directory.path().join("changed.gguf");
        std::fs::write(&path, bytes).unwrap();
        if let Ok(model) = Model::load(&path, &LoadOptions { threads: 1, ..LoadOptions::default() }) {
            let options = distill_edge::SessionOptions { context: 8, ..Default::default() };
            let mut session = distill_edge::Session::new(&model, options).unwrap();
            let tokens = model.tokenizer().encode("a cab", true);
            if !tokens.is_empty() {
                session.prefill(&tokens[..tokens.len().min(8)]).unwrap();
            }
        }
    }
}
