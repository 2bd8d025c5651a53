//! The forward pass against an independent float64 reference, and against itself divided otherwise.

mod tiny_model;

use distill_edge::{
    Activations, EdgeError, KernelChoice, KvType, LinearInput, LoadOptions, Model, QuantizedInput,
    Session, SessionOptions,
};
use distill_gguf::GgmlType;
use tiny_model::{SHAPE, Shape, TinyModel, tokens};

fn load(tiny: &TinyModel, activations: Activations) -> Model {
    Model::load(
        &tiny.path,
        &LoadOptions { activations: Some(activations), threads: 1, ..LoadOptions::default() },
    )
    .unwrap()
}

fn score(model: &Model, tokens: &[u32], kv: KvType, threads: usize) -> Vec<Vec<f32>> {
    let mut session =
        Session::new(model, SessionOptions { context: tokens.len(), kv, threads }).unwrap();
    let mut logits = Vec::new();
    session
        .score(tokens, |position, row| {
            assert_eq!(position, logits.len());
            logits.push(row.to_vec());
        })
        .unwrap();
    logits
}

fn bits(rows: &[Vec<f32>]) -> Vec<u32> {
    rows.iter().flatten().map(|v| v.to_bits()).collect()
}

fn largest_difference(got: &[Vec<f32>], want: &[Vec<f64>]) -> f64 {
    let pairs = got.iter().flatten().zip(want.iter().flatten());
    pairs.fold(0.0, |worst, (got, want)| f64::max(worst, (f64::from(*got) - want).abs()))
}

/// Shapes that differ in what matters: heads, tied or not, RoPE scaling, head_dim other than
/// hidden / heads, several blocks a head.
fn shapes() -> [Shape; 5] {
    [
        SHAPE,
        Shape { tied: false, rope_factors: true, ..SHAPE },
        Shape { heads: 4, kv_heads: 4, head_dim: 16, layers: 3, ..SHAPE },
        Shape { heads: 8, kv_heads: 1, head_dim: 12, hidden: 96, ..SHAPE },
        Shape { heads: 2, kv_heads: 1, head_dim: 96, ..SHAPE },
    ]
}

#[test]
fn float_logits_equal_the_float64_reference_in_every_type() {
    for shape in shapes() {
        for linears in [GgmlType::F32, GgmlType::F16, GgmlType::Q4_0, GgmlType::Q8_0] {
            // Heads of 12 make the output projection's rows 96 long: whole blocks of 32.
            let tiny = TinyModel::new(shape, linears, GgmlType::Q8_0);
            let ids = tokens(40);
            let got = score(&load(&tiny, Activations::Float), &ids, KvType::F32, 1);
            let worst = largest_difference(&got, &tiny.reference(&ids, false));
            // Logits reach 30; f32 keeps 7 digits through two or three layers.
            assert!(worst < 2e-4, "{shape:?} {linears:?}: {worst}");
        }
    }
}

#[test]
fn integer_logits_follow_the_reference_with_quantised_activations() {
    for (linears, embeddings) in [
        (GgmlType::Q4_0, GgmlType::Q8_0),
        (GgmlType::Q4_0, GgmlType::Q4_0),
        (GgmlType::Q8_0, GgmlType::Q8_0),
        (GgmlType::F16, GgmlType::Q8_0),
        (GgmlType::F32, GgmlType::F32),
    ] {
        let tiny = TinyModel::new(Shape { layers: 1, ..SHAPE }, linears, embeddings);
        let ids = tokens(12);
        let got = score(&load(&tiny, Activations::Q8_0), &ids, KvType::F32, 1);
        let want = tiny.reference(&ids, true);
        let exact = tiny.reference(&ids, false);
        let error = |rows: &[Vec<f64>]| {
            let squares = got
                .iter()
                .flatten()
                .zip(rows.iter().flatten())
                .map(|(g, w)| (f64::from(*g) - w).powi(2));
            (squares.sum::<f64>() / exact.iter().flatten().count() as f64).sqrt()
        };
        // Codes flip where f32 and f64 fall on two sides of a rounding boundary, which is rare:
        // the runtime is far nearer to the quantised reference than that is to the exact one.
        assert!(
            error(&want) < 0.1 * error(&exact),
            "{linears:?}: {} {}",
            error(&want),
            error(&exact)
        );
    }
}

#[test]
fn the_cache_in_half_precision_stays_close() {
    let tiny = TinyModel::new(SHAPE, GgmlType::Q8_0, GgmlType::Q8_0);
    let ids = tokens(40);
    let got = score(&load(&tiny, Activations::Float), &ids, KvType::F16, 1);
    let worst = largest_difference(&got, &tiny.reference(&ids, false));
    // binary16 keeps 11 bits: relative errors of 2^-12 in keys and values, logits up to 30.
    assert!(worst > 1e-5 && worst < 0.1, "{worst}");
}

