//! `distill teacher serve`: ids out, a packed signal back.

use serde::{Deserialize, Serialize};

use super::{Misread, Protocol, Request, Scored, only};
use crate::cache::{Query, decode_signal};
use crate::signal::Spec;

/// Where signals are asked for.
pub const SIGNALS_PATH: &str = "/v1/signals";

/// What is asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NativeRequest {
    /// The model, as the server calls it.
    pub model: String,
    /// The text, of which the last token is only looked up.
    pub tokens: Vec<u32>,
    /// Whether the distribution after each but the last is wanted.
    pub wanted: Vec<bool>,
    /// Which tokens to speak of.
    pub signal: Spec,
    /// Decides what is drawn.
    pub seed: u64,
}

/// What comes back: the bytes of a signal as a cache holds it.
pub type NativeReply = Vec<u8>;

pub(super) struct Native {
    pub(super) model: String,
}

impl Protocol for Native {
    fn requests(&self, query: &Query, spec: &Spec, seed: u64) -> Vec<Request> {
        let request = NativeRequest {
            model: self.model.clone(),
            tokens: query.tokens.clone(),
            wanted: query.wanted.clone(),
            signal: spec.clone(),
            seed,
        };
        let body = serde_json::to_value(request).expect("plain data");
        vec![Request { path: SIGNALS_PATH, body }]
    }

    fn read(&self, query: &Query, spec: &Spec, replies: &[Vec<u8>]) -> Result<Scored, Misread> {
        let signal = decode_signal(only(replies)?, spec.choice.draws())?;
        if signal.kind() != spec.choice.kind() || signal.positions() != query.positions() {
            return Err("it is a signal of another kind or another text".into());
        }
        let mut scored = Scored::default();
        for position in 0..signal.positions() {
            let (tokens, values) = signal.at(position);
            if query.wanted[position] == tokens.is_empty() {
                return Err(format!("after token {position}: it is not what was asked for").into());
            }
            let entries: Vec<(u32, f32)> =
                tokens.iter().copied().zip(values.iter().copied()).collect();
            let follows = query.tokens[position + 1];
            scored.followed.push(entries.iter().find(|e| e.0 == follows).map(|e| e.1));
            scored.positions.push(entries);
        }
        Ok(scored)
    }
}
