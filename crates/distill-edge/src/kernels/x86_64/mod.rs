//! Kernels for x86-64, by instruction set.

mod avx2;

pub(super) use avx2::table as avx2;
