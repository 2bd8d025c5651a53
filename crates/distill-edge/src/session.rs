//! A session: one sequence of tokens, its cache and its threads.

use std::ops::Range;

use crate::EdgeError;
use crate::buffers::{HEAD_TILE, TILE};
use crate::cache::{Cache, KvType};
use crate::engine::{Engine, Plan};
use crate::forward::Row;
use crate::model::Model;
use crate::trace::{QuantizedInput, Trace};

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
    fn plan(&self, model: &Model) -> Plan {
        let or = |chosen, own| if chosen == 0 { own } else { chosen };
        Plan {
            sequences: 1,
            context: or(self.context, model.config().context_length),
            kv: self.kv,
            threads: or(self.threads, model.inner.threads),
            head_tile: HEAD_TILE,
            draws: false,
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
    engine: Engine,
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
        let plan = options.plan(model);
        let engine = Engine::new(model, plan, Self::bytes(model, &options))?;
        let tokens = Vec::with_capacity(plan.context);
        Ok(Self { model: model.clone(), engine, context: plan.context, tokens })
    }

    /// Bytes that a session allocates, all of them when it begins; `usize::MAX` if they cannot be
    /// counted.
    ///
    /// They follow from the context, the threads, and sizes of the model each of which is a
    /// dimension of some tensor in its file. The context is the caller's choice: one of 0 takes
    /// what the file announces, and nothing in the file backs that, so whoever opens files of
    /// strangers sets it, or looks here first.
    pub fn bytes(model: &Model, options: &SessionOptions) -> usize {
        let plan = options.plan(model);
        let bytes = plan.bytes(&model.inner) + size_of::<u32>() as u128 * plan.context as u128;
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
                self.engine.hidden_state(t, &mut values);
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
        self.engine.cache(0)
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
        self.engine.threads()
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
        let position = self.tokens.len();
        let rows = tokens.iter().zip(position..);
        let rows = rows.map(|(&token, position)| Row { token, sequence: 0, position });
        self.engine.run(rows, head, false, trace);
        self.tokens.extend_from_slice(tokens);
    }

    /// The logits of the `t`-th token of the last head, `[vocab]`.
    fn logits(&self, t: usize) -> &[f32] {
        self.engine.logits(t)
    }
}
