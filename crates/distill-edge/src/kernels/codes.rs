//! What integer products take: quantised activations, laid out as the products read them.

use super::BLOCK;

/// Tokens whose blocks lie side by side, so that a product finds what a tile of registers takes of
/// them behind one pointer.
pub(crate) const SIDE_BY_SIDE: usize = 8;

/// Some elements of a token's activations in Q8_0.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct Block {
    pub scale: f32,
    /// −8 · the sum of the codes: takes back what products with Q4_0 codes, stored as code + 8,
    /// are too large by.
    pub offset: i32,
    /// Each in −127..=127.
    pub codes: [i8; BLOCK],
}

/// Activations of some tokens.
///
/// # Shapes
/// A single token: `[blocks]`. Several: `[⌈tokens / SIDE_BY_SIDE⌉, blocks, SIDE_BY_SIDE]`; what
/// stands for tokens beyond the last is read, but comes to nothing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Codes<'a> {
    pub tokens: usize,
    pub blocks: &'a [Block],
}

impl<'a> Codes<'a> {
    /// Tokens side by side when there are so many in all.
    pub fn width(tokens: usize) -> usize {
        if tokens == 1 { 1 } else { SIDE_BY_SIDE }
    }

    /// How many blocks hold so many tokens of so many columns.
    pub fn len(tokens: usize, columns: usize) -> usize {
        tokens.next_multiple_of(Self::width(tokens)) * columns / BLOCK
    }

    /// The block of a token.
    pub fn block(&self, token: usize, block: usize) -> &'a Block {
        let width = Self::width(self.tokens);
        let blocks = self.blocks.len() / self.tokens.next_multiple_of(width);
        &self.blocks[(token / width * blocks + block) * width + token % width]
    }

    /// The blocks of W tokens side by side; W must be the [`width`](Self::width).
    #[inline(always)]
    pub(super) fn tiles<const W: usize>(
        &self,
        blocks: usize,
    ) -> impl Iterator<Item = &'a [[Block; W]]> + use<'a, W> {
        self.blocks.as_chunks::<W>().0.chunks_exact(blocks)
    }
}
