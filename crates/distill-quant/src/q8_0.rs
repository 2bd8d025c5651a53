//! Q8_0: 32 weights as 8-bit codes −127 … 127 and one f16 scale, 8.5 bits a weight.
//!
//! ```text
//! d32  = max |x| / 127                         f32
//! d16  = f16(d32)                              nearest even, saturating at 65504
//! code = clamp(round(x · (1 / d32)), ±127)     nearest even
//! x̂    = code · d16
//! ```
//!
//! Where `d16` is zero the block is a *zero block*: scale 0, every code 0. Where it saturates, the
//! saturated value is also the divisor. No code is ever clamped except by saturation, so gradients
//! pass everywhere.
//!
//! *Activations* follow the same rule at run time, but their scale is never stored, and stays f32.

use crate::{BLOCK, f16};

/// Bytes of a block.
pub const BYTES: usize = 34;

/// One block in ggml's layout: the scale, then the codes.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlockQ8_0 {
    /// The scale, binary16 bits.
    pub d: u16,
    /// The codes.
    pub qs: [i8; BLOCK],
}

const _: () = assert!(size_of::<BlockQ8_0>() == BYTES);

/// `max |x| / 127` in f32.
fn unrounded_scale(block: &[f32; BLOCK]) -> f32 {
    let mut largest = 0.0f32;
    for x in block {
        let magnitude = x.abs();
        largest = if magnitude > largest { magnitude } else { largest };
    }
    largest / 127.0
}

/// The scale of a block as it is stored, from `max |x| / 127`, and the reciprocal its codes are
/// taken with; `None` for a zero block.
#[inline(always)]
#[must_use]
pub const fn scale_of_unrounded(d32: f32) -> Option<(u16, f32)> {
    let d = f16::from_f32_saturating(d32);
    if d == 0 {
        return None;
    }
    let saturated = f16::from_f32(d32) > f16::MAX_BITS;
    Some((d, 1.0 / if saturated { f16::to_f32(d) } else { d32 }))
}

fn code(x: f32, reciprocal: f32) -> i8 {
    rounded(x, reciprocal) as i8
}

/// `clamp(round(x · reciprocal), ±127)`, ties to even: the code as a float.
#[inline(always)]
#[must_use]
pub const fn rounded(x: f32, reciprocal: f32) -> f32 {
    // The bounds are integers, so clamping first changes nothing. Adding 1.5 · 2²³ leaves no
    // fraction bits, and the addition rounds to nearest even, as f32 arithmetic does.
    const NO_FRACTION: f32 = 12_582_912.0;
    let clamped = (x * reciprocal).clamp(-127.0, 127.0);
    (clamped + NO_FRACTION) - NO_FRACTION
}

impl BlockQ8_0 {
    /// Quantises 32 finite weights.
    #[must_use]
    pub fn quantize(block: &[f32; BLOCK]) -> Self {
        match scale_of_unrounded(unrounded_scale(block)) {
            None => Self { d: 0, qs: [0; BLOCK] },
            Some((d, reciprocal)) => Self { d, qs: block.map(|x| code(x, reciprocal)) },
        }
    }

    /// The 32 values that the codes stand for.
    #[must_use]
    pub fn dequantize(&self) -> [f32; BLOCK] {
        let d = f16::to_f32(self.d);
        self.qs.map(|code| f32::from(code) * d)
    }

    /// The code of element `i`, −127 … 127.
    ///
    /// # Panics
    /// If `i >= 32`.
    #[must_use]
    pub const fn code(&self, i: usize) -> i8 {
        self.qs[i]
    }

    /// Reads a block from its bytes in a file.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; BYTES]) -> Self {
        let (d, qs) = bytes.split_at(2);
        Self { d: u16::from_le_bytes([d[0], d[1]]), qs: core::array::from_fn(|i| qs[i] as i8) }
    }

    /// The block's bytes in a file.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; BYTES] {
        let mut bytes = [0; BYTES];
        bytes[..2].copy_from_slice(&self.d.to_le_bytes());
        for (byte, code) in bytes[2..].iter_mut().zip(self.qs) {
            *byte = code as u8;
        }
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
        *out = BlockQ8_0::quantize(block).to_bytes();
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
        *out = BlockQ8_0::from_bytes(block).dequantize();
    }
}

/// Quantises and dequantises: the values that training computes with.
///
/// # Panics
/// If `values` is not whole blocks or `out` is of another length.
pub fn fake_quantize(values: &[f32], out: &mut [f32]) {
    crate::assert_rows(values, out);
    for (block, out) in values.as_chunks::<BLOCK>().0.iter().zip(out.as_chunks_mut::<BLOCK>().0) {
        *out = BlockQ8_0::quantize(block).dequantize();
    }
}

/// The factor by which a gradient passes [`fake_quantize`]: 1 everywhere.
///
/// # Panics
/// If `values` is not whole blocks or `mask` is of another length.
pub fn straight_through_mask(values: &[f32], mask: &mut [f32]) {
    crate::assert_rows(values, mask);
    mask.fill(1.0);
}

/// Quantises 32 finite activations: the scale in f32, and the codes. A block whose scale would be
/// denormal has the scale 0 and the codes 0.
#[must_use]
pub fn quantize_activation(block: &[f32; BLOCK]) -> (f32, [i8; BLOCK]) {
    let d = unrounded_scale(block);
    if d < f32::MIN_POSITIVE {
        return (0.0, [0; BLOCK]);
    }
    let reciprocal = 1.0 / d;
    (d, block.map(|x| code(x, reciprocal)))
}