#[test]
fn the_cache_in_8_bits_stays_near() {
    let tiny = TinyModel::new(SHAPE, GgmlType::Q8_0, GgmlType::Q8_0);
    let ids = tokens(40);
    let exact = tiny.reference(&ids, false);
    let worst = |kv| {
        let got = score(&load(&tiny, Activations::Float), &ids, kv, 1);
        largest_difference(&got, &exact)
    };
    // A code is off by up to 1/254 of its block's largest element, a binary16 number by up to
    // 2^-12 of itself: 16 times less where they are equal.
    let (half, codes) = (worst(KvType::F16), worst(KvType::Q8_0));
    assert!(codes > 2.0 * half && codes < 64.0 * half, "{codes}, {half} in f16");
}

#[test]
fn a_cache_of_codes_is_refused_for_heads_that_are_not_whole_blocks() {
    let shape = Shape { heads: 8, kv_heads: 1, head_dim: 48, hidden: 96, ..SHAPE };
    let tiny = TinyModel::new(shape, GgmlType::Q4_0, GgmlType::Q8_0);
    let options = |kv| SessionOptions { context: 8, kv, threads: 1 };
    let model = load(&tiny, Activations::Q8_0);
    let error = Session::new(&model, options(KvType::Q8_0)).unwrap_err();
    assert!(error.is_input());
    assert_eq!(
        error.to_string(),
        "heads of 48 elements are not whole blocks of 32, which a cache in q8_0 needs. Open the \
         session with one in f16 or f32"
    );
    Session::new(&model, options(KvType::F16)).unwrap();
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    for (shape, activations) in
        shapes().into_iter().zip([Activations::Q8_0, Activations::Float].into_iter().cycle())
    {
        let tiny = TinyModel::new(shape, GgmlType::Q4_0, GgmlType::Q8_0);
        let model = load(&tiny, activations);
        let ids = tokens(70);
        for kv in [KvType::F16, KvType::Q8_0] {
            if kv == KvType::Q8_0 && !shape.head_dim.is_multiple_of(32) {
                continue;
            }
            let one = score(&model, &ids, kv, 1);
            for threads in [2, 3, 5, 8] {
                let got = score(&model, &ids, kv, threads);
                assert_eq!(bits(&got), bits(&one), "{threads} threads, {kv}");
            }
        }
    }
}

#[test]
fn scalar_kernels_give_the_same_bits() {
    let tiny = TinyModel::new(SHAPE, GgmlType::Q4_0, GgmlType::Q8_0);
    for activations in [Activations::Q8_0, Activations::Float] {
        let load = |kernels| {
            let options = LoadOptions { activations: Some(activations), threads: 1, kernels };
            Model::load(&tiny.path, &options).unwrap()
        };
        let ids = tokens(40);
        let scalar = load(KernelChoice::Scalar);
        assert_eq!(scalar.kernel_name(), "scalar");
        for kv in [KvType::F16, KvType::F32, KvType::Q8_0] {
            let scalar = score(&scalar, &ids, kv, 2);
            for kernels in
                [KernelChoice::Best, KernelChoice::Avx2, KernelChoice::Dotprod, KernelChoice::Neon]
            {
                assert_eq!(bits(&score(&load(kernels), &ids, kv, 2)), bits(&scalar));
            }
        }
    }
}

#[test]
fn a_packed_file_gives_the_same_bits() {
    for shape in shapes() {
        for (linears, embeddings) in
            [(GgmlType::Q4_0, GgmlType::Q8_0), (GgmlType::Q8_0, GgmlType::F16)]
        {
            let draft = || tiny_model::Draft::new(shape, linears, embeddings);
            let (plain, packed) = (draft().finish(), draft().packed().finish());
            let ids = tokens(20);
            for activations in [Activations::Q8_0, Activations::Float] {
                let logits = |tiny| bits(&score(&load(tiny, activations), &ids, KvType::F16, 2));
                assert_eq!(logits(&plain), logits(&packed), "{shape:?} {activations:?}");
            }
        }
    }
}

#[test]
fn prefill_decode_and_score_give_the_same_bits() {
    let tiny = TinyModel::new(SHAPE, GgmlType::Q4_0, GgmlType::Q8_0);
    for (activations, kv) in [
        (Activations::Q8_0, KvType::F16),
        (Activations::Float, KvType::F16),
        (Activations::Q8_0, KvType::Q8_0),
    ] {
        let model = load(&tiny, activations);
        // More than two tiles of tokens and one chunk of positions.
        let ids = tokens(300);
        let scored = score(&model, &ids, kv, 2);
        let options = SessionOptions { context: 300, kv, threads: 2 };
        let mut session = Session::new(&model, options).unwrap();
        for (id, want) in ids.iter().zip(&scored) {
            assert_eq!(
                bits(&[session.decode(*id).unwrap().to_vec()]),
                bits(std::slice::from_ref(want))
            );
        }
        for cut in [1, 15, 16, 17, 127, 128, 129, 255, 256, 257, 299] {
            session.reset();
            assert_eq!(
                bits(&[session.prefill(&ids[..cut]).unwrap().to_vec()]),
                bits(&scored[cut - 1..cut])
            );
            assert_eq!(
                bits(&[session.prefill(&ids[cut..]).unwrap().to_vec()]),
                bits(&scored[299..]),
                "cut at {cut}"
            );
        }
    }
}

