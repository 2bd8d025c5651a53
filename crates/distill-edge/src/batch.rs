//! Many sequences at a time: each weight is read once for a token of all of them.
//!
//! Decoding one sequence waits for memory. A tile of tokens takes one pass over the weights whether
//! they follow each other, as in a prompt, or belong to a sequence each, as here.

use crate::EdgeError;
use crate::buffers::TILE;
use crate::cache::KvType;
use crate::engine::{Engine, Plan};
use crate::forward::Row;
use crate::model::Model;
use crate::sampler::{Choice, Sampler};
use crate::trace::Trace;

/// How to open a batch.
#[derive(Clone, Debug)]
pub struct BatchOptions {
    /// Sequences that are computed at a time.
    pub sequences: usize,
    /// The most tokens that each of them can hold; 0 is the model's own context length.
    pub context: usize,
    /// How keys and values are stored.
    pub kv: KvType,
    /// Threads, the caller's included; 0 is as the model was loaded.
    pub threads: usize,
}

impl Default for BatchOptions {
    fn default() -> Self {
        Self { sequences: 32, context: 0, kv: KvType::default(), threads: 0 }
    }
}

impl BatchOptions {
    /// With the model's own values for zeros.
    fn plan(&self, model: &Model) -> Plan {
        let or = |chosen, own| if chosen == 0 { own } else { chosen };
        Plan {
            sequences: self.sequences,
            context: or(self.context, model.config().context_length),
            kv: self.kv,
            threads: or(self.threads, model.inner.threads),
            head_tile: self.sequences.min(TILE),
            draws: true,
        }
    }
}

/// Sequences of tokens on a model, each with a cache of its own, and the threads that compute them.
///
/// Results are those of a [`Session`](crate::Session) for each sequence, bit for bit, whichever
/// others are computed with it.
#[derive(Debug)]
pub struct Batch {
    model: Model,
    engine: Engine,
    context: usize,
    /// Tokens in the cache, for each sequence.
    positions: Vec<usize>,
}

impl Batch {
    /// Allocates the caches and all buffers, [`Batch::bytes`], and starts the threads.
    ///
    /// # Errors
    /// If that does not fit into memory or the system gives no thread.
    ///
    /// # Panics
    /// If no sequence is asked for.
    pub fn new(model: &Model, options: &BatchOptions) -> Result<Self, EdgeError> {
        assert!(options.sequences > 0, "a batch of no sequences");
        let plan = options.plan(model);
        let engine = Engine::new(model, plan, Self::bytes(model, options))?;
        let positions = vec![0; plan.sequences];
        Ok(Self { model: model.clone(), engine, context: plan.context, positions })
    }

    /// Bytes that a batch allocates, all of them when it begins; `usize::MAX` if they cannot be
    /// counted. As in [`Session::bytes`](crate::Session::bytes), with a cache for each sequence,
    /// whose pages take memory as they are filled; what the samplers of its texts take is not in it.
    pub fn bytes(model: &Model, options: &BatchOptions) -> usize {
        let bytes = options.plan(model).bytes(&model.inner)
            + size_of::<usize>() as u128 * options.sequences as u128;
        usize::try_from(bytes).unwrap_or(usize::MAX)
    }

    /// Adds `tokens` to one sequence and returns the logits after the last, `[vocab]`.
    ///
    /// # Errors
    /// If `tokens` is empty, holds an id outside the vocabulary, or does not fit into the context;
    /// the batch is then unchanged.
    ///
    /// # Panics
    /// If there is no such sequence.
    pub fn prefill(&mut self, sequence: usize, tokens: &[u32]) -> Result<&[f32], EdgeError> {
        self.check(sequence, tokens)?;
        if tokens.is_empty() {
            return Err(EdgeError::NoTokens);
        }
        self.advance(sequence, tokens, true);
        Ok(self.engine.logits(0))
    }

    /// Adds `tokens`, none or more, to one sequence, of which logits are of no interest.
    ///
    /// # Errors
    /// As [`Batch::prefill`].
    ///
    /// # Panics
    /// Likewise.
    pub fn read(&mut self, sequence: usize, tokens: &[u32]) -> Result<(), EdgeError> {
        self.check(sequence, tokens)?;
        self.advance(sequence, tokens, false);
        Ok(())
    }

