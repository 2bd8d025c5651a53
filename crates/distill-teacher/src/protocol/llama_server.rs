//! llama.cpp's server, `/completion`: log-probabilities of generated tokens only.
//!
//! So each position takes a request of its own, with the text up to there; the server's prompt cache
//! keeps what it has read. `post_sampling_probs` false gives what the model said before samplers.

use serde::Deserialize;
use serde_json::json;

use super::vllm::other_length;
use super::{Misread, Protocol, Request, Scored, parse, ranked, top_k};
use crate::cache::Query;
use crate::signal::Spec;

pub(super) struct LlamaServer;

#[derive(Deserialize)]
struct Reply {
    completion_probabilities: Vec<Generated>,
    /// Tokens of the prompt, whether they were read again or came from the cache.
    tokens_evaluated: Option<usize>,
}

#[derive(Deserialize)]
struct Generated {
    top_logprobs: Option<Vec<Entry>>,
}

#[derive(Deserialize)]
struct Entry {
    id: u32,
    logprob: f32,
}

/// The positions that are asked about, in order.
fn wanted(query: &Query) -> impl Iterator<Item = usize> + '_ {
    (0..query.positions()).filter(|&position| query.wanted[position])
}

impl Protocol for LlamaServer {
    fn requests(&self, query: &Query, spec: &Spec, _: u64) -> Vec<Request> {
        let request = |position: usize| Request {
            path: "/completion",
            body: json!({
                "prompt": query.tokens[..=position],
                "n_predict": 1,
                "n_probs": top_k(spec),
                "temperature": 1.0,
                "post_sampling_probs": false,
                "return_tokens": true,
                "cache_prompt": true,
            }),
        };
        wanted(query).map(request).collect()
    }

    fn read(&self, query: &Query, spec: &Spec, replies: &[Vec<u8>]) -> Result<Scored, Misread> {
        let mut scored = Scored {
            positions: vec![Vec::new(); query.positions()],
            followed: vec![None; query.positions()],
        };
        if replies.len() != wanted(query).count() {
            return Err("there is not one answer for each position".into());
        }
        for (position, reply) in wanted(query).zip(replies) {
            let reply: Reply = parse(reply)?;
            if let Some(read) = reply.tokens_evaluated.filter(|&read| read != position + 1) {
                return Err(other_length(read, position + 1));
            }
            let row = reply.completion_probabilities.into_iter().next();
            let row = row.and_then(|generated| generated.top_logprobs).ok_or(
                "it has no `completion_probabilities` with `top_logprobs`; the server may be too old",
            )?;
            let entries: Vec<_> = row.into_iter().map(|e| (None, e.id, e.logprob)).collect();
            let follows = query.tokens[position + 1];
            scored.followed[position] =
                entries.iter().find(|entry| entry.1 == follows).map(|entry| entry.2);
            scored.positions[position] = ranked(entries, top_k(spec));
        }
        Ok(scored)
    }
}
