//! A tokenizer into a Hugging Face directory.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::TextTokenizer;
use crate::error::DataError;

impl TextTokenizer {
    /// Writes `tokenizer.json` and `tokenizer_config.json` (special tokens, chat template) into
    /// an existing directory. What a read configuration held besides is kept.
    ///
    /// # Errors
    /// [`DataError::Io`] if a file cannot be written.
    pub fn save(&self, directory: &Path) -> Result<(), DataError> {
        let tokenizer = self
            .inner
            .to_string(true)
            .map_err(|source| DataError::Tokenizer { action: "serialise the tokenizer", source })?;
        write(&directory.join("tokenizer.json"), &tokenizer)?;
        // A map of strings and plain values always serialises.
        let config = format!("{:#}\n", Value::Object(self.saved_config()));
        write(&directory.join("tokenizer_config.json"), &config)
    }

    fn saved_config(&self) -> serde_json::Map<String, Value> {
        let mut config = self.config.clone();
        let spelt = |id: Option<u32>| id.and_then(|id| self.token(id)).map(Value::from);
        let roles = [
            ("bos_token", self.bos()),
            ("eos_token", self.eos()),
            ("pad_token", self.pad()),
            ("unk_token", self.unk()),
        ];
        for (key, id) in roles {
            config.insert(key.into(), spelt(id).unwrap_or_default());
        }
        config.insert("add_bos_token".into(), self.adds_bos.into());
        if let Some(template) = &self.chat_template {
            config.insert("chat_template".into(), template.as_str().into());
        }
        let defaults = [
            ("clean_up_tokenization_spaces", json!(false)),
            // The generic class takes tokenizer.json as it is; others rebuild parts of it.
            ("tokenizer_class", json!("PreTrainedTokenizerFast")),
        ];
        for (key, value) in defaults {
            config.entry(key).or_insert(value);
        }
        config
    }
}

fn write(path: &Path, text: &str) -> Result<(), DataError> {
    fs::write(path, text).map_err(|source| DataError::Io {
        path: path.to_path_buf(),
        action: "write",
        source,
    })
}
