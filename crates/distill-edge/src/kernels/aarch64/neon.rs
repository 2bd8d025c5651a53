//! NEON: the table, conversions, products of floats, and element-wise functions. What is in eight
//! lanes by the specification is in two registers here.

#![allow(unsafe_code)]

mod attention;
mod product;

use std::arch::aarch64::{
    float32x4_t, uint16x8_t, vabsq_f32, vadd_f32, vaddlvq_s8, vaddq_f32, vaddq_s32, vcombine_s8,
    vcombine_s16, vcvt_f16_f32, vcvt_f32_f16, vcvt_high_f16_f32, vcvt_high_f32_f16, vcvtnq_s32_f32,
    vcvtq_s32_f32, vdivq_f32, vdupq_n_f32, vdupq_n_s32, vfmaq_f32, vfmsq_f32, vget_high_f32,
    vget_lane_f32, vget_low_f16, vget_low_f32, vld1q_f32, vld1q_u8, vld1q_u16, vmaxq_f32,
    vmaxvq_f32, vminq_f32, vmovn_s16, vmovn_s32, vmulq_f32, vnegq_f32, vreinterpretq_f16_u16,
    vreinterpretq_f32_s32, vreinterpretq_u16_f16, vreinterpretq_u16_u8, vrndnq_f32, vshlq_n_s32,
    vst1q_f32, vst1q_s8, vst1q_u16,
};

use distill_quant::f16;

use super::super::cover::cover;
use super::super::scalar::{self, exponential, reduce, rms_scale};
use super::super::{BLOCK, Block, Kernels, LANES};

pub static KERNELS: Kernels = Kernels {
    name: "neon",
    // SAFETY (all): NEON belongs to every target that has the standard library.
    dequantize_f16: |bytes, values| unsafe { dequantize_f16(bytes, values) },
    to_f16: |values, bits| unsafe { to_f16(values, bits) },
    quantize_activations: |values, blocks, step| unsafe {
        quantize_activations(values, blocks, step)
    },
    matmul_f32: |w, x, columns, y, stride| unsafe { matmul_f32(w, x, columns, y, stride) },
    product_q4_0: |w, x, columns, y, stride| unsafe {
        product::product_q4_0(w, x, columns, y, stride)
    },
    product_q8_0: |w, x, columns, y, stride| unsafe {
        product::product_q8_0(w, x, columns, y, stride)
    },
    attend_f32: |queries, cached| unsafe { attention::attend_f32(queries, cached) },
    attend_f16: |queries, cached| unsafe { attention::attend_f16(queries, cached) },
    attend_q8_0: |queries, cached| unsafe { attention::attend_q8_0(queries, cached) },
    rms_norm: |x, weight, eps, out| unsafe { rms_norm(x, weight, eps, out) },
    silu_mul: |gate, up| unsafe { silu_mul(gate, up) },
    int8_peak: |rounds| unsafe { product::int8_peak(rounds) },
    read_all: |bytes| unsafe { product::read_all(bytes) },
};

// The table says so once for all: the target has what its functions are compiled for.
const _: () = assert!(cfg!(target_feature = "neon"));

/// Eight lanes.
type Eight = [float32x4_t; 2];

// ---- Loads and stores: arrays in, so that the lengths are in the types. ----

#[target_feature(enable = "neon")]
#[inline]
fn load_f32(from: &[f32; LANES]) -> Eight {
    let from = from.as_ptr();
    // SAFETY: eight f32 are readable; the loads need no alignment.
    unsafe { [vld1q_f32(from), vld1q_f32(from.add(4))] }
}

#[target_feature(enable = "neon")]
#[inline]
fn load_f16(from: &[u16; LANES]) -> Eight {
    // SAFETY: 16 bytes are readable; the load needs no alignment.
    widen(unsafe { vld1q_u16(from.as_ptr()) })
}

#[target_feature(enable = "neon")]
#[inline]
fn store_f32(value: Eight, to: &mut [f32; LANES]) {
    let to = to.as_mut_ptr();
    // SAFETY: eight f32 are writable; the stores need no alignment.
    unsafe {
        vst1q_f32(to, value[0]);
        vst1q_f32(to.add(4), value[1]);
    }
}

