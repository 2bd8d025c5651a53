//! vLLM's `/v1/completions`: `prompt_logprobs`, a list of one object a token, keyed by ids as strings.
//!
//! The first is null. The token that follows is always among the entries, so that there are K or
//! K + 1 of them; `rank` tells which is surplus. Log-probabilities of a prompt are those of the raw
//! logits; the sampling parameters are sent all the same, since a model's own defaults would otherwise
//! apply to servers that process them.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::json;

use super::{Misread, Protocol, Request, Scored, only, parse, ranked, top_k};
use crate::cache::Query;
use crate::signal::Spec;

pub(super) struct Vllm {
    pub(super) model: String,
}

#[derive(Deserialize)]
struct Reply {
    choices: Vec<Choice>,
    usage: Option<Usage>,
}

#[derive(Deserialize)]
struct Usage {
    prompt_tokens: Option<usize>,
}

#[derive(Deserialize)]
struct Choice {
    prompt_logprobs: Option<Vec<Option<BTreeMap<String, Entry>>>>,
    prompt_token_ids: Option<Vec<u32>>,
}

#[derive(Deserialize)]
struct Entry {
    logprob: f32,
    rank: Option<u64>,
}

impl Protocol for Vllm {
    fn requests(&self, query: &Query, spec: &Spec, _: u64) -> Vec<Request> {
        let body = json!({
            "model": self.model,
            "prompt": query.tokens,
            "max_tokens": 1,
            "prompt_logprobs": top_k(spec),
            "return_token_ids": true,
            "temperature": 1.0,
            "top_p": 1.0,
            "top_k": -1,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
        });
        vec![Request { path: "/v1/completions", body }]
    }

    fn read(&self, query: &Query, spec: &Spec, replies: &[Vec<u8>]) -> Result<Scored, Misread> {
        let reply: Reply = parse(only(replies)?)?;
        let read = reply.usage.and_then(|usage| usage.prompt_tokens);
        if let Some(read) = read.filter(|&read| read != query.tokens.len()) {
            return Err(other_length(read, query.tokens.len()));
        }
        let [choice] = <[Choice; 1]>::try_from(reply.choices)
            .map_err(|choices| format!("it has {} choices, not one", choices.len()))?;
        if let Some(echoed) = choice.prompt_token_ids.filter(|echoed| *echoed != query.tokens) {
            return Err(differing_ids(&query.tokens, &echoed));
        }
        let rows = choice
            .prompt_logprobs
            .ok_or("it has no `prompt_logprobs`; the server may be too old, or is not vLLM")?;
        let rows = behind_the_first_null(rows, query.tokens.len())?;
        let mut scored = Scored::default();
        for (position, row) in rows.into_iter().enumerate() {
            let follows = query.tokens[position + 1];
            let mut entries = Vec::with_capacity(row.len());
            for (id, entry) in row {
                let id: u32 =
                    id.parse().map_err(|_| format!("a token is called {id:?}, not by a number"))?;
                entries.push((entry.rank, id, entry.logprob));
            }
            let followed = entries.iter().find(|entry| entry.1 == follows).map(|entry| entry.2);
            if followed.is_none() {
                return Err(format!(
                    "token {}, which is {follows}, is not among its own log-probabilities: they \
                     belong to another position or another text",
                    position + 1
                )
                .into());
            }
            scored.followed.push(followed);
            scored.positions.push(ranked(entries, top_k(spec)));
        }
        Ok(scored)
    }
}

/// What stands behind the null that servers give for the first token: exactly one, and nothing else null.
pub(super) fn behind_the_first_null<T>(
    rows: Vec<Option<T>>,
    tokens: usize,
) -> Result<Vec<T>, Misread> {
    if rows.len() != tokens {
        return Err(format!("it speaks of {} tokens of a text of {tokens}", rows.len()).into());
    }
    let mut rows = rows.into_iter();
    if rows.next().flatten().is_some() {
        return Err("the first token has log-probabilities, though nothing stands before it: a \
                    beginning-of-sequence token was added, or rows are shifted"
            .into());
    }
    let number = |index: usize| format!("token {} has no log-probabilities", index + 1);
    rows.enumerate().map(|(index, row)| row.ok_or_else(|| number(index).into())).collect()
}

/// A server has read more or fewer tokens than it was sent.
pub(super) fn other_length(read: usize, sent: usize) -> Misread {
    format!(
        "it has read {read} tokens, {sent} were sent: a beginning-of-sequence token was added, or the \
         text cut"
    )
    .into()
}

/// Says where the ids that a server has read are not those that were sent.
pub(super) fn differing_ids(sent: &[u32], echoed: &[u32]) -> Misread {
    match sent.iter().zip(echoed).position(|(a, b)| a != b) {
        Some(at) => {
            format!("it has read token {} where {} was sent, at {at}", echoed[at], sent[at])
        }
        None => format!("it has read {} tokens, {} were sent", echoed.len(), sent.len()),
    }
    .into()
}
