//! What a request is refused with, in the form that OpenAI's clients read.

use axum::Json;
use axum::http::header::RETRY_AFTER;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::json;

/// A refusal.
#[derive(Debug)]
pub(super) enum ApiError {
    /// The key is missing or wrong.
    Unauthorized,
    /// Another model is served.
    Model { asked: String, served: String },
    /// The request cannot be met.
    Bad { message: String },
    /// The queue is full.
    Busy,
    /// It has taken too long.
    Late,
    /// The runtime has failed.
    Failed { message: String },
}

impl ApiError {
    pub(super) fn bad(message: String) -> Self {
        Self::Bad { message }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let (status, kind, message) = match self {
            Self::Unauthorized => (
                StatusCode::UNAUTHORIZED,
                "authentication_error",
                "the API key is missing or wrong; send `Authorization: Bearer …`".to_owned(),
            ),
            Self::Model { asked, served } => (
                StatusCode::NOT_FOUND,
                "invalid_request_error",
                format!("there is no model {asked:?} here; this is {served:?}"),
            ),
            Self::Bad { message } => (StatusCode::BAD_REQUEST, "invalid_request_error", message),
            Self::Busy => (
                StatusCode::SERVICE_UNAVAILABLE,
                "server_busy",
                "all places in the queue are taken".to_owned(),
            ),
            Self::Late => (
                StatusCode::GATEWAY_TIMEOUT,
                "timeout",
                "the request has taken too long".to_owned(),
            ),
            Self::Failed { message } => {
                (StatusCode::INTERNAL_SERVER_ERROR, "server_error", message)
            }
        };
        let error = json!({"message": message, "type": kind, "param": null, "code": null});
        let mut response = (status, Json(json!({ "error": error }))).into_response();
        if status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}
