//! Products with AVX-512, after Goto and van de Geijn (2008), "Anatomy of high-performance matrix
//! multiplication".
//!
//! A tile of the output, 14 × 32, stays in 28 of the 32 registers while the innermost loop goes
//! through a panel of each operand: 14 rows of `a` and 32 columns of `b`, copied so that they are
//! read from beginning to end. The smaller operand's panels are packed once for all threads and
//! stay in the second cache. A task packs the larger one's panels, one after the other, and while it
//! multiplies one it asks the memory for the next. An element's sum does not depend on how many
//! threads there are.

use std::arch::x86_64::*;
use std::ops::Range;

use rayon::prelude::*;

use super::{Matrix, Out, Threads};
use crate::cpu::scratch;

/// Most rows of a tile.
const ROWS: usize = 14;
/// Columns of a tile: two registers.
const COLUMNS: usize = 32;
/// Most of the inner dimension that is packed at a time.
const DEPTH: usize = 640;
/// Parts of the inner dimension that are added up at the end, where it is many blocks long.
const PARTS: usize = 8;
/// Elements of the packed operand that all share: it has to stay in the second cache.
const SHARED: usize = 320 << 10;
/// Elements of the inner dimension by which a tile asks for its panels.
const SOON: usize = 16;
/// Rows by which packing looks ahead.
const AHEAD: usize = 12;

/// Whether this CPU can.
pub(super) fn available() -> bool {
    is_x86_feature_detected!("avx512f")
}

/// Rows of `a`, or columns of `b`, in panels of nearly the same width.
#[derive(Clone, Copy)]
struct Panels {
    count: usize,
    panels: usize,
    /// Elements that a packed panel takes for each element of the inner dimension, at most.
    width: usize,
    /// Rows of a panel, but for the first ones, which have one more.
    least: usize,
    wider: usize,
}

impl Panels {
    /// Rows: a tile may have any number of them, so all panels are made equally wide.
    fn rows(count: usize) -> Self {
        let panels = count.div_ceil(ROWS);
        Self { count, panels, width: ROWS, least: count / panels, wider: count % panels }
    }

    /// Columns: packed panels always have 32, zeros at the end.
    fn columns(count: usize) -> Self {
        Self { count, panels: count.div_ceil(COLUMNS), width: COLUMNS, least: COLUMNS, wider: 0 }
    }

    fn of(self, panel: usize) -> Range<usize> {
        match self.width {
            COLUMNS => panel * COLUMNS..self.count.min((panel + 1) * COLUMNS),
            _ => {
                let start = |panel: usize| panel * self.least + panel.min(self.wider);
                start(panel)..start(panel + 1)
            }
        }
    }

    /// Elements of a packed panel, whole cache lines; the last store of rows writes beyond them.
    fn packed(self, depth: usize) -> usize {
        (depth * self.width).next_multiple_of(16) + 16
    }
}

/// An operand seen from its panels: element (i, k) is `data[i · stride + k · depth_stride]`.
#[derive(Clone, Copy)]
struct Operand<'a> {
    data: &'a [f32],
    stride: usize,
    depth_stride: usize,
    depth: usize,
    panels: Panels,
}

impl<'a> Operand<'a> {
    fn rows(a: Matrix<'a>) -> Self {
        Self {
            data: a.data,
            stride: a.row_stride,
            depth_stride: a.column_stride,
            depth: a.columns,
            panels: Panels::rows(a.rows),
        }
    }

    fn columns(b: Matrix<'a>) -> Self {
        Self {
            data: b.data,
            stride: b.column_stride,
            depth_stride: b.row_stride,
            depth: b.rows,
            panels: Panels::columns(b.columns),
        }
    }

    /// Some of the inner dimension.
    fn block(self, depth: Range<usize>) -> Self {
        Self { data: &self.data[depth.start * self.depth_stride..], depth: depth.len(), ..self }
    }

