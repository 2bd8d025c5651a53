//! The 12 bytes in which Q4_K and Q5_K pack eight 6-bit scales and eight 6-bit minima.
//!
//! Sub-blocks 0 … 3 have their scale in the low six bits of bytes 0 … 3 and their minimum in those
//! of bytes 4 … 7. Sub-blocks 4 … 7 have the low four bits of both in bytes 8 … 11 (scale in the
//! low nibble), and the upper two bits in the two top bits left free above.

/// Scale and minimum of sub-block `j`, each 0 … 63.
pub(crate) fn scale_and_min(packed: &[u8; 12], j: usize) -> (u8, u8) {
    if j < 4 {
        (packed[j] & 63, packed[j + 4] & 63)
    } else {
        let low = packed[j + 4];
        ((low & 15) | (packed[j - 4] >> 6) << 4, (low >> 4) | (packed[j] >> 6) << 4)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sixteen_distinct_numbers_come_out_of_their_places() {
        let scales = [1, 2, 3, 4, 21, 38, 55, 63u8];
        let mins = [63, 62, 61, 60, 43, 26, 9, 0u8];
        let mut packed = [0; 12];
        for j in 0..4 {
            packed[j] = scales[j] | (scales[j + 4] >> 4) << 6;
            packed[j + 4] = mins[j] | (mins[j + 4] >> 4) << 6;
            packed[j + 8] = (scales[j + 4] & 15) | (mins[j + 4] & 15) << 4;
        }
        for j in 0..8 {
            assert_eq!(scale_and_min(&packed, j), (scales[j], mins[j]));
        }
    }
}
