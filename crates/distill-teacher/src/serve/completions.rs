//! `POST /v1/completions`: a text, or the log-probabilities of one.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::Served;
use super::error::ApiError;
use super::rows::Row;
use super::text::{Piece, Sampling, Text, Whole};

/// The most prompts of a request, and the most log-probabilities of a position.
const PROMPTS: usize = 64;
const LOG_PROBS: usize = 1024;

/// What is sent. Keys that are not known are passed over: clients send many.
#[derive(Debug, Deserialize)]
pub(super) struct Asked {
    model: Option<String>,
    prompt: Prompts,
    max_tokens: Option<usize>,
    #[serde(default)]
    stream: bool,
    #[serde(default)]
    echo: bool,
    logprobs: Option<usize>,
    prompt_logprobs: Option<usize>,
    #[serde(default)]
    return_token_ids: bool,
    n: Option<usize>,
    #[serde(flatten)]
    sampling: Sampling,
}

/// Text or ids, one or several.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Prompts {
    Text(String),
    Ids(Vec<u32>),
    Texts(Vec<String>),
    IdLists(Vec<Vec<u32>>),
}

pub(super) async fn completions(
    State(served): State<Arc<Served>>,
    Json(asked): Json<Asked>,
) -> Result<Response, ApiError> {
    served.check_model(asked.model.as_deref())?;
    if asked.n.is_some_and(|n| n != 1) {
        return Err(ApiError::bad("`n` must be 1; send the prompt several times".to_owned()));
    }
    let most = asked.logprobs.max(asked.prompt_logprobs).unwrap_or(0);
    if most > LOG_PROBS {
        return Err(ApiError::bad(format!("{most} log-probabilities; at most {LOG_PROBS}")));
    }
    let encode = |text: &str| served.model.tokenizer().encode(text, true);
    let prompts: Vec<Vec<u32>> = match &asked.prompt {
        Prompts::Text(text) => vec![encode(text)],
        Prompts::Ids(ids) => vec![ids.clone()],
        Prompts::Texts(texts) => texts.iter().map(|text| encode(text)).collect(),
        Prompts::IdLists(lists) => lists.clone(),
    };
    if prompts.is_empty() || prompts.len() > PROMPTS {
        let count = prompts.len();
        return Err(ApiError::bad(format!("{count} prompts; there must be 1 to {PROMPTS}")));
    }
    let max_new = asked.max_tokens.unwrap_or(16);
    for prompt in &prompts {
        served.check_tokens(prompt, max_new)?;
    }
    let text = |prompt: Vec<u32>| Text {
        prompt,
        prompt_top: match asked.echo {
            true => asked.logprobs.max(asked.prompt_logprobs),
            false => asked.prompt_logprobs,
        },
        max_new,
        top: asked.logprobs,
        sampling: asked.sampling.clone(),
    };
    if asked.stream {
        let [prompt] = <[Vec<u32>; 1]>::try_from(prompts)
            .map_err(|_| ApiError::bad("a stream is of one prompt".to_owned()))?;
        let head = head(&served);
        let chunk = move |piece: Piece| {
            let (text, finish) = match piece {
                Piece::Prompt(_) => return Vec::new(),
                Piece::Token { text, .. } if text.is_empty() => return Vec::new(),
                Piece::Token { text, .. } => (text, None),
                Piece::End { text, reason } => (text, Some(reason)),
            };
            let choice =
                json!({"index": 0, "text": text, "logprobs": null, "finish_reason": finish});
            vec![with(&head, json!({ "choices": [choice] }))]
        };
        return served.stream(text(prompt), chunk);
    }
    let (mut choices, mut read, mut written) = (Vec::new(), 0, 0);
    for (index, prompt) in prompts.into_iter().enumerate() {
        let whole = served.whole(text(prompt.clone())).await?;
        read += prompt.len();
        written += whole.tokens.len();
        choices.push(choice(&served, &asked, index, &prompt, &whole));
    }
    let usage = json!({
        "prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written,
    });
    let reply = with(&head(&served), json!({ "choices": choices, "usage": usage }));
    Ok(Json(reply).into_response())
}

fn head(served: &Served) -> Value {
    json!({
        "id": "cmpl-distill",
        "object": "text_completion",
        "created": served.created,
        "model": served.options.model,
    })
}

/// The keys of both.
pub(super) fn with(head: &Value, more: Value) -> Value {
    let mut all = head.clone();
    if let (Value::Object(all), Value::Object(more)) = (&mut all, more) {
        all.extend(more);
    }
    all
}

fn choice(served: &Served, asked: &Asked, index: usize, prompt: &[u32], whole: &Whole) -> Value {
    let tokenizer = served.model.tokenizer();
    let mut choice = json!({
        "index": index,
        "text": match asked.echo {
            true => tokenizer.decode(prompt) + &whole.text,
            false => whole.text.clone(),
        },
        "finish_reason": whole.reason,
        "logprobs": null,
    });
    if asked.logprobs.is_some() {
        let first = asked.echo.then(|| prompt.first().copied()).flatten();
        let rows = whole.prompt_rows.iter().filter(|_| asked.echo).chain(&whole.rows);
        choice["logprobs"] = legacy_log_probs(served, first, rows, asked.logprobs);
    }
    if asked.prompt_logprobs.is_some() {
        let mut rows = vec![Value::Null];
        rows.extend(whole.prompt_rows.iter().map(|row| by_id(served, row)));
        choice["prompt_logprobs"] = Value::Array(rows);
    }
    if asked.return_token_ids {
        choice["prompt_token_ids"] = json!(prompt);
        choice["token_ids"] = json!(whole.tokens);
    }
    choice
}

/// What a token is called where it has to be text.
pub(super) fn spelt(served: &Served, id: u32) -> String {
    String::from_utf8_lossy(served.model.tokenizer().piece(id)).into_owned()
}

/// As vLLM writes a position.
fn by_id(served: &Served, row: &Row) -> Value {
    let entry = |(id, log_p, rank): (u32, f32, usize)| {
        let entry = json!({"logprob": log_p, "rank": rank, "decoded_token": spelt(served, id)});
        (id.to_string(), entry)
    };
    Value::Object(row.entries().map(entry).collect())
}

/// As OpenAI wrote all of them.
fn legacy_log_probs<'a>(
    served: &Served,
    first: Option<u32>,
    rows: impl Iterator<Item = &'a Row>,
    k: Option<usize>,
) -> Value {
    let (mut tokens, mut of_tokens, mut top, mut offsets) = (vec![], vec![], vec![], vec![]);
    let mut offset = 0;
    let mut add = |text: String, log_p: Value, row: Value| {
        offsets.push(json!(offset));
        offset += text.chars().count();
        tokens.push(json!(text));
        of_tokens.push(log_p);
        top.push(row);
    };
    if let Some(first) = first {
        add(spelt(served, first), Value::Null, Value::Null);
    }
    for row in rows {
        let (id, log_p, _) = row.token;
        let mut likeliest = Map::new();
        for (id, log_p, _) in row.entries().filter(|_| k.is_some_and(|k| k > 0)) {
            // Of tokens with the same text, the likeliest.
            likeliest.entry(spelt(served, id)).or_insert(json!(log_p));
        }
        add(spelt(served, id), json!(log_p), Value::Object(likeliest));
    }
    json!({
        "tokens": tokens, "token_logprobs": of_tokens, "top_logprobs": top, "text_offset": offsets,
    })
}