#[test]
fn what_does_not_fit_is_refused_and_leaves_the_session_as_it_was() {
    let tiny = TinyModel::new(SHAPE, GgmlType::Q4_0, GgmlType::Q8_0);
    let model = load(&tiny, Activations::Q8_0);
    let mut session =
        Session::new(&model, SessionOptions { context: 8, ..SessionOptions::default() }).unwrap();
    assert!(matches!(session.prefill(&[]), Err(EdgeError::NoTokens)));
    session.prefill(&[1, 2, 3]).unwrap();
    let error = session.prefill(&[1; 6]).unwrap_err();
    assert!(
        matches!(error, EdgeError::ContextOverflow { position: 3, tokens: 6, context: 8 }),
        "{error}"
    );
    let error = session.prefill(&[1, 261]).unwrap_err();
    assert!(matches!(error, EdgeError::TokenId { index: 1, id: 261, vocab_size: 261 }), "{error}");
    assert_eq!(session.position(), 3);
    let after = session.prefill(&[4]).unwrap().to_vec();
    session.reset();
    assert_eq!(session.prefill(&[1, 2, 3, 4]).unwrap(), after);
    session.truncate(3);
    assert_eq!(session.prefill(&[4]).unwrap(), after);
}

#[test]
fn an_absurd_context_is_refused_not_aborted() {
    let tiny = TinyModel::new(SHAPE, GgmlType::Q4_0, GgmlType::Q8_0);
    let model = load(&tiny, Activations::Q8_0);
    for context in [usize::MAX, 1 << 60, 1 << 50] {
        let options = SessionOptions { context, ..SessionOptions::default() };
        assert!(
            matches!(Session::new(&model, options), Err(EdgeError::Memory { .. })),
            "{context}"
        );
    }
}

#[test]
fn the_file_says_which_activations_it_was_trained_with() {
    let mut draft = tiny_model::Draft::new(SHAPE, GgmlType::Q4_0, GgmlType::Q8_0);
    let activations =
        |tiny: &TinyModel| Model::load(&tiny.path, &LoadOptions::default()).unwrap().activations();
    draft.set("distill.activations", "float");
    assert_eq!(activations(&draft.finish()), Activations::Float);
    assert_eq!(
        activations(&TinyModel::new(SHAPE, GgmlType::Q4_0, GgmlType::F16)),
        Activations::Q8_0
    );
    assert_eq!(
        activations(&TinyModel::new(SHAPE, GgmlType::F16, GgmlType::F16)),
        Activations::Float
    );
}

#[test]
fn the_trace_shows_every_linear_input_of_every_position_once() {
    let tiny = TinyModel::new(SHAPE, GgmlType::Q4_0, GgmlType::Q8_0);
    let ids = tokens(70);
    let trace = |activations, threads| {
        let model = load(&tiny, activations);
        let mut session = Session::new(
            &model,
            SessionOptions { context: 70, threads, ..SessionOptions::default() },
        )
        .unwrap();
        let mut seen = std::collections::HashMap::new();
        let mut logits = Vec::new();
        let show = |shown: QuantizedInput<'_>| {
            for (t, codes) in shown.codes.chunks(shown.columns).enumerate() {
                let blocks = shown.columns / 32;
                let scales: Vec<u32> = shown.scales[t * blocks..(t + 1) * blocks]
                    .iter()
                    .map(|s| s.to_bits())
                    .collect();
                let before =
                    seen.insert((shown.input, shown.position + t), (codes.to_vec(), scales));
                assert!(before.is_none(), "{:?} at {} twice", shown.input, shown.position + t);
            }
        };
        session.score_traced(&ids, |_, row| logits.push(row.to_vec()), show).unwrap();
        (seen, logits)
    };
    let (seen, logits) = trace(Activations::Q8_0, 1);
    assert_eq!(seen.len(), 70 * (4 * SHAPE.layers + 1));
    assert_eq!(bits(&logits), bits(&score(&load(&tiny, Activations::Q8_0), &ids, KvType::F16, 1)));
    assert_eq!(trace(Activations::Q8_0, 2).0, seen);
    assert!(trace(Activations::Float, 1).0.is_empty());
    // The first layer's first input follows from the file alone: rms_norm of the embedding row.
    let row = &tiny.weights["model.embed_tokens.weight"][ids[5] as usize * SHAPE.hidden..]
        [..SHAPE.hidden];
    let norm = &tiny.weights["model.layers.0.input_layernorm.weight"];
    let mean = row.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / SHAPE.hidden as f64;
    let (codes, scales) = &seen[&(LinearInput::Attention { layer: 0 }, 5)];
    for i in 0..SHAPE.hidden {
        let want = f64::from(row[i]) / (mean + 1e-5).sqrt() * f64::from(norm[i]);
        let scale = f64::from(f32::from_bits(scales[i / 32]));
        assert!((f64::from(codes[i]) * scale - want).abs() <= 0.5001 * scale);
    }
}
