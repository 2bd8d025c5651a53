//! A model and a state that are never files: the whole path from bytes to logits, small enough for
//! an interpreter (Miri) to check every access of it.

mod tiny_model;

use std::path::Path;
use std::sync::LazyLock;

use distill_edge::{
    Activations, KernelChoice, KvType, LoadOptions, Model, Sampler, SamplerOptions, Session,
    SessionOptions, generate,
};
use distill_gguf::GgmlType;
use tiny_model::{Draft, Shape};

/// Two kv heads, two heads on each, a last group of fewer than 16 rows, and two panels of logits.
const SMALL: Shape = Shape {
    hidden: 32,
    layers: 1,
    heads: 4,
    kv_heads: 2,
    head_dim: 8,
    feed_forward: 64,
    vocab: 74,
    tied: true,
    rope_factors: true,
};

/// A model whose heads the cache can store so.
fn draft(kv: KvType) -> Draft {
    let shape = if kv == KvType::Q8_0 { Shape { head_dim: 32, ..SMALL } } else { SMALL };
    Draft::new(shape, GgmlType::Q4_0, GgmlType::Q8_0)
}

fn load(bytes: &[u8], activations: Activations) -> Model {
    let options =
        LoadOptions { activations: Some(activations), threads: 2, kernels: KernelChoice::Scalar };
    Model::from_bytes(bytes.to_vec(), Path::new("memory"), &options).unwrap()
}

/// What is decoded after the prompt; an interpreter computes a token in a minute.
const DECODED: &[u32] = if cfg!(miri) { &[65] } else { &[65, 35] };

/// Logits of a prefill of several tokens and of some decoded ones after it.
fn logits(model: &Model, kv: KvType, threads: usize) -> Vec<f32> {
    let mut session = Session::new(model, SessionOptions { context: 24, kv, threads }).unwrap();
    let prompt = if cfg!(miri) { &[3, 14][..] } else { &[3, 14, 15, 9, 2] };
    let mut all = session.prefill(prompt).unwrap().to_vec();
    for &token in DECODED {
        all.extend_from_slice(session.decode(token).unwrap());
    }
    all
}

#[test]
fn any_number_of_threads_computes_the_same_bits_from_memory() {
    let all = [
        (Activations::Q8_0, KvType::F16),
        (Activations::Float, KvType::F32),
        (Activations::Q8_0, KvType::Q8_0),
    ];
    // The tests below go through the others.
    for (activations, kv) in all.into_iter().take(if cfg!(miri) { 1 } else { 3 }) {
        let (packed, plain) = (draft(kv).packed().bytes(), draft(kv).bytes());
        let want = logits(&load(&packed, activations), kv, 1);
        assert_eq!(want.len(), (1 + DECODED.len()) * SMALL.vocab);
        assert!(want.iter().all(|x| x.is_finite()));
        assert_eq!(logits(&load(&packed, activations), kv, 2), want);
        assert_eq!(logits(&load(&plain, activations), kv, 2), want);
    }
}

#[test]
fn rows_of_floats_are_read_wherever_they_lie_in_memory() {
    // Borrowed bytes, of which one begins at an odd address.
    static TWICE: LazyLock<[Vec<u8>; 2]> = LazyLock::new(|| {
        let bytes = Draft::new(SMALL, GgmlType::F16, GgmlType::F32).bytes();
        [bytes.clone(), [&[0], &bytes[..]].concat()]
    });
    let run = |bytes: &'static [u8]| {
        let options = LoadOptions {
            activations: Some(Activations::Float),
            threads: 1,
            kernels: KernelChoice::Scalar,
        };
        let model = Model::from_bytes(bytes, Path::new("memory"), &options).unwrap();
        logits(&model, KvType::F16, 1)
    };
    assert_eq!(run(&TWICE[0]), run(&TWICE[1][1..]));
}

#[test]
fn a_session_goes_on_from_a_state_in_memory() {
    for kv in [KvType::F16, KvType::F32, KvType::Q8_0] {
        let model = load(&draft(kv).bytes(), Activations::Q8_0);
        let options = SessionOptions { context: 24, kv, threads: 2 };
        let mut first = Session::new(&model, options.clone()).unwrap();
        first.prefill(&[3, 14, 15]).unwrap();
        let mut state = Vec::new();
        first.save_to(&mut state).unwrap();
        let mut second = Session::new(&model, options).unwrap();
        second.prefill(&[1, 2]).unwrap();
        second.restore_from(&state, Path::new("memory")).unwrap();
        assert_eq!(second.tokens(), [3, 14, 15]);
        assert_eq!(second.decode(9).unwrap(), first.decode(9).unwrap());
        for length in [0, 23, 40, state.len() - 1] {
            assert!(second.restore_from(&state[..length], Path::new("memory")).is_err());
            assert_eq!(second.position(), 0);
        }
    }
}

#[test]
fn text_comes_from_a_model_in_memory() {
    let bytes = Draft::new(SMALL, GgmlType::Q4_0, GgmlType::Q8_0).bytes();
    let model = load(&bytes, Activations::Q8_0);
    let options = SessionOptions { context: 12, ..SessionOptions::default() };
    let mut session = Session::new(&model, options).unwrap();
    let prompt = model.tokenizer().encode("ab cab", false);
    assert_eq!(model.tokenizer().decode(&prompt), "ab cab");
    let mut sampler = Sampler::new(SamplerOptions { temperature: 1.0, ..Default::default() });
    let generation = generate(&mut session, &prompt, 3, &mut sampler, |_, _| true).unwrap();
    assert!(!generation.tokens.is_empty());
}
