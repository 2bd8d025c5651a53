//! What loading and a session allocate, counted: for each byte of a file, however it lies.

#![allow(unsafe_code)]

mod tiny_model;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::path::Path;

use distill_edge::{
    Activations, Batch, BatchOptions, EdgeError, KvType, LoadOptions, Model, Session,
    SessionOptions, Tokenizer,
};
use distill_gguf::{GgmlType, GgufFile, GgufWriter};
use tiny_model::{Draft, SHAPE, Shape};

thread_local! {
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

/// The system's allocator; counts what the current thread holds.
struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn count(bytes: isize) {
    LIVE.set(LIVE.get() + bytes);
    PEAK.set(PEAK.get().max(LIVE.get()));
}

// SAFETY: every call is passed on as it came; those that are not written here end in these.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller's.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// What `work` returns, and the most bytes that this thread held in it.
fn peak<R>(work: impl FnOnce() -> R) -> (R, usize) {
    let before = LIVE.get();
    PEAK.set(before);
    let result = work();
    (result, (PEAK.get() - before) as usize)
}

const NAME: &str = "tiny.gguf";

fn load(draft: &Draft, activations: Option<Activations>) -> Model {
    let options = LoadOptions { threads: 1, activations, ..LoadOptions::default() };
    Model::from_bytes(draft.bytes(), Path::new(NAME), &options).unwrap()
}

#[test]
fn a_session_allocates_what_it_said_and_nothing_when_it_runs() {
    let wide = Shape { heads: 15, kv_heads: 5, feed_forward: 640, tied: false, ..SHAPE };
    let deep = Shape { hidden: 96, layers: 5, heads: 1, kv_heads: 1, vocab: 700, ..SHAPE };
    for shape in [SHAPE, wide, deep] {
        for activations in [Activations::Float, Activations::Q8_0] {
            let model = load(&Draft::new(shape, GgmlType::Q4_0, GgmlType::Q8_0), Some(activations));
            let kvs =
                [(1, KvType::F32), (17, KvType::F16), (1000, KvType::F16), (300, KvType::Q8_0)];
            for (context, kv) in kvs {
                let options = SessionOptions { context, kv, threads: 1 };
                let expected = Session::bytes(&model, &options);
                let before = LIVE.get();
                let (session, used) = peak(|| Session::new(&model, options).unwrap());
                let mut session = session;
                let held = (LIVE.get() - before) as usize;
                // The rest is the handles' own bytes. No cache here is as large as a large page.
                for bytes in [used, held] {
                    let within = (expected..expected + 4096).contains(&bytes);
                    assert!(within, "{bytes}, {expected} expected");
                }
                let (_, used) = peak(|| {
                    session.prefill(&vec![1; context][1..]).map(|_| ()).unwrap_or_default();
                    session.decode(2).map(|_| ()).unwrap();
                });
                assert!(used <= 4 * context, "{used} of which {} are the prompt", 4 * context);
            }
        }
    }
}

#[test]
fn a_batch_allocates_what_it_said_and_nothing_when_it_runs() {
    for activations in [Activations::Float, Activations::Q8_0] {
        let model = load(&Draft::new(SHAPE, GgmlType::Q4_0, GgmlType::Q8_0), Some(activations));
        for (sequences, context, kv) in
            [(1, 17, KvType::F16), (5, 300, KvType::Q8_0), (140, 9, KvType::F32)]
        {
            let options = BatchOptions { sequences, context, kv, threads: 1 };
            let expected = Batch::bytes(&model, &options);
            let before = LIVE.get();
            let (batch, used) = peak(|| Batch::new(&model, &options).unwrap());
            let mut batch = batch;
            let held = (LIVE.get() - before) as usize;
            // The rest is the handles' own bytes, and the cache lines that caches begin on.
            let slack = 4096 + 128 * sequences;
            for bytes in [used, held] {
                let within = (expected..expected + slack).contains(&bytes);
                assert!(within, "{bytes}, {expected} expected, {options:?}");
            }
            let row: Vec<(usize, u32)> = (0..sequences).map(|sequence| (sequence, 3)).collect();
            let (_, used) = peak(|| {
                batch.read(0, &[1, 2]).unwrap();
                batch.decode(&row, |_, _| {}).unwrap();
            });
            assert_eq!(used, 0, "{options:?}");
        }
    }
}

#[test]
fn the_announced_context_is_what_a_session_of_no_context_takes() {
    let mut draft = Draft::new(SHAPE, GgmlType::Q4_0, GgmlType::Q8_0);
    let options = |context| SessionOptions { context, threads: 1, ..SessionOptions::default() };
    let bytes = |draft: &Draft, context| Session::bytes(&load(draft, None), &options(context));
    assert_eq!(bytes(&draft, 0), bytes(&draft, 128));
    // No bytes of a file stand behind its context length.
    draft.set("llama.context_length", u32::MAX);
    let a_position = 2 * 2 * 2 * 3 * 32;
    assert!(bytes(&draft, 0) > a_position << 32);
    let model = load(&draft, None);
    let error = Session::new(&model, options(usize::MAX)).unwrap_err();
    assert!(matches!(error, EdgeError::Memory { bytes: usize::MAX, .. }), "{error}");
}

/// The bound of [`Model::load`].
fn assert_bounded(what: &str, used: usize, file: usize) {
    assert!(used <= 96 * file + (64 << 10), "{what}: {used} bytes for a file of {file}");
}

#[test]
fn loading_allocates_in_proportion_to_the_file() {
    let thin = Shape { hidden: 512, heads: 1, kv_heads: 1, feed_forward: 32, vocab: 40, ..SHAPE };
    for (shape, ty) in [
        (SHAPE, GgmlType::Q4_0),
        (SHAPE, GgmlType::F32),
        (thin, GgmlType::Q4_0),
        (Shape { layers: 40, ..thin }, GgmlType::Q8_0),
    ] {
        let bytes = Draft::new(shape, ty, ty).bytes();
        let size = bytes.len();
        let options = LoadOptions { threads: 1, ..LoadOptions::default() };
        let (model, used) = peak(|| Model::from_bytes(bytes, Path::new(NAME), &options));
        model.unwrap();
        assert_bounded("a model", used, size);
    }
}

#[test]
fn a_vocabulary_allocates_in_proportion_to_the_file() {
    let runs: Vec<String> = (1..=1024).map(|length| "a".repeat(length)).collect();
    // Every cut of every token into two is a merge of its own.
    let squares: Vec<String> =
        (0..40).flat_map(|a| (0..40).map(move |b| "x".repeat(a) + &"y".repeat(b))).collect();
    let empty = vec![String::new(); 50_000];
    for tokens in [runs, squares, empty] {
        for (model, ty) in [("llama", 1), ("gpt2", 1), ("gpt2", 4), ("gemma4", 3)] {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join(NAME);
            let mut writer = GgufWriter::create(&path).unwrap();
            writer
                .set("tokenizer.ggml.model", model)
                .set("tokenizer.ggml.pre", "llama-bpe")
                .set("tokenizer.ggml.scores", vec![0.0_f32; tokens.len()])
                .set("tokenizer.ggml.token_type", vec![ty; tokens.len()])
                .set("tokenizer.ggml.merges", vec!["a a".to_owned()])
                .set("tokenizer.ggml.tokens", tokens.clone());
            let size = writer.finish().unwrap() as usize;
            let (tokenizer, used) = peak(|| {
                let file = GgufFile::open(&path).unwrap();
                Tokenizer::from_gguf(&file).map(|_| ())
            });
            assert_bounded(&format!("{model}, {ty}, {tokenizer:?}"), used, size);
        }
    }
}
