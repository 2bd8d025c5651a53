//! Recipes: spanned TOML, checked, resolved.
//!
//! A recipe goes through four forms. The text of the file and of the `--set` overrides becomes
//! one tree ([`Document`]); the tree is held against the JSON [`schema`], which finds every
//! unknown key and wrong value at once; it becomes the written types, all optional and spanned;
//! and these become [`Recipe`], in which every default is visible. What is wrong is a
//! [`RecipeError`], a diagnostic that points into the TOML and says the way out.

mod defaults;
mod document;
mod error;
mod problem;
mod raw;
mod resolve;
pub mod resolved;
mod schema;
mod shape;
mod student_keys;

pub use document::Document;
pub use error::{Problem, RecipeError};
pub use problem::{ProblemKind, TeacherProblem};
pub use resolved::{
    ActivationGrid, Backend, Choice, Data, Device, Distill, DivergenceKind, Engine, Eval, Export,
    Generate, KvCache, LearningRateFactors, LocalTeacher, Lora, LoraTarget, Method, ModelRef,
    NewModel, OptimizerState, Precision, Protocol, Quantize, Recipe, RemoteTeacher, Scales,
    Schedule, StraightThrough, Student, StudentInit, Tasks, Teacher, TeacherCache, TeacherSignal,
    TeacherSource, TokenizerChoice, Train, WeightGrid,
};
pub use schema::schema;
