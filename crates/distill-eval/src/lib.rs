//! Perplexity, KL, the parity gate and the report.
//!
//! What ships is measured through the edge runtime, what trains through the Burn graph, and
//! both by the same [`Score`]. Deliberately absent: training, and any threshold that a recipe
//! could loosen.

mod error;
pub mod parity;
pub mod replay;
pub mod report;
pub mod runtime;
pub mod score;

pub use error::EvalError;
pub use parity::{Parity, ParityInput};
pub use report::RunReport;
pub use score::Score;
