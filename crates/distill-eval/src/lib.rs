//! Perplexity, KL, tasks, the parity gate and the report.
//!
//! What ships is measured through the edge runtime, what trains through the Burn graph, and
//! both by the same code: [`Score`] on held-out text, the [`tasks`] on files. Deliberately absent: training, and any threshold that a recipe
//! could loosen.

pub mod benchmark;
pub mod bootstrap;
mod error;
pub mod evaluation;
pub mod language_model;
pub mod parity;
pub mod replay;
pub mod report;
pub mod runtime;
pub mod score;
pub mod tasks;

pub use bootstrap::{Bootstrap, Estimate};
pub use error::EvalError;
pub use language_model::{GraphModel, LanguageModel, RuntimeModel};
pub use parity::{Parity, ParityInput};
pub use report::RunReport;
pub use score::{Reference, Score};