    /// Where a panel's first element lies.
    fn panel(&self, panel: usize) -> *const f32 {
        self.data.as_ptr().wrapping_add(self.panels.of(panel).start * self.stride)
    }

    /// Elements of a packed panel.
    fn packed(&self) -> usize {
        self.panels.packed(self.depth)
    }

    /// Copies a panel: for each k the elements of its rows, or of 32 columns, of which those that
    /// are not there are some number.
    ///
    /// # Safety
    /// `available()` was true.
    #[target_feature(enable = "avx512f")]
    unsafe fn pack(&self, panel: usize, out: &mut [f32]) {
        assert!(out.len() >= self.packed());
        let panel = self.panels.of(panel);
        let width = if self.panels.width == COLUMNS { COLUMNS } else { panel.len() };
        let out = out.as_mut_ptr();
        for half in (0..width).step_by(16) {
            // SAFETY: slices say what is there to load, and masks keep to it; stores of 16 elements
            // end at most one line beyond the last of `depth · width`.
            unsafe {
                let out = out.add(half);
                if self.depth_stride == 1 {
                    let rows: [*const f32; 16] = std::array::from_fn(|i| {
                        let row = (panel.start + half + i).min(panel.end - 1);
                        self.data[row * self.stride..][..self.depth].as_ptr()
                    });
                    let whole = self.depth / 16 * 16;
                    for k in (0..whole).step_by(16) {
                        let lines = transposed(rows, k);
                        for (i, line) in lines.into_iter().enumerate() {
                            _mm512_storeu_ps(out.add((k + i) * width), line);
                        }
                    }
                    for k in whole..self.depth {
                        for (i, row) in rows.iter().enumerate() {
                            *out.add(k * width + i) = *row.add(k);
                        }
                    }
                } else {
                    assert_eq!(self.stride, 1, "one of the dimensions is contiguous");
                    let count = panel.len().saturating_sub(half).min(16);
                    let first = panel.end.min(panel.start + half);
                    let last = (self.depth - 1) * self.depth_stride + first + count;
                    let from = self.data[first..last].as_ptr();
                    let mask = first_lanes(count);
                    for k in 0..self.depth {
                        let next = from.wrapping_add((k + AHEAD) * self.depth_stride);
                        _mm_prefetch::<_MM_HINT_T0>(next.cast());
                        let from = from.wrapping_add(k * self.depth_stride);
                        _mm512_storeu_ps(out.add(k * width), _mm512_maskz_loadu_ps(mask, from));
                    }
                }
            }
        }
    }

    /// What is to be asked of the memory during the `tile`-th of some tiles, so that this panel is
    /// near when it is packed.
    fn ahead(&self, panel: usize, tile: usize, tiles: usize) -> Option<Ahead> {
        let every = between_requests(tiles, self.depth);
        let chunks = self.depth.div_ceil(every);
        let (done, next, stream, step) = match self.depth_stride {
            1 => (2 * tile >= self.panels.width, 2 * self.stride, self.stride, every),
            far => (tile * chunks >= self.depth, chunks * far, 16, far),
        };
        (panel < self.panels.panels && !done).then(|| {
            let first = self.panel(panel).wrapping_add(tile * next);
            Ahead { streams: [first, first.wrapping_add(stream)], step, every }
        })
    }
}

/// Two places in memory, and the elements by which they move after so many of the inner dimension.
#[derive(Clone, Copy)]
struct Ahead {
    streams: [*const f32; 2],
    step: usize,
    every: usize,
}

