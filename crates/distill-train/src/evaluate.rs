//! Held-out measurements of the training graph.

use burn::tensor::Device;
use distill_data::Split;
use distill_eval::Score;
use distill_models::{LlamaForCausalLM, parameters};

use crate::TrainError;
use crate::teacher::{Teacher, forward};

/// Positions scored at a time.
const TILE: usize = 128;

/// Perplexity of `model` on the first `sequences` held-out sequences and, with a teacher, its
/// KL to it. Only valid positions count.
///
/// # Errors
/// What the teacher fails with.
pub fn evaluate(
    model: &LlamaForCausalLM,
    teacher: Option<&dyn Teacher>,
    held_out: &Split,
    sequences: usize,
    vocabulary: usize,
    device: &Device,
) -> Result<Score, TrainError> {
    let mut score = Score::default();
    let head = model.head().inner().narrow(0, 0, vocabulary);
    for index in 0..sequences.min(held_out.len()) {
        let batch = held_out.batch(&[index]);
        let hidden = forward(model, &batch, device);
        let signal = teacher.map(|teacher| teacher.signal(&batch)).transpose()?;
        for start in (0..batch.sequence).step_by(TILE) {
            let tile = start..(start + TILE).min(batch.sequence);
            let logits = hidden.clone().slice([tile.clone()]).matmul(head.clone().transpose());
            let logits = parameters::values(logits);
            let teacher = signal.as_ref().map(|signal| signal.reference(tile.clone()));
            let (labels, mask) = (&batch.labels[tile.clone()], &batch.loss_mask[tile]);
            score.add(&logits, teacher.as_ref(), labels, mask);
        }
    }
    Ok(score)
}
