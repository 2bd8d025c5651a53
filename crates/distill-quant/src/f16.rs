//! IEEE 754 binary16 as bits: the type of every stored scale.
//!
//! 1 sign bit, 5 exponent bits (bias 15), 10 fraction bits. Largest finite value 65504, smallest
//! normal 2⁻¹⁴, smallest subnormal 2⁻²⁴.

/// Elements in a block: each value stands alone.
pub const BLOCK: usize = 1;
/// Bytes of a value.
pub const BYTES: usize = 2;
/// The bits of the largest finite value, 65504.
pub const MAX_BITS: u16 = 0x7BFF;

/// Rounds to the nearest binary16, ties to even; overflow gives infinity, NaN stays NaN.
#[inline]
#[must_use]
pub const fn from_f32(value: f32) -> u16 {
    let bits = value.to_bits();
    let sign = ((bits >> 16) & 0x8000) as u16;
    let magnitude = bits & 0x7FFF_FFFF;

    if magnitude > 0x7F80_0000 {
        // NaN: keep the upper payload, and make it quiet so that it cannot become an infinity.
        return sign | 0x7E00 | ((magnitude >> 13) & 0x03FF) as u16;
    }
    // 65520 lies half way between 65504 and the next step, and the tie goes to the even side,
    // which is infinity.
    if magnitude >= 0x477F_F000 {
        return sign | 0x7C00;
    }
    // Normal results: drop 13 fraction bits. Rounding up may carry into the exponent, which is
    // exactly the next binade.
    if magnitude >= 0x3880_0000 {
        let rebiased = magnitude - ((127 - 15) << 23);
        return sign | shift_right_to_even(rebiased, 13) as u16;
    }
    // Below 2⁻²⁵ everything rounds to zero, and so does the tie at 2⁻²⁵ itself.
    if magnitude <= 0x3300_0000 {
        return sign;
    }
    // Subnormal results count units of 2⁻²⁴: significand · 2^(exponent − 150) / 2⁻²⁴.
    let exponent = magnitude >> 23;
    let significand = (magnitude & 0x007F_FFFF) | 0x0080_0000;
    sign | shift_right_to_even(significand, 126 - exponent) as u16
}

/// As [`from_f32`], but what would be infinite becomes the largest finite value of that sign.
///
/// Scales are stored by this rule: a block of absurd weights loses precision, never finiteness.
#[inline]
#[must_use]
pub const fn from_f32_saturating(value: f32) -> u16 {
    let bits = from_f32(value);
    if bits & 0x7FFF == 0x7C00 { (bits & 0x8000) | MAX_BITS } else { bits }
}

/// The value of binary16 `bits`, exactly.
#[inline]
#[must_use]
pub const fn to_f32(bits: u16) -> f32 {
    let sign = ((bits & 0x8000) as u32) << 16;
    let exponent = ((bits >> 10) & 0x1F) as u32;
    let fraction = (bits & 0x03FF) as u32;
    let magnitude = match exponent {
        0 => {
            // Zero or subnormal: fraction · 2⁻²⁴, a product that is exact in f32.
            let unit = f32::from_bits((127 - 24) << 23);
            (fraction as f32 * unit).to_bits()
        }
        31 => 0x7F80_0000 | (fraction << 13),
        _ => ((exponent + 127 - 15) << 23) | (fraction << 13),
    };
    f32::from_bits(sign | magnitude)
}

/// Widens little-endian binary16 `bytes` into `values`.
///
/// # Panics
/// If `bytes` is not twice as long as `values`.
pub fn dequantize(bytes: &[u8], values: &mut [f32]) {
    crate::assert_whole_blocks(bytes.len(), values.len(), BYTES, BLOCK);
    for (value, pair) in values.iter_mut().zip(bytes.as_chunks::<2>().0) {
        *value = to_f32(u16::from_le_bytes(*pair));
    }
}

/// `value / 2^shift`, rounded to nearest, ties to even. `1 <= shift <= 31`.
const fn shift_right_to_even(value: u32, shift: u32) -> u32 {
    let floor = value >> shift;
    let rest = value & ((1 << shift) - 1);
    let half = 1 << (shift - 1);
    if rest > half || (rest == half && floor & 1 == 1) { floor + 1 } else { floor }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All patterns; under Miri, an interpreter, one in so many.
    const STEP: usize = if cfg!(miri) { 97 } else { 1 };

    /// The textbook formula in f64, sharing nothing with the code above.
    fn value_by_formula(bits: u16) -> f64 {
        let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
        let exponent = i32::from((bits >> 10) & 31);
        let fraction = f64::from(bits & 1023) / 1024.0;
        sign * match exponent {
            0 => fraction * 2f64.powi(-14),
            31 if fraction == 0.0 => f64::INFINITY,
            31 => f64::NAN,
            _ => (1.0 + fraction) * 2f64.powi(exponent - 15),
        }
    }

    #[test]
    fn all_65536_patterns_widen_as_the_formula_says() {
        for bits in (0..=u16::MAX).step_by(STEP) {
            let (got, want) = (to_f32(bits), value_by_formula(bits));
            if want.is_nan() {
                assert!(got.is_nan(), "{bits:#06x}");
            } else {
                assert_eq!(f64::from(got), want, "{bits:#06x}");
                assert_eq!(got.is_sign_negative(), bits >> 15 == 1, "{bits:#06x}");
            }
        }
    }

    #[test]
    fn all_65536_patterns_survive_the_round_trip() {
        for bits in (0..=u16::MAX).step_by(STEP) {
            let back = from_f32(to_f32(bits));
            if to_f32(bits).is_nan() {
                assert!(to_f32(back).is_nan());
            } else {
                assert_eq!(back, bits);
            }
        }
    }

    #[test]
    fn halfway_cases_go_to_the_even_neighbour_and_their_neighbours_to_the_nearest() {
        for bits in (0..0x7C00u16).step_by(STEP) {
            let low = to_f32(bits);
            // The neighbour above, by the formula where it exists; above 65504 the next step
            // would be 65536, and reaching it means infinity.
            let high = if bits == MAX_BITS { 65536.0 } else { to_f32(bits + 1) };
            let halfway = ((f64::from(low) + f64::from(high)) / 2.0) as f32;
            let even = if bits & 1 == 0 { bits } else { bits + 1 };
            for sign in [0, 0x8000] {
                let signed = |x: f32| if sign == 0 { x } else { -x };
                assert_eq!(from_f32(signed(halfway)), sign | even, "{bits:#06x}");
                assert_eq!(from_f32(signed(halfway.next_down())), sign | bits);
                assert_eq!(from_f32(signed(halfway.next_up())), sign | (bits + 1));
            }
        }
    }

    #[test]
    fn saturation_replaces_infinity_only() {
        for value in [65520.0, 1e10, f32::MAX, f32::INFINITY] {
            assert_eq!(from_f32_saturating(value), 0x7BFF);
            assert_eq!(from_f32_saturating(-value), 0xFBFF);
        }
        assert_eq!(from_f32_saturating(65519.99), 0x7BFF);
        assert_eq!(from_f32_saturating(1.0), 0x3C00);
        assert_eq!(from_f32_saturating(-0.0), 0x8000);
        assert!(to_f32(from_f32_saturating(f32::NAN)).is_nan());
    }

    #[test]
    fn nan_with_a_small_payload_does_not_become_infinity() {
        let nan = f32::from_bits(0x7F80_0001);
        assert!(to_f32(from_f32(nan)).is_nan());
    }
}
