//! AdamW (Loshchilov & Hutter 2019, algorithm 2) in one pass over memory.
//!
//! Moments lie in f32, in bfloat16, or in 8 bits with a scale for each block of 256 (`super::moments`
//! has the codes). The two small types are widened into a buffer of a block, moved on in f32, used
//! for the weights, and only then rounded: what a step rounds, the next step sees.

use rayon::prelude::*;

use super::moments;
pub use super::moments::BLOCK;
use super::vector::{dot, simd};

/// Elements that a thread takes at a time, whole blocks.
const CHUNK: usize = 1 << 12;
const _: () = assert!(CHUNK.is_multiple_of(BLOCK));

/// The constants of one update.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Update {
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second.
    pub beta2: f32,
    /// 1 / (1 − β₁ᵗ) times the learning rate.
    pub rate: f32,
    /// 1 / (1 − β₂ᵗ).
    pub correction2: f32,
    /// Added to the root.
    pub epsilon: f32,
    /// What weights are multiplied by first: 1 − learning rate · weight decay.
    pub keep: f32,
    /// What gradients are multiplied by first: global-norm clipping.
    pub clip: f32,
}

/// Moments of 8 bits: a code for each element, a scale for each [`BLOCK`].
#[derive(Debug)]
pub struct Blocks<'a> {
    /// `[elements]`.
    pub codes: &'a mut [u8],
    /// `[elements / 256]`, rounded up.
    pub scales: &'a mut [f32],
}

/// Updates weights and both moments in place. All slices have one length.
pub fn update(weights: &mut [f32], gradient: &[f32], m: &mut [f32], v: &mut [f32], by: Update) {
    weights
        .par_chunks_mut(CHUNK)
        .zip(gradient.par_chunks(CHUNK))
        .zip(m.par_chunks_mut(CHUNK).zip(v.par_chunks_mut(CHUNK)))
        .for_each(|((w, g), (m, v))| update_elements(w, g, m, v, by));
}

/// The same with moments in bfloat16, rounded stochastically by `noise`.
pub fn update_bf16(
    weights: &mut [f32],
    gradient: &[f32],
    m: &mut [u16],
    v: &mut [u16],
    by: Update,
    noise: u32,
) {
    weights
        .par_chunks_mut(CHUNK)
        .zip(gradient.par_chunks(CHUNK))
        .zip(m.par_chunks_mut(CHUNK).zip(v.par_chunks_mut(CHUNK)))
        .enumerate()
        .for_each(|(chunk, ((w, g), (m, v)))| {
            update_bf16_elements(w, g, m, v, (chunk * CHUNK) as u32, by, noise);
        });
}

/// The same with moments in 8 bits, rounded stochastically by `noise`.
pub fn update_8bit(
    weights: &mut [f32],
    gradient: &[f32],
    m: Blocks<'_>,
    v: Blocks<'_>,
    by: Update,
    noise: u32,
) {
    const SCALES: usize = CHUNK / BLOCK;
    let codes = m.codes.par_chunks_mut(CHUNK).zip(v.codes.par_chunks_mut(CHUNK));
    let scales = m.scales.par_chunks_mut(SCALES).zip(v.scales.par_chunks_mut(SCALES));
    weights
        .par_chunks_mut(CHUNK)
        .zip(gradient.par_chunks(CHUNK))
        .zip(codes.zip(scales))
        .enumerate()
        .for_each(|(chunk, ((w, g), ((m, v), (m_scales, v_scales))))| {
            let (m, v) =
                (Blocks { codes: m, scales: m_scales }, Blocks { codes: v, scales: v_scales });
            update_8bit_elements(w, g, m, v, (chunk * CHUNK) as u32, by, noise);
        });
}

/// Σ x², in blocks whose sums do not depend on the number of threads.
pub fn sum_of_squares(x: &[f32]) -> f64 {
    let parts: Vec<f64> = x.par_chunks(CHUNK).map(|x| f64::from(square(x))).collect();
    parts.iter().sum()
}

simd! {
    fn update_elements<'a>(
        w: &'a mut [f32],
        g: &'a [f32],
        m: &'a mut [f32],
        v: &'a mut [f32],
        by: Update,
    ) -> () {
        advance(w, g, m, v, by);
    }

    fn update_bf16_elements<'a>(
        w: &'a mut [f32],
        g: &'a [f32],
        m: &'a mut [u16],
        v: &'a mut [u16],
        first: u32,
        by: Update,
        noise: u32,
    ) -> () {
        let (mut wide_m, mut wide_v) = ([0.0; BLOCK], [0.0; BLOCK]);
        let mut first = first;
        let moments = m.chunks_mut(BLOCK).zip(v.chunks_mut(BLOCK));
        for ((w, g), (m, v)) in w.chunks_mut(BLOCK).zip(g.chunks(BLOCK)).zip(moments) {
            let (wide_m, wide_v) = (&mut wide_m[..w.len()], &mut wide_v[..w.len()]);
            moments::widen_bf16(m, wide_m);
            moments::widen_bf16(v, wide_v);
            advance(w, g, wide_m, wide_v, by);
            moments::narrow_bf16(wide_m, wide_v, m, v, first, noise);
            first = first.wrapping_add(BLOCK as u32);
        }
    }

    fn update_8bit_elements<'a>(
        w: &'a mut [f32],
        g: &'a [f32],
        m: Blocks<'a>,
        v: Blocks<'a>,
        first: u32,
        by: Update,
        noise: u32,
    ) -> () {
        let (mut wide_m, mut wide_v) = ([0.0; BLOCK], [0.0; BLOCK]);
        let mut first = first;
        let codes = m.codes.chunks_mut(BLOCK).zip(v.codes.chunks_mut(BLOCK));
        let moments = codes.zip(m.scales.iter_mut().zip(v.scales));
        for ((w, g), ((m, v), (m_scale, v_scale))) in
            w.chunks_mut(BLOCK).zip(g.chunks(BLOCK)).zip(moments)
        {
            let (wide_m, wide_v) = (&mut wide_m[..w.len()], &mut wide_v[..w.len()]);
            moments::widen_signed(m, *m_scale, wide_m);
            moments::widen_unsigned(v, *v_scale, wide_v);
            advance(w, g, wide_m, wide_v, by);
            *m_scale = moments::narrow_signed(wide_m, m, first, noise);
            *v_scale = moments::narrow_unsigned(wide_v, v, first, noise);
            first = first.wrapping_add(BLOCK as u32);
        }
    }

    fn square<'a>(x: &'a [f32]) -> f32 {
        dot(x, x)
    }
}

/// Moments and then weights, one step on.
#[inline(always)]
fn advance(w: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32], by: Update) {
    for (m, g) in m.iter_mut().zip(g) {
        *m = by.beta1.mul_add(*m, (1.0 - by.beta1) * (g * by.clip));
    }
    for (v, g) in v.iter_mut().zip(g) {
        let g = g * by.clip;
        *v = by.beta2.mul_add(*v, (1.0 - by.beta2) * g * g);
    }
    for ((w, m), v) in w.iter_mut().zip(m).zip(v) {
        let root = (*v * by.correction2).sqrt() + by.epsilon;
        *w = *w * by.keep - by.rate * *m / root;
    }
}
