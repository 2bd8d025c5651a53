//! `tokenizer.json` and its companions as GGUF metadata.

mod pre;
mod special;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use distill_gguf::GgufWriter;
use serde_json::Value;

use crate::ExportError;
use crate::error::shortened;
use special::SpecialTokens;

/// `tokenizer.ggml.token_type`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(i32)]
enum TokenType {
    Normal = 1,
    /// Special tokens, which decoding may leave out.
    Control = 3,
    /// Added tokens that are part of the text.
    UserDefined = 4,
    /// Rows of the embedding that no text reaches.
    Unused = 5,
}

/// A byte-level BPE vocabulary with everything GGUF wants to know.
#[derive(Debug)]
pub(crate) struct Vocabulary {
    pre: &'static str,
    tokens: Vec<String>,
    types: Vec<TokenType>,
    merges: Vec<String>,
    special: SpecialTokens,
    chat_template: Option<String>,
}

impl Vocabulary {
    /// Reads the tokenizer in `directory`, padded to the rows of the embedding; `config` is the
    /// model's `config.json`, or null.
    pub fn read(directory: &Path, vocab_size: usize, config: &Value) -> Result<Self, ExportError> {
        let file = directory.join("tokenizer.json");
        let Some(json) = read_json(&file)? else {
            let expected = "tokenizer.json beside config.json";
            return Err(ExportError::Missing { file, expected });
        };
        let tokenizer = TokenizerJson { file, json };
        tokenizer.check_model()?;
        let pre = pre::recognise(&tokenizer.json).map_err(|unknown| {
            tokenizer.unsupported(unknown.part, &unknown.found, unknown.supported)
        })?;
        tokenizer.check_merging(pre)?;
        let (tokens, types) = tokenizer.tokens(vocab_size)?;
        let used: Vec<Option<&str>> = tokens
            .iter()
            .zip(&types)
            .map(|(token, &ty)| (ty != TokenType::Unused).then_some(token.as_str()))
            .collect();
        Ok(Self {
            pre,
            merges: tokenizer.merges()?,
            special: SpecialTokens::read(directory, config, &tokenizer.json, &used)?,
            chat_template: special::chat_template(directory)?,
            tokens,
            types,
        })
    }

    /// Sets the keys under `tokenizer.`.
    pub fn describe(self, writer: &mut GgufWriter<'_>) {
        let types: Vec<i32> = self.types.iter().map(|&ty| ty as i32).collect();
        writer
            .set("tokenizer.ggml.model", "gpt2")
            .set("tokenizer.ggml.pre", self.pre)
            .set("tokenizer.ggml.tokens", self.tokens)
            .set("tokenizer.ggml.token_type", types)
            .set("tokenizer.ggml.merges", self.merges);
        self.special.describe(writer);
        writer.set("tokenizer.ggml.add_space_prefix", false);
        if let Some(template) = self.chat_template {
            writer.set("tokenizer.chat_template", template);
        }
    }
}

/// A JSON file that may be missing.
fn read_json(file: &Path) -> Result<Option<Value>, ExportError> {
    let text = match std::fs::read(file) {
        Ok(text) => text,
        Err(source) if source.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(ExportError::Read { file: file.to_owned(), source }),
    };
    serde_json::from_slice(&text)
        .map(Some)
        .map_err(|source| ExportError::Json { file: file.to_owned(), source })
}

struct TokenizerJson {
    file: PathBuf,
    json: Value,
}

impl TokenizerJson {
    fn check_model(&self) -> Result<(), ExportError> {
        let model = &self.json["model"];
        let kind = model.get("type").and_then(Value::as_str).unwrap_or("BPE");
        if kind != "BPE" || !model["vocab"].is_object() || !model["merges"].is_array() {
            let found = format!("of type {kind}, with keys {:?}", keys(model));
            let supported = "a BPE with `vocab` and `merges`";
            return Err(self.unsupported("`model`", found, supported));
        }
        if model["byte_fallback"] == true {
            let supported = "byte-level BPE (gpt-2, smollm, llama-bpe, qwen2)";
            return Err(self.unsupported("`model`", "a BPE with byte_fallback", supported));
        }
        for key in ["continuing_subword_prefix", "end_of_word_suffix"] {
            if model[key].as_str().is_some_and(|affix| !affix.is_empty()) {
                let found = format!("a BPE with {key} {}", model[key]);
                return Err(self.unsupported("`model`", found, "a byte-level BPE without affixes"));
            }
        }
        Ok(())
    }

    /// Only Llama 3's words are taken as they are where they are tokens; runtimes know this by
    /// the name of the pre-tokenizer.
    fn check_merging(&self, pre: &str) -> Result<(), ExportError> {
        if self.json["model"]["ignore_merges"] == true && pre != "llama-bpe" {
            let found = format!("a BPE with ignore_merges, of pre-tokenizer {pre}");
            return Err(self.unsupported("`model`", found, "ignore_merges with llama-bpe only"));
        }
        Ok(())
    }

