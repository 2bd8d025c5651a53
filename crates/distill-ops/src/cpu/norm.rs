//! RMSNorm (Zhang & Sennrich 2019): `y = x / √(mean(x²) + ε) ∘ (offset + weight)`, row by row.
//!
//! The offset is 0 for Llama and 1 for Gemma, whose weights are stored as the distance from one.

use rayon::prelude::*;

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

/// The norm of every row. `x` and `y` are `[rows, width]`, `weight` is `[width]`.
pub fn forward(x: &[f32], weight: &[f32], norm: Norm, y: &mut [f32]) {
    let width = weight.len();
    y.par_chunks_mut(ROWS * width)
        .zip(x.par_chunks(ROWS * width))
        .for_each(|(y, x)| forward_rows(x, weight, norm, y));
}

simd! {
    fn forward_rows<'a>(x: &'a [f32], weight: &'a [f32], norm: Norm, y: &'a mut [f32]) -> () {
        let width = weight.len();
        for (y, x) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
            let inverse = inverse(x, norm.epsilon);
            for ((y, x), w) in y.iter_mut().zip(x).zip(weight) {
                *y = x * inverse * (w + norm.offset);
            }
        }
    }

    /// The last slice is `[2, width]`: the weights' gradient, and room.
    fn backward_rows<'a>(
        x: &'a [f32],
        weight: &'a [f32],
        norm: Norm,
        g: &'a [f32],
        dx: &'a mut [f32],
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
                *dx = h * s - x * c;
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
/// `x`, `gradient`, `x_gradient`: `[rows, width]`; `weight`, `weight_gradient`: `[width]`.
pub fn backward(
    x: &[f32],
    weight: &[f32],
    norm: Norm,
    gradient: &[f32],
    x_gradient: &mut [f32],
    weight_gradient: &mut [f32],
) {
    let width = weight.len();
    let parts: Vec<Vec<f32>> = x_gradient
        .par_chunks_mut(ROWS * width)
        .zip(x.par_chunks(ROWS * width))
        .zip(gradient.par_chunks(ROWS * width))
        .map(|((dx, x), g)| {
            let mut dw = vec![0.0; 2 * width];
            backward_rows(x, weight, norm, g, dx, &mut dw);
            dw
        })
        .collect();
    weight_gradient.fill(0.0);
    for part in parts {
        for (sum, part) in weight_gradient.iter_mut().zip(part) {
            *sum += part;
        }
    }
}
