//! What the targets do with an input.

use std::path::Path;

use distill_edge::{
    EdgeError, KvType, LoadOptions, Model, Session, SessionOptions, Tokenizer, Utf8Stream,
};

use crate::limits::{
    LOAD_CONSTANT, LOAD_FACTOR, SESSION_CONSTANT, SESSION_FACTOR, TEXT_CONSTANT, TEXT_FACTOR,
    assert_within,
};
use crate::meter::peak;

/// Sessions that need more are not opened: zeroing them is all that an execution would do.
const LARGEST_SESSION: usize = 4 << 20;
/// What is encoded with every tokenizer that loads.
const TEXT: &str = "ab ba\n<|end|>Aé  1";

/// The name of inputs in errors.
pub fn name() -> &'static Path {
    Path::new("fuzz")
}

/// Tokens of a prompt, at most: more than attend together.
pub const LONGEST_PROMPT: usize = 18;

/// Loads a file on one thread; if it is a model, runs a prompt of some tokens and two more through
/// it. Returns the last logits.
pub fn model(bytes: &[u8], options: &LoadOptions, kv: KvType, prompt: usize) -> Option<Vec<f32>> {
    let size = bytes.len();
    let bytes = bytes.to_vec();
    let (model, used) = peak(|| Model::from_bytes(bytes, name(), options));
    assert_within("loading", used, LOAD_FACTOR, size, LOAD_CONSTANT);
    // An error that cannot be shown would be a crash too.
    let model = model.map_err(|error| error.to_string()).ok()?;
    let ids = text(model.tokenizer(), TEXT);
    let last = model.config().vocab_size as u32 - 1;
    let prompt: Vec<u32> = ids.into_iter().chain([0, last]).cycle().take(prompt).collect();
    let options = SessionOptions { context: LONGEST_PROMPT + 2, kv, threads: 1 };
    session(&model, options, &prompt, size)
}

fn session(
    model: &Model,
    options: SessionOptions,
    prompt: &[u32],
    size: usize,
) -> Option<Vec<f32>> {
    let (expected, kv) = (Session::bytes(model, &options), options.kv);
    assert_within("a session", expected, SESSION_FACTOR, size, SESSION_CONSTANT);
    if expected > LARGEST_SESSION {
        return None;
    }
    let (session, used) = peak(|| Session::new(model, options));
    if kv == KvType::Q8_0 && !model.config().head_dim.is_multiple_of(32) {
        assert!(matches!(session, Err(EdgeError::KvBlocks { .. })));
        return None;
    }
    let mut session = session.expect("memory for a small session");
    assert_within("opening a session", used, 1, expected, 4 << 10);
    let vocab = model.config().vocab_size as u32;
    assert!(session.decode(vocab).is_err());
    let (logits, used) = peak(|| {
        session.prefill(prompt).expect("tokens of the vocabulary");
        session.truncate(prompt.len() - 1);
        session.decode(vocab / 2).expect("a token of the vocabulary").as_ptr()
    });
    assert_within("running a session", used, 0, 0, 0);
    assert!(!logits.is_null());
    Some(session.decode(vocab - 1).expect("a token of the vocabulary").to_vec())
}

/// Encodes and decodes a text.
pub fn text(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    let (ids, used) = peak(|| {
        let plain = tokenizer.encode_plain(text);
        let ids = tokenizer.encode(text, true);
        assert!(plain.iter().chain(&ids).all(|&id| (id as usize) < tokenizer.vocab_size()));
        ids
    });
    assert_within("encoding", used, TEXT_FACTOR, text.len(), TEXT_CONSTANT);
    let (mut stream, mut streamed) = (Utf8Stream::default(), String::new());
    ids.iter().for_each(|&id| stream.push(tokenizer.piece(id), &mut streamed));
    stream.finish(&mut streamed);
    let decoded = tokenizer.decode(&ids);
    // Decoding takes a space away that the vocabulary puts in front.
    assert!(streamed == decoded || streamed.strip_prefix(' ') == Some(&decoded));
    ids
}
