//! Fused operators of training.

pub mod cpu;
