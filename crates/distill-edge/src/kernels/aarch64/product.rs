//! Products of quantised rows.
//!
//! ```text
//! for each group (16 rows) and tile of T tokens:
//!   acc[t] = 0                                               4 × 4 f32 lanes, one a row
//!   for each record and quarter of it (4 rows):
//!     w = 8 registers, each of 4 rows × 4 columns
//!     sum[t] = start[t] + Σ w · a[t]                         4 i32 lanes, one a row
//!     acc[t] += cvt(sum[t]) · (weight scales · activation scale)
//! ```
//! Instruction sets differ in how they sum, grids in how codes become registers and in what the
//! sums start with. Quarters follow each other, so that few sums are under way at a time and the
//! activations stay in registers for all of a record; the accumulators then wait in the nearest
//! cache, where each is wanted once a record.

#![allow(unsafe_code)]

use std::arch::aarch64::{
    float32x4_t, uint8x16_t, vcvt_f32_f16, vld1_u8, vld1q_u8, vreinterpret_f16_u8, vst1q_f32,
};

use distill_quant::packed::SCALES;

/// Codes + 8, 0 … 15.
pub mod q4_0 {
    use std::arch::aarch64::{
        int8x16_t, vandq_u8, vdupq_n_s8, vdupq_n_u8, vreinterpretq_s8_u8, vshrq_n_u8,
    };

    use super::super::super::Block;
    use super::load;
    pub use distill_quant::packed::Q4_0_RECORD as RECORD;

    /// Register k holds columns 4 k … 4 k + 3 of four rows, row after row. One run: 8 products add
    /// up to 8 · 15 · 127 = 15,240 in a 16-bit lane.
    #[target_feature(enable = "neon")]
    #[inline]
    pub fn codes(record: &[u8; RECORD], quarter: usize) -> [[int8x16_t; 8]; 1] {
        let mut codes = [vdupq_n_s8(0); 8];
        for j in 0..4 {
            let packed = load(record, 4 * j + quarter);
            codes[j] = vreinterpretq_s8_u8(vandq_u8(packed, vdupq_n_u8(15)));
            codes[4 + j] = vreinterpretq_s8_u8(vshrq_n_u8::<4>(packed));
        }
        [codes]
    }

    /// Takes back what the sums are too large by.
    #[inline]
    pub fn start(x: &Block) -> i32 {
        x.offset
    }
}

/// Codes −128 … 127.
pub mod q8_0 {
    use std::arch::aarch64::{int8x16_t, vdupq_n_s8, vreinterpretq_s8_u8};

    use super::super::super::Block;
    use super::load;
    pub use distill_quant::packed::Q8_0_RECORD as RECORD;

    /// As Q4_0's. Runs of two: their products add up to 2 · 128 · 127 = 32,512 in a 16-bit lane.
    #[target_feature(enable = "neon")]
    #[inline]
    pub fn codes(record: &[u8; RECORD], quarter: usize) -> [[int8x16_t; 2]; 4] {
        let mut codes = [[vdupq_n_s8(0); 2]; 4];
        for (j, codes) in codes.as_flattened_mut().iter_mut().enumerate() {
            *codes = vreinterpretq_s8_u8(load(record, 4 * j + quarter));
        }
        codes
    }

    /// The sums are exact.
    #[inline]
    pub fn start(_: &Block) -> i32 {
        0
    }
}

/// Sixteen bytes of codes.
#[target_feature(enable = "neon")]
#[inline]
fn load<const BYTES: usize>(record: &[u8; BYTES], i: usize) -> uint8x16_t {
    let bytes = &record[SCALES..].as_chunks::<16>().0[i];
    // SAFETY: 16 bytes are readable; the load needs no alignment.
    unsafe { vld1q_u8(bytes.as_ptr()) }
}

/// The scales of four rows.
#[target_feature(enable = "neon")]
#[inline]
pub fn scales<const BYTES: usize>(record: &[u8; BYTES], quarter: usize) -> float32x4_t {
    let bytes = &record[..SCALES].as_chunks::<8>().0[quarter];
    // SAFETY: 8 bytes are readable; the load needs no alignment.
    vcvt_f32_f16(vreinterpret_f16_u8(unsafe { vld1_u8(bytes.as_ptr()) }))
}

