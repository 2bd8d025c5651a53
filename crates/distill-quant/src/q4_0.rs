//! Q4_0: 32 weights as 4-bit codes −8 … 7 and one f16 scale, 4.5 bits a weight.
//!
//! With `m` the signed element of largest magnitude (of +v and −v, the positive one):
//!
//! ```text
//! d32  = m / −8                        f32
//! d16  = f16(d32)                      nearest even, saturating at ±65504
//! code = min(15, ⌊x · (1 / d32) + 8.5⌋)    f32, each operation rounded on its own
//! x̂    = (code − 8) · d16
//! ```
//!
//! The sign of the scale is that which gives `m` the code 0, that is −8, the end of the range
//! that has no opposite. Where `d16` is zero the block is a *zero block*: scale +0, every code 8.
//! Where it saturates, the saturated value is also the divisor.
//!
//! A scale may also be given, found by a search or learned ([`BlockQ4_0::quantize_scaled`]). Then
//!
//! ```text
//! d16  = f16(scale)                    nearest even, saturating at ±65504
//! code = clamp(⌊x · (1 / d16) + 8.5⌋, 0, 15)
//! ```
//!
//! and a zero block is where `d16` is zero.

use crate::{BLOCK, f16};

/// Bytes of a block.
pub const BYTES: usize = 18;

/// The code that stands for zero.
const ZERO_CODE: u8 = 8;

/// One block in ggml's layout: the scale, then byte `j` with element `j` in its low nibble and
/// element `j + 16` in its high one.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlockQ4_0 {
    /// The scale, binary16 bits.
    pub d: u16,
    /// The codes, two a byte.
    pub qs: [u8; 16],
}

const _: () = assert!(size_of::<BlockQ4_0>() == BYTES);

/// The scale of a block as it is stored, and the f32 reciprocal its codes are taken with;
/// `None` for a zero block.
fn scale(block: &[f32; BLOCK]) -> Option<(u16, f32)> {
    let (mut hi, mut lo) = (block[0], block[0]);
    for &x in block {
        hi = if x > hi { x } else { hi };
        lo = if x < lo { x } else { lo };
    }
    scale_of_extremes(hi, lo)
}

/// The same from the block's largest and smallest element.
#[inline(always)]
#[must_use]
pub const fn scale_of_extremes(hi: f32, lo: f32) -> Option<(u16, f32)> {
    let m = if hi >= -lo { hi } else { lo };
    let d32 = m / -8.0;
    let d16 = f16::from_f32_saturating(d32);
    if d16 & 0x7FFF == 0 {
        return None;
    }
    let saturated = f16::from_f32(d32) & 0x7FFF > f16::MAX_BITS;
    let divisor = if saturated { f16::to_f32(d16) } else { d32 };
    Some((d16, 1.0 / divisor))
}

/// A given scale as it is stored, and the f32 reciprocal its codes are taken with; `None` for a zero
/// block.
#[inline(always)]
#[must_use]
pub const fn given_scale(scale: f32) -> Option<(u16, f32)> {
    let d16 = f16::from_f32_saturating(scale);
    if d16 & 0x7FFF == 0 { None } else { Some((d16, 1.0 / f16::to_f32(d16))) }
}

/// The position of `x` on the grid before rounding down: its code is `min(15, ⌊position⌋)`.
#[inline(always)]
#[must_use]
pub const fn position(x: f32, reciprocal: f32) -> f32 {
    x * reciprocal + 8.5
}

impl BlockQ4_0 {
    /// Quantises 32 finite weights.
    #[must_use]
    pub fn quantize(block: &[f32; BLOCK]) -> Self {
        Self::codes(block, scale(block))
    }

    /// Quantises 32 finite weights with a scale that was found otherwise, finite too.
    #[must_use]
    pub fn quantize_scaled(block: &[f32; BLOCK], scale: f32) -> Self {
        Self::codes(block, given_scale(scale))
    }

