//! Tasks on files: measured on a model, on a reference too if there is one, and told as JSON and
//! as a table. The JSON holds every record that a figure was made of.

mod table;

use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::bootstrap::Sample;
use crate::tasks::choice::Question;
use crate::tasks::divergence::Compared;
use crate::tasks::last_word::Passage;
use crate::tasks::{Choice, Divergence, LastWord, Perplexity, Progress, Windows};
use crate::{Bootstrap, Estimate, EvalError, LanguageModel};

pub use table::table;

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// Perplexity of a text, and how far the model is from a reference there.
    Perplexity,
    /// Multiple choice.
    Choice,
    /// Last-word accuracy.
    LastWord,
}

/// A task and the file it is measured on, written `task=file`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskFile {
    /// What to measure.
    pub task: Task,
    /// A text, or JSONL.
    pub file: PathBuf,
}

/// How much is measured, and how intervals are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Options {
    /// Tokens of a window.
    pub context: usize,
    /// The most windows of a text.
    pub chunks: usize,
    /// The most items of a file.
    pub limit: usize,
    /// Of all intervals.
    pub bootstrap: Bootstrap,
}

/// A task's outcome.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Task and file.
    #[serde(flatten)]
    pub task: TaskFile,
    /// How much was measured, in words: `"60 chunks of 512, 15300 tokens scored"`.
    pub extent: String,
    /// Of the model.
    pub model: Measured,
    /// Of the reference.
    pub reference: Option<Measured>,
    /// Model less reference, on the same records.
    pub difference: Option<Vec<Estimate>>,
    /// Of the model from the reference, token by token.
    pub divergence: Option<Measured>,
}

/// Figures, and the records they are made of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// With intervals.
    pub figures: Vec<Estimate>,
    /// Without.
    #[serde(flatten)]
    pub further: Further,
    /// A record a chunk or item.
    #[serde(flatten)]
    pub records: Records,
}

/// What a task tells besides.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Further {
    /// Of the perplexity, as llama.cpp counts it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub standard_error: Option<f64>,
    /// Of the KL over all positions: the share of them, and the KL they lie below.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub percentiles: Vec<(f64, f64)>,
}

/// The records of a task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
#[allow(missing_docs, reason = "each is the task of its name")]
pub enum Records {
    Perplexity(Perplexity),
    Divergence(Divergence),
    Choice(Choice),
    LastWord(LastWord),
}

impl Records {
    /// Whatever they are records of.
    pub fn sample(&self) -> &dyn Sample {
        match self {
            Self::Perplexity(records) => records,
            Self::Divergence(records) => records,
            Self::Choice(records) => records,
            Self::LastWord(records) => records,
        }
    }
}

/// Shares of positions whose KL is told, those of llama.cpp.
const SHARES: [f64; 11] = [0.0, 0.001, 0.01, 0.05, 0.1, 0.5, 0.9, 0.95, 0.99, 0.999, 1.0];

impl FromStr for TaskFile {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, file) = text.split_once('=').unwrap_or((text, ""));
        let task = match name {
            "perplexity" => Task::Perplexity,
            "choice" => Task::Choice,
            "last_word" => Task::LastWord,
            _ => {
                let tasks = "perplexity, choice or last_word";
                return Err(format!("`{name}` is no task; expected {tasks}, then = and a file"));
            }
        };
        match file {
            "" => Err(format!("no file; expected `{name}=FILE`")),
            file => Ok(Self { task, file: file.into() }),
        }
    }
}

impl TaskFile {
    /// Reads the file without a model to measure.
    ///
    /// # Errors
    /// [`EvalError`]: it is not there, or not what the task needs.
    pub fn check(&self, options: &Options) -> Result<(), EvalError> {
        let path = self.file.as_path();
        match self.task {
            Task::Perplexity => {
                let text = Windows::text(path)?;
                // A token is a byte at least.
                if text.len() < options.context {
                    let (path, tokens) = (path.to_path_buf(), text.len());
                    return Err(EvalError::TooShort { path, tokens, context: options.context });
                }
            }
            Task::Choice => drop(Question::read(path, options.limit)?),
            Task::LastWord => drop(Passage::read(path, options.limit)?),
        }
        Ok(())
    }

