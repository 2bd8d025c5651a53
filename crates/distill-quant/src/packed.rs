//! How quantised matrices lie in the runtime's memory and in `model.edge`: sixteen rows side by
//! side.
//!
//! A *group* is 16 consecutive rows; a *record* is one block of 32 columns of a group:
//!
//! ```text
//! Q4_0, 288 bytes:  16 scales, binary16 (row 0, row 1, …)
//!                   256 bytes: byte 64 j + 4 r + i holds columns 4 j + i (low nibble) and
//!                   16 + 4 j + i (high nibble) of row r, for j, i in 0..4, as code + 8
//! Q8_0, 544 bytes:  16 scales, binary16
//!                   512 bytes: byte 64 j + 4 r + i holds column 4 j + i of row r, for j in 0..8
//! ```
//!
//! A matrix is its groups in order, each the records of its columns in order. A last group with
//! fewer rows is filled up with rows of scale 0 and code 0. Codes and scales are those of the
//! file, in another order: four columns of eight or sixteen rows fill one vector register, so that
//! a product needs no sum across lanes, and a row's scale is its lane's.

use crate::{BLOCK, f16, q4_0, q8_0};

/// Rows of a group.
pub const ROWS: usize = 16;
/// Bytes of a record's scales, with which it begins.
pub const SCALES: usize = 2 * ROWS;
/// Bytes of a record.
pub const Q4_0_RECORD: usize = ROWS * q4_0::BYTES;
/// Bytes of a record.
pub const Q8_0_RECORD: usize = ROWS * q8_0::BYTES;

/// A grid of integer codes with a packed layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packed {
    /// See [`crate::q4_0`].
    Q4_0,
    /// See [`crate::q8_0`].
    Q8_0,
}

impl Packed {
    /// Bytes of a block in a file: its scale, then its codes.
    #[must_use]
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::Q4_0 => q4_0::BYTES,
            Self::Q8_0 => q8_0::BYTES,
        }
    }

    /// Bytes of a group of rows of this many columns.
    #[must_use]
    pub const fn group_bytes(self, columns: usize) -> usize {
        columns / BLOCK * ROWS * self.block_bytes()
    }

    /// Packs up to 16 rows of a file into one group.
    ///
    /// # Shapes
    /// - `rows`: `[rows, columns / 32]` blocks of a file; `group`: [`Packed::group_bytes`]
    ///
    /// # Panics
    /// If `group` has another length.
    pub fn pack(self, rows: &[u8], columns: usize, group: &mut [u8]) {
        let (blocks, bytes) = (columns / BLOCK, self.block_bytes());
        assert_eq!(group.len(), self.group_bytes(columns), "one group");
        // Code 0 of Q4_0 is stored as 8.
        let nothing = [if self == Self::Q4_0 { 0x88 } else { 0 }; 4];
        for (b, record) in group.chunks_exact_mut(ROWS * bytes).enumerate() {
            let (scales, codes) = record.split_at_mut(SCALES);
            for (r, scale) in scales.chunks_exact_mut(2).enumerate() {
                let from = (r * blocks + b) * bytes;
                let block = rows.get(from..from + bytes);
                scale.copy_from_slice(block.map_or(&[0; 2][..], |block| &block[..2]));
                for j in 0..(bytes - 2) / 4 {
                    let four = block.map_or(&nothing[..], |block| &block[2 + 4 * j..6 + 4 * j]);
                    codes[4 * ROWS * j + 4 * r..][..4].copy_from_slice(four);
                }
            }
        }
    }

    /// The values of row `r` of a group; `row` has the matrix's columns.
    ///
    /// # Panics
    /// If `r` is 16 or more.
    pub fn dequantize_row(self, group: &[u8], r: usize, row: &mut [f32]) {
        let records = group.chunks_exact(ROWS * self.block_bytes());
        for (record, out) in records.zip(row.as_chunks_mut::<BLOCK>().0) {
            let scale = scale(record, r);
            *out = self.codes(record, r).map(|code| f32::from(code) * scale);
        }
    }

    /// The codes of row `r` of a record.
    ///
    /// # Panics
    /// If `r` is 16 or more, or the record is too short.
    #[must_use]
    pub fn codes(self, record: &[u8], r: usize) -> [i8; BLOCK] {
        let byte = |c: usize| record[SCALES + 4 * ROWS * (c / 4) + 4 * r + c % 4];
        core::array::from_fn(|c| match self {
            Self::Q4_0 if c < BLOCK / 2 => (byte(c) & 15) as i8 - 8,
            Self::Q4_0 => (byte(c - BLOCK / 2) >> 4) as i8 - 8,
            Self::Q8_0 => byte(c) as i8,
        })
    }
}

/// The scale of row `r` of a record.
///
/// # Panics
/// If `r` is 16 or more.
#[must_use]
pub fn scale(record: &[u8], r: usize) -> f32 {
    f16::to_f32(u16::from_le_bytes([record[2 * r], record[2 * r + 1]]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec;
    use std::vec::Vec;

    #[test]
    fn a_packed_row_holds_the_values_of_the_files_row_and_padding_is_zero() {
        let columns = 96;
        for rows in [16, 5] {
            let values: Vec<f32> =
                (0..rows * columns).map(|i| ((i * 37 % 101) as f32 - 50.0) / 17.0).collect();
            for grid in [Packed::Q4_0, Packed::Q8_0] {
                let mut bytes = vec![0; rows * columns / BLOCK * grid.block_bytes()];
                let mut want = vec![0.0; values.len()];
                match grid {
                    Packed::Q4_0 => {
                        q4_0::quantize_row(&values, &mut bytes);
                        q4_0::dequantize(&bytes, &mut want);
                    }
                    Packed::Q8_0 => {
                        q8_0::quantize_row(&values, &mut bytes);
                        q8_0::dequantize(&bytes, &mut want);
                    }
                }
                let mut group = vec![0xAA; grid.group_bytes(columns)];
                grid.pack(&bytes, columns, &mut group);
                want.resize(ROWS * columns, 0.0);
                for (r, want) in want.chunks_exact(columns).enumerate() {
                    let mut row = vec![f32::NAN; columns];
                    grid.dequantize_row(&group, r, &mut row);
                    assert_eq!(row, want, "{grid:?} row {r} of {rows}");
                }
            }
        }
    }
}