/// The product, into `out`.
///
/// # Safety
/// `available()` was true; `out` has room for the product, and nobody else uses it.
pub(super) unsafe fn multiply(a: Matrix<'_>, b: Matrix<'_>, out: Out, threads: Threads) {
    if a.columns < PARTS * 2 * DEPTH {
        // SAFETY: the caller's contract.
        return unsafe { blocks(a, b, 0..a.columns, out, threads) };
    }
    // So deep that threads need not wait for each other at every block.
    let size = a.rows * b.columns;
    scratch::with(PARTS * size, |partial| {
        let part = |(i, partial): (usize, &mut [f32])| {
            let depth = a.columns * i / PARTS..a.columns * (i + 1) / PARTS;
            let out = Out { data: partial.as_mut_ptr(), stride: b.columns, scale: 1.0, add: false };
            // SAFETY: the caller's contract; the part has the size of the product.
            unsafe { blocks(a, b, depth, out, Threads::One) };
        };
        match threads {
            Threads::One => partial.chunks_exact_mut(size).enumerate().for_each(part),
            Threads::All => partial.par_chunks_exact_mut(size).enumerate().for_each(part),
        }
        for i in 0..size {
            let sum: f32 = partial[i..].iter().step_by(size).sum();
            // SAFETY: the caller's contract.
            unsafe {
                let to = out.data.add(i / b.columns * out.stride + i % b.columns);
                to.write(if out.add { to.read() + out.scale * sum } else { out.scale * sum });
            }
        }
    });
}

/// Some of the inner dimension, block by block.
///
/// # Safety
/// As [`multiply`].
unsafe fn blocks(a: Matrix<'_>, b: Matrix<'_>, all: Range<usize>, out: Out, threads: Threads) {
    let (rows, columns) = (Operand::rows(a), Operand::columns(b));
    let blocks = all.len().div_ceil(DEPTH);
    for block in 0..blocks {
        let edge = |block: usize| all.start + all.len() * block / blocks;
        let depth = edge(block)..edge(block + 1);
        let product = Product {
            a: rows.block(depth.clone()),
            b: columns.block(depth),
            out: Out { add: out.add || block > 0, ..out },
        };
        // SAFETY: the caller's contract.
        unsafe { product.run(threads) };
    }
}

/// A block of the inner dimension.
#[derive(Clone, Copy)]
struct Product<'a> {
    a: Operand<'a>,
    b: Operand<'a>,
    out: Out,
}