/// Quantises and dequantises activations: `code · d` of [`quantize_activation`].
///
/// # Panics
/// If `values` is not whole blocks or `out` is of another length.
pub fn fake_quantize_activation(values: &[f32], out: &mut [f32]) {
    crate::assert_rows(values, out);
    for (block, out) in values.as_chunks::<BLOCK>().0.iter().zip(out.as_chunks_mut::<BLOCK>().0) {
        let (d, codes) = quantize_activation(block);
        *out = codes.map(|code| f32::from(code) * d);
    }
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
        // absmax 127, so d = 1; halves go to the even neighbour.
        let x = [(0, 127.0), (1, 0.5), (2, 1.5), (3, -2.5), (4, -127.0), (31, 63.4)];
        let block = BlockQ8_0::quantize(&block_with(&x));
        assert_eq!(block.d, 0x3C00);
        assert_eq!(&block.qs[..6], &[127, 0, 2, -2, -127, 0]);
        assert_eq!(block.code(31), 63);
        assert_eq!(&block.to_bytes()[..7], &[0x00, 0x3C, 127, 0, 2, 0xFE, 0x81]);
        assert_eq!(block.dequantize()[3], -2.0);
    }

    #[test]
    fn all_zero_block_dequantizes_to_positive_zeros() {
        for zero in [0.0f32, -0.0, 1e-9, -1e-9, 127.0 * 2f32.powi(-25)] {
            let block = BlockQ8_0::quantize(&[zero; BLOCK]);
            assert_eq!(block, BlockQ8_0 { d: 0, qs: [0; BLOCK] });
            assert!(block.dequantize().iter().all(|x| x.to_bits() == 0));
        }
    }

    #[test]
    fn the_smallest_scale_is_denormal_and_still_works() {
        let largest = (127.0 * 2f32.powi(-25)) * 1.01;
        let block = BlockQ8_0::quantize(&block_with(&[(0, -largest), (1, largest / 2.0)]));
        assert_eq!((block.d, block.code(0), block.code(1)), (1, -127, 64));
    }

    #[test]
    fn a_scale_beyond_f16_saturates_and_stays_finite() {
        for largest in [127.0 * 65520.0, 1e30, f32::MAX] {
            let block = BlockQ8_0::quantize(&block_with(&[(0, -largest), (1, 65504.0 * 3.0)]));
            assert_eq!((block.d, block.code(0), block.code(1)), (0x7BFF, -127, 3));
            assert!(block.dequantize().iter().all(|x| x.is_finite()));
        }
    }

    #[test]
    fn activations_keep_an_f32_scale() {
        let (d, codes) = quantize_activation(&block_with(&[(0, 1.0), (1, -0.5), (2, 1e-3)]));
        assert_eq!(d, 1.0 / 127.0);
        assert_eq!(&codes[..4], &[127, -64, 0, 0]); // −63.5 rounds to the even −64
        let (d, codes) = quantize_activation(&[f32::MIN_POSITIVE * 126.0; BLOCK]);
        assert_eq!((d, codes), (0.0, [0; BLOCK]));
        let (d, codes) = quantize_activation(&[f32::MIN_POSITIVE * 127.0; BLOCK]);
        assert_eq!((d, codes), (f32::MIN_POSITIVE, [127; BLOCK]));
        let (d, codes) = quantize_activation(&[f32::MAX; BLOCK]);
        assert!(d.is_finite() && codes == [127; BLOCK]);
    }

    fn any_block() -> impl Strategy<Value = [f32; BLOCK]> {
        let element = prop_oneof![
            8 => -1.0f32..=1.0,
            1 => Just(1.0f32),
            1 => Just(-1.0f32),
            1 => Just(0.0f32),
        ];
        (prop::array::uniform32(element), -30i32..26)
            .prop_map(|(x, exponent)| x.map(|x| x * 2f32.powi(exponent)))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 8 } else { 2000 }))]

        #[test]
        fn quantizing_what_was_dequantized_changes_nothing(x in any_block()) {
            let once = BlockQ8_0::quantize(&x);
            prop_assert_eq!(once, BlockQ8_0::quantize(&once.dequantize()));
            prop_assert_eq!(BlockQ8_0::from_bytes(&once.to_bytes()), once);
        }

        /// Half a step, and what rounding d to f16 moves the largest code by: 127 · 2⁻¹¹ steps
        /// for a normal scale, 127 · 2⁻²⁵ for a denormal.
        #[test]
        fn the_error_is_within_its_bound(x in any_block()) {
            let largest = x.iter().fold(0f32, |m, x| m.max(x.abs()));
            let d = f64::from(largest) / 127.0;
            prop_assume!(d < 65504.0);
            let bound = d * (0.5 + 127.0 / 2048.0 + 1e-4) + 127.0 * 2f64.powi(-25);
            for (x, y) in x.iter().zip(BlockQ8_0::quantize(&x).dequantize()) {
                prop_assert!((f64::from(*x) - f64::from(y)).abs() <= bound);
            }
        }

        #[test]
        fn codes_equal_f32_rounding_of_the_standard_library(x in any_block()) {
            let (d, codes) = quantize_activation(&x);
            prop_assume!(d > 0.0);
            for (x, code) in x.iter().zip(codes) {
                prop_assert_eq!(f32::from(code), (x * (1.0 / d)).round_ties_even());
            }
        }
    }
}
