//! GFLOP/s of the matrix products of a training step on the shapes of SmolLM2-135M, 512 tokens, each
//! with operands of its own that no cache holds, as in a step:
//! `cargo run --release -p distill -p distill-ops --example products`.

use std::time::Instant;

use distill_ops::cpu::product::{Destination, Matrix, Threads, multiply};
use distill_ops::memory::Aligned;

#[global_allocator]
static ALLOCATOR: Aligned = Aligned;

const TOKENS: usize = 512;
const LAYERS: usize = 30;

struct Layer {
    x: Vec<f32>,
    w: Vec<f32>,
    y: Vec<f32>,
    dx: Vec<f32>,
    dw: Vec<f32>,
}

fn values(n: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 7919 % 1013) as f32 - 500.0) / 400.0).collect()
}

fn main() {
    let mut all = [0.0; 2];
    for (name, m, n, k) in [
        ("query, key, value", TOKENS, 960, 576),
        ("output", TOKENS, 576, 576),
        ("gate and up", TOKENS, 3072, 576),
        ("down", TOKENS, 576, 1536),
        ("head, 128 tokens", 128, 49_152, 576),
    ] {
        let layers = if n > 10_000 { 4 } else { LAYERS };
        let mut stack: Vec<Layer> = (0..layers)
            .map(|_| Layer {
                x: values(m * k),
                w: values(n * k),
                y: values(m * n),
                dx: values(m * k),
                dw: values(n * k),
            })
            .collect();
        let mut best = [f64::INFINITY; 3];
        for _ in 0..12 {
            let mut times = [0.0; 3];
            for Layer { x, w, y, dx, dw } in &mut stack {
                let mut run = |i: usize, a: Matrix<'_>, b: Matrix<'_>, out: Destination<'_>| {
                    let begin = Instant::now();
                    multiply(a, b, 1.0, out, Threads::All);
                    times[i] += begin.elapsed().as_secs_f64();
                };
                let (x, w) = (Matrix::new(x, m, k), Matrix::new(w, n, k));
                run(0, x, w.transposed(), Destination::replace(y, n));
                let g = Matrix::new(y, m, n);
                run(1, g, w, Destination::replace(dx, k));
                run(2, g.transposed(), x, Destination::replace(dw, k));
            }
            for (best, time) in best.iter_mut().zip(times) {
                *best = best.min(time);
            }
        }
        let work = 2e-9 * (m * n * k * layers) as f64;
        print!("{name:20}");
        for (what, time) in ["x·wᵀ", "g·w", "gᵀ·x"].into_iter().zip(best) {
            print!("   {what:5} {:5.0}", work / time);
        }
        println!();
        all = [all[0] + 3.0 * work, all[1] + best.iter().sum::<f64>()];
    }
    println!("together {:.0} GFLOP/s", all[0] / all[1]);
}
