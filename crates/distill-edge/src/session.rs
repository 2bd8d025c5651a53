//! A session: one sequence of tokens, its cache and its threads.

use std::ops::Range;
use std::sync::{Arc, RwLock};
use std::thread::JoinHandle;

use crate::buffers::{Board, HEAD_TILE, Scratch, TILE};
use crate::cache::{Cache, KvType};
use crate::forward::{Job, Shared, Worker, read, write};
use crate::model::{Activations, Model};
use crate::team::Team;
use crate::trace::{QuantizedInput, Trace};
use crate::{EdgeError, rope};

/// How to open a session.
#[derive(Clone, Debug, Default)]
pub struct SessionOptions {
    /// The most tokens the session can hold; 0 is the model's own context length.
    pub context: usize,
    /// How keys and values are stored.
    pub kv: KvType,
    /// Threads, the caller's included; 0 is as the model was loaded.
    pub threads: usize,
}

impl SessionOptions {
    /// With the model's own values for zeros.
    fn resolve(&self, model: &Model) -> Self {
        let or = |chosen, own| if chosen == 0 { own } else { chosen };
        Self {
            context: or(self.context, model.config().context_length),
            kv: self.kv,
            threads: or(self.threads, model.inner.threads),
        }
    }
}

/// One sequence of tokens on a model. Its threads live as long as it does.
///
/// Results do not depend on the number of threads, nor on how the tokens were divided between
/// calls: the same tokens give the same logits bit for bit.
#[derive(Debug)]
pub struct Session {
    model: Model,
    /// This thread's part.
    worker: Worker,
    threads: Vec<JoinHandle<()>>,
    context: usize,
    /// Those in the cache.
    tokens: Vec<u32>,
}

impl Session {
    /// Allocates the cache and all buffers, [`Session::bytes`], and starts the threads.
    ///
    /// # Errors
    /// If that does not fit into memory or the system gives no thread.
    pub fn new(model: &Model, options: SessionOptions) -> Result<Self, EdgeError> {
        let inner = Arc::clone(&model.inner);
        let config = &inner.config;
        let SessionOptions { context, threads, .. } = options.resolve(model);
        let integer = inner.activations == Activations::Q8_0;
        let bytes = Self::bytes(model, &options);
        // Reserving first turns "out of memory" into an error; the zeroed allocations that
        // follow, unlike filling the reserved one, leave their pages untouched.
        Vec::<u8>::new()
            .try_reserve_exact(bytes)
            .map_err(|_| EdgeError::Memory { context, bytes })?;
        let cache = Cache::new(config, context, options.kv)?;
        let shared = Arc::new(Shared {
            team: Team::new(threads),
            board: Board::new(config, context, integer),
            cache,
            frequencies: rope::frequencies(config, inner.weights.rope_factors.as_deref()),
            job: RwLock::new(Job { tokens: Vec::with_capacity(TILE), ..Job::default() }),
            model: Arc::clone(&inner),
        });
        let worker = |index: usize| Worker {
            scratch: Scratch::new(config, integer),
            shared: Arc::clone(&shared),
            index,
            position: 0,
        };
        let mut session = Self {
            model: model.clone(),
            worker: worker(0),
            threads: Vec::new(),
            context,
            tokens: Vec::with_capacity(context),
        };
        for index in 1..threads {
            let worker = worker(index);
            let thread = std::thread::Builder::new()
                .name(format!("edge-{index}"))
                .spawn(move || follow(worker))
                .map_err(|source| EdgeError::Thread { index, threads, source })?;
            session.threads.push(thread);
        }
        Ok(session)
    }

    /// Bytes that a session allocates, all of them when it begins; `usize::MAX` if they cannot be
    /// counted.
    ///
    /// They follow from the context, the threads, and sizes of the model each of which is a
    /// dimension of some tensor in its file. The context is the caller's choice: one of 0 takes
    /// what the file announces, and nothing in the file backs that, so whoever opens files of
    /// strangers sets it, or looks here first.
    pub fn bytes(model: &Model, options: &SessionOptions) -> usize {
        let config = &model.inner.config;
        let SessionOptions { context, kv, threads } = options.resolve(model);
        let integer = model.inner.activations == Activations::Q8_0;
        let tokens = size_of::<u32>() * TILE + size_of::<f64>() * (config.head_dim / 2);
        let bytes = Cache::bytes(config, context, kv)
            + Board::bytes(config, context, integer)
            + Scratch::bytes(config, integer) * threads as u128
            + size_of::<u32>() as u128 * context as u128
            + tokens as u128;
        usize::try_from(bytes).unwrap_or(usize::MAX)
    }

    /// Adds `tokens` and returns the logits after the last, `[vocab]`.
    ///
    /// # Errors
    /// If `tokens` is empty, holds an id outside the vocabulary, or does not fit into the context;
    /// the session is then unchanged.
    pub fn prefill(&mut self, tokens: &[u32]) -> Result<&[f32], EdgeError> {
        self.check(tokens)?;
        let mut chunks = tokens.chunks(TILE).peekable();
        while let Some(chunk) = chunks.next() {
            let last = chunk.len() - 1;
            let head = if chunks.peek().is_none() { last..last + 1 } else { 0..0 };
            self.run(chunk, head, &mut Trace::default());
        }
        Ok(self.logits(0))
    }

    /// Adds one token and returns the logits after it, `[vocab]`.
    ///
    /// # Errors
    /// As [`Session::prefill`].
    pub fn decode(&mut self, token: u32) -> Result<&[f32], EdgeError> {
        self.prefill(&[token])
    }