    fn codes(block: &[f32; BLOCK], scale: Option<(u16, f32)>) -> Self {
        let Some((d, reciprocal)) = scale else {
            return Self { d: 0, qs: [ZERO_CODE | ZERO_CODE << 4; 16] };
        };
        // For positions ≥ 0 a cast to an integer is the floor; below, both end at code 0.
        let code = |x: f32| (position(x, reciprocal) as i32).clamp(0, 15) as u8;
        let (low, high) = block.split_at(16);
        let qs = core::array::from_fn(|j| code(low[j]) | code(high[j]) << 4);
        Self { d, qs }
    }

    /// The 32 values that the codes stand for.
    #[must_use]
    pub fn dequantize(&self) -> [f32; BLOCK] {
        let d = f16::to_f32(self.d);
        core::array::from_fn(|i| f32::from(self.code(i) as i8 - 8) * d)
    }

    /// The code of element `i`, 0 … 15.
    ///
    /// # Panics
    /// If `i >= 32`.
    #[must_use]
    pub const fn code(&self, i: usize) -> u8 {
        if i < 16 { self.qs[i] & 0x0F } else { self.qs[i - 16] >> 4 }
    }

    /// Reads a block from its bytes in a file.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; BYTES]) -> Self {
        let (d, qs) = bytes.split_at(2);
        Self { d: u16::from_le_bytes([d[0], d[1]]), qs: core::array::from_fn(|j| qs[j]) }
    }

    /// The block's bytes in a file.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; BYTES] {
        let mut bytes = [0; BYTES];
        bytes[..2].copy_from_slice(&self.d.to_le_bytes());
        bytes[2..].copy_from_slice(&self.qs);
        bytes
    }
}

/// Quantises `values` into `bytes`, block after block.
///
/// # Panics
/// If `values` is not whole blocks or `bytes` is not their size.
pub fn quantize_row(values: &[f32], bytes: &mut [u8]) {
    crate::assert_whole_blocks(bytes.len(), values.len(), BYTES, BLOCK);
    let blocks = values.as_chunks::<BLOCK>().0;
    for (block, out) in blocks.iter().zip(bytes.as_chunks_mut::<BYTES>().0) {
        *out = BlockQ4_0::quantize(block).to_bytes();
    }
}

/// The same with a given scale for each block.
///
/// # Panics
/// If `values` is not whole blocks, or `scales` or `bytes` are not as many.
pub fn quantize_row_scaled(values: &[f32], scales: &[f32], bytes: &mut [u8]) {
    crate::assert_whole_blocks(bytes.len(), values.len(), BYTES, BLOCK);
    assert_eq!(scales.len() * BLOCK, values.len(), "a scale for each block");
    let blocks = values.as_chunks::<BLOCK>().0.iter().zip(scales);
    for ((block, &scale), out) in blocks.zip(bytes.as_chunks_mut::<BYTES>().0) {
        *out = BlockQ4_0::quantize_scaled(block, scale).to_bytes();
    }
}

/// Dequantises `bytes` into `values`, block after block.
///
/// # Panics
/// If `bytes` is not whole blocks or `values` is not their size.
pub fn dequantize(bytes: &[u8], values: &mut [f32]) {
    crate::assert_whole_blocks(bytes.len(), values.len(), BYTES, BLOCK);
    let blocks = bytes.as_chunks::<BYTES>().0;
    for (block, out) in blocks.iter().zip(values.as_chunks_mut::<BLOCK>().0) {
        *out = BlockQ4_0::from_bytes(block).dequantize();
    }
}

/// Quantises and dequantises: the values that training computes with.
///
/// # Panics
/// If `values` is not whole blocks or `out` is of another length.
pub fn fake_quantize(values: &[f32], out: &mut [f32]) {
    crate::assert_rows(values, out);
    for (block, out) in values.as_chunks::<BLOCK>().0.iter().zip(out.as_chunks_mut::<BLOCK>().0) {
        *out = BlockQ4_0::quantize(block).dequantize();
    }
}

/// The factor by which a gradient passes [`fake_quantize`]: 0 where the code was clamped at the
/// top of the range (`x · (1 / d32) + 8.5 ≥ 16`), else 1. A zero block passes everything.
///
/// # Panics
/// If `values` is not whole blocks or `mask` is of another length.
pub fn straight_through_mask(values: &[f32], mask: &mut [f32]) {
    crate::assert_rows(values, mask);
    for (block, mask) in values.as_chunks::<BLOCK>().0.iter().zip(mask.as_chunks_mut::<BLOCK>().0) {
        *mask = match scale(block) {
            None => [1.0; BLOCK],
            Some((_, reciprocal)) => {
                block.map(|x| if position(x, reciprocal) < 16.0 { 1.0 } else { 0.0 })
            }
        };
    }
}