impl Product<'_> {
    /// # Safety
    /// As [`multiply`].
    unsafe fn run(self, threads: Threads) {
        let rows_are_shared = self.a.panels.count <= self.b.panels.count;
        let (shared, own) = if rows_are_shared { (self.a, self.b) } else { (self.b, self.a) };
        let near = (SHARED / shared.packed()).max(1);
        for first in (0..shared.panels.panels).step_by(near) {
            let part = first..shared.panels.panels.min(first + near);
            scratch::with(part.len() * shared.packed(), |packed| {
                let pack = |(i, packed): (usize, &mut [f32])| {
                    // SAFETY: the caller's contract.
                    unsafe { shared.pack(first + i, packed) };
                };
                match threads {
                    Threads::One => {
                        packed.chunks_exact_mut(shared.packed()).enumerate().for_each(pack);
                    }
                    Threads::All => {
                        packed.par_chunks_exact_mut(shared.packed()).enumerate().for_each(pack);
                    }
                }
                let packed = &*packed;
                let task = |panels: Range<usize>| {
                    // SAFETY: the caller's contract; no other task has these panels.
                    unsafe {
                        match rows_are_shared {
                            true => self.tiles_of_columns(part.clone(), packed, panels),
                            false => self.tiles_of_rows(part.clone(), packed, panels),
                        }
                    }
                };
                let panels = own.panels.panels;
                match threads {
                    Threads::One => task(0..panels),
                    Threads::All => {
                        // Some tasks for each thread: where another program takes a core away, the
                        // other cores go on.
                        let size = panels.div_ceil(16 * rayon::current_num_threads());
                        let tasks = panels.div_ceil(size);
                        (0..tasks).into_par_iter().with_max_len(1).for_each(|i| {
                            task(i * size..panels.min((i + 1) * size));
                        });
                    }
                }
            });
        }
    }

    /// Packs panels of `b` and multiplies all rows of `packed` with them.
    #[target_feature(enable = "avx512f")]
    unsafe fn tiles_of_columns(self, rows: Range<usize>, packed: &[f32], panels: Range<usize>) {
        scratch::with(self.b.packed(), |own| {
            for panel in panels {
                // SAFETY: the caller's contract.
                unsafe { self.b.pack(panel, own) };
                let packed = packed.chunks_exact(self.a.packed());
                for (i, (row, packed)) in rows.clone().zip(packed).enumerate() {
                    let tiles = rows.len();
                    let ahead = self.b.ahead(panel + 1, i, tiles);
                    // SAFETY: as above.
                    unsafe { self.tile([row, panel], [packed, own], ahead, tiles) };
                }
            }
        });
    }

    /// Packs panels of `a` and multiplies them with all columns of `packed`.
    #[target_feature(enable = "avx512f")]
    unsafe fn tiles_of_rows(self, columns: Range<usize>, packed: &[f32], panels: Range<usize>) {
        scratch::with(self.a.packed(), |own| {
            for panel in panels {
                // SAFETY: the caller's contract.
                unsafe { self.a.pack(panel, own) };
                let packed = packed.chunks_exact(self.b.packed());
                for (i, (column, packed)) in columns.clone().zip(packed).enumerate() {
                    let tiles = columns.len();
                    let ahead = self.a.ahead(panel + 1, i, tiles);
                    // SAFETY: as above.
                    unsafe { self.tile([panel, column], [own, packed], ahead, tiles) };
                }
            }
        });
    }

    /// The tile of a panel of rows and one of columns.
    #[target_feature(enable = "avx512f")]
    #[inline]
    unsafe fn tile(
        self,
        [row, column]: [usize; 2],
        packed: [&[f32]; 2],
        ahead: Option<Ahead>,
        tiles: usize,
    ) {
        let (rows, columns) = (self.a.panels.of(row), self.b.panels.of(column));
        let [a, b] = packed.map(<[f32]>::as_ptr);
        let every = between_requests(tiles, self.a.depth);
        let ahead = ahead.unwrap_or(Ahead { streams: [a, b], step: 0, every });
        // SAFETY: the caller's contract: the packed panels are whole, the tile is in the output.
        unsafe {
            let data = self.out.data.add(rows.start * self.out.stride + columns.start);
            let out = Out { data, ..self.out };
            tile_of(rows.len(), self.a.depth, [a, b], out, columns.len(), ahead);
        }
    }
}

/// Elements of the inner dimension between two requests to the memory: those of a cache line; fewer
/// where there are few tiles to ask for the next panel, or few elements to ask for the output.
fn between_requests(tiles: usize, depth: usize) -> usize {
    if tiles.min(depth / ROWS) < 16 { 8 } else { 16 }
}

fn first_lanes(count: usize) -> __mmask16 {
    ((1_u32 << count) - 1) as __mmask16
}

