//! Kernels for x86-64, by instruction set.

mod avx2;
mod avx512;

use super::Kernels;

/// The tables of this CPU, the fastest first.
pub(super) fn tables() -> [Option<&'static Kernels>; 2] {
    [avx512::table(), avx2::table()]
}
