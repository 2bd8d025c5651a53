//! Milliseconds of each operator on the shapes of SmolLM2-135M, 512 tokens:
//! `cargo run --release -p distill -p distill-ops --example speed`.

use std::time::Instant;

use distill_ops::cpu::adamw::{self, Blocks, Update};
use distill_ops::cpu::attention::{self, Positions, Shape};
use distill_ops::cpu::gate::{self, Gate};
use distill_ops::cpu::loss::{self, Divergence, Options, Row, Target};
use distill_ops::cpu::norm::{self, Norm};
use distill_ops::cpu::product::{Destination, Matrix, Threads, multiply};
use distill_ops::cpu::rounding::{self, Grid};
use rayon::prelude::*;

#[global_allocator]
static ALLOCATOR: distill_ops::memory::Aligned = distill_ops::memory::Aligned;

const TOKENS: usize = 512;
const HIDDEN: usize = 576;
const INNER: usize = 1536;
const VOCABULARY: usize = 49_152;

fn values(n: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 7919 % 1013) as f32 - 500.0) / 400.0).collect()
}

fn time(what: &str, mut work: impl FnMut()) -> f64 {
    work();
    let mut times: Vec<f64> = (0..7)
        .map(|_| {
            let begin = Instant::now();
            work();
            begin.elapsed().as_secs_f64() * 1e3
        })
        .collect();
    times.sort_by(f64::total_cmp);
    println!("{what:32} {:9.2} ms", times[3]);
    times[3]
}

fn main() {
    for (m, n, k) in [
        (TOKENS, INNER, HIDDEN),
        (TOKENS, HIDDEN, INNER),
        (TOKENS, HIDDEN, HIDDEN),
        (TOKENS, VOCABULARY, HIDDEN),
    ] {
        let (a, b) = (values(m * k), values(n * k));
        let mut out = vec![0.0; m * n];
        let (a, b) = (Matrix::new(&a, m, k), Matrix::new(&b, n, k));
        let ms = time(&format!("x·wᵀ {m} × {n} × {k}"), || {
            multiply(a, b.transposed(), 1.0, Destination::replace(&mut out, n), Threads::All);
        });
        println!("{:32} {:9.1} GFLOP/s", "", 2e-6 * (m * n * k) as f64 / ms);
        let g = values(m * n);
        let g = Matrix::new(&g, m, n);
        let mut out = vec![0.0; m * k];
        time("  g·w", || {
            multiply(g, b, 1.0, Destination::replace(&mut out, k), Threads::All);
        });
        let mut out = vec![0.0; n * k];
        time("  gᵀ·x", || {
            multiply(g.transposed(), a, 1.0, Destination::replace(&mut out, k), Threads::All);
        });
    }
    let (x, w, g) = (values(TOKENS * HIDDEN), values(HIDDEN), values(TOKENS * HIDDEN));
    let norm = Norm { epsilon: 1e-5, offset: 0.0 };
    time("norm", || drop(norm::forward(&x, &w, norm)));
    time("  backward", || drop(norm::backward(&x, &w, norm, &g)));

    let (x, g) = (values(TOKENS * 2 * INNER), values(TOKENS * INNER));
    time("swiglu", || drop(gate::forward(Gate::Silu, &x, INNER)));
    time("  backward", || drop(gate::backward(Gate::Silu, &x, INNER, &g)));

    let shape = Shape { batch: 1, tokens: TOKENS, heads: 9, kv_heads: 3, head_dim: 64 };
    let (x, g) = (values(TOKENS * shape.width()), values(TOKENS * 576));
    let (cos, sin, first) = (values(TOKENS * 32), values(TOKENS * 32), vec![0; TOKENS]);
    let positions = Positions { cos: &cos, sin: &sin, first: &first };
    let (_, saved) = attention::forward(&x, positions, shape);
    time("attention", || drop(attention::forward(&x, positions, shape)));
    time("  backward", || drop(attention::backward(&saved, &g, positions, shape)));

    for divergence in [Divergence::ForwardKl, Divergence::Jsd { beta: 0.5 }] {
        let (z, t) = (values(256 * VOCABULARY), values(256 * VOCABULARY));
        let (mut a, mut b) = (z.clone(), t.clone());
        let options = Options {
            divergence,
            temperature: 1.0,
            scale: 1.0,
            cross_entropy: 0.0,
            logit_scale: 1.0,
            soft_cap: None,
        };
        time(&format!("{divergence:?}, 256 tokens"), || {
            a.copy_from_slice(&z);
            b.copy_from_slice(&t);
            let rows = a.par_chunks_mut(VOCABULARY).zip(b.par_chunks_mut(VOCABULARY));
            loss::rows(
                rows.map(|(logits, y)| Row {
                    logits,
                    target: Target::Logits(y),
                    label: 3,
                    share: 0.1,
                }),
                options,
            );
        });
        time("  of which copies", || {
            a.copy_from_slice(&z);
            b.copy_from_slice(&t);
        });
    }
    const MATRIX: usize = VOCABULARY * HIDDEN;
    let (mut w, g) = (values(MATRIX), values(MATRIX));
    let (mut m, mut v) = (vec![0.0; MATRIX], vec![0.0; MATRIX]);
    let by = Update {
        beta1: 0.9,
        beta2: 0.999,
        rate: 1e-4,
        correction2: 1.0,
        epsilon: 1e-8,
        keep: 1.0,
        clip: 1.0,
    };
    time("adamw, embedding", || adamw::update(&mut w, &g, &mut m, &mut v, by));
    let (mut m16, mut v16) = (vec![0; MATRIX], vec![0; MATRIX]);
    time("  state in bf16", || adamw::update_bf16(&mut w, &g, &mut m16, &mut v16, by, 7));
    let (mut m8, mut v8) = (vec![0; MATRIX], vec![0; MATRIX]);
    let (mut m_scales, mut v_scales) = (vec![1.0; MATRIX / 256], vec![1.0; MATRIX / 256]);
    time("  state in 8 bits", || {
        let m = Blocks { codes: &mut m8, scales: &mut m_scales };
        let v = Blocks { codes: &mut v8, scales: &mut v_scales };
        adamw::update_8bit(&mut w, &g, m, v, by, 7);
    });
    time("norm of its gradient", || assert!(adamw::sum_of_squares(&g) > 0.0));
    time("round to Q4_0", || drop(rounding::rounded(Grid::Q4_0, &g)));
    time("round to Q8_0", || drop(rounding::rounded(Grid::Q8_0, &g)));
    time("straight-through", || rounding::straight_through_q4_0(&g, &mut w));
    let x = values(TOKENS * INNER);
    time("activations, 512 × 1536", || drop(rounding::rounded(Grid::Q8_0Activations, &x)));
}
