//! The last word of a text that can only be guessed from all of it (LAMBADA, Paperno et al. 2016).
//! As in EleutherAI's `lm-evaluation-harness`: a word is right if each of its tokens is the
//! likeliest in its place, and the perplexity is that of words, exp of the mean −ln q(word).

use std::path::Path;

use distill_data::Record;
use serde::{Deserialize, Serialize};

use super::Progress;
use super::continuation::{Continuation, Likelihood};
use crate::bootstrap::Sample;
use crate::{EvalError, LanguageModel};

/// What a line of a file of passages holds.
pub const FORM: &str = r#"{"context": "…", "continuation": "…"}"#;

/// What stands between a context and its last word.
const DELIMITER: &str = " ";

/// A text without its last word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passage {
    /// Its line in the file, from 1.
    pub line: u64,
    /// All but the last word.
    pub context: String,
    /// The last word.
    pub continuation: String,
}

/// A record a passage.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LastWord {
    /// In the order of the file.
    pub items: Vec<Item>,
}

/// A passage read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Item {
    /// Its line in the file, from 1.
    pub line: u64,
    /// How likely its last word is.
    #[serde(flatten)]
    pub likelihood: Likelihood,
}

impl Passage {
    /// Reads the first passages of a JSONL file.
    ///
    /// # Errors
    /// [`EvalError::Data`] naming line and key, [`EvalError::NoItems`].
    pub fn read(path: &Path, limit: usize) -> Result<Vec<Self>, EvalError> {
        let records = distill_data::records(path, FORM)?.take(limit);
        let passages: Vec<Self> =
            records.map(|record| Self::from_record(&record?)).collect::<Result<_, EvalError>>()?;
        match passages.is_empty() {
            true => Err(EvalError::NoItems { path: path.to_path_buf(), form: FORM }),
            false => Ok(passages),
        }
    }

    fn from_record(record: &Record) -> Result<Self, EvalError> {
        let (context, continuation) = (record.text("context")?, record.text("continuation")?);
        Ok(Self { line: record.line(), context: context.into(), continuation: continuation.into() })
    }
}

impl LastWord {
    /// Reads every passage; `path` names them in errors.
    ///
    /// # Errors
    /// [`EvalError::Item`] for a word that cannot be measured; what the model fails with.
    pub fn measure(
        model: &mut dyn LanguageModel,
        path: &Path,
        passages: &[Passage],
        progress: &mut Progress<'_>,
    ) -> Result<Self, EvalError> {
        let mut items = Vec::with_capacity(passages.len());
        for Passage { line, context, continuation } in passages {
            let line = *line;
            let unfit = |problem| {
                let problem = format!("the continuation {problem}");
                EvalError::Item { path: path.to_path_buf(), line, problem }
            };
            let word = [DELIMITER, continuation].concat();
            let text = Continuation::new(model, context, &word)?.map_err(unfit)?;
            let likelihood = text.likelihood(model)?.map_err(unfit)?;
            items.push(Item { line, likelihood });
            progress(items.len(), passages.len());
        }
        Ok(Self { items })
    }
}

impl Sample for LastWord {
    const FIGURES: &'static [&'static str] = &["acc", "perplexity"];

    fn len(&self) -> usize {
        self.items.len()
    }

    fn figures(&self, drawn: &[usize]) -> Vec<f64> {
        let (mut right, mut sum) = (0, 0.0);
        for Item { likelihood, .. } in drawn.iter().map(|&index| &self.items[index]) {
            right += usize::from(likelihood.greedy);
            sum += likelihood.log_likelihood;
        }
        let items = drawn.len() as f64;
        vec![right as f64 / items, (-sum / items).exp()]
    }
}
