//! Gated units (Shazeer 2020): `y = σ(gate) ∘ up`, with σ of SwiGLU or GeGLU.

#![allow(unsafe_code)]

use std::mem::MaybeUninit;

use rayon::prelude::*;

use super::scratch::filled;
use super::vector::{exp, simd};

/// Rows that a thread takes at a time.
const ROWS: usize = 8;

/// The activation of a gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// x / (1 + e^−x): SwiGLU.
    Silu,
    /// x/2 · (1 + tanh(√(2/π)·(x + 0.044715·x³))): GeGLU as Gemma has it.
    GeluTanh,
}

impl Gate {
    /// Value and derivative. Both activations are x·λ(u) with the logistic function λ.
    #[inline(always)]
    fn value_and_slope(self, x: f32) -> (f32, f32) {
        match self {
            Self::Silu => {
                let l = 1.0 / (1.0 + exp(-x));
                (x * l, l + x * l * (1.0 - l))
            }
            Self::GeluTanh => {
                // ½(1 + tanh v) = λ(2v).
                const TWICE: f32 = 1.595_769;
                const CUBE: f32 = 0.044_715;
                let u = TWICE * x * (CUBE * x).mul_add(x, 1.0);
                let slope = TWICE * (3.0 * CUBE * x).mul_add(x, 1.0);
                let l = 1.0 / (1.0 + exp(-u));
                (x * l, l + x * l * (1.0 - l) * slope)
            }
        }
    }
}

/// σ(gate) ∘ up, from rows that hold both side by side: `x` is `[rows, 2 · inner]`, the result
/// `[rows, inner]`.
///
/// # Panics
/// If `x` is not whole rows.
pub fn forward(kind: Gate, x: &[f32], inner: usize) -> Vec<f32> {
    assert!(x.len().is_multiple_of(2 * inner));
    let fill = |y: &mut [MaybeUninit<f32>]| {
        y.par_chunks_mut(ROWS * inner).zip(x.par_chunks(2 * ROWS * inner)).for_each(|(y, x)| {
            for (y, x) in y.chunks_exact_mut(inner).zip(x.chunks_exact(2 * inner)) {
                let (gate, up) = x.split_at(inner);
                forward_elements(kind, gate, up, y);
            }
        });
    };
    // SAFETY: the chunks are all rows, and each row is written.
    unsafe { filled(x.len() / 2, fill) }
}

/// The gradient of `x` from that of the result: of the gate g ∘ up ∘ σ′(gate), of up g ∘ σ(gate).
///
/// # Panics
/// If `x` is not whole rows, or `gradient` not half as long.
pub fn backward(kind: Gate, x: &[f32], inner: usize, gradient: &[f32]) -> Vec<f32> {
    assert!(x.len().is_multiple_of(2 * inner) && gradient.len() == x.len() / 2);
    let fill = |dx: &mut [MaybeUninit<f32>]| {
        dx.par_chunks_mut(2 * ROWS * inner)
            .zip(x.par_chunks(2 * ROWS * inner))
            .zip(gradient.par_chunks(ROWS * inner))
            .for_each(|((dx, x), g)| {
                for ((dx, x), g) in dx
                    .chunks_exact_mut(2 * inner)
                    .zip(x.chunks_exact(2 * inner))
                    .zip(g.chunks_exact(inner))
                {
                    let ((gate, up), (dgate, dup)) = (x.split_at(inner), dx.split_at_mut(inner));
                    backward_elements(kind, (gate, up), g, dgate, dup);
                }
            });
    };
    // SAFETY: the chunks are all rows, and each row is written.
    unsafe { filled(x.len(), fill) }
}

simd! {
    fn forward_elements<'a>(
        kind: Gate,
        gate: &'a [f32],
        up: &'a [f32],
        y: &'a mut [MaybeUninit<f32>],
    ) -> () {
        match kind {
            Gate::Silu => {
                for ((y, x), up) in y.iter_mut().zip(gate).zip(up) {
                    y.write(Gate::Silu.value_and_slope(*x).0 * up);
                }
            }
            Gate::GeluTanh => {
                for ((y, x), up) in y.iter_mut().zip(gate).zip(up) {
                    y.write(Gate::GeluTanh.value_and_slope(*x).0 * up);
                }
            }
        }
    }

    fn backward_elements<'a>(
        kind: Gate,
        x: (&'a [f32], &'a [f32]),
        g: &'a [f32],
        dgate: &'a mut [MaybeUninit<f32>],
        dup: &'a mut [MaybeUninit<f32>],
    ) -> () {
        let all = dgate.iter_mut().zip(dup).zip(x.0.iter().zip(x.1).zip(g));
        match kind {
            Gate::Silu => {
                for ((dgate, dup), ((x, up), g)) in all {
                    let (value, slope) = Gate::Silu.value_and_slope(*x);
                    dgate.write(g * up * slope);
                    dup.write(g * value);
                }
            }
            Gate::GeluTanh => {
                for ((dgate, dup), ((x, up), g)) in all {
                    let (value, slope) = Gate::GeluTanh.value_and_slope(*x);
                    dgate.write(g * up * slope);
                    dup.write(g * value);
                }
            }
        }
    }
}
