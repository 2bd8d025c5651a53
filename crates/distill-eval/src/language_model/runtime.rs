//! What ships, through the edge runtime.

use std::ops::Range;

use distill_edge::{KvType, Model, Session, SessionOptions};

use super::{LanguageModel, TILE};
use crate::EvalError;
use crate::runtime::configuration;

/// Tokens that the first session holds; it is replaced where a text is longer.
const FIRST_CONTEXT: usize = 256;

/// A model of the edge runtime in a session. The session keeps the tokens that it has read, and
/// the next call goes on from where its own tokens part from them: the choices of a question share
/// its context.
pub struct RuntimeModel {
    session: Session,
    options: SessionOptions,
    /// `[TILE, vocab]`
    tile: Vec<f32>,
}

impl RuntimeModel {
    /// Opens a session.
    ///
    /// # Errors
    /// [`EvalError::Edge`] if it does not fit into memory.
    pub fn new(model: &Model, kv: KvType, threads: usize) -> Result<Self, EvalError> {
        let context = FIRST_CONTEXT.min(model.config().context_length);
        let options = SessionOptions { context, kv, threads };
        let session = Session::new(model, options.clone())?;
        Ok(Self { session, options, tile: Vec::with_capacity(TILE * model.config().vocab_size) })
    }

    /// Makes room for so many tokens, if the model was made for as many.
    fn reserve(&mut self, tokens: usize) -> Result<(), EvalError> {
        let limit = self.context();
        if tokens > self.options.context && tokens <= limit {
            self.options.context = tokens.next_power_of_two().min(limit);
            self.session = Session::new(self.session.model(), self.options.clone())?;
        }
        Ok(())
    }
}

impl LanguageModel for RuntimeModel {
    fn through(&self) -> String {
        format!("runtime, {}", configuration(self.session.model(), self.options.kv))
    }

    fn vocab_size(&self) -> usize {
        self.session.model().config().vocab_size
    }

    fn context(&self) -> usize {
        self.session.model().config().context_length
    }

    fn begin(&self) -> Option<u32> {
        let tokenizer = self.session.model().tokenizer();
        let around = tokenizer.encode("", true);
        around.first().copied().filter(|&first| tokenizer.bos() == Some(first))
    }

    fn prefix(&self) -> Option<u32> {
        let tokenizer = self.session.model().tokenizer();
        tokenizer.bos().or(tokenizer.eos())
    }

    fn encode(&self, text: &str) -> Result<Vec<u32>, EvalError> {
        Ok(self.session.model().tokenizer().encode(text, false))
    }

    fn encode_plain(&self, text: &str) -> Result<Vec<u32>, EvalError> {
        Ok(self.session.model().tokenizer().encode_plain(text))
    }

    fn logits(
        &mut self,
        tokens: &[u32],
        positions: Range<usize>,
        each: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<(), EvalError> {
        if positions.is_empty() {
            return Ok(());
        }
        self.reserve(positions.end)?;
        let read = self.session.tokens().iter().zip(tokens).take_while(|(a, b)| a == b).count();
        let read = read.min(positions.start);
        self.session.truncate(read);
        if read < positions.start {
            self.session.prefill(&tokens[read..positions.start])?;
        }
        let full = TILE * self.session.model().config().vocab_size;
        let (tile, mut first) = (&mut self.tile, positions.start);
        tile.clear();
        self.session.score(&tokens[positions], |position, logits| {
            tile.extend_from_slice(logits);
            if tile.len() == full {
                each(first, tile);
                tile.clear();
                first = position + 1;
            }
        })?;
        if !tile.is_empty() {
            each(first, tile);
        }
        Ok(())
    }
}
