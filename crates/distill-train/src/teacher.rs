//! Teachers: what the student is held against.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use burn::tensor::{Device, Tensor, TensorData};
use distill_data::Batch;
use distill_edge::{Activations, EdgeError, KvType, Session, SessionOptions};
use distill_models::LlamaForCausalLM;

use crate::TrainError;
use crate::backward::input_ids;

/// A source of next-token distributions.
///
/// It returns a signal, not a tensor: a remote teacher will give the top k with their tail, a
/// cache random samples, a local one everything.
pub trait Teacher {
    /// The teacher's view of every position of a batch.
    ///
    /// # Errors
    /// Whatever keeps the teacher from answering.
    fn signal(&self, batch: &Batch) -> Result<Signal, TrainError>;
}

/// What a teacher says of a batch.
#[derive(Clone, Debug)]
pub enum Signal {
    /// The logits of the whole vocabulary.
    Dense(Dense),
}

/// Logits in the form that costs nothing to keep: final hidden states and the head.
#[derive(Clone, Debug)]
pub struct Dense {
    /// `[tokens, hidden]`.
    hidden: Tensor<2>,
    /// `[vocab, hidden]`.
    head: Tensor<2>,
}

impl Dense {
    /// From final hidden states `[tokens, hidden]` and the head `[vocab, hidden]`.
    pub fn new(hidden: Tensor<2>, head: Tensor<2>) -> Self {
        Self { hidden, head }
    }

    /// Final hidden states and head.
    pub fn parts(&self) -> (Tensor<2>, Tensor<2>) {
        (self.hidden.clone(), self.head.clone())
    }

    /// Logits of some of the tokens, `[rows, vocab]`.
    pub fn logits(&self, rows: Range<usize>) -> Tensor<2> {
        self.hidden.clone().slice([rows]).matmul(self.head.clone().transpose())
    }
}

/// A teacher that runs on this machine's backend, without gradients.
pub struct LocalTeacher {
    model: LlamaForCausalLM,
    /// Tokens that exist; rows beyond are padding.
    vocabulary: usize,
    device: Device,
}

impl LocalTeacher {
    /// A teacher over the first `vocabulary` rows of its head.
    pub fn new(model: LlamaForCausalLM, vocabulary: usize, device: Device) -> Self {
        Self { model, vocabulary, device }
    }
}

impl Teacher for LocalTeacher {
    fn signal(&self, batch: &Batch) -> Result<Signal, TrainError> {
        let hidden = forward(&self.model, batch, &self.device);
        let head = self.model.head().narrow(0, 0, self.vocabulary);
        Ok(Signal::Dense(Dense::new(hidden, head)))
    }
}

/// A teacher that the edge runtime computes from a GGUF file, with its products of integers.
///
/// The head is in f32, and hidden states reach it as they are, where the runtime by itself would
/// quantise them once more.
pub struct RuntimeTeacher {
    session: Mutex<Session>,
    /// `[vocabulary, hidden]`.
    head: Tensor<2>,
    device: Device,
}

impl RuntimeTeacher {
    /// The cache's type: without loss where nothing else is rounded, else the runtime's default.
    pub fn cache(model: &distill_edge::Model) -> KvType {
        match model.activations() {
            Activations::Float => KvType::F32,
            Activations::Q8_0 => KvType::F16,
        }
    }

    /// A teacher over the first `vocabulary` tokens, for documents of up to `sequence` tokens.
    ///
    /// # Errors
    /// If the session does not fit into memory.
    ///
    /// # Panics
    /// If the model has fewer tokens.
    pub fn new(
        model: &distill_edge::Model,
        vocabulary: usize,
        sequence: usize,
        device: Device,
    ) -> Result<Self, EdgeError> {
        let options = SessionOptions { context: sequence, kv: Self::cache(model), threads: 0 };
        let width = model.config().hidden_size;
        let mut head = vec![0.0; vocabulary * width];
        for (token, row) in head.chunks_exact_mut(width).enumerate() {
            model.head_row(token, row);
        }
        let head = Tensor::from_data(TensorData::new(head, [vocabulary, width]), &device);
        Ok(Self { session: Mutex::new(Session::new(model, options)?), head, device })
    }
}

impl Teacher for RuntimeTeacher {
    /// Documents are read one after the other: attention does not cross them, and positions restart.
    fn signal(&self, batch: &Batch) -> Result<Signal, TrainError> {
        let mut session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        let width = session.model().config().hidden_size;
        let mut hidden = Vec::with_capacity(batch.input_ids.len() * width);
        let sequences = batch.input_ids.chunks_exact(batch.sequence);
        for (tokens, documents) in sequences.zip(batch.document_ids.chunks_exact(batch.sequence)) {
            let mut rest = tokens;
            for document in documents.chunk_by(|a, b| a == b) {
                let (tokens, others) = rest.split_at(document.len());
                rest = others;
                session.reset();
                session.hidden_states(tokens, |_, values| hidden.extend_from_slice(values))?;
            }
        }
        let data = TensorData::new(hidden, [batch.input_ids.len(), width]);
        let hidden = Tensor::from_data(data, &self.device);
        Ok(Signal::Dense(Dense::new(hidden, self.head.clone())))
    }
}

/// Final hidden states of a batch, `[batch · sequence, hidden]`.
pub fn forward(model: &LlamaForCausalLM, batch: &Batch, device: &Device) -> Tensor<2> {
    let positions = model.config.packed(batch.batch, &batch.position_ids, &batch.document_ids);
    let hidden = model.hidden(input_ids(batch, device), &positions);
    hidden.reshape([batch.batch * batch.sequence, model.config.hidden_size])
}
