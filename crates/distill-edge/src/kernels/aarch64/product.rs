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

    use super::super::super::codes::Token;
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
    pub fn start(token: &Token<'_>, block: usize) -> i32 {
        token.offsets[block]
    }
}

/// Codes −128 … 127.
pub mod q8_0 {
    use std::arch::aarch64::{int8x16_t, vdupq_n_s8, vreinterpretq_s8_u8};

    use super::super::super::codes::Token;
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
    pub fn start(_: &Token<'_>, _: usize) -> i32 {
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

/// `product_q4_0` and `product_q8_0` for an instruction set: `products!(features, [tokens of a tile,
/// widest first, down to 1], sums)`.
///
/// `$sums(codes: &[[int8x16_t; _]; _], x: &[Token; T], b, start: [i32; T]) -> [int32x4_t; T]` gives
/// `start[t] + Σ_c codes[r, c] · a[t][c]` with block b of the activations, row r in lane r. A macro,
/// because all of it has to be compiled for the instruction set of the sums; and without closures
/// in its loops, since the standard library's functions that call them are not.
macro_rules! products {
    ($features:literal, $tiles:tt, $sums:ident) => {
        products!($features, $tiles, $sums, q4_0, product_q4_0, tile_q4_0);
        products!($features, $tiles, $sums, q8_0, product_q8_0, tile_q8_0);
    };
    (
        $features:literal, [$($tokens:literal),*], $sums:ident,
        $grid:ident, $product:ident, $tile:ident
    ) => {
        #[target_feature(enable = $features)]
        pub fn $product(
            w: &[u8],
            x: $crate::kernels::Codes<'_>,
            columns: usize,
            y: &mut [f32],
            stride: usize,
        ) {
            use distill_quant::packed::ROWS;
            use $crate::kernels::aarch64::product::$grid::RECORD;
            use $crate::kernels::{BLOCK, codes::Token};

            let blocks = columns / BLOCK;
            let groups = w.as_chunks::<RECORD>().0.chunks_exact(blocks);
            let tokens = x.codes.len() / columns;
            for (g, group) in groups.enumerate() {
                let mut t = 0;
                $(while tokens - t >= $tokens {
                    let x: [_; $tokens] = std::array::from_fn(|i| Token::new(&x, t + i, blocks));
                    for (i, rows) in $tile(group, &x).into_iter().enumerate() {
                        let y = &mut y[(t + i) * stride + g * ROWS..][..ROWS];
                        y.copy_from_slice(rows.as_flattened());
                    }
                    t += $tokens;
                })*
            }
        }

        #[target_feature(enable = $features)]
        #[inline]
        fn $tile<const T: usize>(
            group: &[[u8; $crate::kernels::aarch64::product::$grid::RECORD]],
            x: &[$crate::kernels::codes::Token<'_>; T],
        ) -> [[[f32; 4]; 4]; T] {
            use std::arch::aarch64::{vcvtq_f32_s32, vdupq_n_f32, vfmaq_f32, vmulq_n_f32};
            use $crate::kernels::aarch64::product::{scales, store, $grid};

            x.iter().for_each(|x| x.assert_blocks(group.len()));
            let mut acc = [[vdupq_n_f32(0.0); 4]; T];
            for (b, record) in group.iter().enumerate() {
                let mut start = [0; T];
                for t in 0..T {
                    start[t] = $grid::start(&x[t], b);
                }
                for quarter in 0..4 {
                    let sums = $sums(&$grid::codes(record, quarter), x, b, start);
                    let scales = scales(record, quarter);
                    for t in 0..T {
                        let scale = vmulq_n_f32(scales, x[t].scales[b]);
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
