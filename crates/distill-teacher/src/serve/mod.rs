//! A teacher for others: a model in the edge runtime behind HTTP.
//!
//! | route | speaks |
//! |---|---|
//! | `POST /v1/completions` | as OpenAI and vLLM do: text or ids, `stream`, `echo`, `logprobs`, `prompt_logprobs` |
//! | `POST /v1/chat/completions` | as OpenAI does, by the model's own template; `stream`, `logprobs` |
//! | `POST /v1/signals` | [`crate::protocol::NativeRequest`] in, a packed signal out |
//! | `GET /v1/models`, `GET /health` | what is served; that it is |
//!
//! One thread computes, with all of the runtime's threads, one request after the other; the others wait
//! in a queue of bounded length, and whoever finds it full is told to come back (503, `Retry-After`). A
//! client that goes away or waits too long frees its place. Requests are bounded in bytes, texts by the
//! model's context.

mod chat;
mod completions;
mod engine;
mod error;
mod rows;
mod signals;
mod text;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::header::AUTHORIZATION;
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::{get, post};
use distill_edge::{EdgeError, Model};
use serde_json::{Value, json};

use crate::client::Secret;
use crate::error::TeacherError;
use crate::protocol::SIGNALS_PATH;
use engine::Engine;
use error::ApiError;

/// How to serve.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// Where to listen.
    pub address: SocketAddr,
    /// What the model is called.
    pub model: String,
    /// What requests must bear; only a loopback address may do without.
    pub key: Option<Secret>,
    /// Tokens of a text, with what is generated; 0 is the model's own context.
    pub context: usize,
    /// Requests that may wait.
    pub queue: usize,
    /// The longest that a request may take, waiting included.
    pub timeout: Duration,
    /// The largest request.
    pub body_bytes: usize,
}

/// What the routes share.
struct Served {
    engine: Engine,
    model: Model,
    options: ServeOptions,
    created: u64,
}

/// Serves until the process is asked to end. `ready` gets the address once requests are answered.
///
/// # Errors
/// [`TeacherError::Open`] of an address that others can reach without a key, [`TeacherError::Listen`];
/// [`TeacherError::Runtime`] if a session does not fit into memory.
pub fn serve(
    model: &Model,
    options: ServeOptions,
    ready: impl FnOnce(SocketAddr),
) -> Result<(), TeacherError> {
    if options.key.is_none() && !options.address.ip().is_loopback() {
        return Err(TeacherError::Open { address: options.address });
    }
    let address = options.address;
    let listen = |source| TeacherError::Listen { address, source };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(listen)?;
    let router = router(model, options).map_err(TeacherError::Runtime)?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind(address).await.map_err(listen)?;
        ready(listener.local_addr().map_err(listen)?);
        let ended = async {
            // Without a handler for it, the signal would end the process all the same.
            let _ = tokio::signal::ctrl_c().await;
        };
        axum::serve(listener, router).with_graceful_shutdown(ended).await.map_err(listen)
    })
}

fn router(model: &Model, options: ServeOptions) -> Result<Router, EdgeError> {
    let engine = Engine::start(model, options.context, options.queue)?;
    let body_bytes = options.body_bytes;
    let created = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let created = created.map_or(0, |since| since.as_secs());
    let served = Arc::new(Served { engine, model: model.clone(), options, created });
    Ok(Router::new()
        .route("/v1/completions", post(completions::completions))
        .route("/v1/chat/completions", post(chat::chat))
        .route(SIGNALS_PATH, post(signals::signals))
        .route("/v1/models", get(models))
        .route_layer(middleware::from_fn_with_state(served.clone(), authorize))
        .route("/health", get(async || Json(json!({"status": "ok"}))))
        .layer(DefaultBodyLimit::max(body_bytes))
        .with_state(served))
}

async fn models(State(served): State<Arc<Served>>) -> Json<Value> {
    let model = json!({
        "id": served.options.model,
        "object": "model",
        "created": served.created,
        "owned_by": "distill",
        "max_model_len": served.engine.context(),
    });
    Json(json!({"object": "list", "data": [model]}))
}

/// Lets through what bears the key.
async fn authorize(
    State(served): State<Arc<Served>>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    if let Some(key) = &served.options.key {
        let sent = request.headers().get(AUTHORIZATION).map_or(&[][..], |value| value.as_bytes());
        if !key.is(sent) {
            return Err(ApiError::Unauthorized);
        }
    }
    Ok(next.run(request).await)
}

impl Served {
    /// Refuses a model that is not the one served.
    fn check_model(&self, asked: Option<&str>) -> Result<(), ApiError> {
        match asked {
            Some(asked) if asked != self.options.model => {
                Err(ApiError::Model { asked: asked.to_owned(), served: self.options.model.clone() })
            }
            _ => Ok(()),
        }
    }

    /// Refuses tokens that do not exist, none, or more than fit.
    fn check_tokens(&self, tokens: &[u32], new: usize) -> Result<(), ApiError> {
        let vocabulary = self.model.config().vocab_size;
        if let Some(id) = tokens.iter().find(|&&id| id as usize >= vocabulary) {
            return Err(ApiError::bad(format!("there is no token {id}; there are {vocabulary}")));
        }
        let (length, context) = (tokens.len(), self.engine.context());
        if tokens.is_empty() {
            return Err(ApiError::bad("the prompt is empty".to_owned()));
        }
        if length.saturating_add(new) > context {
            return Err(ApiError::bad(format!(
                "{length} tokens of prompt and {new} new ones are more than the context of {context}"
            )));
        }
        Ok(())
    }
}
