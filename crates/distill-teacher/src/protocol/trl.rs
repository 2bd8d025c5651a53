//! TRL's `vllm-serve`, `/get_sequence_logprobs/`: arrays of numbers in base64.
//!
//! `prompt_lengths` says where scoring begins; with 1, the first row is that before the second token,
//! and there is no null. `shape` is [texts, longest, K], and rows beyond a text's own length are
//! padding: ln p −∞, id 0. So is an entry that the server could not fill. Nothing says what was
//! read but the id of each token, in `actual_token_ids_b64`.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::json;

use super::vllm::differing_ids;
use super::{Misread, Protocol, Request, Scored, only, parse, top_k};
use crate::cache::Query;
use crate::signal::Spec;

pub(super) struct Trl;

#[derive(Deserialize)]
struct Reply {
    logprobs_b64: String,
    token_ids_b64: String,
    actual_logprobs_b64: String,
    actual_token_ids_b64: String,
    shape: [usize; 3],
    completion_lengths: Vec<usize>,
}

impl Protocol for Trl {
    fn requests(&self, query: &Query, spec: &Spec, _: u64) -> Vec<Request> {
        let body = json!({
            "sequences": [query.tokens],
            "prompt_lengths": [1],
            "top_logprobs": top_k(spec),
            "temperature": 1.0,
            "response_format": "binary",
        });
        vec![Request { path: "/get_sequence_logprobs/", body }]
    }

    fn read(&self, query: &Query, spec: &Spec, replies: &[Vec<u8>]) -> Result<Scored, Misread> {
        let reply: Reply = parse(only(replies)?)?;
        let [texts, longest, k] = reply.shape;
        let positions = query.positions();
        if k == 0 {
            return Err("its arrays have no tokens".into());
        }
        if texts != 1 || reply.completion_lengths != [positions] || longest < positions {
            return Err(format!(
                "its shape is {:?} with lengths {:?}, and one text of {positions} was asked about",
                reply.shape, reply.completion_lengths
            )
            .into());
        }
        let size = longest.checked_mul(k).ok_or("its shape is too large")?;
        let number = |bytes: [u8; 4]| f32::from_le_bytes(bytes);
        let log_p = numbers(&reply.logprobs_b64, size, number)?;
        let ids = numbers(&reply.token_ids_b64, size, u32::from_le_bytes)?;
        let followed = numbers(&reply.actual_logprobs_b64, longest, number)?;
        let echoed = numbers(&reply.actual_token_ids_b64, longest, u32::from_le_bytes)?;
        if echoed[..positions] != query.tokens[1..] {
            return Err(differing_ids(&query.tokens[1..], &echoed[..positions]));
        }
        let rows = ids.chunks_exact(k).zip(log_p.chunks_exact(k)).take(positions);
        let top = |(ids, log_p): (&[u32], &[f32])| {
            let entries = ids.iter().copied().zip(log_p.iter().copied());
            entries.filter(|entry| entry.1 != f32::NEG_INFINITY).take(top_k(spec)).collect()
        };
        Ok(Scored {
            positions: rows.map(top).collect(),
            followed: followed[..positions].iter().map(|&log_p| Some(log_p)).collect(),
        })
    }
}

/// `count` numbers of four bytes.
fn numbers<T>(text: &str, count: usize, number: impl Fn([u8; 4]) -> T) -> Result<Vec<T>, Misread> {
    let bytes = STANDARD.decode(text).map_err(|error| format!("an array is no base64: {error}"))?;
    if Some(bytes.len()) != count.checked_mul(4) {
        return Err(format!("an array has {} bytes, not {count} numbers", bytes.len()).into());
    }
    Ok(bytes.as_chunks().0.iter().map(|bytes| number(*bytes)).collect())
}
