//! Teachers: what the student is held against.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use burn::tensor::{Device, Tensor, TensorData};
use distill_data::{Batch, Sequence};
use distill_edge::{Activations, EdgeError, KvType, Session, SessionOptions};
use distill_eval::Reference;
use distill_models::{LlamaForCausalLM, parameters};
use distill_teacher::{Cache, Key, Kind, TeacherError};

use crate::TrainError;
use crate::backward::input_ids;

/// A source of next-token distributions.
///
/// It returns a signal, not a tensor: one that was asked over a network has said what the likeliest
/// tokens are, a cache may hold samples, a local one says everything.
pub trait Teacher {
    /// The teacher's view of every position of a batch.
    ///
    /// # Errors
    /// Whatever keeps the teacher from answering.
    fn signal(&self, batch: &Batch) -> Result<Signal, TrainError>;
}

/// What a teacher says of a batch.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant, reason = "there is one at a time")]
pub enum Signal {
    /// The logits of the whole vocabulary.
    Dense(Dense),
    /// Some tokens of each position, of all sequences one behind the other.
    Partial(distill_teacher::Signal),
}

impl Signal {
    /// What it says of some positions, for measuring; nothing of samples, which are too few for that.
    pub fn reference(&self, positions: Range<usize>) -> Reference {
        match self {
            Self::Dense(dense) => Reference::Logits(parameters::values(dense.logits(positions))),
            Self::Partial(said) => Reference::Top(
                positions
                    .map(|position| match said.kind() {
                        Kind::TopK => {
                            let (tokens, log_p) = said.at(position);
                            tokens.iter().copied().zip(log_p.iter().copied()).collect()
                        }
                        Kind::Sampled => Vec::new(),
                    })
                    .collect(),
            ),
        }
    }
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

/// A teacher that was asked before: what it said lies in a cache.
pub struct CachedTeacher {
    cache: Cache,
    /// Of the sequences that are trained on. Held-out ones are always measured against the likeliest
    /// tokens, since samples are too few to measure by.
    kind: Kind,
}

impl CachedTeacher {
    /// A teacher whose signals for training are of `kind`.
    pub fn new(cache: Cache, kind: Kind) -> Self {
        Self { cache, kind }
    }
}

impl CachedTeacher {
    fn find(&self, sequence: &Sequence) -> Result<distill_teacher::Signal, TrainError> {
        let key = Key::of(sequence, self.kind);
        let found = match self.cache.get(key)? {
            None if self.kind != Kind::TopK => self.cache.get(Key::of(sequence, Kind::TopK))?,
            found => found,
        };
        let path = self.cache.path().to_path_buf();
        Ok(found.ok_or(TeacherError::Missing { path, missing: 1, of: 1 })?)
    }
}

impl Teacher for CachedTeacher {
    fn signal(&self, batch: &Batch) -> Result<Signal, TrainError> {
        let mut all = self.find(&batch.row(0))?;
        for row in 1..batch.batch {
            all.extend(&self.find(&batch.row(row))?);
        }
        Ok(Signal::Partial(all))
    }
}

/// Final hidden states of a batch, `[batch · sequence, hidden]`.
pub fn forward(model: &LlamaForCausalLM, batch: &Batch, device: &Device) -> Tensor<2> {
    let positions = model.config.packed(batch.batch, &batch.position_ids, &batch.document_ids);
    let hidden = model.hidden(input_ids(batch, device), &positions);
    hidden.reshape([batch.batch * batch.sequence, model.config.hidden_size])
}
