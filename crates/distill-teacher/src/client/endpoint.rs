//! One server: sending to it, and how long to leave it alone.

use std::io::Read;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use distill_data::SplitMix64;
use ureq::Agent;
use ureq::http::{Response, StatusCode, Uri};

use super::{ClientOptions, Secret};
use crate::error::TeacherError;
use crate::protocol::Request;

/// The longest pause between two attempts, and the longest that a `Retry-After` is obeyed.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(600);
/// The longest answer. One about 8,192 tokens with 100 entries each has 60 MB.
const LONGEST_ANSWER: u64 = 1 << 30;
/// Bytes of an answer that an error shows.
const SHOWN: usize = 300;

/// Why there is no answer.
pub(super) enum Failure {
    /// It may pass; `after` is what the server asks for.
    Passing { reason: String, after: Option<Duration> },
    /// It will be the same again.
    Final(TeacherError),
}

/// A server.
pub(super) struct Endpoint {
    /// Without `/v1` and without a slash at the end.
    address: String,
    key: Option<Secret>,
    agent: Agent,
    pause: Duration,
    /// Until when the server has asked to be left alone.
    held_until: Mutex<Instant>,
    jitter: Mutex<SplitMix64>,
}

impl Endpoint {
    pub(super) fn new(address: &str, options: &ClientOptions) -> Result<Self, TeacherError> {
        let bare = address.trim_end_matches('/');
        let bare = bare.strip_suffix("/v1").unwrap_or(bare);
        let uri: Option<Uri> = bare.parse().ok();
        let scheme = uri.as_ref().and_then(Uri::scheme_str);
        if !matches!(scheme, Some("http" | "https")) {
            return Err(TeacherError::Address { address: address.to_owned() });
        }
        // As many connections as there are threads stay open.
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(options.timeout))
            .max_idle_connections(options.concurrency)
            .max_idle_connections_per_host(options.concurrency)
            .user_agent(concat!("distill/", env!("CARGO_PKG_VERSION")))
            .build();
        // Processes that start together must not come back together.
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let seed = now.as_nanos() as u64 ^ u64::from(std::process::id());
        Ok(Self {
            address: bare.to_owned(),
            key: options.key.clone(),
            agent: config.new_agent(),
            pause: options.pause,
            held_until: Mutex::new(Instant::now()),
            jitter: Mutex::new(SplitMix64::new(seed, 0)),
        })
    }

    pub(super) fn address(&self) -> &str {
        &self.address
    }

    /// How long the server wants to be left alone.
    pub(super) fn held_back(&self) -> Duration {
        let until = self.held_until.lock().unwrap_or_else(PoisonError::into_inner);
        until.saturating_duration_since(Instant::now())
    }

    /// Leaves the server alone for a while.
    pub(super) fn hold_back(&self, pause: Duration) {
        let mut until = self.held_until.lock().unwrap_or_else(PoisonError::into_inner);
        *until = (*until).max(Instant::now() + pause.min(LONGEST_RETRY_AFTER));
    }

    /// The pause after so many failures: doubled with each, of which at least half.
    pub(super) fn pause_after(&self, failures: u32) -> Duration {
        let pause = self.pause * 2_u32.saturating_pow(failures.saturating_sub(1).min(16));
        let unit = self.jitter.lock().unwrap_or_else(PoisonError::into_inner).unit();
        pause.min(LONGEST_PAUSE).mul_f64(0.5 + unit / 2.0)
    }

    /// The body of the answer.
    pub(super) fn send(&self, request: &Request) -> Result<Vec<u8>, Failure> {
        let body = serde_json::to_vec(&request.body).expect("a tree is JSON");
        let mut post = self
            .agent
            .post(format!("{}{}", self.address, request.path))
            .header("Content-Type", "application/json");
        if let Some(key) = &self.key {
            post = post.header("Authorization", key.header());
        }
        let response = post.send(&body).map_err(|error| self.failed(&error))?;
        let status = response.status();
        let after = retry_after(&response);
        let mut bytes = Vec::new();
        let mut body = response.into_body().into_with_config().limit(LONGEST_ANSWER).reader();
        if let Err(error) = body.read_to_end(&mut bytes) {
            let reason = format!("the answer broke off after {} bytes: {error}", bytes.len());
            return Err(Failure::Passing { reason, after: None });
        }
        if status.is_success() {
            return match looks_like_json_or_packed(&bytes) {
                true => Ok(bytes),
                false => Err(Failure::Passing {
                    reason: format!("the answer is no JSON: {}", self.shown(&bytes)),
                    after: None,
                }),
            };
        }
        let message = self.shown(&bytes);
        if is_passing(status) {
            let reason = format!("{status}: {message}");
            return Err(Failure::Passing { reason, after });
        }
        Err(Failure::Final(TeacherError::Refused {
            endpoint: self.address.clone(),
            status: status.as_u16(),
            message,
            hint: hint(status),
        }))
    }

    fn failed(&self, error: &ureq::Error) -> Failure {
        let reason = match &self.key {
            Some(key) => key.hide(&error.to_string()),
            None => error.to_string(),
        };
        Failure::Passing { reason, after: None }
    }

    /// What of an answer stands in an error: its beginning, on one line, without the key.
    fn shown(&self, bytes: &[u8]) -> String {
        let text = String::from_utf8_lossy(&bytes[..bytes.len().min(SHOWN)]);
        let text = match &self.key {
            Some(key) => key.hide(&text),
            None => text.into_owned(),
        };
        let words: Vec<&str> = text.split_whitespace().collect();
        if words.is_empty() { "nothing".to_owned() } else { words.join(" ") }
    }
}

fn is_passing(status: StatusCode) -> bool {
    status.is_server_error() || matches!(status.as_u16(), 408 | 425 | 429)
}

fn hint(status: StatusCode) -> &'static str {
    match status.as_u16() {
        401 | 403 => "set `teacher.remote.api_key_env` to the variable that holds its key",
        404 | 405 => {
            "it does not know this route or this model; compare `teacher.remote.protocol` and `model` \
             with what it serves"
        }
        413 => "the text is too long for it; lower `data.sequence_length`",
        _ => {
            "if it allows fewer log-probabilities, lower `teacher.signal.k` or raise its limit (vLLM: \
             `--max-logprobs`); if the text is too long, lower `data.sequence_length`"
        }
    }
}

/// What `Retry-After` says: seconds or a date.
fn retry_after<T>(response: &Response<T>) -> Option<Duration> {
    let value = response.headers().get("retry-after")?.to_str().ok()?.trim();
    match value.parse::<f64>() {
        Ok(seconds) if seconds >= 0.0 => {
            Some(Duration::from_secs_f64(seconds.min(LONGEST_RETRY_AFTER.as_secs_f64())))
        }
        Ok(_) => None,
        Err(_) => {
            let date = httpdate::parse_http_date(value).ok()?;
            Some(date.duration_since(SystemTime::now()).unwrap_or_default())
        }
    }
}

/// Whether a successful answer can be what was asked for: JSON, whole, or a packed signal. A proxy's
/// page is neither, and passes.
fn looks_like_json_or_packed(bytes: &[u8]) -> bool {
    match bytes.first() {
        Some(0 | 1) => true,
        _ => serde_json::from_slice::<serde::de::IgnoredAny>(bytes).is_ok(),
    }
}
