//! A model's own chat template, rendered as Hugging Face's `apply_chat_template` renders it.
//!
//! The templates are written for Python's Jinja2, sandboxed, with `trim_blocks` and
//! `lstrip_blocks`; they use methods of Python's strings, lists and dictionaries, print Python's
//! `True` and `None`, and call three functions that Hugging Face adds: `raise_exception`,
//! `strftime_now` and the filter `tojson`. All of that is provided here.

mod clock;
mod methods;
mod python;

use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::{Environment, ErrorKind, UndefinedBehavior, Value, context};
use serde::{Deserialize, Serialize};

use crate::error::DataError;

/// Loop turns and calls a template may take before it is stopped: a hostile one must not hang.
const FUEL: u64 = 10_000_000;

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks: `system`, `user` or `assistant`.
    pub role: String,
    /// What is said.
    pub content: String,
}

impl Message {
    /// A turn.
    #[must_use]
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }
}

/// The text that `template` makes of `messages`, with today's date (UTC) where it asks for one.
///
/// `bos` and `eos` are the spelt special tokens; `add_generation_prompt` asks for the opening of
/// the assistant's next turn.
///
/// # Errors
/// [`DataError::ChatTemplate`] with the line, for a template that does not parse, does not
/// render, or raises an exception.
pub fn render_chat(
    template: &str,
    messages: &[Message],
    bos: &str,
    eos: &str,
    add_generation_prompt: bool,
) -> Result<String, DataError> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.map_or(0, |since| since.as_secs());
    render_chat_at(template, messages, bos, eos, add_generation_prompt, now)
}

/// [`render_chat`] at another time, in seconds since 1970 (UTC): the same call gives the same
/// text for ever.
///
/// # Errors
/// As [`render_chat`].
pub fn render_chat_at(
    template: &str,
    messages: &[Message],
    bos: &str,
    eos: &str,
    add_generation_prompt: bool,
    unix_seconds: u64,
) -> Result<String, DataError> {
    let environment = environment(unix_seconds);
    let context = context! {
        messages => Value::from_serialize(messages),
        bos_token => bos,
        eos_token => eos,
        add_generation_prompt => add_generation_prompt,
        tools => Value::from(()),
        documents => Value::from(()),
    };
    environment.render_named_str("chat template", template, context).map_err(|error| {
        let detail = error.detail().map(str::to_owned);
        DataError::ChatTemplate {
            line: error.line().unwrap_or(0),
            reason: detail.unwrap_or_else(|| error.kind().to_string()),
        }
    })
}

fn environment(unix_seconds: u64) -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.set_undefined_behavior(UndefinedBehavior::Lenient);
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_formatter(python::print);
    environment.set_unknown_method_callback(methods::call);
    environment.set_fuel(Some(FUEL));
    environment.add_filter("tojson", python::to_json);
    environment.add_function("raise_exception", raise_exception);
    environment
        .add_function("strftime_now", move |format: &str| clock::strftime(format, unix_seconds));
    environment
}

fn raise_exception(message: String) -> Result<Value, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
}
