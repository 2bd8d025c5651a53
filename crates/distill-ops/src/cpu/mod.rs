//! The operators on slices of f32, for CPUs: no Burn, no allocation that the caller does not see.
//!
//! Rows are shared out over rayon's threads in the order of memory, and no sum depends on how many
//! there are. Loops over a row are plain Rust that the compiler turns into vectors, once for each
//! instruction set (`vector::simd`).

pub mod adamw;
pub mod attention;
pub mod cholesky;
pub mod descent;
pub mod gate;
pub mod gptq;
pub mod loss;
mod moments;
pub mod norm;
pub mod product;
pub mod rounding;
pub(crate) mod scratch;
pub mod vector;
