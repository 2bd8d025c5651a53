//! bfloat16 as bits: the upper half of a binary32.

/// Elements in a block: each value stands alone.
pub const BLOCK: usize = 1;
/// Bytes of a value.
pub const BYTES: usize = 2;

/// Rounds to the nearest bfloat16, ties to even; NaN stays NaN.
#[must_use]
pub const fn from_f32(value: f32) -> u16 {
    let bits = value.to_bits();
    if bits & 0x7FFF_FFFF > 0x7F80_0000 {
        return (bits >> 16) as u16 | 0x0040;
    }
    // Half of the dropped unit, less one where the kept part is even: the classic form of ties
    // to even. A carry out of the largest finite value lands on infinity, as it must.
    let odd = (bits >> 16) & 1;
    ((bits + 0x7FFF + odd) >> 16) as u16
}

/// The value of bfloat16 `bits`, exactly.
#[must_use]
pub const fn to_f32(bits: u16) -> f32 {
    f32::from_bits((bits as u32) << 16)
}

/// Widens little-endian bfloat16 `bytes` into `values`.
///
/// # Panics
/// If `bytes` is not twice as long as `values`.
pub fn dequantize(bytes: &[u8], values: &mut [f32]) {
    crate::assert_whole_blocks(bytes.len(), values.len(), BYTES, BLOCK);
    for (value, pair) in values.iter_mut().zip(bytes.as_chunks::<2>().0) {
        *value = to_f32(u16::from_le_bytes(*pair));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All patterns; under Miri, an interpreter, one in so many.
    const STEP: usize = if cfg!(miri) { 97 } else { 1 };

    #[test]
    fn all_65536_patterns_survive_the_round_trip() {
        for bits in (0..=u16::MAX).step_by(STEP) {
            if to_f32(bits).is_nan() {
                assert!(to_f32(from_f32(to_f32(bits))).is_nan());
            } else {
                assert_eq!(from_f32(to_f32(bits)), bits);
            }
        }
    }

    #[test]
    fn halfway_cases_go_to_the_even_neighbour() {
        for bits in (0..0x7F80u16).step_by(STEP) {
            let halfway = f32::from_bits((u32::from(bits) << 16) | 0x8000);
            let even = if bits & 1 == 0 { bits } else { bits + 1 };
            assert_eq!(from_f32(halfway), even);
            assert_eq!(from_f32(-halfway), 0x8000 | even);
            assert_eq!(from_f32(halfway.next_down()), bits);
            assert_eq!(from_f32(halfway.next_up()), bits + 1);
        }
    }
}
