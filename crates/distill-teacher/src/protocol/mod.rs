//! How servers are asked what they expected in a text, and how their answers are read.
//!
//! | protocol | server | asks | answers in |
//! |---|---|---|---|
//! | `distill` | `distill teacher serve` | ids | ids, packed |
//! | `vllm` | vLLM `/v1/completions` | ids | ids |
//! | `sglang` | SGLang `/generate` | ids | ids |
//! | `trl` | TRL `vllm-serve` | ids | ids, packed |
//! | `llama_server` | llama.cpp `/completion`, a request for each position | ids | ids |
//! | `openai` | any `/v1/completions` with `echo` | text | text |
//! | `llama_cpp_python` | llama-cpp-python's server | text | text |
//!
//! A text of n tokens has n − 1 positions: after each token but the last, the distribution of the
//! next. Servers that score a prompt say it *before* each token, so that the first has nothing and the
//! second stands for position 0.

mod llama_server;
mod native;
mod openai;
mod sglang;
mod trl;
mod vllm;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::cache::Query;
use crate::signal::Spec;

pub use native::{NativeReply, NativeRequest, SIGNALS_PATH};
pub use openai::{Rows, Vocabulary};

/// What a server speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Name {
    /// `distill teacher serve`.
    Distill,
    /// vLLM's `/v1/completions`.
    Vllm,
    /// SGLang's `/generate`.
    Sglang,
    /// TRL's `/get_sequence_logprobs/`.
    Trl,
    /// llama.cpp's `/completion`.
    LlamaServer,
    /// Any `/v1/completions` that echoes a text with log-probabilities.
    Openai,
    /// llama-cpp-python's server.
    LlamaCppPython,
}

/// One request.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// Behind the endpoint's address.
    pub path: &'static str,
    /// JSON.
    pub body: serde_json::Value,
}

/// What a server said of a text.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scored {
    /// For each position the tokens it spoke of with ln p, the likeliest first; empty where it said
    /// nothing.
    pub positions: Vec<Vec<(u32, f32)>>,
    /// For each position ln p of the token that follows, where the server says that.
    pub followed: Vec<Option<f32>>,
}

/// Why an answer cannot be what was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Misread(pub String);

impl<T: Into<String>> From<T> for Misread {
    fn from(problem: T) -> Self {
        Self(problem.into())
    }
}

/// A way to ask.
pub trait Protocol: Send + Sync {
    /// The requests that a text takes, to be sent one after the other.
    fn requests(&self, query: &Query, spec: &Spec, seed: u64) -> Vec<Request>;

    /// What their answers say. Nothing in them is believed: that ids are those that were sent, that
    /// there is one entry for each position, is looked at here; values are by [`check`].
    ///
    /// # Errors
    /// [`Misread`].
    fn read(&self, query: &Query, spec: &Spec, replies: &[Vec<u8>]) -> Result<Scored, Misread>;

    /// Whether a server may give each token the row of another, as [`Protocol::set_rows`] then says.
    fn may_be_shifted(&self) -> bool {
        false
    }

    /// Which rows belong to a token.
    fn set_rows(&mut self, _rows: Rows) {}

    /// Whether each position has as many entries as were asked for. Tokens that come as text may lack
    /// some.
    fn is_complete(&self) -> bool {
        true
    }
}

/// The protocol of that name, for the model that the server calls `model`.
#[must_use]
pub fn protocol(name: Name, model: &str, vocabulary: Arc<Vocabulary>) -> Box<dyn Protocol> {
    let model = model.to_owned();
    match name {
        Name::Distill => Box::new(native::Native { model }),
        Name::Vllm => Box::new(vllm::Vllm { model }),
        Name::Sglang => Box::new(sglang::Sglang),
        Name::Trl => Box::new(trl::Trl),
        Name::LlamaServer => Box::new(llama_server::LlamaServer),
        Name::Openai => Box::new(openai::OpenAi::new(model, vocabulary, false)),
        Name::LlamaCppPython => Box::new(openai::OpenAi::new(model, vocabulary, true)),
    }
}