#[target_feature(enable = "neon")]
#[inline]
fn zero() -> Eight {
    [vdupq_n_f32(0.0); 2]
}

/// `acc + a · b`, fused.
#[target_feature(enable = "neon")]
#[inline]
fn fma(acc: Eight, a: Eight, b: Eight) -> Eight {
    [vfmaq_f32(acc[0], a[0], b[0]), vfmaq_f32(acc[1], a[1], b[1])]
}

/// `reduce` of the specification, in registers: the same additions.
#[target_feature(enable = "neon")]
#[inline]
fn sum(value: Eight) -> f32 {
    let four = vaddq_f32(value[0], value[1]);
    let two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
    vget_lane_f32::<0>(two) + vget_lane_f32::<1>(two)
}

// ---- Conversions ----

#[target_feature(enable = "neon")]
#[inline]
fn widen(bits: uint16x8_t) -> Eight {
    let halves = vreinterpretq_f16_u16(bits);
    [vcvt_f32_f16(vget_low_f16(halves)), vcvt_high_f32_f16(halves)]
}

#[target_feature(enable = "neon")]
fn dequantize_f16(bytes: &[u8], values: &mut [f32]) {
    let (blocks, tail) = bytes.as_chunks::<{ 2 * LANES }>();
    let (out, out_tail) = values.as_chunks_mut::<LANES>();
    for (block, out) in blocks.iter().zip(out) {
        // SAFETY: 16 bytes are readable; the load needs no alignment.
        store_f32(widen(vreinterpretq_u16_u8(unsafe { vld1q_u8(block.as_ptr()) })), out);
    }
    f16::dequantize(tail, out_tail);
}

#[target_feature(enable = "neon")]
fn to_f16(values: &[f32], bits: &mut [u16]) {
    let (blocks, tail) = values.as_chunks::<LANES>();
    let (out, out_tail) = bits.as_chunks_mut::<LANES>();
    for (block, out) in blocks.iter().zip(out) {
        let [low, high] = load_f32(block);
        let halves = vcvt_high_f16_f32(vcvt_f16_f32(low), high);
        // SAFETY: 16 bytes are writable; the store needs no alignment.
        unsafe { vst1q_u16(out.as_mut_ptr(), vreinterpretq_u16_f16(halves)) };
    }
    for (value, bits) in tail.iter().zip(out_tail) {
        *bits = f16::from_f32(*value);
    }
}

#[target_feature(enable = "neon")]
fn quantize_activations(values: &[f32], blocks: &mut [Block], step: usize) {
    for (values, block) in values.as_chunks::<BLOCK>().0.iter().zip(blocks.iter_mut().step_by(step))
    {
        let parts = values.as_chunks::<LANES>().0;
        let x =
            [load_f32(&parts[0]), load_f32(&parts[1]), load_f32(&parts[2]), load_f32(&parts[3])];
        let largest = x.map(|[low, high]| vmaxq_f32(vabsq_f32(low), vabsq_f32(high)));
        let largest =
            vmaxq_f32(vmaxq_f32(largest[0], largest[1]), vmaxq_f32(largest[2], largest[3]));
        let d = vmaxvq_f32(largest) / 127.0;
        if d < f32::MIN_POSITIVE {
            *block = Block::default();
            continue;
        }
        block.scale = d;
        let reciprocal = vdupq_n_f32(1.0 / d);
        // To nearest, ties to even. No product is beyond ±127 by more than its rounding.
        let eight = x.map(|x| {
            let [low, high] = x.map(|x| vmovn_s32(vcvtnq_s32_f32(vmulq_f32(x, reciprocal))));
            vmovn_s16(vcombine_s16(low, high))
        });
        let halves = [vcombine_s8(eight[0], eight[1]), vcombine_s8(eight[2], eight[3])];
        block.offset = -8 * (i32::from(vaddlvq_s8(halves[0])) + i32::from(vaddlvq_s8(halves[1])));
        for (codes, half) in block.codes.as_chunks_mut::<16>().0.iter_mut().zip(halves) {
            // SAFETY: 16 bytes are writable; the store needs no alignment.
            unsafe { vst1q_s8(codes.as_mut_ptr(), half) };
        }
    }
}

