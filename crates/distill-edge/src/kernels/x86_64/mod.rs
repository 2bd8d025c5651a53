//! Kernels for x86-64, by instruction set.

mod avx2;
mod avx512;

#[cfg(test)]
mod tests;

use super::{BLOCK, Codes};

pub(super) use avx2::table as avx2;
pub(super) use avx512::table as avx512;

/// One token's activations, by block.
#[derive(Clone, Copy)]
struct Token<'a> {
    codes: &'a [[i8; BLOCK]],
    scales: &'a [f32],
    offsets: &'a [i32],
}

impl<'a> Token<'a> {
    fn new(x: &Codes<'a>, t: usize, blocks: usize) -> Self {
        let range = t * blocks..(t + 1) * blocks;
        Self {
            codes: &x.codes.as_chunks::<BLOCK>().0[range.clone()],
            scales: &x.scales[range.clone()],
            offsets: &x.offsets[range],
        }
    }

    /// The first blocks: tells the compiler how many there are.
    #[inline]
    fn first(self, blocks: usize) -> Self {
        Self {
            codes: &self.codes[..blocks],
            scales: &self.scales[..blocks],
            offsets: &self.offsets[..blocks],
        }
    }
}
