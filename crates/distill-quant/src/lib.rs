//! Block quantisation grids: the bytes that ship, and the scalar rule that makes them.
//!
//! A *grid* turns a block of weights into integer codes and one or two scales. This crate is the
//! specification: what a training graph fakes, what an export stores and what a kernel reads are
//! all tested to be equal, bit for bit, to the functions here. Nothing is fast and everything is
//! plain: no dependency, no allocation, no `std`.
//!
//! | module | elements | bytes | quantise | dequantise |
//! |---|---|---|---|---|
//! | [`q4_0`] | 32 | 18 | yes | yes |
//! | [`q8_0`] | 32 | 34 | yes | yes |
//! | [`q4_1`] | 32 | 20 | | yes |
//! | [`q5_0`] | 32 | 22 | | yes |
//! | [`q5_1`] | 32 | 24 | | yes |
//! | [`q4_k`] | 256 | 144 | | yes |
//! | [`q5_k`] | 256 | 176 | | yes |
//! | [`q6_k`] | 256 | 210 | | yes |
//! | [`mod@f16`], [`bf16`] | 1 | 2 | yes | yes |
//!
//! [`packed`] is how the runtime holds Q4_0 and Q8_0 matrices.
//!
//! The byte layouts are those of ggml, so that a block can be written to a GGUF file as it is.
//!
//! # Preconditions
//! Weights are finite. Whoever calls a quantiser checks this first, because only the caller can
//! name the tensor and the index at fault.
//!
//! # Panics
//! Functions on rows panic when the lengths do not describe whole blocks or do not match each
//! other: that is a programmer's error, never a user's.
#![no_std]

#[cfg(test)]
extern crate std;

pub mod bf16;
pub mod f16;
pub mod packed;
pub mod q4_0;
pub mod q4_1;
pub mod q4_k;
pub mod q5_0;
pub mod q5_1;
pub mod q5_k;
pub mod q6_k;
pub mod q8_0;

mod k_scales;

pub use q4_0::BlockQ4_0;
pub use q8_0::BlockQ8_0;

/// Elements in a block of [`q4_0`], [`q4_1`], [`q5_0`], [`q5_1`] and [`q8_0`].
pub const BLOCK: usize = 32;

/// Elements in a super-block of [`q4_k`], [`q5_k`] and [`q6_k`].
pub const SUPER_BLOCK: usize = 256;

/// Asserts that `bytes` holds exactly the blocks that `values` needs.
#[track_caller]
fn assert_whole_blocks(bytes: usize, values: usize, block_bytes: usize, block: usize) {
    assert!(
        bytes.is_multiple_of(block_bytes)
            && values.is_multiple_of(block)
            && bytes / block_bytes == values / block,
        "{bytes} bytes in blocks of {block_bytes} do not describe {values} values in blocks of {block}",
    );
}

/// Asserts that two rows are equally long and whole blocks of [`BLOCK`].
#[track_caller]
fn assert_rows(values: &[f32], out: &[f32]) {
    assert!(
        values.len() == out.len() && values.len().is_multiple_of(BLOCK),
        "a row of {} values into {}: both must be the same multiple of {BLOCK}",
        values.len(),
        out.len(),
    );
}
