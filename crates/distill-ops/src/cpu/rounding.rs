//! The grids of `distill-quant` over many blocks: its own scalar rule, on all threads.

#![allow(unsafe_code)]

use std::mem::MaybeUninit;

use distill_quant::{BLOCK, q4_0, q8_0};
use rayon::prelude::*;

use super::scratch::filled;

/// Elements that a thread takes at a time, whole blocks.
const CHUNK: usize = 1 << 12;
const _: () = assert!(CHUNK.is_multiple_of(BLOCK));

/// A grid, and what is rounded to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grid {
    /// 4 bits.
    Q4_0,
    /// 8 bits, the scale in f16.
    Q8_0,
    /// 8 bits, the scale in f32: activations.
    Q8_0Activations,
}

/// The values that the codes of `x` stand for. Whole blocks, which follow each other.
///
/// # Panics
/// If the blocks are not whole.
pub fn rounded(grid: Grid, x: &[f32]) -> Vec<f32> {
    assert!(x.len().is_multiple_of(BLOCK));
    let each = match grid {
        Grid::Q4_0 => q4_0::fake_quantize,
        Grid::Q8_0 => q8_0::fake_quantize,
        Grid::Q8_0Activations => q8_0::fake_quantize_activation,
    };
    let fill = |out: &mut [MaybeUninit<f32>]| {
        out.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each_init(
            || vec![0.0; CHUNK],
            |room, (out, x)| {
                let room = &mut room[..x.len()];
                each(x, room);
                out.write_copy_of_slice(room);
            },
        );
    };
    // SAFETY: the chunks are all blocks, and each is written.
    unsafe { filled(x.len(), fill) }
}

/// Multiplies a gradient by 0 where Q4_0 clamps the weight, and by 1 elsewhere.
pub fn straight_through_q4_0(weights: &[f32], gradient: &mut [f32]) {
    gradient.par_chunks_mut(CHUNK).zip(weights.par_chunks(CHUNK)).for_each_init(
        || vec![0.0; CHUNK],
        |mask, (gradient, weights)| {
            let mask = &mut mask[..weights.len()];
            q4_0::straight_through_mask(weights, mask);
            gradient.iter_mut().zip(mask).for_each(|(gradient, mask)| *gradient *= *mask);
        },
    );
}