    /// Adds one token to each of some sequences, `(sequence, token)` in ascending order, and calls
    /// `each` with the place of each in `tokens` and the logits after it, `[vocab]`.
    ///
    /// # Errors
    /// As [`Batch::prefill`].
    ///
    /// # Panics
    /// If sequences are not in ascending order, each at most once, or there is no such sequence.
    pub fn decode(
        &mut self,
        tokens: &[(usize, u32)],
        mut each: impl FnMut(usize, &[f32]),
    ) -> Result<(), EdgeError> {
        self.check_rows(tokens)?;
        for (n, tile) in tokens.chunks(TILE).enumerate() {
            self.run(tile, false);
            for t in 0..tile.len() {
                each(n * TILE + t, self.engine.logits(t));
            }
        }
        Ok(())
    }

    /// [`Batch::decode`], and lets the threads draw the token after each of them, by the
    /// sequence's [sampler](Batch::set_sampler): see [`Batch::choice`].
    pub(crate) fn decode_and_draw(&mut self, tokens: &[(usize, u32)]) -> Result<(), EdgeError> {
        self.check_rows(tokens)?;
        for tile in tokens.chunks(TILE) {
            self.run(tile, true);
        }
        Ok(())
    }

    /// What a sequence draws with from now on.
    pub(crate) fn set_sampler(&mut self, sequence: usize, sampler: Option<Sampler>) {
        self.engine.draw(sequence).sampler = sampler;
    }

    /// The token that was drawn last in a sequence.
    pub(crate) fn choice(&self, sequence: usize) -> Choice {
        self.engine.draw(sequence).choice
    }

    /// Tokens in a sequence.
    ///
    /// # Panics
    /// If there is no such sequence.
    pub fn position(&self, sequence: usize) -> usize {
        self.positions[sequence]
    }

    /// Forgets the tokens of a sequence.
    ///
    /// # Panics
    /// If there is no such sequence.
    pub fn reset(&mut self, sequence: usize) {
        self.positions[sequence] = 0;
    }

    /// Sequences, with tokens or without.
    pub fn sequences(&self) -> usize {
        self.positions.len()
    }

    /// The most tokens that a sequence can hold.
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

    pub(crate) fn check(&self, sequence: usize, tokens: &[u32]) -> Result<(), EdgeError> {
        self.check_room(sequence, tokens.len())?;
        tokens.iter().enumerate().try_for_each(|(index, &id)| self.check_id(index, id))
    }

    fn check_rows(&self, tokens: &[(usize, u32)]) -> Result<(), EdgeError> {
        let ascending = tokens.is_sorted_by(|(a, _), (b, _)| a < b);
        assert!(ascending, "sequences in ascending order, each at most once: {tokens:?}");
        tokens.iter().enumerate().try_for_each(|(index, &(sequence, id))| {
            self.check_room(sequence, 1)?;
            self.check_id(index, id)
        })
    }

    fn check_room(&self, sequence: usize, tokens: usize) -> Result<(), EdgeError> {
        let (position, context) = (self.positions[sequence], self.context);
        match tokens > context - position {
            true => Err(EdgeError::ContextOverflow { position, tokens, context }),
            false => Ok(()),
        }
    }

    fn check_id(&self, index: usize, id: u32) -> Result<(), EdgeError> {
        let vocab_size = self.model.config().vocab_size;
        match id as usize >= vocab_size {
            true => Err(EdgeError::TokenId { index, id, vocab_size }),
            false => Ok(()),
        }
    }

    /// Runs tokens of one sequence, and the head for the last of them where it is wanted.
    fn advance(&mut self, sequence: usize, tokens: &[u32], wanted: bool) {
        let mut chunks = tokens.chunks(TILE).peekable();
        while let Some(chunk) = chunks.next() {
            let (position, last) = (self.positions[sequence], chunk.len() - 1);
            let rows = chunk.iter().zip(position..);
            let rows = rows.map(|(&token, position)| Row { token, sequence, position });
            let head = if wanted && chunks.peek().is_none() { last..last + 1 } else { 0..0 };
            self.engine.run(rows, head, false, &mut Trace::default());
            self.positions[sequence] += chunk.len();
        }
    }

    /// Runs a token of each of some sequences.
    fn run(&mut self, tokens: &[(usize, u32)], draw: bool) {
        let positions = &self.positions;
        let rows = tokens.iter().map(|&(sequence, token)| Row {
            token,
            sequence,
            position: positions[sequence],
        });
        self.engine.run(rows, 0..tokens.len(), draw, &mut Trace::default());
        for &(sequence, _) in tokens {
            self.positions[sequence] += 1;
        }
    }
}
