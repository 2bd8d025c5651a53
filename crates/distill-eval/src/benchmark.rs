//! Several models on the same tasks, side by side: the full precision that a student comes from, its
//! ways to the grid without training, and what ships. Every figure is made of the records that each
//! model's file holds, so that it can be made again.

use serde::{Deserialize, Serialize};

use crate::evaluation::{Measured, Options, Outcome, Records, Task};
use crate::{Bootstrap, Estimate};

/// A model's place among the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// The student before it came to the grid; what the others are held against.
    FullPrecision,
    /// On the grid, rounded to nearest: what it costs to do no better.
    Round,
    /// On the grid, with scales that were searched.
    Search,
    /// On the grid, by GPTQ.
    Gptq,
    /// What ships.
    Exported,
}

impl Role {
    /// The file of its [`ModelRecords`], below a run directory.
    pub fn records(self) -> String {
        format!("evaluation/{}.json", self.name())
    }

    /// As files are called.
    pub const fn name(self) -> &'static str {
        match self {
            Self::FullPrecision => "full_precision",
            Self::Round => "round",
            Self::Search => "search",
            Self::Gptq => "gptq",
            Self::Exported => "exported",
        }
    }

    /// As tables say.
    pub const fn title(self) -> &'static str {
        match self {
            Self::FullPrecision => "full precision",
            Self::Round => "rounded to nearest",
            Self::Search => "scales searched",
            Self::Gptq => "GPTQ",
            Self::Exported => "trained and exported",
        }
    }
}

/// What was measured of one model, and how: `evaluation/<role>.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelRecords {
    /// Its place.
    pub role: Role,
    /// Version of distill.
    pub version: String,
    /// The file, below the run directory.
    pub path: String,
    /// Of the file, hexadecimal.
    pub sha256: String,
    /// Size of the file.
    pub bytes: u64,
    /// How it was run.
    pub through: String,
    /// How much was measured.
    pub options: Options,
    /// The same tasks in the same order for every model.
    pub tasks: Vec<TaskRecords>,
}

/// A task's outcome, and what its file was.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskRecords {
    /// Of the task's file, hexadecimal.
    pub sha256: String,
    /// Figures and records.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// A task's table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Benchmark {
    /// What was measured.
    pub task: Task,
    /// The file's name.
    pub file: String,
    /// Of the file, hexadecimal.
    pub sha256: String,
    /// How much, in words.
    pub extent: String,
    /// A row a model.
    pub rows: Vec<BenchmarkRow>,
}

/// A model's figures in a task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BenchmarkRow {
    /// The model.
    pub role: Role,
    /// The file of its records, below the run directory.
    pub records: String,
    /// In the task's order.
    pub figures: Vec<Figure>,
}

/// A figure of a model, and what it is to the others.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// With its interval.
    #[serde(flatten)]
    pub estimate: Estimate,
    /// Less that of full precision, on the same records.
    pub difference: Option<Estimate>,
    /// The share of what rounding to nearest cost that this model does not lose.
    pub recovered: Option<Estimate>,
}

impl ModelRecords {
    /// Its file, below the run directory.
    pub fn file(&self) -> String {
        self.role.records()
    }
}

/// The tables of models that were measured on the same tasks. Where the student was still learning
/// (`began_finished` is false) what it was before the grid is no measure of what it lost there, and there
/// are no shares of that loss.
pub fn benchmarks(models: &[ModelRecords], began_finished: bool) -> Vec<Benchmark> {
    let Some(first) = models.first() else { return Vec::new() };
    let bootstrap = first.options.bootstrap;
    let tables = first.tasks.iter().enumerate().map(|(index, task)| {
        let outcome = |role| {
            let model = models.iter().find(|model| model.role == role)?;
            Some(&model.tasks.get(index)?.outcome)
        };
        let full = outcome(Role::FullPrecision);
        let rounded = outcome(Role::Round).filter(|_| began_finished);
        let rows = models.iter().filter_map(|model| {
            let mine = &model.tasks.get(index)?.outcome;
            let role = model.role;
            let full = full.filter(|_| role != Role::FullPrecision);
            let rounded = rounded.filter(|_| !matches!(role, Role::FullPrecision | Role::Round));
            Some(BenchmarkRow {
                role,
                records: model.file(),
                figures: figures(&bootstrap, mine, rounded, full),
            })
        });
        Benchmark {
            task: task.outcome.task.task,
            file: task.outcome.task.name(),
            sha256: task.sha256.clone(),
            extent: task.outcome.extent.clone(),
            rows: rows.collect(),
        }
    });
    tables.collect()
}

/// A model's own figures, then those of its divergence from full precision.
fn figures(
    bootstrap: &Bootstrap,
    mine: &Outcome,
    rounded: Option<&Outcome>,
    full: Option<&Outcome>,
) -> Vec<Figure> {
    let records = |outcome: &Outcome| outcome.model.records.clone();
    let (of_rounded, of_full) = (rounded.map(records), full.map(records));
    let mut figures = held_against(bootstrap, &mine.model, of_rounded.as_ref(), of_full.as_ref());
    if let Some(divergence) = &mine.divergence {
        let rounded = rounded.and_then(|rounded| rounded.divergence.as_ref());
        let rounded = rounded.map(|rounded| &rounded.records);
        let full = match rounded {
            Some(Records::Divergence(records)) => {
                Some(Records::Divergence(records.of_the_reference()))
            }
            _ => None,
        };
        let mut further = held_against(bootstrap, divergence, rounded, full.as_ref());
        // It is a difference from full precision already.
        further.iter_mut().for_each(|figure| figure.difference = None);
        figures.extend(further);
    }
    figures
}

fn held_against(
    bootstrap: &Bootstrap,
    mine: &Measured,
    rounded: Option<&Records>,
    full: Option<&Records>,
) -> Vec<Figure> {
    let sample = mine.records.sample();
    // Of another kind or number they would be no pairs.
    let alike = |records: &&Records| {
        let theirs = records.sample();
        (theirs.names(), theirs.len()) == (sample.names(), sample.len())
    };
    let full = full.filter(alike).map(Records::sample);
    let rounded = rounded.filter(alike).map(Records::sample);
    let differences = full.map(|full| bootstrap.differences(sample, full)).unwrap_or_default();
    let shares =
        full.zip(rounded).map(|(full, rounded)| bootstrap.recovered(sample, rounded, full));
    let shares = shares.unwrap_or_default();
    let figures = mine.figures.iter().enumerate().map(|(index, estimate)| Figure {
        estimate: estimate.clone(),
        difference: differences.get(index).cloned(),
        recovered: shares.get(index).cloned().flatten(),
    });
    figures.collect()
}
