//! `[student]` as it is written out: [`Student`] has one of each choice, the table a key for every
//! way.

use serde::{Deserialize, Serialize};

use crate::resolved::{ModelRef, NewModel, Student, StudentInit, TokenizerChoice};

/// The table `[student]`, key by key.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct StudentKeys {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    from: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    revision: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    keep_layers: Option<Vec<usize>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tokenizer: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    train_tokenizer: Option<usize>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    config: Option<NewModel>,
}

impl From<Student> for StudentKeys {
    fn from(student: Student) -> Self {
        let mut keys = Self {
            from: None,
            revision: None,
            keep_layers: None,
            tokenizer: None,
            train_tokenizer: None,
            config: None,
        };
        match student.init {
            StudentInit::From(model) => {
                keys.from = Some(model.from);
                keys.revision = Some(model.revision);
            }
            StudentInit::Config(config) => keys.config = Some(config),
            StudentInit::KeepLayers(layers) => keys.keep_layers = Some(layers),
        }
        match student.tokenizer {
            TokenizerChoice::Student | TokenizerChoice::Teacher => {}
            TokenizerChoice::From(place) => keys.tokenizer = Some(place),
            TokenizerChoice::Train { vocab_size } => keys.train_tokenizer = Some(vocab_size),
        }
        keys
    }
}

/// Why a `[student]` table that was not read through [`Recipe::from_path`] is no student.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StudentKeysError {
    #[error("[student] needs exactly one of `from`, `config` and `keep_layers`, and has {0}")]
    Init(usize),
    #[error("[student] has both `tokenizer` and `train_tokenizer`: keep one of them")]
    Tokenizer,
}

impl TryFrom<StudentKeys> for Student {
    type Error = StudentKeysError;

    fn try_from(keys: StudentKeys) -> Result<Self, StudentKeysError> {
        let revision = keys.revision.unwrap_or_else(|| crate::defaults::REVISION.to_owned());
        let (init, inherited) = match (keys.from, keys.config, keys.keep_layers) {
            (Some(from), None, None) => {
                (StudentInit::From(ModelRef { from, revision }), TokenizerChoice::Student)
            }
            (None, Some(config), None) => (StudentInit::Config(config), TokenizerChoice::Teacher),
            (None, None, Some(layers)) => {
                (StudentInit::KeepLayers(layers), TokenizerChoice::Teacher)
            }
            (from, config, layers) => {
                return Err(StudentKeysError::Init(
                    usize::from(from.is_some())
                        + usize::from(config.is_some())
                        + usize::from(layers.is_some()),
                ));
            }
        };
        let tokenizer = match (keys.tokenizer, keys.train_tokenizer) {
            (None, None) => inherited,
            (Some(place), None) => TokenizerChoice::From(place),
            (None, Some(vocab_size)) => TokenizerChoice::Train { vocab_size },
            (Some(_), Some(_)) => return Err(StudentKeysError::Tokenizer),
        };
        Ok(Self { init, tokenizer })
    }
}
