//! Generating text token by token.

use std::time::{Duration, Instant};

use crate::{EdgeError, Sampler, Session, TokenKind, Utf8Stream};

/// Why generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// The model ended its turn.
    EndOfGeneration,
    /// The number of new tokens asked for.
    MaxTokens,
    /// The session's context is full.
    ContextFull,
    /// The callback said so.
    Cancelled,
}

/// What was generated, and how long it took.
#[derive(Clone, Debug, PartialEq)]
pub struct Generation {
    /// The new tokens, without the one that ended the turn.
    pub tokens: Vec<u32>,
    /// The token that was chosen last and is not in the session yet: the last of `tokens`, or the
    /// one that ended the turn. A conversation goes on with it in front of the next prompt.
    pub pending: Option<u32>,
    /// Their text, control tokens left out.
    pub text: String,
    /// Why it ended.
    pub stop: StopReason,
    /// Time until the first token was chosen.
    pub prefill: Duration,
    /// Time from then on.
    pub decode: Duration,
}

/// Adds `prompt` to the session and generates up to `max_new` tokens.
///
/// `on_token` gets each token and the text that has become certain with it (possibly none: a
/// character may need several tokens); it returns whether to go on. Text still incomplete at the
/// end comes in a last call with the last token.
///
/// # Errors
/// If the prompt is empty, holds an unknown id, or does not fit into the session's context.
pub fn generate(
    session: &mut Session,
    prompt: &[u32],
    max_new: usize,
    sampler: &mut Sampler,
    mut on_token: impl FnMut(u32, &str) -> bool,
) -> Result<Generation, EdgeError> {
    let model = session.model().clone();
    let tokenizer = model.tokenizer();
    let start = Instant::now();
    let mut next = sampler.sample(session.prefill(prompt)?);
    let prefill = start.elapsed();
    let mut tokens = Vec::new();
    let (mut text, mut stream) = (String::new(), Utf8Stream::default());
    let stop = loop {
        if tokens.len() >= max_new {
            break StopReason::MaxTokens;
        }
        if tokenizer.is_eog(next) {
            break StopReason::EndOfGeneration;
        }
        tokens.push(next);
        let certain = text.len();
        if tokenizer.kind(next) != Some(TokenKind::Control) {
            stream.push(tokenizer.piece(next), &mut text);
        }
        if !on_token(next, &text[certain..]) {
            break StopReason::Cancelled;
        }
        if tokens.len() == max_new {
            break StopReason::MaxTokens;
        }
        if session.position() == session.context() {
            break StopReason::ContextFull;
        }
        next = sampler.sample(session.decode(next)?);
    };
    let pending = match stop {
        StopReason::EndOfGeneration => Some(next),
        _ => tokens.last().copied(),
    };
    let certain = text.len();
    stream.finish(&mut text);
    if let (Some(&last), true) = (tokens.last(), text.len() > certain) {
        on_token(last, &text[certain..]);
    }
    let decode = start.elapsed() - prefill;
    Ok(Generation { tokens, pending, text, stop, prefill, decode })
}