    /// Tokens and their types by id, with fillers for ids that no token has.
    fn tokens(&self, vocab_size: usize) -> Result<(Vec<String>, Vec<TokenType>), ExportError> {
        let mut slots: Vec<Option<(&str, TokenType)>> = vec![None; vocab_size];
        let vocabulary = self.json["model"]["vocab"].as_object().into_iter().flatten();
        for (token, id) in vocabulary {
            let slot = self.slot(&mut slots, token, id)?;
            if let Some((first, _)) = slot {
                return Err(self.twice(first, token, id));
            }
            *slot = Some((token, TokenType::Normal));
        }
        for added in self.json["added_tokens"].as_array().into_iter().flatten() {
            let Some(content) = added["content"].as_str() else {
                let supported = "objects with `id`, `content` and `special`";
                return Err(self.unsupported("an entry of `added_tokens`", added, supported));
            };
            let slot = self.slot(&mut slots, content, &added["id"])?;
            // Trainers also list added tokens in the vocabulary; then both must agree.
            if let Some((first, _)) = slot.filter(|(first, _)| *first != content) {
                return Err(self.twice(first, content, &added["id"]));
            }
            let special = added["special"] == true;
            *slot =
                Some((content, if special { TokenType::Control } else { TokenType::UserDefined }));
        }
        let names = self.distinct(&slots)?;
        let filler = |id: usize| {
            let mut name = format!("[PAD{id}]");
            while names.contains_key(name.as_str()) {
                name.push('_');
            }
            name
        };
        let filled = slots.iter().enumerate().map(|(id, slot)| match *slot {
            Some((token, ty)) => (token.to_owned(), ty),
            None => (filler(id), TokenType::Unused),
        });
        Ok(filled.unzip())
    }

    /// The ids of the tokens, each of which must stand for one id only.
    fn distinct<'t>(
        &self,
        slots: &[Option<(&'t str, TokenType)>],
    ) -> Result<HashMap<&'t str, usize>, ExportError> {
        let mut ids = HashMap::new();
        for (id, slot) in slots.iter().enumerate() {
            let Some((token, _)) = *slot else { continue };
            if let Some(first) = ids.insert(token, id) {
                let (file, token) = (self.file.clone(), token.to_owned());
                return Err(ExportError::TokenTwice { file, token, first, second: id });
            }
        }
        Ok(ids)
    }

    fn slot<'s, T>(
        &self,
        slots: &'s mut [T],
        token: &str,
        id: &Value,
    ) -> Result<&'s mut T, ExportError> {
        let Some(id) = id.as_u64() else {
            let found = format!("{} for {token:?}", shortened(id));
            return Err(self.unsupported("an id", found, "integers from 0"));
        };
        let vocab_size = slots.len();
        let slot = usize::try_from(id).ok().and_then(|id| slots.get_mut(id));
        slot.ok_or_else(|| ExportError::TokenBeyondVocabulary {
            file: self.file.clone(),
            token: token.to_owned(),
            id,
            vocab_size,
        })
    }

    /// Merges as `left right`, whether they are written so or as pairs.
    fn merges(&self) -> Result<Vec<String>, ExportError> {
        let merge = |merge: &Value| -> Option<String> {
            let (left, right) = match merge {
                Value::String(text) => text.split_once(' ')?,
                Value::Array(pair) => match pair.as_slice() {
                    [left, right] => (left.as_str()?, right.as_str()?),
                    _ => return None,
                },
                _ => return None,
            };
            // Byte-level tokens spell a space as Ġ, so one here could not be told apart.
            let spelt = |part: &str| !part.is_empty() && !part.contains(' ');
            (spelt(left) && spelt(right)).then(|| format!("{left} {right}"))
        };
        let merges = self.json["model"]["merges"].as_array().into_iter().flatten();
        merges
            .enumerate()
            .map(|(rank, value)| {
                merge(value).ok_or_else(|| {
                    let found = format!("{} at rank {rank}", shortened(value));
                    self.unsupported("a merge", found, "\"left right\" or [\"left\", \"right\"]")
                })
            })
            .collect()
    }

    fn twice(&self, first: &str, second: &str, id: &Value) -> ExportError {
        ExportError::TokenIdTwice {
            file: self.file.clone(),
            first: first.to_owned(),
            second: second.to_owned(),
            id: id.as_u64().unwrap_or_default(),
        }
    }

    fn unsupported(
        &self,
        part: &'static str,
        found: impl ToString,
        supported: &'static str,
    ) -> ExportError {
        ExportError::Tokenizer { file: self.file.clone(), part, found: shortened(found), supported }
    }
}

fn keys(json: &Value) -> Vec<&String> {
    json.as_object().map(|object| object.keys().collect()).unwrap_or_default()
}
