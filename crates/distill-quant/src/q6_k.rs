//! Q6_K, read only: 256 weights in sixteen sub-blocks of 16, 6-bit codes −32 … 31.
//!
//! Bytes: 128 of low nibbles, 64 of upper pairs of bits, 16 signed scales, `d` f16. Each half of
//! 128 elements is four quarters of 32; element `l` of quarter `k` takes its nibble from byte
//! `l + 32 · (k mod 2)` (low for the first two quarters, high for the last two) and its upper bits
//! from bits `2k`, `2k + 1` of byte `l`. Value: `(d · scale) · (code − 32)`.

use crate::{SUPER_BLOCK, f16};

/// Elements in a block.
pub const BLOCK: usize = SUPER_BLOCK;
/// Bytes of a block.
pub const BYTES: usize = 210;

/// Dequantises `bytes` into `values`, block after block.
///
/// # Panics
/// If `bytes` is not whole blocks or `values` is not their size.
pub fn dequantize(bytes: &[u8], values: &mut [f32]) {
    crate::assert_whole_blocks(bytes.len(), values.len(), BYTES, BLOCK);
    let blocks = bytes.as_chunks::<BYTES>().0;
    for (block, out) in blocks.iter().zip(values.as_chunks_mut::<BLOCK>().0) {
        dequantize_block(block, out);
    }
}

fn dequantize_block(block: &[u8; BYTES], out: &mut [f32; BLOCK]) {
    let (nibbles, rest) = block.split_at(128);
    let (upper, rest) = rest.split_at(64);
    let (scales, d) = rest.split_at(16);
    let d = f16::to_f32(u16::from_le_bytes([d[0], d[1]]));
    for (i, out) in out.iter_mut().enumerate() {
        let (half, quarter, l) = (i / 128, i / 32 % 4, i % 32);
        let byte = nibbles[half * 64 + quarter % 2 * 32 + l];
        let nibble = if quarter < 2 { byte & 15 } else { byte >> 4 };
        let code = nibble | (upper[half * 32 + l] >> (2 * quarter) & 3) << 4;
        let scale = d * f32::from(scales[i / 16] as i8);
        *out = scale * f32::from(code as i8 - 32);
    }
}