/// The gradient of a loss with respect to a block's weights and its given scale, from that with
/// respect to the 32 values that the codes stand for: straight through the rounding, in place.
///
/// With v = x / d16 and the code c − 8 it stands for, ∂x̂/∂x is 1 inside the range and 0 where the
/// code is clamped; ∂x̂/∂d is (c − 8) − v inside and c − 8 where it is clamped (LSQ, Esser et al.
/// 2020, equation 3). A zero block passes everything, and nothing to its scale.
pub fn straight_through_scaled(
    block: &[f32; BLOCK],
    scale: f32,
    gradient: &mut [f32; BLOCK],
) -> f32 {
    let Some((_, reciprocal)) = given_scale(scale) else { return 0.0 };
    let mut of_scale = 0.0;
    for (&x, gradient) in block.iter().zip(gradient) {
        let position = position(x, reciprocal);
        let inside = (0.0..16.0).contains(&position);
        let code = f32::from((position as i32).clamp(0, 15) as i8 - 8);
        of_scale += *gradient * if inside { code - x * reciprocal } else { code };
        *gradient = if inside { *gradient } else { 0.0 };
    }
    of_scale
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn block_with(set: &[(usize, f32)]) -> [f32; BLOCK] {
        let mut block = [0.0; BLOCK];
        for &(i, x) in set {
            block[i] = x;
        }
        block
    }

    #[test]
    fn golden_block_by_hand() {
        // m = −8, so d = 1 and every integer is its own value; 0.5 rounds up, −0.5 up to 0,
        // 7.4 down to 7, and 7.6 would be 8 but is clamped to 7.
        let x = [(0, -8.0), (1, 0.5), (2, -0.5), (3, 7.4), (4, 7.6), (16, 3.0), (31, -7.0)];
        let block = BlockQ4_0::quantize(&block_with(&x));
        assert_eq!(block.d, 0x3C00);
        assert_eq!(block.qs[0], 0xB0); // −8 → 0, and element 16: 3 → 11
        assert_eq!(block.qs[1], 0x89); // 0.5 → 1 → 9
        assert_eq!(block.qs[2], 0x88); // −0.5 → 0 → 8
        assert_eq!(block.qs[3], 0x8F);
        assert_eq!(block.qs[4], 0x8F);
        assert_eq!(block.qs[15], 0x18); // element 31: −7 → 1
        let values = block.dequantize();
        assert_eq!(&values[..6], &[-8.0, 1.0, 0.0, 7.0, 7.0, 0.0]);
        assert_eq!((values[16], values[31]), (3.0, -7.0));
        assert_eq!(&block.to_bytes()[..4], &[0x00, 0x3C, 0xB0, 0x89]);
    }

    #[test]
    fn a_tie_of_both_signs_takes_the_positive() {
        for x in [[(3, 2.0), (9, -2.0)], [(3, -2.0), (9, 2.0)]] {
            let block = BlockQ4_0::quantize(&block_with(&x));
            assert_eq!(f16::to_f32(block.d), -0.25);
            let values = block.dequantize();
            // +2 is exact; −2 would be +8 steps, and is clamped to 7.
            let (plus, minus) = if x[0].1 > 0.0 { (3, 9) } else { (9, 3) };
            assert_eq!((values[plus], values[minus]), (2.0, -1.75));
        }
    }

    #[test]
    fn all_zero_block_dequantizes_to_positive_zeros() {
        for zero in [0.0f32, -0.0, 1e-9, -1e-9, 2f32.powi(-22)] {
            // |m| / 8 ≤ 2⁻²⁵ rounds to an f16 zero.
            let block = BlockQ4_0::quantize(&[zero; BLOCK]);
            assert_eq!(block, BlockQ4_0 { d: 0, qs: [0x88; 16] });
            assert!(block.dequantize().iter().all(|x| x.to_bits() == 0));
        }
        let mut mask = [0.0; BLOCK];
        straight_through_mask(&[1e-9; BLOCK], &mut mask);
        assert_eq!(mask, [1.0; BLOCK]);
    }

    #[test]
    fn the_smallest_scale_is_denormal_and_still_works() {
        // m / −8 just above 2⁻²⁵ rounds up to 2⁻²⁴, the smallest f16.
        let m = 2f32.powi(-22).next_up();
        let block = BlockQ4_0::quantize(&block_with(&[(0, m), (1, m / 2.0)]));
        assert_eq!(block.d, 0x8001);
        assert_eq!(block.code(0), 0);
        assert_eq!(block.code(1), 4);
        assert_eq!(block.dequantize()[0], 2f32.powi(-21));
    }

    #[test]
    fn a_scale_beyond_f16_saturates_and_stays_finite() {
        for m in [8.0 * 65520.0, 1e30, f32::MAX] {
            for sign in [1.0, -1.0] {
                let block =
                    BlockQ4_0::quantize(&block_with(&[(0, sign * m), (1, sign * -65504.0)]));
                assert_eq!(f16::to_f32(block.d), -sign * 65504.0);
                assert_eq!(block.code(0), 0);
                assert_eq!(block.code(1), 9);
                assert_eq!(block.dequantize()[0], sign * 8.0 * 65504.0);
            }
        }
        // One step below the tie nothing saturates: d32 itself is the divisor.
        let m = (8.0f32 * 65520.0).next_down();
        assert_eq!(BlockQ4_0::quantize(&block_with(&[(0, m)])).d, 0xFBFF);
    }

    #[test]
    fn the_mask_is_zero_exactly_where_the_code_is_clamped() {
        let x = block_with(&[(0, -8.0), (1, 7.4), (2, 7.5), (3, 7.9), (4, -7.9)]);
        let mut mask = [0.5; BLOCK];
        straight_through_mask(&x, &mut mask);
        assert_eq!(&mask[..6], &[1.0, 1.0, 0.0, 0.0, 1.0, 1.0]);
    }

    #[test]
    fn a_given_scale_is_that_of_the_block_and_clamps_at_both_ends() {
        let x = [(0, -8.0), (1, -8.6), (2, 7.4), (3, 7.6), (4, 0.5), (5, -0.5)];
        let block = BlockQ4_0::quantize_scaled(&block_with(&x), 1.0);
        assert_eq!(block.dequantize()[..6], [-8.0, -8.0, 7.0, 7.0, 1.0, 0.0]);
        // A negative scale turns the range around.
        let block = BlockQ4_0::quantize_scaled(&block_with(&[(0, 8.0), (1, -8.0)]), -1.0);
        assert_eq!(block.dequantize()[..3], [8.0, -7.0, 0.0]);
        // The codes are those of the scale as it is stored.
        let scale = 1.0 + 2f32.powi(-12);
        assert_eq!(
            BlockQ4_0::quantize_scaled(&block_with(&x), scale),
            BlockQ4_0::quantize_scaled(&block_with(&x), 1.0)
        );
        for zero in [0.0, -0.0, 1e-9] {
            assert_eq!(
                BlockQ4_0::quantize_scaled(&block_with(&x), zero),
                BlockQ4_0 { d: 0, qs: [0x88; 16] }
            );
        }
        let large = BlockQ4_0::quantize_scaled(&block_with(&[(0, -1e30)]), 1e30);
        assert_eq!(large.dequantize()[0], -8.0 * 65504.0);
    }

    #[test]
    fn a_block_with_its_own_scale_given_keeps_its_codes() {
        let values: [f32; BLOCK] = core::array::from_fn(|i| ((i * 7 % 32) as f32 - 16.0) / 2.0);
        let block = BlockQ4_0::quantize(&values);
        let d = f16::to_f32(block.d);
        assert_eq!(BlockQ4_0::quantize_scaled(&block.dequantize(), d), block);
    }

    #[test]
    fn the_slope_of_a_given_scale_is_that_of_finite_differences() {
        // Between its boundaries x̂ is a line in d through c − 8; the straight-through part −v is
        // that of a rounding whose slope is taken to be 1.
        let x = block_with(&[(0, -9.0), (1, 3.2), (2, 9.0), (3, -1.6)]);
        let mut gradient = [0.0; BLOCK];
        for (i, g) in [(0, 0.5), (1, 2.0), (2, -1.0), (3, 4.0)] {
            gradient[i] = g;
        }
        let of_scale = straight_through_scaled(&x, 1.0, &mut gradient);
        let inside = 2.0 * (3.0 - 3.2) + 4.0 * (-2.0 + 1.6);
        assert!((of_scale - (0.5 * -8.0 - 7.0 + inside)).abs() < 1e-6);
        assert_eq!(gradient[..4], [0.0, 2.0, 0.0, 4.0]);
        let mut all = [1.0; BLOCK];
        assert_eq!(straight_through_scaled(&x, 0.0, &mut all), 0.0);
        assert_eq!(all, [1.0; BLOCK]);
    }

    #[test]
    fn rows_are_blocks_one_after_the_other() {
        let values: [f32; 64] = core::array::from_fn(|i| (i as f32 * 0.37).sin());
        let mut bytes = [0; 36];
        quantize_row(&values, &mut bytes);
        let second = BlockQ4_0::quantize(values.as_chunks().0.last().unwrap());
        assert_eq!(bytes[18..], second.to_bytes());
        let (mut back, mut fake) = ([0.0; 64], [0.0; 64]);
        dequantize(&bytes, &mut back);
        fake_quantize(&values, &mut fake);
        assert_eq!(back.map(f32::to_bits), fake.map(f32::to_bits));
    }

    /// Blocks whose magnitudes spread over the whole range of f16 scales and beyond.
    fn any_block() -> impl Strategy<Value = [f32; BLOCK]> {
        let element = prop_oneof![
            8 => -1.0f32..=1.0,
            1 => Just(1.0f32),
            1 => Just(-1.0f32),
            1 => Just(0.0f32),
        ];
        (prop::array::uniform32(element), -30i32..22)
            .prop_map(|(x, exponent)| x.map(|x| x * 2f32.powi(exponent)))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 8 } else { 2000 }))]

        #[test]
        fn quantizing_what_was_dequantized_changes_nothing(x in any_block()) {
            let once = BlockQ4_0::quantize(&x);
            let twice = BlockQ4_0::quantize(&once.dequantize());
            prop_assert_eq!(once, twice);
            prop_assert_eq!(BlockQ4_0::from_bytes(&once.to_bytes()), once);
        }

        /// Half a step, or a whole one at the clamped end, and what rounding d to f16 moves the
        /// largest code by: |d| (1 + 8 · 2⁻¹¹) for a normal scale, 2⁻²⁵ · 8 more for a denormal.
        #[test]
        fn the_error_is_within_one_step(x in any_block()) {
            let m = x.iter().fold(0f32, |m, x| m.max(x.abs()));
            let d = f64::from(m) / 8.0;
            prop_assume!(d < 65504.0);
            let bound = d * (1.0 + 8.0 / 2048.0 + 1e-6) + 8.0 * 2f64.powi(-25);
            for (x, y) in x.iter().zip(BlockQ4_0::quantize(&x).dequantize()) {
                let error = (f64::from(*x) - f64::from(y)).abs();
                prop_assert!(error <= bound, "{} → {}: {} > {}", x, y, error, bound);
            }
        }

        #[test]
        fn codes_equal_the_formula_in_f64_away_from_boundaries(x in any_block()) {
            let m = x.iter().copied().fold(0f32, |m, x| {
                if x.abs() > m.abs() || (x.abs() == m.abs() && x > m) { x } else { m }
            });
            let d = f64::from(m) / -8.0;
            prop_assume!(d.abs() > 2f64.powi(-24) && d.abs() < 65504.0);
            let block = BlockQ4_0::quantize(&x);
            for (i, &x) in x.iter().enumerate() {
                let exact = f64::from(x) / d + 8.5;
                if (exact - exact.round()).abs() > 1e-5 {
                    prop_assert_eq!(f64::from(block.code(i)), exact.floor().clamp(0.0, 15.0));
                }
            }
        }
    }
}
