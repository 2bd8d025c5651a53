//! Recipes: spanned TOML, checked, resolved.

mod defaults;
pub mod resolved;

pub use resolved::{
    ActivationGrid, Backend, Data, Distill, DivergenceKind, Eval, Export, ModelRef, NewModel,
    Quantize, Recipe, Schedule, Student, StudentInit, Teacher, TokenizerChoice, Train, WeightGrid,
};
