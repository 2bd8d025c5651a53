//! Gated units (Shazeer 2020): `y = σ(gate) ∘ up`, with σ of SwiGLU or GeGLU.

use rayon::prelude::*;

use super::vector::{exp, simd};

/// Elements that a thread takes at a time.
const CHUNK: usize = 1 << 14;

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

/// σ(gate) ∘ up. All slices have one length.
pub fn forward(kind: Gate, gate: &[f32], up: &[f32], y: &mut [f32]) {
    y.par_chunks_mut(CHUNK)
        .zip(gate.par_chunks(CHUNK))
        .zip(up.par_chunks(CHUNK))
        .for_each(|((y, gate), up)| forward_elements(kind, gate, up, y));
}

/// Gradients of gate and up from that of y: ∂gate = g ∘ up ∘ σ′(gate), ∂up = g ∘ σ(gate).
pub fn backward(
    kind: Gate,
    gate: &[f32],
    up: &[f32],
    gradient: &[f32],
    gate_gradient: &mut [f32],
    up_gradient: &mut [f32],
) {
    gate_gradient
        .par_chunks_mut(CHUNK)
        .zip(up_gradient.par_chunks_mut(CHUNK))
        .zip(gate.par_chunks(CHUNK).zip(up.par_chunks(CHUNK)).zip(gradient.par_chunks(CHUNK)))
        .for_each(|((dgate, dup), ((gate, up), g))| {
            // The gradient's two factors first, so that a loop writes one slice.
            slopes(kind, gate, dgate, dup);
            times(g, up, dgate, dup);
        });
}

simd! {
    fn forward_elements<'a>(kind: Gate, gate: &'a [f32], up: &'a [f32], y: &'a mut [f32]) -> () {
        match kind {
            Gate::Silu => {
                for ((y, x), up) in y.iter_mut().zip(gate).zip(up) {
                    *y = Gate::Silu.value_and_slope(*x).0 * up;
                }
            }
            Gate::GeluTanh => {
                for ((y, x), up) in y.iter_mut().zip(gate).zip(up) {
                    *y = Gate::GeluTanh.value_and_slope(*x).0 * up;
                }
            }
        }
    }

    /// σ′ and σ of the gate.
    fn slopes<'a>(kind: Gate, gate: &'a [f32], slope: &'a mut [f32], value: &'a mut [f32]) -> () {
        let all = value.iter_mut().zip(slope).zip(gate);
        match kind {
            Gate::Silu => all.for_each(|((v, s), x)| (*v, *s) = Gate::Silu.value_and_slope(*x)),
            Gate::GeluTanh => {
                all.for_each(|((v, s), x)| (*v, *s) = Gate::GeluTanh.value_and_slope(*x));
            }
        }
    }

    fn times<'a>(g: &'a [f32], up: &'a [f32], slope: &'a mut [f32], value: &'a mut [f32]) -> () {
        for ((slope, g), up) in slope.iter_mut().zip(g).zip(up) {
            *slope *= g * up;
        }
        for (value, g) in value.iter_mut().zip(g) {
            *value *= g;
        }
    }
}