// ---- Products ----

#[target_feature(enable = "neon")]
#[inline]
fn tile_f32<const R: usize, const T: usize>(w: [&[f32]; R], x: [&[f32]; T]) -> [[f32; T]; R] {
    let whole = w[0].len() / LANES;
    let w_chunks = w.map(|w| &w.as_chunks::<LANES>().0[..whole]);
    let x_chunks = x.map(|x| &x.as_chunks::<LANES>().0[..whole]);
    let mut acc = [[zero(); T]; R];
    for c in 0..whole {
        let mut w = [zero(); R];
        for r in 0..R {
            w[r] = load_f32(&w_chunks[r][c]);
        }
        for t in 0..T {
            let x = load_f32(&x_chunks[t][c]);
            for r in 0..R {
                acc[r][t] = fma(acc[r][t], w[r], x);
            }
        }
    }
    let mut out = [[0.0; T]; R];
    for r in 0..R {
        for t in 0..T {
            out[r][t] = finish_dot(acc[r][t], &w[r][whole * LANES..], &x[t][whole * LANES..]);
        }
    }
    out
}

/// Adds the products of the last, incomplete group to its lanes and reduces.
#[target_feature(enable = "neon")]
#[inline]
fn finish_dot(acc: Eight, a: &[f32], b: &[f32]) -> f32 {
    if a.is_empty() {
        return sum(acc);
    }
    let mut lanes = [0.0; LANES];
    store_f32(acc, &mut lanes);
    for ((lane, a), b) in lanes.iter_mut().zip(a).zip(b) {
        *lane = a.mul_add(*b, *lane);
    }
    reduce(lanes)
}

#[target_feature(enable = "neon")]
fn matmul_f32(w: &[f32], x: &[f32], columns: usize, y: &mut [f32], stride: usize) {
    let row = |r: usize| &w[r * columns..(r + 1) * columns];
    let token = |t: usize| &x[t * columns..(t + 1) * columns];
    cover!(w.len() / columns, x.len() / columns, y, stride, tile_f32, row, token);
}

// ---- Element-wise ----

/// Four of the specification's `exp`: the same operations. NaN stays NaN.
#[target_feature(enable = "neon")]
#[inline]
fn exp(x: float32x4_t) -> float32x4_t {
    use exponential::{LEAST, LN_2_HIGH, LN_2_LOW, MOST, TAYLOR};
    let x = vminq_f32(vmaxq_f32(x, vdupq_n_f32(LEAST)), vdupq_n_f32(MOST));
    let n = vrndnq_f32(vmulq_f32(x, vdupq_n_f32(std::f32::consts::LOG2_E)));
    let r = vfmsq_f32(x, n, vdupq_n_f32(LN_2_HIGH));
    let r = vfmsq_f32(r, n, vdupq_n_f32(LN_2_LOW));
    let mut e = vdupq_n_f32(TAYLOR[0]);
    for coefficient in &TAYLOR[1..] {
        e = vfmaq_f32(vdupq_n_f32(*coefficient), e, r);
    }
    let exponent = vshlq_n_s32::<23>(vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127)));
    vmulq_f32(e, vreinterpretq_f32_s32(exponent))
}

#[target_feature(enable = "neon")]
fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let scale = rms_scale(tile_f32([x], [x])[0][0], x.len(), eps);
    for ((out, x), w) in out.iter_mut().zip(x).zip(weight) {
        *out = x * scale * w;
    }
}

#[target_feature(enable = "neon")]
fn silu_mul(gate: &mut [f32], up: &[f32]) {
    let (gates, gate_tail) = gate.as_chunks_mut::<LANES>();
    let (ups, up_tail) = up.as_chunks::<LANES>();
    let one = vdupq_n_f32(1.0);
    for (gate, up) in gates.iter_mut().zip(ups) {
        let (g, up) = (load_f32(gate), load_f32(up));
        let half = |i: usize| {
            let e = exp(vnegq_f32(g[i]));
            vmulq_f32(vdivq_f32(g[i], vaddq_f32(one, e)), up[i])
        };
        store_f32([half(0), half(1)], gate);
    }
    scalar::silu_mul(gate_tail, up_tail);
}