/// Sixteen columns of sixteen rows, from column `k` on.
///
/// # Safety
/// The elements exist.
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn transposed(rows: [*const f32; 16], k: usize) -> [__m512; 16] {
    let mut out = [_mm512_setzero_ps(); 16];
    for c in (0..16).step_by(4) {
        // Four columns of rows g, 4 + g, 8 + g, 12 + g: a row to each lane of 128 bits.
        let mut rows_of = [_mm512_setzero_ps(); 4];
        for (g, quad) in rows_of.iter_mut().enumerate() {
            // SAFETY: the caller's contract.
            let part = |lane: usize| unsafe { _mm_loadu_ps(rows[4 * lane + g].add(k + c)) };
            let x = _mm512_castps128_ps512(part(0));
            let x = _mm512_mask_broadcast_f32x4(x, 0x00F0, part(1));
            let x = _mm512_mask_broadcast_f32x4(x, 0x0F00, part(2));
            *quad = _mm512_mask_broadcast_f32x4(x, 0xF000, part(3));
        }
        let [r0, r1, r2, r3] = rows_of;
        let low = [_mm512_unpacklo_ps(r0, r1), _mm512_unpacklo_ps(r2, r3)];
        let high = [_mm512_unpackhi_ps(r0, r1), _mm512_unpackhi_ps(r2, r3)];
        for (i, [a, b]) in [low, high].into_iter().enumerate() {
            let (a, b) = (_mm512_castps_pd(a), _mm512_castps_pd(b));
            out[c + 2 * i] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
            out[c + 2 * i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
        }
    }
    out
}

/// A tile of as many rows.
///
/// # Safety
/// As [`tile`].
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn tile_of(
    rows: usize,
    depth: usize,
    packed: [*const f32; 2],
    out: Out,
    columns: usize,
    ahead: Ahead,
) {
    macro_rules! tiles {
        ($($n:literal)*) => {
            match rows {
                // SAFETY: the caller's contract.
                $($n => unsafe { tile::<$n>(depth, packed, out, columns, ahead) },)*
                _ => unreachable!("panels have 1 to {ROWS} rows"),
            }
        };
    }
    tiles!(1 2 3 4 5 6 7 8 9 10 11 12 13 14)
}

/// `R` rows by `columns` columns of the output.
///
/// # Safety
/// `a` has `depth · R` elements, `b` `depth · COLUMNS`, `out` those of the tile.
#[target_feature(enable = "avx512f")]
unsafe fn tile<const R: usize>(
    depth: usize,
    [mut a, mut b]: [*const f32; 2],
    out: Out,
    columns: usize,
    ahead: Ahead,
) {
    let mut sums = [[_mm512_setzero_ps(); 2]; R];
    let [mut first, mut second] = ahead.streams;
    // SAFETY: the caller's contract; masks keep to the columns; a prefetch may go anywhere.
    unsafe {
        let mut place = out.data;
        let mut left = depth;
        while left > 0 {
            _mm_prefetch::<_MM_HINT_T1>(first.cast());
            _mm_prefetch::<_MM_HINT_T1>(second.cast());
            // A row of the tile, or one below it: of the tile to come, where rows are its panels.
            _mm_prefetch::<_MM_HINT_T0>(place.cast());
            _mm_prefetch::<_MM_HINT_T0>(place.wrapping_add(31).cast());
            place = place.wrapping_add(out.stride);
            first = first.wrapping_add(ahead.step);
            second = second.wrapping_add(ahead.step);
            let chunk = left.min(ahead.every);
            left -= chunk;
            for _ in 0..chunk {
                _mm_prefetch::<_MM_HINT_T0>(a.wrapping_add(SOON * R).cast());
                _mm_prefetch::<_MM_HINT_T0>(b.wrapping_add(SOON * COLUMNS).cast());
                _mm_prefetch::<_MM_HINT_T0>(b.wrapping_add(SOON * COLUMNS + 16).cast());
                let right = [_mm512_loadu_ps(b), _mm512_loadu_ps(b.add(16))];
                for (r, sums) in sums.iter_mut().enumerate() {
                    let left = _mm512_set1_ps(*a.add(r));
                    sums[0] = _mm512_fmadd_ps(left, right[0], sums[0]);
                    sums[1] = _mm512_fmadd_ps(left, right[1], sums[1]);
                }
                a = a.add(R);
                b = b.add(COLUMNS);
            }
        }
        let scale = _mm512_set1_ps(out.scale);
        let masks = [first_lanes(columns.min(16)), first_lanes(columns.saturating_sub(16))];
        for (r, sums) in sums.iter().enumerate() {
            for (half, (sum, mask)) in sums.iter().zip(masks).enumerate() {
                let place = out.data.wrapping_add(r * out.stride + 16 * half);
                let value = match out.add {
                    true => _mm512_fmadd_ps(*sum, scale, _mm512_maskz_loadu_ps(mask, place)),
                    false => _mm512_mul_ps(*sum, scale),
                };
                _mm512_mask_storeu_ps(place, mask, value);
            }
        }
    }
}
