//! Multiple choice: a question, and answers of which the likeliest counts as the model's own. As
//! in EleutherAI's `lm-evaluation-harness`, a space stands between question and answer, and the
//! likelihood is taken whole (`acc`), by character (`acc_norm`) and by byte (`acc_bytes`) of the
//! answer without that space. The first of equals wins.

use std::path::Path;

use distill_data::Record;
use serde::{Deserialize, Serialize};

use super::Progress;
use super::continuation::{Continuation, Likelihood};
use crate::bootstrap::Sample;
use crate::{EvalError, LanguageModel};

/// What a line of a file of questions holds.
pub const FORM: &str = r#"{"query": "…", "choices": ["…", "…"], "gold": 0}"#;

/// What stands between a question and an answer.
const DELIMITER: &str = " ";

/// A question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// Its line in the file, from 1.
    pub line: u64,
    /// The context of every choice.
    pub query: String,
    /// The answers.
    pub choices: Vec<String>,
    /// Index of the right one.
    pub gold: usize,
}

/// A record a question.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Choice {
    /// In the order of the file.
    pub items: Vec<Item>,
}

/// A question answered.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Item {
    /// The question's line in the file, from 1.
    pub line: u64,
    /// Index of the right answer.
    pub gold: usize,
    /// All answers.
    pub choices: Vec<Answer>,
}

/// An answer of a question.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// How likely it is.
    #[serde(flatten)]
    pub likelihood: Likelihood,
    /// Its characters.
    pub characters: usize,
    /// Its bytes.
    pub bytes: usize,
}

impl Question {
    /// Reads the first questions of a JSONL file.
    ///
    /// # Errors
    /// [`EvalError::Data`] naming line and key, [`EvalError::NoItems`].
    pub fn read(path: &Path, limit: usize) -> Result<Vec<Self>, EvalError> {
        let records = distill_data::records(path, FORM)?.take(limit);
        let questions: Vec<Self> =
            records.map(|record| Self::from_record(&record?)).collect::<Result<_, EvalError>>()?;
        match questions.is_empty() {
            true => Err(EvalError::NoItems { path: path.to_path_buf(), form: FORM }),
            false => Ok(questions),
        }
    }

    fn from_record(record: &Record) -> Result<Self, EvalError> {
        let (query, choices) = (record.text("query")?, record.texts("choices")?);
        let gold = record.index("gold")?;
        if gold >= choices.len() {
            let count = choices.len();
            return Err(record.problem(format!("\"gold\" is {gold}, of {count} choices")).into());
        }
        if let Some(empty) = choices.iter().position(|choice| choice.is_empty()) {
            return Err(record.problem(format!("choice {empty} is empty")).into());
        }
        let (query, choices) = (query.into(), choices.into_iter().map(Into::into).collect());
        Ok(Self { line: record.line(), query, choices, gold })
    }
}

impl Choice {
    /// Answers every question; `path` names them in errors.
    ///
    /// # Errors
    /// [`EvalError::Item`] for an answer that cannot be measured; what the model fails with.
    pub fn measure(
        model: &mut dyn LanguageModel,
        path: &Path,
        questions: &[Question],
        progress: &mut Progress<'_>,
    ) -> Result<Self, EvalError> {
        let mut items = Vec::with_capacity(questions.len());
        for question in questions {
            let mut choices = Vec::with_capacity(question.choices.len());
            for (index, choice) in question.choices.iter().enumerate() {
                let unfit = |problem| EvalError::Item {
                    path: path.to_path_buf(),
                    line: question.line,
                    problem: format!("choice {index} {problem}"),
                };
                let answer = [DELIMITER, choice].concat();
                let text = Continuation::new(model, &question.query, &answer)?.map_err(unfit)?;
                let likelihood = text.likelihood(model)?.map_err(unfit)?;
                let (characters, bytes) = (choice.chars().count(), choice.len());
                choices.push(Answer { likelihood, characters, bytes });
            }
            items.push(Item { line: question.line, gold: question.gold, choices });
            progress(items.len(), questions.len());
        }
        Ok(Self { items })
    }
}

impl Item {
    /// Whether the right answer is the likeliest: whole, by character, by byte.
    pub fn right(&self) -> [bool; 3] {
        let is_best = |worth: &dyn Fn(&Answer) -> f64| {
            let mut best = 0;
            for (index, answer) in self.choices.iter().enumerate() {
                if worth(answer) > worth(&self.choices[best]) {
                    best = index;
                }
            }
            best == self.gold
        };
        [
            is_best(&|answer| answer.likelihood.log_likelihood),
            is_best(&|answer| answer.likelihood.log_likelihood / answer.characters as f64),
            is_best(&|answer| answer.likelihood.log_likelihood / answer.bytes as f64),
        ]
    }
}

impl Sample for Choice {
    const FIGURES: &'static [&'static str] = &["acc", "acc_norm", "acc_bytes"];

    fn len(&self) -> usize {
        self.items.len()
    }

    fn figures(&self, drawn: &[usize]) -> Vec<f64> {
        let mut counts = [0_usize; 3];
        for &index in drawn {
            let right = self.items[index].right();
            counts.iter_mut().zip(right).for_each(|(count, right)| *count += usize::from(right));
        }
        counts.map(|count| count as f64 / drawn.len() as f64).to_vec()
    }
}
