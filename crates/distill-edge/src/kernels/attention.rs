//! What attention kernels take and give.

use distill_quant::f16;

use super::BLOCK;

/// Positions whose keys lie side by side in the cache, one position a lane.
pub(crate) const POSITIONS: usize = 16;
/// Positions that attention takes together; partial results are merged in order.
pub(crate) const CHUNK: usize = 256;

/// One head's cache over a chunk of positions, of which at least those seen are filled: records of
/// [`POSITIONS`] positions, of [`Element::record`] elements each.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cached<'a, T> {
    /// `[CHUNK / POSITIONS]` records or fewer, each: elements `[head_dim, POSITIONS]`, scales.
    pub keys: &'a [T],
    /// The same, each: elements `[POSITIONS, head_dim]`, scales. Where there are no scales, the
    /// last record may have fewer positions.
    pub values: &'a [T],
}

/// An element of the KV cache.
pub(crate) trait Element: Copy {
    /// Whether elements are codes: then 32 of them along a head share a scale, and a record ends
    /// with the scales, `[head_dim / BLOCK, POSITIONS]` in binary16, in as many bytes.
    const SCALED: bool = false;

    fn value(self) -> f32;

    /// The scale in two elements.
    fn scale(_: [Self; 2]) -> f32 {
        1.0
    }

    /// Elements of a record.
    fn record(head_dim: usize) -> usize {
        let scales = if Self::SCALED { 2 * head_dim / BLOCK } else { 0 };
        POSITIONS * (head_dim + scales)
    }
}

impl Element for f32 {
    fn value(self) -> f32 {
        self
    }
}

impl Element for u16 {
    fn value(self) -> f32 {
        f16::to_f32(self)
    }
}

impl Element for i8 {
    const SCALED: bool = true;

    fn value(self) -> f32 {
        f32::from(self)
    }

    fn scale(bytes: [Self; 2]) -> f32 {
        f16::to_f32(u16::from_le_bytes(bytes.map(i8::cast_unsigned)))
    }
}

/// Queries of one head group and what they found in one chunk.
#[derive(Debug)]
pub(crate) struct Queries<'a> {
    /// `[queries, head_dim]`.
    pub queries: &'a [f32],
    /// How many of the chunk's positions each query sees, at least one.
    pub seen: &'a [u32],
    /// Multiplies every score.
    pub scale: f32,
    /// Scratch, `[queries, CHUNK]`.
    pub weights: &'a mut [f32],
    /// Largest score and sum of e^(score − largest), `[queries]`.
    pub totals: &'a mut [Total],
    /// Σ e^(score − largest) · value, `[queries, head_dim]`.
    pub mixed: &'a mut [f32],
}

/// The denominator of a softmax over some positions.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Total {
    /// The largest score.
    pub largest: f32,
    /// Σ e^(score − largest).
    pub sum: f32,
}

/// Attention of some queries over one chunk; see [`super::scalar`] for the order of every sum.
pub(crate) type Attend<T> = fn(queries: Queries<'_>, cached: Cached<'_, T>);

/// Some of the queries, at most as many as a tile of registers takes.
pub(super) struct Tile<'a> {
    pub queries: &'a [f32],
    pub seen: &'a [u32],
    /// Of each query.
    pub weights: &'a mut [[f32; CHUNK]],
    pub totals: &'a mut [Total],
    pub mixed: &'a mut [f32],
    /// The most positions that one of the queries sees.
    pub furthest: usize,
}

impl Queries<'_> {
    /// Elements of a query.
    pub(super) fn head_dim(&self) -> usize {
        self.queries.len() / self.seen.len()
    }

    /// Calls `each` with the next queries, as many as the first of `sizes` that are left; 1 is the
    /// last size.
    pub(super) fn by_tiles(self, sizes: &[usize], mut each: impl FnMut(Tile<'_>)) {
        let head_dim = self.head_dim();
        let weights = self.weights.as_chunks_mut::<CHUNK>().0;
        let mut from = 0;
        while from < self.seen.len() {
            let left = self.seen.len() - from;
            let to = from + sizes.iter().find(|&&size| size <= left).map_or(left, |&size| size);
            let seen = &self.seen[from..to];
            each(Tile {
                queries: &self.queries[from * head_dim..to * head_dim],
                seen,
                weights: &mut weights[from..to],
                totals: &mut self.totals[from..to],
                mixed: &mut self.mixed[from * head_dim..to * head_dim],
                furthest: seen.iter().fold(0, |most, &seen| most.max(seen)) as usize,
            });
            from = to;
        }
    }
}
