//! `POST /v1/chat/completions`: the next turn of a conversation, by the model's own template.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use distill_data::{Message, render_chat};
use serde::Deserialize;
use serde_json::{Value, json};

use super::Served;
use super::completions::{spelt, with};
use super::error::ApiError;
use super::rows::Row;
use super::text::{Piece, Sampling, Text};

/// The most log-probabilities of a token; OpenAI's limit.
const TOP_LOG_PROBS: usize = 20;

/// What is sent.
#[derive(Debug, Deserialize)]
pub(super) struct Asked {
    model: Option<String>,
    messages: Vec<Turn>,
    max_tokens: Option<usize>,
    max_completion_tokens: Option<usize>,
    #[serde(default)]
    stream: bool,
    #[serde(default)]
    logprobs: bool,
    top_logprobs: Option<usize>,
    n: Option<usize>,
    #[serde(flatten)]
    sampling: Sampling,
}

/// A turn, whose content is text or parts of text.
#[derive(Debug, Deserialize)]
struct Turn {
    role: String,
    content: Content,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Debug, Deserialize)]
struct Part {
    #[serde(rename = "type")]
    kind: String,
    text: Option<String>,
}

impl Turn {
    fn message(&self) -> Result<Message, ApiError> {
        let content = match &self.content {
            Content::Text(text) => text.clone(),
            Content::Parts(parts) => {
                let text = |part: &Part| match (&part.text, part.kind.as_str()) {
                    (Some(text), "text") => Ok(text.clone()),
                    _ => Err(ApiError::bad(format!("a part is {:?}, not text", part.kind))),
                };
                parts.iter().map(text).collect::<Result<String, _>>()?
            }
        };
        Ok(Message::new(&self.role, content))
    }
}

pub(super) async fn chat(
    State(served): State<Arc<Served>>,
    Json(asked): Json<Asked>,
) -> Result<Response, ApiError> {
    served.check_model(asked.model.as_deref())?;
    if asked.n.is_some_and(|n| n != 1) {
        return Err(ApiError::bad("`n` must be 1".to_owned()));
    }
    let top = asked.top_logprobs.unwrap_or(0);
    if top > TOP_LOG_PROBS {
        return Err(ApiError::bad(format!("`top_logprobs` is {top}; at most {TOP_LOG_PROBS}")));
    }
    let tokenizer = served.model.tokenizer();
    let template = tokenizer.chat_template().ok_or_else(|| {
        ApiError::bad("this model has no chat template; use /v1/completions".to_owned())
    })?;
    let messages: Vec<Message> =
        asked.messages.iter().map(Turn::message).collect::<Result<_, _>>()?;
    let name = |id: Option<u32>| id.map(|id| tokenizer.decode(&[id])).unwrap_or_default();
    let text =
        render_chat(template, &messages, &name(tokenizer.bos()), &name(tokenizer.eos()), true)
            .map_err(|error| ApiError::bad(error.to_string()))?;
    let prompt = tokenizer.encode(&text, false);
    served.check_tokens(&prompt, 1)?;
    let read = prompt.len();
    let left = served.engine.context() - read;
    let max_new = asked.max_completion_tokens.or(asked.max_tokens).unwrap_or(left);
    served.check_tokens(&prompt, max_new)?;
    let text = Text {
        prompt,
        prompt_top: None,
        max_new,
        top: asked.logprobs.then_some(top),
        sampling: asked.sampling.clone(),
    };
    let head = |object: &str| {
        json!({
            "id": "chatcmpl-distill",
            "object": object,
            "created": served.created,
            "model": served.options.model,
        })
    };
    if asked.stream {
        let head = head("chat.completion.chunk");
        let delta = move |delta: Value, finish: Option<&str>| {
            let choice =
                json!({"index": 0, "delta": delta, "logprobs": null, "finish_reason": finish});
            with(&head, json!({ "choices": [choice] }))
        };
        let begun = AtomicBool::new(false);
        let chunk = move |piece: Piece| {
            let mut chunks = Vec::new();
            if !begun.swap(true, Ordering::Relaxed) {
                chunks.push(delta(json!({"role": "assistant", "content": ""}), None));
            }
            match piece {
                Piece::Prompt(_) => {}
                Piece::Token { text, .. } if text.is_empty() => {}
                Piece::Token { text, .. } => chunks.push(delta(json!({ "content": text }), None)),
                Piece::End { text, reason } => {
                    let last = if text.is_empty() { json!({}) } else { json!({ "content": text }) };
                    chunks.push(delta(last, Some(reason)));
                }
            }
            chunks
        };
        return served.stream(text, chunk);
    }
    let whole = served.whole(text).await?;
    let written = whole.tokens.len();
    let log_probs = match asked.logprobs {
        true => {
            let content: Vec<Value> = whole.rows.iter().map(|row| content(&served, row)).collect();
            json!({ "content": content, "refusal": null })
        }
        false => Value::Null,
    };
    let choice = json!({
        "index": 0,
        "message": {"role": "assistant", "content": whole.text},
        "logprobs": log_probs,
        "finish_reason": whole.reason,
    });
    let usage = json!({
        "prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written,
    });
    let reply = with(&head("chat.completion"), json!({ "choices": [choice], "usage": usage }));
    Ok(Json(reply).into_response())
}

/// A token with its log-probability, as OpenAI writes it.
fn content(served: &Served, row: &Row) -> Value {
    let entry = |id: u32, log_p: f32| {
        let bytes = served.model.tokenizer().piece(id);
        json!({"token": spelt(served, id), "logprob": log_p, "bytes": bytes})
    };
    let (id, log_p, _) = row.token;
    let top: Vec<Value> = row.top.iter().map(|&(id, log_p)| entry(id, log_p)).collect();
    with(&entry(id, log_p), json!({ "top_logprobs": top }))
}
