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

    /// Tells the compiler that there are so many blocks, so that loops over them check nothing.
    #[inline(always)]
    fn assert_blocks(&self, blocks: usize) {
        assert!(self.codes.len() >= blocks);
        assert!(self.scales.len() >= blocks);
        assert!(self.offsets.len() >= blocks);
    }
}
