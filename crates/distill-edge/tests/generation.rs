//! Generating: stopping, streaming, and the same text for the same seed.

mod tiny_model;

use distill_edge::{
    Generation, LoadOptions, Model, Sampler, SamplerOptions, Session, SessionOptions, StopReason,
    argmax, bench, generate,
};
use distill_gguf::GgmlType;
use tiny_model::{SHAPE, TinyModel};

fn model() -> (TinyModel, Model) {
    let tiny = TinyModel::new(SHAPE, GgmlType::Q4_0, GgmlType::Q8_0);
    let model =
        Model::load(&tiny.path, &LoadOptions { threads: 2, ..LoadOptions::default() }).unwrap();
    (tiny, model)
}

fn run(model: &Model, context: usize, max_new: usize, seed: u64) -> (Generation, String) {
    let mut session =
        Session::new(model, SessionOptions { context, ..SessionOptions::default() }).unwrap();
    let mut sampler =
        Sampler::new(SamplerOptions { temperature: 3.0, seed, ..SamplerOptions::default() });
    let mut streamed = String::new();
    let prompt = model.tokenizer().encode("abba cab", true);
    let done = generate(&mut session, &prompt, max_new, &mut sampler, |_, text| {
        streamed.push_str(text);
        true
    });
    (done.unwrap(), streamed)
}

#[test]
fn the_same_seed_writes_the_same_text_and_streams_all_of_it() {
    let (_tiny, model) = model();
    let (first, streamed) = run(&model, 100, 40, 5);
    assert_eq!(streamed, first.text);
    assert_eq!(run(&model, 100, 40, 5).0.tokens, first.tokens);
    assert_ne!(run(&model, 100, 40, 6).0.tokens, first.tokens);
}

#[test]
fn generation_ends_at_the_limit_the_context_the_end_token_and_on_request() {
    let (_tiny, model) = model();
    // A seed whose draws do not meet the end token early.
    let seed = (0..50).find(|&seed| run(&model, 100, 20, seed).0.tokens.len() == 20).unwrap();
    assert_eq!(run(&model, 100, 3, seed).0.stop, StopReason::MaxTokens);
    assert_eq!(run(&model, 100, 3, seed).0.tokens.len(), 3);
    assert!(run(&model, 100, 0, seed).0.tokens.is_empty());
    let prompt = model.tokenizer().encode("abba cab", true).len();
    let full = run(&model, prompt + 3, 50, seed).0;
    assert_eq!((full.stop, full.tokens.len()), (StopReason::ContextFull, 4));
    let ended = (0..200)
        .map(|seed| run(&model, 100, 90, seed).0)
        .find(|g| g.stop == StopReason::EndOfGeneration);
    assert!(
        ended.is_some_and(|g| !g.tokens.contains(&27)),
        "no draw of 200 × 90 met the end token"
    );
    let mut session = Session::new(&model, SessionOptions::default()).unwrap();
    let mut sampler = Sampler::new(SamplerOptions::default());
    let done = generate(&mut session, &[1], 9, &mut sampler, |_, _| false).unwrap();
    assert_eq!((done.stop, done.tokens.len()), (StopReason::Cancelled, 1));
}

#[test]
fn greedy_generation_is_argmax_of_decode() {
    let (_tiny, model) = model();
    let mut session = Session::new(&model, SessionOptions::default()).unwrap();
    let mut next = argmax(session.prefill(&[3, 5]).unwrap());
    let mut want = Vec::new();
    while want.len() < 12 && next != 27 {
        want.push(next);
        next = argmax(session.decode(next).unwrap());
    }
    session.reset();
    let done = generate(
        &mut session,
        &[3, 5],
        want.len(),
        &mut Sampler::new(SamplerOptions::default()),
        |_, _| true,
    );
    assert_eq!(done.unwrap().tokens, want);
}

#[test]
fn the_bench_reports_what_it_was_asked_for() {
    let (_tiny, model) = model();
    let options = bench::BenchOptions {
        prompt: 20,
        generate: 10,
        repetitions: 3,
        ..bench::BenchOptions::default()
    };
    let report = bench::bench(&model, &options).unwrap();
    assert_eq!((report.threads, report.prefill.0.len(), report.decode.0.len()), (2, 3, 3));
    assert!(report.prefill.median() > 0.0 && report.decode.median() > 0.0);
    // Weights, and keys and values of two bytes up to the middle of 10 tokens after the first.
    let position =
        2 * 2 * model.config().layers * model.config().kv_heads * model.config().head_dim;
    assert_eq!(report.decode_bytes, model.weight_bytes() + 6 * position);
    let none = bench::BenchOptions {
        prompt: 0,
        generate: 0,
        repetitions: 1,
        ..bench::BenchOptions::default()
    };
    let report = bench::bench(&model, &none).unwrap();
    assert_eq!((report.prefill.median(), report.decode.median()), (0.0, 0.0));
    assert!(bench::limits::bandwidth_gbps(2, &model) > 0.0);
    assert!(bench::limits::int8_gops(1, &model) > 0.0);
}

#[test]
fn a_conversation_goes_on_with_the_pending_token() {
    let (_tiny, model) = model();
    let options = SessionOptions { context: 60, ..SessionOptions::default() };
    let mut session = Session::new(&model, options.clone()).unwrap();
    let mut greedy = Sampler::new(SamplerOptions::default());
    let done = generate(&mut session, &[3, 5], 6, &mut greedy, |_, _| true).unwrap();
    let mut next = done.pending.into_iter().collect::<Vec<_>>();
    next.extend([7, 8]);
    let continued = session.prefill(&next).unwrap().to_vec();

    let ended = (done.stop == StopReason::EndOfGeneration).then_some(27);
    let whole: Vec<u32> =
        [3, 5].into_iter().chain(done.tokens).chain(ended).chain([7, 8]).collect();
    let mut fresh = Session::new(&model, options).unwrap();
    assert_eq!(fresh.prefill(&whole).unwrap(), continued);
}
