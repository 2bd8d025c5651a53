//! A tokenizer from a Hugging Face directory.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use tokenizers::Tokenizer;

use super::{SpecialIds, TextTokenizer};
use crate::error::DataError;

impl TextTokenizer {
    /// Reads `tokenizer.json`; special tokens from `tokenizer_config.json`, then
    /// `special_tokens_map.json`, then (ids) `config.json`; the chat template from
    /// `chat_template.jinja` or `tokenizer_config.json`.
    ///
    /// # Errors
    /// [`DataError::NoTokenizer`], [`DataError::TokenizerFile`] for a file that does not parse,
    /// [`DataError::UnknownSpecialToken`] for a special token the vocabulary lacks.
    pub fn from_directory(directory: &Path) -> Result<Self, DataError> {
        let path = directory.join("tokenizer.json");
        let Some(bytes) = read(&path)? else {
            return Err(DataError::NoTokenizer { path: directory.to_path_buf() });
        };
        let inner = Tokenizer::from_bytes(bytes).map_err(|error| DataError::TokenizerFile {
            path: path.clone(),
            problem: format!("not a tokenizer that is understood: {error}"),
        })?;
        let config = Json::read(directory.join("tokenizer_config.json"))?;
        let map = Json::read(directory.join("special_tokens_map.json"))?;
        let model = Json::read(directory.join("config.json"))?;
        let find = |role: Role| -> Result<Option<u32>, DataError> {
            if let Some(id) = config.special_token(role, &inner)? {
                return Ok(Some(id));
            }
            if let Some(id) = map.special_token(role, &inner)? {
                return Ok(Some(id));
            }
            Ok(model.special_id(role, &inner))
        };
        let special = SpecialIds {
            bos: find(Role::BOS)?,
            eos: find(Role::EOS)?,
            pad: find(Role::PAD)?,
            unk: find(Role::UNK)?,
        };
        let chat_template = chat_template(directory, &config)?;
        Self::new(inner, special, chat_template, config.values)
    }
}

/// The names of one special token in the configuration files.
#[derive(Clone, Copy)]
struct Role {
    token: &'static str,
    id: &'static str,
}

impl Role {
    const BOS: Self = Self { token: "bos_token", id: "bos_token_id" };
    const EOS: Self = Self { token: "eos_token", id: "eos_token_id" };
    const PAD: Self = Self { token: "pad_token", id: "pad_token_id" };
    const UNK: Self = Self { token: "unk_token", id: "unk_token_id" };
}

/// A configuration file that may be missing.
struct Json {
    path: PathBuf,
    values: Map<String, Value>,
}

impl Json {
    fn read(path: PathBuf) -> Result<Self, DataError> {
        let values = match read(&path)? {
            None => Map::new(),
            Some(bytes) => serde_json::from_slice(&bytes).map_err(|error| {
                let problem = format!("expected a JSON object: {error}");
                DataError::TokenizerFile { path: path.clone(), problem }
            })?,
        };
        Ok(Self { path, values })
    }

    /// A token given as a string or as an object with its `content`.
    fn special_token(&self, role: Role, inner: &Tokenizer) -> Result<Option<u32>, DataError> {
        let token = match self.values.get(role.token) {
            None | Some(Value::Null) => return Ok(None),
            Some(value) => {
                value.as_str().or_else(|| value.get("content")?.as_str()).ok_or_else(|| {
                    DataError::TokenizerFile {
                        path: self.path.clone(),
                        problem: format!(
                            "{}: expected a string or an object with `content`",
                            role.token
                        ),
                    }
                })?
            }
        };
        let id = inner.token_to_id(token).ok_or_else(|| DataError::UnknownSpecialToken {
            path: self.path.clone(),
            key: role.token,
            token: token.to_owned(),
            vocab_size: inner.get_vocab_size(true),
        })?;
        Ok(Some(id))
    }

    /// An id given as a number, or as a list whose first element counts.
    fn special_id(&self, role: Role, inner: &Tokenizer) -> Option<u32> {
        let value = self.values.get(role.id)?;
        let id = value.as_u64().or_else(|| value.get(0)?.as_u64())?;
        let id = u32::try_from(id).ok()?;
        inner.id_to_token(id).map(|_| id)
    }
}

fn chat_template(directory: &Path, config: &Json) -> Result<Option<String>, DataError> {
    let path = directory.join("chat_template.jinja");
    if let Some(bytes) = read(&path)? {
        let problem = "a chat template must be UTF-8".to_owned();
        let template = String::from_utf8(bytes);
        return template.map(Some).map_err(|_| DataError::TokenizerFile { path, problem });
    }
    let template = match config.values.get("chat_template") {
        None | Some(Value::Null) => None,
        Some(Value::String(template)) => Some(template.clone()),
        // Several named templates: the one without tools or retrieval is called "default".
        Some(Value::Array(named)) => named
            .iter()
            .find(|entry| entry.get("name").and_then(Value::as_str) == Some("default"))
            .and_then(|entry| entry.get("template")?.as_str())
            .map(str::to_owned),
        Some(_) => {
            return Err(DataError::TokenizerFile {
                path: config.path.clone(),
                problem: "chat_template: expected a string or a list of {name, template}".into(),
            });
        }
    };
    Ok(template)
}

/// The bytes of a file, or nothing if it does not exist.
fn read(path: &Path) -> Result<Option<Vec<u8>>, DataError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(DataError::Io { path: path.to_path_buf(), action: "read", source }),
    }
}