#[target_feature(enable = "neon")]
#[inline]
pub fn store(value: float32x4_t, to: &mut [f32; 4]) {
    // SAFETY: four f32 are writable; the store needs no alignment.
    unsafe { vst1q_f32(to.as_mut_ptr(), value) }
}

/// `product_q4_0` and `product_q8_0` for an instruction set: `products!(features, tokens of a tile,
/// sums)`.
///
/// `$sums(codes: &[[int8x16_t; _]; _], x: &[Block; T], start: [i32; T]) -> [int32x4_t; T]` gives
/// `start[t] + Σ_c codes[r, c] · x[t].codes[c]`, row r in lane r. A macro, because all of it has to
/// be compiled for the instruction set of the sums; and without closures in its loops, since the
/// standard library's functions that call them are not.
macro_rules! products {
    ($features:literal, $tokens:literal, $sums:ident) => {
        products!($features, $tokens, $sums, q4_0, product_q4_0, all_q4_0, tile_q4_0);
        products!($features, $tokens, $sums, q8_0, product_q8_0, all_q8_0, tile_q8_0);
    };
    (
        $features:literal, $tokens:literal, $sums:ident,
        $grid:ident, $product:ident, $all:ident, $tile:ident
    ) => {
        #[target_feature(enable = $features)]
        pub fn $product(
            w: &[u8],
            x: $crate::kernels::Codes<'_>,
            columns: usize,
            y: &mut [f32],
            stride: usize,
        ) {
            match x.tokens {
                1 => $all::<1, 1>(w, x, columns, y, stride),
                _ => $all::<$tokens, { $crate::kernels::SIDE_BY_SIDE }>(w, x, columns, y, stride),
            }
        }

        /// In tiles of T tokens, of which W lie side by side.
        #[target_feature(enable = $features)]
        #[inline]
        fn $all<const T: usize, const W: usize>(
            w: &[u8],
            x: $crate::kernels::Codes<'_>,
            columns: usize,
            y: &mut [f32],
            stride: usize,
        ) {
            use distill_quant::packed::ROWS;
            use $crate::kernels::BLOCK;
            use $crate::kernels::aarch64::product::$grid::RECORD;

            let blocks = columns / BLOCK;
            for (first, x_tile) in (0..x.tokens).step_by(W).zip(x.tiles::<W>(blocks)) {
                let end = x.tokens.min(first + W);
                for from in (first..end).step_by(T) {
                    let groups = w.as_chunks::<RECORD>().0.chunks_exact(blocks);
                    for (g, group) in groups.enumerate() {
                        let all = $tile::<T, W>(group, x_tile, from - first);
                        for (t, rows) in (from..end).zip(&all) {
                            let y = &mut y[t * stride + g * ROWS..][..ROWS];
                            y.copy_from_slice(rows.as_flattened());
                        }
                    }
                }
            }
        }

        /// The tokens from `from` on.
        #[target_feature(enable = $features)]
        #[inline]
        fn $tile<const T: usize, const W: usize>(
            group: &[[u8; $crate::kernels::aarch64::product::$grid::RECORD]],
            x: &[[$crate::kernels::Block; W]],
            from: usize,
        ) -> [[[f32; 4]; 4]; T] {
            use std::arch::aarch64::{vcvtq_f32_s32, vdupq_n_f32, vfmaq_f32, vmulq_n_f32};
            use $crate::kernels::aarch64::product::{scales, store, $grid};

            let mut acc = [[vdupq_n_f32(0.0); 4]; T];
            for (record, x) in group.iter().zip(x) {
                let x = x[from..].first_chunk::<T>().expect("T divides W");
                let mut start = [0; T];
                for t in 0..T {
                    start[t] = $grid::start(&x[t]);
                }
                for quarter in 0..4 {
                    let sums = $sums(&$grid::codes(record, quarter), x, start);
                    let scales = scales(record, quarter);
                    for t in 0..T {
                        let scale = vmulq_n_f32(scales, x[t].scale);
                        let sum = vcvtq_f32_s32(sums[t]);
                        acc[t][quarter] = vfmaq_f32(acc[t][quarter], sum, scale);
                    }
                }
            }
            let mut rows = [[[0.0; 4]; 4]; T];
            for t in 0..T {
                for quarter in 0..4 {
                    store(acc[t][quarter], &mut rows[t][quarter]);
                }
            }
            rows
        }
    };
}

pub(super) use products;