    /// Measures the model, and a reference on the same records.
    ///
    /// # Errors
    /// [`EvalError`]: a file that cannot be read, a model that cannot be compared.
    pub fn measure(
        &self,
        options: &Options,
        model: &mut dyn LanguageModel,
        reference: Option<&mut dyn LanguageModel>,
        progress: &mut Progress<'_>,
    ) -> Result<Outcome, EvalError> {
        let path = self.file.as_path();
        match self.task {
            Task::Perplexity => self.perplexity(options, model, reference, progress),
            Task::Choice => {
                let questions = Question::read(path, options.limit)?;
                let extent = counted(questions.len(), "question");
                self.items(options, extent, Records::Choice, model, reference, &mut |model| {
                    Choice::measure(model, path, &questions, progress)
                })
            }
            Task::LastWord => {
                let passages = Passage::read(path, options.limit)?;
                let extent = counted(passages.len(), "passage");
                self.items(options, extent, Records::LastWord, model, reference, &mut |model| {
                    LastWord::measure(model, path, &passages, progress)
                })
            }
        }
    }

    fn perplexity(
        &self,
        options: &Options,
        model: &mut dyn LanguageModel,
        reference: Option<&mut dyn LanguageModel>,
        progress: &mut Progress<'_>,
    ) -> Result<Outcome, EvalError> {
        let (path, bootstrap) = (self.file.as_path(), &options.bootstrap);
        let windows =
            |model: &dyn LanguageModel| Windows::read(model, path, options.context, options.chunks);
        let ours = windows(model)?;
        let extent = |found: &Perplexity| {
            let (chunks, context) = (ours.len(), ours.context());
            let tokens = counted(found.tokens(), "token");
            format!("{} of {context}, {tokens} scored", counted(chunks, "chunk"))
        };
        let Some(reference) = reference else {
            let found = Perplexity::measure(model, &ours, progress)?;
            return Ok(Outcome {
                task: self.clone(),
                extent: extent(&found),
                model: Measured::perplexity(found, bootstrap),
                reference: None,
                difference: None,
                divergence: None,
            });
        };
        if let Some(token) = ours.difference(&windows(reference)?) {
            return Err(EvalError::Tokenizers { path: path.to_path_buf(), token });
        }
        let Compared { model, reference, divergence } =
            Divergence::measure(model, reference, &ours, progress)?;
        Ok(Outcome {
            task: self.clone(),
            extent: extent(&model),
            difference: Some(bootstrap.differences(&model, &reference)),
            model: Measured::perplexity(model, bootstrap),
            reference: Some(Measured::perplexity(reference, bootstrap)),
            divergence: Some(Measured::divergence(divergence, bootstrap)),
        })
    }

    fn items<S: Sample>(
        &self,
        options: &Options,
        extent: String,
        records: fn(S) -> Records,
        model: &mut dyn LanguageModel,
        reference: Option<&mut dyn LanguageModel>,
        measure: &mut dyn FnMut(&mut dyn LanguageModel) -> Result<S, EvalError>,
    ) -> Result<Outcome, EvalError> {
        let bootstrap = &options.bootstrap;
        let ours = measure(model)?;
        let theirs = reference.map(measure).transpose()?;
        let measured = |sample: S| Measured {
            figures: bootstrap.estimates(&sample),
            further: Further::default(),
            records: records(sample),
        };
        Ok(Outcome {
            task: self.clone(),
            extent,
            difference: theirs.as_ref().map(|theirs| bootstrap.differences(&ours, theirs)),
            model: measured(ours),
            reference: theirs.map(measured),
            divergence: None,
        })
    }

    /// The file's name alone.
    pub fn name(&self) -> String {
        let name = self.file.file_name().map(Path::new).unwrap_or(&self.file);
        name.display().to_string()
    }
}

/// `"1 chunk"`, `"60 chunks"`.
fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

impl Measured {
    fn perplexity(found: Perplexity, bootstrap: &Bootstrap) -> Self {
        Self {
            figures: bootstrap.estimates(&found),
            further: Further { standard_error: Some(found.standard_error()), ..Further::default() },
            records: Records::Perplexity(found),
        }
    }

    fn divergence(found: Divergence, bootstrap: &Bootstrap) -> Self {
        let percentiles = SHARES.into_iter().zip(found.percentiles(&SHARES)).collect();
        Self {
            figures: bootstrap.estimates(&found),
            further: Further { percentiles, ..Further::default() },
            records: Records::Divergence(found),
        }
    }
}
