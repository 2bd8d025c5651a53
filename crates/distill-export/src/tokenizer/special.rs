//! Special tokens and the chat template.
//!
//! Special tokens are looked for in `tokenizer_config.json`, then `special_tokens_map.json` (both
//! spell the token), then `config.json` (which gives its id). Whether a text begins with BOS or
//! ends with EOS is what the post-processor of `tokenizer.json` does, since that is what made the
//! training data.

use std::path::Path;

use distill_gguf::GgufWriter;
use serde_json::Value;

use super::read_json;
use crate::ExportError;
use crate::error::shortened;

/// The names of one special token: spelt, by id, and in GGUF.
struct Role {
    token: &'static str,
    id: &'static str,
    gguf: &'static str,
}

const ROLES: [Role; 4] = [
    Role { token: "bos_token", id: "bos_token_id", gguf: "tokenizer.ggml.bos_token_id" },
    Role { token: "eos_token", id: "eos_token_id", gguf: "tokenizer.ggml.eos_token_id" },
    Role { token: "unk_token", id: "unk_token_id", gguf: "tokenizer.ggml.unknown_token_id" },
    Role { token: "pad_token", id: "pad_token_id", gguf: "tokenizer.ggml.padding_token_id" },
];

/// Where GGUF has room for tokens that end a turn besides EOS; runtimes end at any of them.
const END_KEYS: [&str; 2] = ["tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"];

#[derive(Debug)]
pub(super) struct SpecialTokens {
    /// In the order of [`ROLES`].
    ids: [Option<u32>; 4],
    /// Further tokens at which generation ends.
    ends: Vec<u32>,
    add_bos: bool,
    add_eos: bool,
}

impl SpecialTokens {
    /// `tokens` are those in use, by id.
    pub fn read(
        directory: &Path,
        config: &Value,
        tokenizer: &Value,
        tokens: &[Option<&str>],
    ) -> Result<Self, ExportError> {
        let mut ids = [None; 4];
        for name in ["tokenizer_config.json", "special_tokens_map.json"] {
            let file = directory.join(name);
            let Some(json) = read_json(&file)? else { continue };
            for (role, id) in ROLES.iter().zip(&mut ids) {
                if id.is_none() {
                    *id = spelt(&json[role.token], role, &file, tokens)?;
                }
            }
        }
        let used = |id: &u32| tokens.get(*id as usize).copied().flatten().is_some();
        for (role, id) in ROLES.iter().zip(&mut ids) {
            // Generation may end at one of several tokens; the first is the end of text.
            let value = &config[role.id];
            let value = value.as_u64().or_else(|| value.get(0)?.as_u64());
            let known = value.and_then(|id| u32::try_from(id).ok());
            *id = id.or(known.filter(used));
        }
        let ends = config["eos_token_id"].as_array().into_iter().flatten();
        let ends = ends
            .filter_map(|id| u32::try_from(id.as_u64()?).ok())
            .filter(|id| used(id) && Some(*id) != ids[1])
            .collect();
        let around = surrounding(&tokenizer["post_processor"]);
        let token = |id: Option<u32>| id.and_then(|id| tokens[id as usize]);
        let is = |found: Option<&str>, id: Option<u32>| found.is_some() && found == token(id);
        let add_bos = is(around.first, ids[0]);
        let add_eos = is(around.last, ids[1]);
        Ok(Self { ids, ends, add_bos, add_eos })
    }

    pub fn describe(&self, writer: &mut GgufWriter<'_>) {
        for (role, id) in ROLES.iter().zip(self.ids) {
            if let Some(id) = id {
                writer.set(role.gguf, id);
            }
        }
        for (key, &id) in END_KEYS.into_iter().zip(&self.ends) {
            writer.set(key, id);
        }
        writer.set("tokenizer.ggml.add_bos_token", self.add_bos);
        writer.set("tokenizer.ggml.add_eos_token", self.add_eos);
    }
}

/// The id of a token given as a string or as an object with its `content`.
fn spelt(
    value: &Value,
    role: &Role,
    file: &Path,
    tokens: &[Option<&str>],
) -> Result<Option<u32>, ExportError> {
    if value.is_null() {
        return Ok(None);
    }
    let Some(token) = value.as_str().or(value["content"].as_str()) else {
        return Err(ExportError::Tokenizer {
            file: file.to_owned(),
            part: role.token,
            found: shortened(value),
            supported: "a string, or an object with `content`",
        });
    };
    match tokens.iter().position(|known| *known == Some(token)) {
        Some(id) => Ok(u32::try_from(id).ok()),
        None => Err(ExportError::UnknownSpecialToken {
            file: file.to_owned(),
            key: role.token,
            token: token.to_owned(),
        }),
    }
}

/// What a post-processor puts before and behind a single text.
#[derive(Default)]
struct Surrounding<'a> {
    first: Option<&'a str>,
    last: Option<&'a str>,
}

fn surrounding(post_processor: &Value) -> Surrounding<'_> {
    let processors = match post_processor["type"].as_str() {
        Some("Sequence") => post_processor["processors"].as_array().into_iter().flatten().collect(),
        _ => vec![post_processor],
    };
    let template =
        processors.into_iter().find(|processor| processor["type"] == "TemplateProcessing");
    let Some(pieces) = template.and_then(|template| template["single"].as_array()) else {
        return Surrounding::default();
    };
    let first = pieces.first().and_then(special_token);
    Surrounding { first, last: pieces.last().and_then(special_token) }
}

fn special_token(piece: &Value) -> Option<&str> {
    piece["SpecialToken"]["id"].as_str()
}

/// The chat template: a file of its own, or a key of `tokenizer_config.json`.
pub(super) fn chat_template(directory: &Path) -> Result<Option<String>, ExportError> {
    let file = directory.join("chat_template.jinja");
    match std::fs::read_to_string(&file) {
        Ok(template) => return Ok(Some(template)),
        Err(source) if source.kind() == std::io::ErrorKind::NotFound => {}
        Err(source) => return Err(ExportError::Read { file, source }),
    }
    let file = directory.join("tokenizer_config.json");
    let config = read_json(&file)?.unwrap_or_default();
    match &config["chat_template"] {
        Value::Null => Ok(None),
        Value::String(template) => Ok(Some(template.clone())),
        // Several named templates: the one for plain conversations is called "default".
        Value::Array(named) => Ok(named
            .iter()
            .find(|entry| entry["name"] == "default")
            .and_then(|entry| entry["template"].as_str())
            .map(str::to_owned)),
        other => Err(ExportError::Tokenizer {
            file,
            part: "`chat_template`",
            found: shortened(other),
            supported: "a string, or a list of {name, template}",
        }),
    }
}
