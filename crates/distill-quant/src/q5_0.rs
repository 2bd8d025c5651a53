//! Q5_0, read only: 32 weights as 5-bit codes −16 … 15 and an f16 scale.
//!
//! Bytes: `d` f16, 32 fifth bits (bit `i` of a little-endian `u32` belongs to element `i`), then
//! 16 of low nibbles (element `j` low, `j + 16` high). Value: `(code − 16) · d`.

use crate::f16;

/// Elements in a block.
pub const BLOCK: usize = crate::BLOCK;
/// Bytes of a block.
pub const BYTES: usize = 22;

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
    let d = f16::to_f32(u16::from_le_bytes([block[0], block[1]]));
    let fifth = u32::from_le_bytes([block[2], block[3], block[4], block[5]]);
    let value = |nibble: u8, i: usize| {
        let code = nibble | ((fifth >> i & 1) as u8) << 4;
        f32::from(code as i8 - 16) * d
    };
    for (j, byte) in block[6..].iter().enumerate() {
        out[j] = value(byte & 15, j);
        out[j + 16] = value(byte >> 4, j + 16);
    }
}
