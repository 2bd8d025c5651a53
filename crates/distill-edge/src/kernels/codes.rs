//! What integer products take: quantised activations.

use super::BLOCK;

/// Q8_0 activations of some tokens.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Codes<'a> {
    /// `[tokens, columns]`, each in −127..=127.
    pub codes: &'a [i8],
    /// `[tokens, columns / 32]`.
    pub scales: &'a [f32],
    /// −8 · the sum of each block's codes, `[tokens, columns / 32]`: takes back what products with
    /// Q4_0 codes, stored as code + 8, are too large by.
    pub offsets: &'a [i32],
}

/// One token's activations, by block.
#[derive(Clone, Copy)]
pub(super) struct Token<'a> {
    pub codes: &'a [[i8; BLOCK]],
    pub scales: &'a [f32],
    pub offsets: &'a [i32],
}

impl<'a> Token<'a> {
    pub(super) fn new(x: &Codes<'a>, t: usize, blocks: usize) -> Self {
        let range = t * blocks..(t + 1) * blocks;
        Self {
            codes: &x.codes.as_chunks::<BLOCK>().0[range.clone()],
            scales: &x.scales[range.clone()],
            offsets: &x.offsets[range],
        }
    }

    /// Tells the compiler that there are so many blocks, so that loops over them check nothing.
    #[inline(always)]
    pub(super) fn assert_blocks(&self, blocks: usize) {
        assert!(self.codes.len() >= blocks);
        assert!(self.scales.len() >= blocks);
        assert!(self.offsets.len() >= blocks);
    }
}
