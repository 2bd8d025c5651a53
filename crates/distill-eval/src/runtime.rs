//! The exported file, measured through the runtime that ships it.

use distill_data::{Batch, Split};
use distill_edge::{Activations, KvType, Model, Session, SessionOptions};

use crate::{EvalError, Reference, Score};

/// What is known of the teacher at the positions of a batch.
pub type OfTeacher<'a> = dyn FnMut(&Batch) -> Reference + 'a;

/// How a session of `model` computes, in words: `"Q8_0 activations, f16 KV cache"`.
pub fn configuration(model: &Model, kv: KvType) -> String {
    let activations = match model.activations() {
        Activations::Float => "float",
        Activations::Q8_0 => "Q8_0",
    };
    format!("{activations} activations, {kv} KV cache")
}

/// Scores the runtime, in its default configuration, on the first `sequences` held-out
/// sequences. Each packed document is read on its own, as in training, where attention does
/// not cross documents and positions restart.
///
/// # Errors
/// [`EvalError::Edge`].
pub fn evaluate(
    model: &Model,
    held_out: &Split,
    sequences: usize,
    vocabulary: usize,
    threads: usize,
    mut teacher: Option<&mut OfTeacher<'_>>,
) -> Result<Score, EvalError> {
    let context = held_out.sequence_length();
    let options = SessionOptions { context, threads, ..SessionOptions::default() };
    let mut session = Session::new(model, options)?;
    let mut score = Score::default();
    for index in 0..sequences.min(held_out.len()) {
        let batch = held_out.batch(&[index]);
        let mut logits = Vec::with_capacity(context * vocabulary);
        let mut start = 0;
        for document in batch.document_ids.chunk_by(|a, b| a == b) {
            let tokens = &batch.input_ids[start..start + document.len()];
            session.reset();
            session.score(tokens, |_, row| logits.extend_from_slice(&row[..vocabulary]))?;
            start += document.len();
        }
        let teacher = teacher.as_mut().map(|teacher| teacher(&batch));
        score.add(&logits, teacher.as_ref(), &batch.labels, &batch.loss_mask);
    }
    Ok(score)
}
