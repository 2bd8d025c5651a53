//! What a cache of signals says about itself.

use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::TeacherError;
use crate::signal::Spec;

/// The version of the files. One that is not known is not read.
pub const FORMAT: u32 = 1;

/// Everything that a signal depends on besides the text, and what made it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct About {
    /// The version of the files.
    pub format: u32,
    /// The teacher: a fingerprint of the weights where they are at hand, else the name by which a
    /// server is asked for it.
    pub teacher: String,
    /// A fingerprint of the tokenizer that the ids are of.
    pub tokenizer: String,
    /// A fingerprint of the chat template that texts were made with, if there was one.
    pub template: Option<String>,
    /// A fingerprint of the text, as it is packed.
    pub data: String,
    /// Which tokens were kept, and at what temperature.
    pub signal: Spec,
    /// The program and its version.
    pub library: String,
}

impl About {
    /// Of this version of the program.
    #[must_use]
    pub fn new(teacher: String, tokenizer: String, data: String, signal: Spec) -> Self {
        Self {
            format: FORMAT,
            teacher,
            tokenizer,
            template: None,
            data,
            signal,
            library: concat!("distill ", env!("CARGO_PKG_VERSION")).to_owned(),
        }
    }

    /// A name for a directory: a hash of what signals depend on. The text and the program's version do
    /// not count: a text is found by its own hash, and a change of the format has a number.
    #[must_use]
    pub fn name(&self) -> String {
        let mut hash = Sha256::new();
        for (_, value) in self.identity() {
            hash.update((value.len() as u64).to_le_bytes());
            hash.update(value);
        }
        let hash = hash.finalize();
        hash.iter().take(16).map(|byte| format!("{byte:02x}")).collect()
    }

    /// What must be the same for a signal to be the same, by name.
    fn identity(&self) -> [(&'static str, String); 5] {
        let json = |value: serde_json::Value| value.to_string();
        [
            ("format", self.format.to_string()),
            ("teacher", self.teacher.clone()),
            ("tokenizer", self.tokenizer.clone()),
            ("template", self.template.clone().unwrap_or("none".to_owned())),
            ("signal", json(serde_json::to_value(&self.signal).unwrap_or_default())),
        ]
    }

    /// Refuses what was made otherwise than `self` asks for; `path` is where it lies.
    ///
    /// # Errors
    /// [`TeacherError::Differs`], naming the first thing that differs.
    pub fn accept(&self, found: &Self, path: &Path) -> Result<(), TeacherError> {
        let both = self.identity().into_iter().zip(found.identity());
        match both.into_iter().find(|(ours, theirs)| ours.1 != theirs.1) {
            None => Ok(()),
            Some(((what, asked), (_, found))) => {
                Err(TeacherError::Differs { path: path.to_path_buf(), what, found, asked })
            }
        }
    }
}
