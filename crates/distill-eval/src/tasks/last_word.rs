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
    fn names(&self) -> &'static [&'static str] {
        &["acc", "perplexity"]
    }

    fn less_is_better(&self) -> &'static [bool] {
        &[false, true]
    }

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::language_model::bigram::Bigram;

    #[test]
    fn accuracy_and_perplexity_are_of_words() {
        let item = |log_likelihood, greedy| {
            let likelihood = Likelihood { log_likelihood, greedy, ..Likelihood::default() };
            Item { line: 1, likelihood }
        };
        let found = LastWord { items: vec![item(-1.0, true), item(-3.0, false)] };
        assert_eq!(found.figures(&[0, 1]), [0.5, 2.0_f64.exp()]);
        assert_eq!(found.figures(&[1, 1]), [0.0, 3.0_f64.exp()]);
    }

    #[test]
    fn a_word_is_measured_with_the_space_before_it() {
        let passage = Passage { line: 9, context: "cb".into(), continuation: "a".into() };
        let mut model = Bigram::default();
        let found =
            LastWord::measure(&mut model, Path::new(""), &[passage], &mut |_, _| {}).unwrap();
        let Item { line, likelihood } = found.items[0];
        assert_eq!((line, likelihood.tokens), (9, 1));
        assert!((likelihood.log_likelihood - model.log_prob(1, 5)).abs() < 1e-6);
    }

    #[test]
    fn a_passage_without_its_word_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("p.jsonl");
        std::fs::write(&path, r#"{"context": "c", "text": "t"}"#).unwrap();
        let message = Passage::read(&path, 10).unwrap_err().to_string();
        assert!(message.ends_with(
            r#"p.jsonl:1: no field "continuation"; the fields are "context", "text"; expected {"context": "…", "continuation": "…"}"#
        ), "{message}");
    }
}
