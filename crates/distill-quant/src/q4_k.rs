//! Q4_K, read only: 256 weights in eight sub-blocks of 32, 4-bit codes 0 … 15.
//!
//! Bytes: `d` f16, `dmin` f16, 12 of packed 6-bit scales and minima, 128 of codes. Each run of 32
//! code bytes holds two sub-blocks, the even one in the low nibbles and the odd one in the high.
//! Value: `(d · scale) · code − dmin · min`.

use crate::k_scales::scale_and_min;
use crate::{SUPER_BLOCK, f16};

/// Elements in a block.
pub const BLOCK: usize = SUPER_BLOCK;
/// Bytes of a block.
pub const BYTES: usize = 144;

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
    let dmin = f16::to_f32(u16::from_le_bytes([block[2], block[3]]));
    let packed = core::array::from_fn(|i| block[4 + i]);
    let codes = &block[16..];
    for (j, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (scale, min) = scale_and_min(&packed, j);
        let (scale, min) = (d * f32::from(scale), dmin * f32::from(min));
        let codes = &codes[j / 2 * 32..][..32];
        for (out, byte) in out.iter_mut().zip(codes) {
            let code = if j % 2 == 0 { byte & 15 } else { byte >> 4 };
            *out = scale * f32::from(code) - min;
        }
    }
}
