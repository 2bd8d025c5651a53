//! AVX-512 with VNNI: products of quantised rows, and attention over the cache that ships, sixteen
//! lanes wide. The rest is AVX2's.

#![allow(unsafe_code)]

mod attention;
mod product;

use std::arch::is_x86_feature_detected;

use super::super::Kernels;
use super::avx2;

/// The table, where the CPU has the instructions.
pub fn table() -> Option<&'static Kernels> {
    let runs = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vnni")
        && avx2::table().is_some();
    runs.then_some(&KERNELS)
}

static KERNELS: Kernels = Kernels {
    name: "avx512vnni",
    // SAFETY (all): the table is private to `table`, which hands it out only after it has found
    // the instruction sets that the functions are compiled for.
    product_q4_0: |w, x, columns, y, stride| unsafe {
        product::product_q4_0(w, x, columns, y, stride)
    },
    product_q8_0: |w, x, columns, y, stride| unsafe {
        product::product_q8_0(w, x, columns, y, stride)
    },
    int8_peak: |rounds| unsafe { product::int8_peak(rounds) },
    attend_f16: |queries, cached| unsafe { attention::attend_f16(queries, cached) },
    attend_q8_0: |queries, cached| unsafe { attention::attend_q8_0(queries, cached) },
    ..avx2::KERNELS
};
