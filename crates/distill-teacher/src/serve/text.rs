//! Generating text for a request: the loop, what ends it, and how it is streamed.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use distill_edge::{EdgeError, Sampler, SamplerOptions, Session, TokenKind, Utf8Stream};
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::mpsc;

use super::Served;
use super::engine::{Waiting, Wanted};
use super::error::ApiError;
use super::rows::{Row, read};

/// How tokens are chosen, as OpenAI's parameters say it.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Sampling {
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<i64>,
    min_p: Option<f32>,
    seed: Option<u64>,
    stop: Option<Stop>,
}

/// One text or several.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum Stop {
    One(String),
    Several(Vec<String>),
}

impl Sampling {
    fn sampler(&self) -> Result<Sampler, ApiError> {
        let within = |name: &str, value: f32, most: f32| match (0.0..=most).contains(&value) {
            true => Ok(value),
            false => Err(ApiError::bad(format!("`{name}` is {value}, and must be 0 to {most}"))),
        };
        Ok(Sampler::new(SamplerOptions {
            temperature: within("temperature", self.temperature.unwrap_or(1.0), 10.0)?,
            top_p: within("top_p", self.top_p.unwrap_or(1.0), 1.0)?,
            top_k: self.top_k.and_then(|k| usize::try_from(k).ok()).unwrap_or(0),
            min_p: within("min_p", self.min_p.unwrap_or(0.0), 1.0)?,
            seed: self.seed.unwrap_or_else(rand_seed),
        }))
    }

    fn stops(&self) -> Vec<String> {
        let stops = match self.stop.clone() {
            None => Vec::new(),
            Some(Stop::One(stop)) => vec![stop],
            Some(Stop::Several(stops)) => stops,
        };
        stops.into_iter().filter(|stop| !stop.is_empty()).collect()
    }
}

/// A seed for whoever gives none.
fn rand_seed() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::collections::hash_map::RandomState::new().build_hasher().finish()
}

/// What is generated, and what is said of it.
pub(super) struct Text {
    pub(super) prompt: Vec<u32>,
    /// The likeliest tokens to tell of each position of the prompt but the first.
    pub(super) prompt_top: Option<usize>,
    pub(super) max_new: usize,
    /// The likeliest tokens to tell of each new token.
    pub(super) top: Option<usize>,
    pub(super) sampling: Sampling,
}

/// What comes of it, bit by bit.
#[derive(Clone, Debug)]
pub(super) enum Piece {
    /// What was expected before each token of the prompt but the first.
    Prompt(Vec<Row>),
    /// A token, and the text that is certain with it.
    Token { id: u32, text: String, row: Option<Row> },
    /// Text that was held back, and why it ended: `stop` or `length`.
    End { text: String, reason: &'static str },
}

/// All of it.
#[derive(Clone, Debug, Default)]
pub(super) struct Whole {
    pub(super) prompt_rows: Vec<Row>,
    pub(super) tokens: Vec<u32>,
    pub(super) rows: Vec<Row>,
    pub(super) text: String,
    pub(super) reason: &'static str,
}

impl Whole {
    fn add(&mut self, piece: Piece) {
        match piece {
            Piece::Prompt(rows) => self.prompt_rows = rows,
            Piece::Token { id, text, row } => {
                self.tokens.push(id);
                self.rows.extend(row);
                self.text.push_str(&text);
            }
            Piece::End { text, reason } => {
                self.text.push_str(&text);
                self.reason = reason;
            }
        }
    }
}

impl Served {
    /// The whole text.
    pub(super) async fn whole(&self, text: Text) -> Result<Whole, ApiError> {
        let (sampler, stops) = (text.sampling.sampler()?, text.sampling.stops());
        let made = self.engine.run(self.options.timeout, move |session, wanted| {
            let mut whole = Whole::default();
            generate(session, &text, sampler, &stops, |piece| {
                whole.add(piece);
                wanted.is()
            })?;
            Ok(whole)
        });
        made.await
    }

