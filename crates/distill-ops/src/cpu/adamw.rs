//! AdamW (Loshchilov & Hutter 2019, algorithm 2) in one pass over memory.

use rayon::prelude::*;

use super::vector::{dot, simd};

/// Elements that a thread takes at a time.
const CHUNK: usize = 1 << 12;

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

/// Updates weights and both moments in place. All slices have one length.
pub fn update(weights: &mut [f32], gradient: &[f32], m: &mut [f32], v: &mut [f32], by: Update) {
    weights
        .par_chunks_mut(CHUNK)
        .zip(gradient.par_chunks(CHUNK))
        .zip(m.par_chunks_mut(CHUNK).zip(v.par_chunks_mut(CHUNK)))
        .for_each(|((w, g), (m, v))| update_elements(w, g, m, v, by));
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

    fn square<'a>(x: &'a [f32]) -> f32 {
        dot(x, x)
    }
}