/// What of an answer may be a rounding error.
const ROUNDING: f32 = 1e-3;

/// Holds values against what every distribution has: ids that exist, each once, probabilities of no more
/// than 1 each and together, the likeliest first, and as many as were asked for.
///
/// # Errors
/// [`Misread`], naming the position.
pub fn check(
    scored: &Scored,
    query: &Query,
    spec: &Spec,
    vocabulary: usize,
    complete: bool,
) -> Result<(), Misread> {
    let (found, asked) = (scored.positions.len(), query.positions());
    if found != asked {
        return Err(format!("it speaks of {found} positions of a text that has {asked}").into());
    }
    for (position, entries) in scored.positions.iter().enumerate() {
        let refuse = |problem: String| Err(format!("after token {position}: {problem}").into());
        let mut ids: Vec<u32> = entries.iter().map(|entry| entry.0).collect();
        ids.sort_unstable();
        if let Some(twice) = ids.windows(2).find(|pair| pair[0] == pair[1]) {
            return refuse(format!("token {} comes twice", twice[0]));
        }
        if let Some(&id) = ids.last().filter(|&&id| id as usize >= vocabulary) {
            return refuse(format!("there is no token {id} among the student's {vocabulary}"));
        }
        if let crate::Choice::TopK { k } = spec.choice {
            let mut sum = 0.0;
            let mut before = f32::INFINITY;
            for &(id, log_p) in entries {
                if !log_p.is_finite() || log_p > ROUNDING {
                    return refuse(format!("the log-probability of token {id} is {log_p}"));
                }
                if log_p > before + ROUNDING {
                    return refuse(format!("token {id} is likelier than one ranked before it"));
                }
                before = log_p;
                sum += log_p.exp();
            }
            if sum > 1.0 + ROUNDING {
                return refuse(format!("probabilities add up to {sum:.4}"));
            }
            let (wanted, expected) = (query.wanted[position], k.min(vocabulary));
            if complete && wanted && entries.len() < expected {
                let some = entries.len();
                return refuse(format!("it has {some} tokens, and {expected} were asked for"));
            }
        } else if let Some((id, weight)) = entries.iter().find(|(_, w)| !w.is_finite() || *w <= 0.0)
        {
            return refuse(format!("the weight of token {id} is {weight}"));
        }
    }
    Ok(())
}

/// The body of an answer as JSON of a form.
fn parse<'a, T: Deserialize<'a>>(reply: &'a [u8]) -> Result<T, Misread> {
    serde_json::from_slice(reply)
        .map_err(|error| Misread(format!("it is not as expected: {error}")))
}

/// The only answer of a protocol that asks once.
fn only(replies: &[Vec<u8>]) -> Result<&[u8], Misread> {
    match replies {
        [reply] => Ok(reply),
        _ => Err("there is not one answer".into()),
    }
}

/// Sorts by rank, or else by value, and keeps the first `k`: servers add the token that follows to the
/// top-k, as one more entry where it is not among them. A rank beyond k tells which that is, even where
/// the server gives fewer than k.
fn ranked(mut entries: Vec<(Option<u64>, u32, f32)>, k: usize) -> Vec<(u32, f32)> {
    let by_rank = entries.iter().all(|entry| entry.0.is_some());
    entries.retain(|entry| entry.0.is_none_or(|rank| rank <= k as u64));
    entries.sort_by(|a, b| match by_rank {
        true => a.0.cmp(&b.0).then(b.2.total_cmp(&a.2)),
        false => b.2.total_cmp(&a.2).then(a.1.cmp(&b.1)),
    });
    entries.truncate(k);
    entries.into_iter().map(|(_, id, log_p)| (id, log_p)).collect()
}

/// k, of a protocol that knows nothing else.
fn top_k(spec: &Spec) -> usize {
    match spec.choice {
        crate::Choice::TopK { k } => k,
        crate::Choice::Sampled { draws, .. } => draws as usize,
    }
}

#[cfg(test)]
mod tests;
