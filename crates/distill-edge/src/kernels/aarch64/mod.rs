//! Kernels for 64-bit Arm, by instruction set.
//!
//! NEON with fused multiply-add and binary16 conversion belongs to every CPU; dot products of
//! bytes (`dotprod`) and products of byte matrices (`i8mm`) are asked for.

mod dotprod;
mod i8mm;
mod neon;
mod product;

use super::Kernels;

// The files' order of bytes is also that of the registers.
const _: () = assert!(cfg!(target_endian = "little"));

/// The tables of this CPU, the fastest first.
pub(super) fn tables() -> [Option<&'static Kernels>; 3] {
    [i8mm::table(), dotprod::table(), Some(&neon::KERNELS)]
}