    /// Adds `tokens` and calls `each` with every position (in the session) and the logits after
    /// it, `[vocab]`: for perplexity and for comparing with another engine.
    ///
    /// # Errors
    /// As [`Session::prefill`]; `each` has then not been called.
    pub fn score(
        &mut self,
        tokens: &[u32],
        each: impl FnMut(usize, &[f32]),
    ) -> Result<(), EdgeError> {
        self.score_with(tokens, each, &mut Trace::default())
    }

    /// Adds `tokens` and calls `each` with every position (in the session) and what the head would
    /// read there: the last layer's output after the final norm, `[hidden]`, not quantised.
    /// Its product with [`Model::head_row`] gives the logits.
    ///
    /// # Errors
    /// As [`Session::prefill`]; `each` has then not been called.
    pub fn hidden_states(
        &mut self,
        tokens: &[u32],
        mut each: impl FnMut(usize, &[f32]),
    ) -> Result<(), EdgeError> {
        self.check(tokens)?;
        let mut values = vec![0.0; self.model.config().hidden_size];
        for chunk in tokens.chunks(TILE) {
            let position = self.position();
            self.run(chunk, 0..0, &mut Trace::default());
            for t in 0..chunk.len() {
                self.worker.hidden_state(t, &mut values);
                each(position + t, &values);
            }
        }
        Ok(())
    }

    /// [`Session::score`], and shows the input of every linear layer as it was quantised. In the
    /// float path there is none to show. Inputs come tile by tile: all of a tile's layers in order,
    /// then its head's, with the logits after each part of that.
    ///
    /// # Errors
    /// As [`Session::prefill`]; nothing has then been called.
    pub fn score_traced(
        &mut self,
        tokens: &[u32],
        each: impl FnMut(usize, &[f32]),
        mut input: impl FnMut(QuantizedInput<'_>),
    ) -> Result<(), EdgeError> {
        self.score_with(tokens, each, &mut Trace { observer: Some(&mut input) })
    }

    fn score_with(
        &mut self,
        tokens: &[u32],
        mut each: impl FnMut(usize, &[f32]),
        trace: &mut Trace<'_>,
    ) -> Result<(), EdgeError> {
        self.check(tokens)?;
        for chunk in tokens.chunks(TILE) {
            let position = self.position();
            self.run(chunk, 0..0, trace);
            for from in (0..chunk.len()).step_by(HEAD_TILE) {
                let to = (from + HEAD_TILE).min(chunk.len());
                self.run(&[], from..to, trace);
                for t in from..to {
                    each(position + t, self.logits(t - from));
                }
            }
        }
        Ok(())
    }

    /// Tokens in the session.
    pub fn position(&self) -> usize {
        self.tokens.len()
    }

    /// The tokens in the session, in order.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Threads compute only while the session is borrowed mutably.
    pub(crate) fn cache(&self) -> &Cache {
        &self.worker.shared.cache
    }

    /// Says which tokens the cache holds, at most as many as the context.
    pub(crate) fn set_tokens(&mut self, tokens: &[u32]) {
        self.tokens.clear();
        self.tokens.extend_from_slice(tokens);
    }

    /// The most tokens the session can hold.
    pub fn context(&self) -> usize {
        self.context
    }

    /// Threads that compute, the caller's included.
    pub fn threads(&self) -> usize {
        self.worker.shared.team.size()
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Forgets all tokens.
    pub fn reset(&mut self) {
        self.tokens.clear();
    }

    /// Forgets the tokens from `position` on: for a prompt that shares its beginning with the last.
    /// Beyond the end, it does nothing.
    pub fn truncate(&mut self, position: usize) {
        self.tokens.truncate(position);
    }

    fn check(&self, tokens: &[u32]) -> Result<(), EdgeError> {
        if tokens.is_empty() {
            return Err(EdgeError::NoTokens);
        }
        if tokens.len() > self.context - self.position() {
            return Err(EdgeError::ContextOverflow {
                position: self.position(),
                tokens: tokens.len(),
                context: self.context,
            });
        }
        let vocab_size = self.model.config().vocab_size;
        match tokens.iter().position(|&id| id as usize >= vocab_size) {
            Some(index) => Err(EdgeError::TokenId { index, id: tokens[index], vocab_size }),
            None => Ok(()),
        }
    }

    /// One job for all threads; returns when it is done.
    fn run(&mut self, tokens: &[u32], head: Range<usize>, trace: &mut Trace<'_>) {
        let shared = &self.worker.shared;
        {
            let mut job = write(&shared.job);
            job.tokens.clear();
            job.tokens.extend_from_slice(tokens);
            job.position = self.tokens.len();
            job.head = head;
        }
        let shared = Arc::clone(shared);
        shared.team.start_job();
        shared.team.guarded(|| self.worker.run(trace));
        self.tokens.extend_from_slice(tokens);
    }

    /// The logits of the `t`-th token of the last head, `[vocab]`.
    #[allow(unsafe_code)]
    fn logits(&self, t: usize) -> &[f32] {
        let vocab = self.model.config().vocab_size;
        // SAFETY: threads write only while a job runs, which needs the session mutably.
        unsafe { self.worker.shared.board.logits.read(t * vocab..(t + 1) * vocab) }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        write(&self.worker.shared.job).stop = true;
        self.worker.shared.team.start_job();
        for thread in self.threads.drain(..) {
            // A thread that panicked has already ended the job it was in.
            let _ = thread.join();
        }
    }
}

/// The life of a thread that is not the caller's.
fn follow(mut worker: Worker) {
    let shared = Arc::clone(&worker.shared);
    let mut seen = 0;
    loop {
        seen = shared.team.wait_for_job(seen);
        if read(&shared.job).stop {
            return;
        }
        shared.team.guarded(|| worker.run(&mut Trace::default()));
    }
}
