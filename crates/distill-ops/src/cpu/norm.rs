//! RMSNorm (Zhang & Sennrich 2019): `y = x / √(mean(x²) + ε) ∘ (offset + weight)`, row by row.
//!
//! The offset is 0 for Llama and 1 for Gemma, whose weights are stored as the distance from one.

#![allow(unsafe_code)]

use std::mem::MaybeUninit;

use rayon::prelude::*;

use super::scratch::filled;
use super::vector::{dot, simd};

/// Rows that a thread takes at a time.
const ROWS: usize = 32;

/// The constants of a norm.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Norm {
    /// Added to the mean square.
    pub epsilon: f32,
    /// Added to the weights.
    pub offset: f32,
}

/// The norm of every row. `x` and the result are `[rows, width]`, `weight` is `[width]`.
///
/// # Panics
/// If `x` is not whole rows.
pub fn forward(x: &[f32], weight: &[f32], norm: Norm) -> Vec<f32> {
    let width = weight.len();
    assert!(x.len().is_multiple_of(width));
    let fill = |y: &mut [MaybeUninit<f32>]| {
        y.par_chunks_mut(ROWS * width)
            .zip(x.par_chunks(ROWS * width))
            .for_each(|(y, x)| forward_rows(x, weight, norm, y));
    };
    // SAFETY: the chunks are all rows, and each row is written.
    unsafe { filled(x.len(), fill) }
}

simd! {
    fn forward_rows<'a>(
        x: &'a [f32],
        weight: &'a [f32],
        norm: Norm,
        y: &'a mut [MaybeUninit<f32>],
    ) -> () {
        let width = weight.len();
        for (y, x) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
            let inverse = inverse(x, norm.epsilon);
            for ((y, x), w) in y.iter_mut().zip(x).zip(weight) {
                y.write(x * inverse * (w + norm.offset));
            }
        }
    }

    /// The last slice is `[2, width]`: the weights' gradient, and room.
    fn backward_rows<'a>(
        x: &'a [f32],
        weight: &'a [f32],
        norm: Norm,
        g: &'a [f32],
        dx: &'a mut [MaybeUninit<f32>],
        dw: &'a mut [f32],
    ) -> () {
        let width = weight.len();
        let (dw, h) = dw.split_at_mut(width);
        for ((dx, x), g) in
            dx.chunks_exact_mut(width).zip(x.chunks_exact(width)).zip(g.chunks_exact(width))
        {
            let s = inverse(x, norm.epsilon);
            for ((h, g), w) in h.iter_mut().zip(g).zip(weight) {
                *h = g * (w + norm.offset);
            }
            for ((dw, x), g) in dw.iter_mut().zip(x).zip(g) {
                *dw = (x * s).mul_add(*g, *dw);
            }
            let c = s * s * s * (dot(h, x) / width as f32);
            for ((dx, x), h) in dx.iter_mut().zip(x).zip(&*h) {
                dx.write(h * s - x * c);
            }
        }
    }
}

#[inline(always)]
fn inverse(x: &[f32], epsilon: f32) -> f32 {
    1.0 / (dot(x, x) / x.len() as f32 + epsilon).sqrt()
}

/// Gradients of x and of the weights, from that of y.
///
/// With s = 1/√(mean(x²) + ε) and h = g ∘ (offset + weight):
/// ∂x = s·h − x·s³·mean(h ∘ x), ∂weight = Σ_rows g ∘ x·s.
///
/// # Shapes
/// `x`, `gradient`, first result: `[rows, width]`; `weight`, second result: `[width]`.
///
/// # Panics
/// If `x` is not whole rows or `gradient` not of its length.
pub fn backward(x: &[f32], weight: &[f32], norm: Norm, gradient: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let width = weight.len();
    assert!(x.len().is_multiple_of(width) && gradient.len() == x.len());
    let mut parts = Vec::new();
    let fill = |dx: &mut [MaybeUninit<f32>]| {
        parts = dx
            .par_chunks_mut(ROWS * width)
            .zip(x.par_chunks(ROWS * width))
            .zip(gradient.par_chunks(ROWS * width))
            .map(|((dx, x), g)| {
                let mut dw = vec![0.0; 2 * width];
                backward_rows(x, weight, norm, g, dx, &mut dw);
                dw
            })
            .collect::<Vec<_>>();
    };
    // SAFETY: the chunks are all rows, and each row is written.
    let x_gradient = unsafe { filled(x.len(), fill) };
    let mut weight_gradient = vec![0.0; width];
    for part in parts {
        for (sum, part) in weight_gradient.iter_mut().zip(part) {
            *sum += part;
        }
    }
    (x_gradient, weight_gradient)
}
