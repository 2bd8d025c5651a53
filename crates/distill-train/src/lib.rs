//! Teachers, losses, the optimiser, the loop and its checkpoints.
//!
//! [`trainer`] holds the loop and fits on one screen; each thing it calls has a file of its
//! own. Deliberately absent: models, data and measurements (each a crate), terminals and
//! command lines (the loop reports through [`Observer`]).

pub mod approach;
pub mod backward;
pub mod checkpoint;
pub mod energy;
mod error;
pub mod evaluate;
pub mod generate;
pub mod head;
pub mod loss;
pub mod metrics;
pub mod optimizer;
mod optimizer_state;
pub mod plan;
pub mod post_training;
pub mod prepare;
pub mod schedule;
pub mod student;
pub mod teach;
pub mod teacher;
mod tensorboard;
pub mod trainer;

pub use error::TrainError;
pub use generate::Generation;
pub use metrics::{MetricsLog, Record};
pub use plan::Plan;
pub use prepare::{LocalPaths, Prepared, TeacherModel};
pub use student::Student;
pub use trainer::{Observer, Trainer};
