//! SGLang's `/generate`: `meta_info.input_top_logprobs`, a list of `[log p, id, text]` a token.
//!
//! The first is null in `input_top_logprobs`, and has a null log-probability in
//! `input_token_logprobs`, which says of each token what it is and how likely it was.
//! `logprob_start_len` 0 keeps the server from using its prefix cache, and is what scores a whole text.

use serde::Deserialize;
use serde_json::json;

use super::vllm::{behind_the_first_null, differing_ids, other_length};
use super::{Misread, Protocol, Request, Scored, only, parse, ranked, top_k};
use crate::cache::Query;
use crate::signal::Spec;

pub(super) struct Sglang;

/// ln p, the token, and its text where it was asked for.
type Entry<P> = (P, u32, Option<String>);

#[derive(Deserialize)]
struct Reply {
    meta_info: MetaInfo,
}

#[derive(Deserialize)]
struct MetaInfo {
    prompt_tokens: Option<usize>,
    input_token_logprobs: Vec<Entry<Option<f32>>>,
    input_top_logprobs: Vec<Option<Vec<Entry<f32>>>>,
}

impl Protocol for Sglang {
    fn requests(&self, query: &Query, spec: &Spec, _: u64) -> Vec<Request> {
        let body = json!({
            "input_ids": query.tokens,
            "sampling_params": { "max_new_tokens": 0, "temperature": 1.0 },
            "return_logprob": true,
            "logprob_start_len": 0,
            "top_logprobs_num": top_k(spec),
        });
        vec![Request { path: "/generate", body }]
    }

    fn read(&self, query: &Query, spec: &Spec, replies: &[Vec<u8>]) -> Result<Scored, Misread> {
        let Reply { meta_info } = parse(only(replies)?)?;
        if let Some(read) = meta_info.prompt_tokens.filter(|&read| read != query.tokens.len()) {
            return Err(other_length(read, query.tokens.len()));
        }
        let echoed: Vec<u32> = meta_info.input_token_logprobs.iter().map(|row| row.1).collect();
        if echoed != query.tokens {
            return Err(differing_ids(&query.tokens, &echoed));
        }
        let followed = meta_info.input_token_logprobs.into_iter().map(|row| row.0).collect();
        let followed = behind_the_first_null(followed, query.tokens.len())?;
        let rows = behind_the_first_null(meta_info.input_top_logprobs, query.tokens.len())?;
        let top = |row: Vec<Entry<f32>>| {
            let entries = row.into_iter().map(|(log_p, id, _)| (None, id, log_p)).collect();
            ranked(entries, top_k(spec))
        };
        Ok(Scored {
            positions: rows.into_iter().map(top).collect(),
            followed: followed.into_iter().map(Some).collect(),
        })
    }
}