    /// The text as it comes: `chunk` makes what is sent of a piece.
    pub(super) fn stream(
        self: &Arc<Self>,
        text: Text,
        chunk: impl Fn(Piece) -> Vec<Value> + Send + 'static,
    ) -> Result<Response, ApiError> {
        let (sampler, stops) = (text.sampling.sampler()?, text.sampling.stops());
        let (waiting, wanted) = Waiting::new();
        // As long as the text at most, which the context bounds: the engine never waits for a client.
        let (sender, receiver) = mpsc::unbounded_channel::<Value>();
        let still: Wanted = wanted.clone();
        self.engine.submit(wanted, move |session| {
            let send = |values: Vec<Value>| values.into_iter().all(|v| sender.send(v).is_ok());
            let made =
                generate(session, &text, sampler, &stops, |piece| send(chunk(piece)) && still.is());
            if let Err(error) = made {
                let message = serde_json::json!({"error": {"message": error.to_string()}});
                send(vec![message]);
            }
        })?;
        let deadline = tokio::time::Instant::now() + self.options.timeout;
        let state = (receiver, Some(waiting), false);
        let events = futures_util::stream::unfold(state, move |(mut receiver, waiting, ended)| {
            async move {
                if ended {
                    return None;
                }
                match tokio::time::timeout_at(deadline, receiver.recv()).await {
                    Ok(Some(value)) => {
                        let event = Event::default().data(value.to_string());
                        Some((Ok::<_, Infallible>(event), (receiver, waiting, false)))
                    }
                    // The text has ended, or its time has: then nobody waits any more.
                    Ok(None) | Err(_) => {
                        Some((Ok(Event::default().data("[DONE]")), (receiver, None, true)))
                    }
                }
            }
        });
        let alive = KeepAlive::new().interval(Duration::from_secs(15));
        Ok(Sse::new(events).keep_alive(alive).into_response())
    }
}

/// Reads the prompt and chooses token after token; `each` returns whether to go on.
fn generate(
    session: &mut Session,
    text: &Text,
    mut sampler: Sampler,
    stops: &[String],
    mut each: impl FnMut(Piece) -> bool,
) -> Result<(), EdgeError> {
    let model = session.model().clone();
    let tokenizer = model.tokenizer();
    let mut logits = match text.prompt_top {
        Some(k) => {
            let prompt = &text.prompt;
            let row = |position: usize, logits: &[f32]| {
                prompt.get(position + 1).map(|&token| Row::new(logits, token, k))
            };
            let (rows, last) = read(session, prompt, row)?;
            if !each(Piece::Prompt(rows.into_iter().flatten().collect())) {
                return Ok(());
            }
            last
        }
        None if text.max_new == 0 => Vec::new(),
        None => session.prefill(&text.prompt)?.to_vec(),
    };
    let longest_stop = stops.iter().map(String::len).max().unwrap_or(0);
    let (mut all, mut sent) = (String::new(), 0);
    let mut stream = Utf8Stream::default();
    let mut reason = "length";
    for new in 0..text.max_new {
        let id = sampler.sample(&logits);
        if tokenizer.is_eog(id) {
            reason = "stop";
            break;
        }
        if tokenizer.kind(id) != Some(TokenKind::Control) {
            stream.push(tokenizer.piece(id), &mut all);
        }
        let row = text.top.map(|k| Row::new(&logits, id, k));
        let stop = stops.iter().filter_map(|stop| all[sent..].find(stop.as_str())).min();
        if let Some(stop) = stop {
            all.truncate(sent + stop);
            reason = "stop";
            each(Piece::Token { id, text: String::new(), row });
            stream = Utf8Stream::default();
            break;
        }
        // What may turn out to begin a stop is held back.
        let certain = certain(&all, sent, stops, longest_stop);
        let piece = all[sent..certain].to_owned();
        sent = certain;
        if !each(Piece::Token { id, text: piece, row }) {
            return Ok(());
        }
        if new + 1 < text.max_new {
            logits = session.decode(id)?.to_vec();
        }
    }
    stream.finish(&mut all);
    each(Piece::End { text: all[sent..].to_owned(), reason });
    Ok(())
}

/// Where the text ends that no stop can begin in any more.
fn certain(all: &str, sent: usize, stops: &[String], longest: usize) -> usize {
    let mut at = all.len().saturating_sub(longest).max(sent);
    while !all.is_char_boundary(at) {
        at += 1;
    }
    let begins = |tail: &str| stops.iter().any(|stop| stop.starts_with(tail));
    let places = all[at..].char_indices().map(|(i, _)| at + i);
    let mut places = places.filter(|&place| begins(&all[place..]));
    places.next().unwrap_or(all.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_may_begin_a_stop_is_held_back() {
        let stops = ["</s>".to_owned(), "é!".to_owned()];
        for (all, expected) in [("abc", 3), ("abc<", 3), ("abc</s", 3), ("ab<c", 4), ("xé", 1)] {
            assert_eq!(certain(all, 0, &stops, 4), expected, "{all}");
        }
        assert_eq!(certain("abc<", 4, &stops, 4), 4, "what was sent is sent");
        assert_eq!(certain("abc", 0, &[], 0), 3);
    }
}
