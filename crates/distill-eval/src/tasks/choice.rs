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
    fn names(&self) -> &'static [&'static str] {
        &["acc", "acc_norm", "acc_bytes"]
    }

    fn less_is_better(&self) -> &'static [bool] {
        &[false; 3]
    }

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::language_model::bigram::Bigram;

    fn answer(log_likelihood: f64, characters: usize, bytes: usize) -> Answer {
        let likelihood = Likelihood { log_likelihood, ..Likelihood::default() };
        Answer { likelihood, characters, bytes }
    }

    #[test]
    fn length_may_decide() {
        // By character -1, -0.9, -1.1; by byte -1, -0.9, -0.55.
        let choices = vec![answer(-4.0, 4, 4), answer(-4.5, 5, 5), answer(-4.4, 4, 8)];
        let right = |gold| Item { line: 1, gold, choices: choices.clone() }.right();
        assert_eq!(right(0), [true, false, false]);
        assert_eq!(right(1), [false, true, false]);
        assert_eq!(right(2), [false, false, true]);
    }

    #[test]
    fn the_first_of_equals_wins() {
        let item = |gold| Item { line: 1, gold, choices: vec![answer(-1.0, 2, 2); 2] };
        assert_eq!((item(0).right(), item(1).right()), ([true; 3], [false; 3]));
    }

    #[test]
    fn accuracy_is_the_share_of_those_drawn() {
        let item =
            |gold| Item { line: 1, gold, choices: vec![answer(-1.0, 2, 2), answer(-2.0, 8, 2)] };
        let found = Choice { items: vec![item(0), item(1)] };
        assert_eq!(found.figures(&[0, 1]), [0.5, 0.5, 0.5]);
        assert_eq!(found.figures(&[0, 0, 0, 1]), [0.75, 0.25, 0.75]);
    }

    #[test]
    fn an_answer_is_measured_with_a_space_before_it_and_counted_without() {
        let question = Question {
            line: 3,
            query: "b".into(),
            choices: vec!["a".into(), "bc".into()],
            gold: 1,
        };
        let mut model = Bigram::default();
        let found =
            Choice::measure(&mut model, Path::new(""), &[question], &mut |_, _| {}).unwrap();
        let [first, second] = &found.items[0].choices[..] else { panic!("two answers") };
        assert!((first.likelihood.log_likelihood - model.log_prob(1, 5)).abs() < 1e-6);
        let expected = model.log_prob(1, 4) + model.log_prob(4, 1) + model.log_prob(1, 2);
        assert!((second.likelihood.log_likelihood - expected).abs() < 1e-6);
        assert_eq!((second.characters, second.bytes, second.likelihood.tokens), (2, 2, 3));
    }

    #[test]
    fn an_answer_that_does_not_fit_names_its_line() {
        let choices = vec!["b".into(), "bcbc".into()];
        let question = Question { line: 3, query: "b".into(), choices, gold: 1 };
        let mut model = Bigram { context: 3, ..Bigram::default() };
        let error = Choice::measure(&mut model, Path::new("q"), &[question], &mut |_, _| {});
        assert_eq!(error.unwrap_err().to_string(), "q:3: choice 1 has 5 tokens; the model reads 3");
    }

    fn problem(text: &str) -> String {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("q.jsonl");
        std::fs::write(&path, text).unwrap();
        let message = Question::read(&path, 10).unwrap_err().to_string();
        message.split_once("q.jsonl:").unwrap().1.to_owned()
    }

    #[test]
    fn a_wrong_line_is_named_with_its_key_and_what_it_should_be() {
        let form = r#"; expected {"query": "…", "choices": ["…", "…"], "gold": 0}"#;
        let good = r#"{"query": "q", "choices": ["a", "b"], "gold": 1}"#;
        for (line, wrong) in [
            (
                r#"{"query": "q", "gold": 1}"#,
                r#"no field "choices"; the fields are "query", "gold""#,
            ),
            (
                r#"{"query": "q", "choices": "a", "gold": 1}"#,
                r#"field "choices" is a string, not a list of strings"#,
            ),
            (
                r#"{"query": "q", "choices": ["a", 2], "gold": 1}"#,
                r#""choices" holds a number at 1, not a string"#,
            ),
            (r#"{"query": "q", "choices": ["a"], "gold": 1}"#, r#""gold" is 1, of 1 choices"#),
            (
                r#"{"query": "q", "choices": ["a"], "gold": -1}"#,
                r#"field "gold" is -1, not a whole number from 0"#,
            ),
            (
                r#"{"query": "q", "choices": ["a"], "gold": "A"}"#,
                r#"field "gold" is a string, not a whole number from 0"#,
            ),
            (r#"{"query": "q", "choices": ["a", ""], "gold": 0}"#, "choice 1 is empty"),
        ] {
            assert_eq!(problem(&format!("{good}\n{line}\n")), format!("2: {wrong}{form}"));
        }
        assert!(problem("").starts_with(" holds no item; expected a line for each: {"));
        assert!(problem(&format!("{good}\n[1]")).starts_with("2: not a JSON object"));
    }

    #[test]
    fn only_the_first_items_are_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("q.jsonl");
        let good = r#"{"query": "q", "choices": ["a"], "gold": 0}"#;
        std::fs::write(&path, format!("\n{good}\n{good}\nnonsense")).unwrap();
        let lines: Vec<u64> = Question::read(&path, 2).unwrap().iter().map(|q| q.line).collect();
        assert_eq!(lines, [2, 3]);
    }
}
