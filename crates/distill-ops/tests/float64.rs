//! Operators on slices against float64: values, and gradients by central differences of
//! Σ gradient · value, on shapes at and around the edges of blocks.

use distill_ops::cpu::adamw::{self, Blocks, Update};
use distill_ops::cpu::attention::{self, Positions, Shape};
use distill_ops::cpu::gate::{self, Gate};
use distill_ops::cpu::norm::{self, Norm};
use distill_ops::cpu::rounding::{self, Grid};
use distill_quant::{q4_0, q8_0};

fn values(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| 1.5 * next()).collect()
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| f64::from(x)).collect()
}

/// |found − want| ≤ 1e-5 |want| as norms.
fn close(found: &[f32], want: &[f64], what: &str) {
    assert_eq!(found.len(), want.len(), "{what}");
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    let error = norm(&mut found.iter().zip(want).map(|(f, w)| f64::from(*f) - w));
    let size = norm(&mut want.iter().copied());
    assert!(error <= 1e-5 * size + 1e-7, "{what}: {error} of {size}");
}

/// ∂ Σ g·f(x) / ∂x by central differences; `f` must be smooth at a scale of 1e-5.
fn slopes(x: &[f64], g: &[f32], f: &dyn Fn(&[f64]) -> Vec<f64>) -> Vec<f64> {
    slopes_of(x, g, f, 0..x.len())
}

/// The same for some elements of x.
fn slopes_of(
    x: &[f64],
    g: &[f32],
    f: &dyn Fn(&[f64]) -> Vec<f64>,
    which: impl Iterator<Item = usize>,
) -> Vec<f64> {
    let at = |i: usize, by: f64| -> f64 {
        let mut x = x.to_vec();
        x[i] += by;
        f(&x).iter().zip(g).map(|(y, g)| y * f64::from(*g)).sum()
    };
    which.map(|i| (at(i, 1e-5) - at(i, -1e-5)) / 2e-5).collect()
}

#[test]
fn norms() {
    for (rows, width) in [(1, 1), (1, 16), (3, 17), (33, 24), (2, 40)] {
        for offset in [0.0, 1.0] {
            let norm = Norm { epsilon: 1e-5, offset };
            let (x, w, g) = (values(rows * width, 1), values(width, 2), values(rows * width, 3));
            let reference = |x: &[f64], w: &[f64]| -> Vec<f64> {
                x.chunks(width)
                    .flat_map(|x| {
                        let mean = x.iter().map(|x| x * x).sum::<f64>() / width as f64;
                        let s = 1.0 / (mean + f64::from(norm.epsilon)).sqrt();
                        x.iter().zip(w).map(move |(x, w)| x * s * (w + f64::from(offset)))
                    })
                    .collect()
            };
            let (x64, w64) = (wide(&x), wide(&w));
            let what = format!("{rows} × {width}, offset {offset}");
            let y = norm::forward(&x, &w, norm);
            close(&y, &reference(&x64, &w64), &what);
            let (dx, dw) = norm::backward(&x, &w, norm, &g);
            close(&dx, &slopes(&x64, &g, &|x| reference(x, &w64)), &format!("∂x, {what}"));
            close(&dw, &slopes(&w64, &g, &|w| reference(&x64, w)), &format!("∂w, {what}"));
        }
    }
}

#[test]
fn gates() {
    for kind in [Gate::Silu, Gate::GeluTanh] {
        for (rows, inner) in [(1, 1), (1, 15), (3, 16), (17, 3), (9, 33)] {
            let (mut x, g) = (values(2 * rows * inner, 4), values(rows * inner, 6));
            for row in x.chunks_mut(2 * inner) {
                row[..inner].iter_mut().for_each(|gate| *gate *= 4.0);
            }
            let reference = |x: &[f64]| -> Vec<f64> {
                let value = |x: f64| match kind {
                    Gate::Silu => x / (1.0 + (-x).exp()),
                    Gate::GeluTanh => {
                        let inner =
                            (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x);
                        0.5 * x * (1.0 + inner.tanh())
                    }
                };
                let rows = x.chunks(2 * inner);
                let pairs = rows.flat_map(|row| row[..inner].iter().zip(&row[inner..]));
                pairs.map(|(gate, up)| value(*gate) * up).collect()
            };
            let (x64, what) = (wide(&x), format!("{kind:?} {rows} × {inner}"));
            close(&gate::forward(kind, &x, inner), &reference(&x64), &what);
            let dx = gate::backward(kind, &x, inner, &g);
            close(&dx, &slopes(&x64, &g, &reference), &what);
        }
    }
}

/// Attention in float64, by the definition.
fn attention_reference(x: &[f64], angles: &[f64], first: &[usize], shape: Shape) -> Vec<f64> {
    let Shape { batch, tokens, heads, kv_heads, head_dim } = shape;
    let half = head_dim / 2;
    // Heads are numbered through queries, keys and values.
    let element = |token: usize, head: usize, rotate: bool| -> Vec<f64> {
        let x = &x[token * shape.width() + head * head_dim..][..head_dim];
        (0..head_dim)
            .map(|d| {
                if !rotate {
                    return x[d];
                }
                let angle = angles[token * half + d % half];
                let other = if d < half { -x[d + half] } else { x[d - half] };
                x[d] * angle.cos() + other * angle.sin()
            })
            .collect()
    };
    let mut out = vec![0.0; batch * tokens * heads * head_dim];
    for b in 0..batch {
        for t in 0..tokens {
            for h in 0..heads {
                let kv = h * kv_heads / heads;
                let token = b * tokens + t;
                let query = element(token, h, true);
                let seen: Vec<usize> = (first[token]..=t).map(|t| b * tokens + t).collect();
                let scores: Vec<f64> = seen
                    .iter()
                    .map(|&s| {
                        let key = element(s, heads + kv, true);
                        let dot: f64 = query.iter().zip(key).map(|(q, k)| q * k).sum();
                        (dot / (head_dim as f64).sqrt()).exp()
                    })
                    .collect();
                let total: f64 = scores.iter().sum();
                let y = &mut out[(token * heads + h) * head_dim..][..head_dim];
                for (&s, score) in seen.iter().zip(&scores) {
                    let value = element(s, heads + kv_heads + kv, false);
                    y.iter_mut().zip(value).for_each(|(y, v)| *y += score / total * v);
                }
            }
        }
    }
    out
}

#[test]
fn attention_of_packed_documents() {
    let shapes = [
        // One token; edges of the block of 64 queries; groups of 1, 2, 3 heads.
        (Shape { batch: 1, tokens: 1, heads: 1, kv_heads: 1, head_dim: 2 }, 1),
        (Shape { batch: 2, tokens: 7, heads: 3, kv_heads: 1, head_dim: 4 }, 3),
        (Shape { batch: 1, tokens: 65, heads: 2, kv_heads: 2, head_dim: 2 }, 65),
        (Shape { batch: 1, tokens: 70, heads: 2, kv_heads: 1, head_dim: 2 }, 17),
        (Shape { batch: 2, tokens: 64, heads: 2, kv_heads: 1, head_dim: 2 }, 1),
        // More blocks than parts.
        (Shape { batch: 1, tokens: 600, heads: 1, kv_heads: 1, head_dim: 2 }, 450),
    ];
    for (shape, document) in shapes {
        let Shape { batch, tokens, heads, head_dim, .. } = shape;
        let x = values(batch * tokens * shape.width(), 7);
        let g = values(batch * tokens * heads * head_dim, 10);
        // Documents of that length, positions counted from their beginnings.
        let first: Vec<usize> =
            (0..batch * tokens).map(|i| i % tokens / document * document).collect();
        let angles: Vec<f64> = (0..batch * tokens)
            .flat_map(|i| {
                (0..head_dim / 2).map(move |d| (i % tokens % document) as f64 / (1.0 + d as f64))
            })
            .collect();
        let angles: Vec<f64> = angles.iter().map(|a| f64::from(*a as f32)).collect();
        let (sin, cos): (Vec<f32>, Vec<f32>) =
            angles.iter().map(|a| (a.sin() as f32, a.cos() as f32)).unzip();
        let positions = Positions { cos: &cos, sin: &sin, first: &first };
        let (y, saved) = attention::forward(&x, positions, shape);
        let reference = |x: &[f64]| attention_reference(x, &angles, &first, shape);
        let x64 = wide(&x);
        close(&y, &reference(&x64), &format!("{shape:?}"));
        let found = attention::backward(&saved, &g, positions, shape);
        // Queries, keys, and values on their own: their gradients differ in size.
        let (queries, keys) = (heads * head_dim, shape.kv_heads * head_dim);
        let ends = [0, queries, queries + keys, shape.width()];
        for (part, columns) in ["∂q", "∂k", "∂v"].iter().zip(ends.windows(2)) {
            let own = |i: usize| (columns[0]..columns[1]).contains(&(i % shape.width()));
            let what = format!("{part} {shape:?}");
            if tokens < 100 {
                let of = |i: &usize| own(*i);
                let want = slopes_of(&x64, &g, &reference, (0..x64.len()).filter(of));
                let found: Vec<f32> = (0..x64.len()).filter(of).map(|i| found[i]).collect();
                close(&found, &want, &what);
                continue;
            }
            // Along some directions.
            for seed in 20..24 {
                let direction = values(x64.len(), seed);
                let direction = |i: usize| if own(i) { f64::from(direction[i]) } else { 0.0 };
                let along = |by: f64| -> f64 {
                    let x: Vec<f64> =
                        x64.iter().enumerate().map(|(i, x)| x + by * direction(i)).collect();
                    reference(&x).iter().zip(&g).map(|(y, g)| y * f64::from(*g)).sum()
                };
                let want = (along(1e-5) - along(-1e-5)) / 2e-5;
                let terms = || found.iter().enumerate().map(|(i, f)| f64::from(*f) * direction(i));
                let (found, size) = (terms().sum::<f64>(), terms().map(|t| t * t).sum::<f64>());
                assert!((found - want).abs() <= 1e-5 * size.sqrt(), "{what}: {found} {want}");
            }
        }
    }
}

#[test]
fn adamw() {
    for n in [1, 16, 1 << 14, (1 << 14) + 5] {
        let (w, g) = (values(n, 11), values(n, 12));
        let (m, v) = (values(n, 13), values(n, 14).iter().map(|v| v * v).collect::<Vec<f32>>());
        let by = Update {
            beta1: 0.9,
            beta2: 0.999,
            rate: 1e-2,
            correction2: 1.7,
            epsilon: 1e-8,
            keep: 0.99,
            clip: 0.5,
        };
        let (mut w32, mut m32, mut v32) = (w.clone(), m.clone(), v.clone());
        adamw::update(&mut w32, &g, &mut m32, &mut v32, by);
        let [beta1, beta2] = [by.beta1, by.beta2].map(f64::from);
        let half: Vec<f64> = g.iter().map(|g| 0.5 * f64::from(*g)).collect();
        let m: Vec<f64> =
            m.iter().zip(&half).map(|(m, g)| beta1 * f64::from(*m) + (1.0 - beta1) * g).collect();
        let v: Vec<f64> = v
            .iter()
            .zip(&half)
            .map(|(v, g)| beta2 * f64::from(*v) + (1.0 - beta2) * g * g)
            .collect();
        let w: Vec<f64> = w
            .iter()
            .zip(m.iter().zip(&v))
            .map(|(w, (m, v))| f64::from(*w) * 0.99 - 1e-2 * m / ((v * 1.7).sqrt() + 1e-8))
            .collect();
        close(&w32, &w, "weights");
        close(&m32, &m, "m");
        close(&v32, &v, "v");
        let squares: f64 = g.iter().map(|&g| f64::from(g) * f64::from(g)).sum();
        assert!((adamw::sum_of_squares(&g) - squares).abs() < 1e-6 * squares);
    }
}

/// Gradients of 2,000 steps whose size falls by ten in the middle: 500 elements whose sizes in a block
/// lie a factor of 100 apart (and their squares 10,000), noise four times as large as what it hides.
fn noisy_gradient(step: usize, elements: usize) -> Vec<f32> {
    let size = if step < 1000 { 1.0 } else { 0.1 };
    let noise = values(elements, 1000 + step as u64);
    let scale = |i: usize| size * 0.316_f32.powi((i % 4) as i32) * (1.0 + (i / 100) as f32);
    (0..elements).map(|i| scale(i) * (noise[i] + 0.2 * (i as f32).sin())).collect()
}

#[test]
fn adamw_with_small_moments_follows_float64_over_two_thousand_steps() {
    const N: usize = 500;
    let first = values(N, 17);
    let by = |step: usize| Update {
        beta1: 0.9,
        beta2: 0.999,
        rate: (1e-3 / (1.0 - 0.9_f64.powi(step as i32))) as f32,
        correction2: (1.0 / (1.0 - 0.999_f64.powi(step as i32))) as f32,
        epsilon: 1e-8,
        keep: 1.0,
        clip: 1.0,
    };
    let (mut w64, mut m64, mut v64) = (wide(&first), vec![0.0; N], vec![0.0; N]);
    let (mut w16, mut m16, mut v16) = (first.clone(), vec![0; N], vec![0; N]);
    let (mut w8, mut m8, mut v8) = (first.clone(), vec![0; N], vec![0; N]);
    let (mut m_scales, mut v_scales) = (vec![1.0; 2], vec![1.0; 2]);
    for step in 1..=2000 {
        let (g, by) = (noisy_gradient(step, N), by(step));
        let noise = (step as u32).wrapping_mul(0x9E37_79B9);
        adamw::update_bf16(&mut w16, &g, &mut m16, &mut v16, by, noise);
        let m = Blocks { codes: &mut m8, scales: &mut m_scales };
        let v = Blocks { codes: &mut v8, scales: &mut v_scales };
        adamw::update_8bit(&mut w8, &g, m, v, by, noise);
        for i in 0..N {
            let g = f64::from(g[i]);
            m64[i] = 0.9 * m64[i] + 0.1 * g;
            v64[i] = 0.999 * v64[i] + 0.001 * g * g;
            let root = (v64[i] * f64::from(by.correction2)).sqrt() + 1e-8;
            w64[i] -= f64::from(by.rate) * m64[i] / root;
        }
    }
    // How far the weights went, and how far from float64 they are.
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    let way = norm(&mut w64.iter().zip(&first).map(|(w, f)| w - f64::from(*f)));
    let apart = |w: &[f32]| norm(&mut w.iter().zip(&w64).map(|(w, w64)| f64::from(*w) - w64)) / way;
    let (apart16, apart8) = (apart(&w16), apart(&w8));
    println!("weights: bf16 {apart16:.4}, 8 bits {apart8:.4} of the way");
    // The mean of v over v₆₄: a rule that stalls keeps the v of before the fall, a hundred times more.
    let widened = v16.iter().map(|&v| f64::from(f32::from_bits(u32::from(v) << 16)));
    let mean16 = widened.zip(&v64).map(|(v, v64)| v / v64).sum::<f64>() / N as f64;
    println!("mean of v / v64: bf16 {mean16:.4}");
    assert!(apart16 < 0.02 && apart8 < 0.08, "{apart16} {apart8}");
    assert!((mean16 - 1.0).abs() < 0.01, "{mean16}");
}

#[test]
fn small_moments_do_not_depend_on_where_a_thread_begins() {
    // The first 5,000 elements alone are the first 5,000 of 9,000.
    let by = Update {
        beta1: 0.9,
        beta2: 0.999,
        rate: 1e-3,
        correction2: 1.0,
        epsilon: 1e-8,
        keep: 1.0,
        clip: 1.0,
    };
    let run = |n: usize| {
        let (mut w, g) = (values(9000, 3)[..n].to_vec(), values(9000, 4));
        let (mut m, mut v) = (vec![0; n], vec![0; n]);
        adamw::update_bf16(&mut w, &g[..n], &mut m, &mut v, by, 5);
        m.truncate(5000);
        (m, v[..5000].to_vec())
    };
    assert_eq!(run(5000), run(9000));
}

#[test]
fn rounding_is_that_of_the_scalar_rule() {
    for n in [32, 1 << 14, (1 << 14) + 128] {
        let mut x = values(n, 15);
        // Zero, denormal, saturating blocks, where there are that many.
        for (block, size) in x.chunks_mut(32).skip(1).zip([0.0, 1e-42, 1e-7, 1e37]) {
            block.iter_mut().for_each(|x| *x *= size);
        }
        let mut want = vec![7.0; n];
        for (grid, rule) in [
            (Grid::Q4_0, q4_0::fake_quantize as fn(&[f32], &mut [f32])),
            (Grid::Q8_0, q8_0::fake_quantize),
            (Grid::Q8_0Activations, q8_0::fake_quantize_activation),
        ] {
            rule(&x, &mut want);
            assert!(rounding::rounded(grid, &x) == want, "{grid:?} {n}");
            let mut found = vec![7.0; n];
            rounding::round(grid, &x, &mut found);
            assert!(found == want, "{grid:?} {n}");
        }
        let mut gradient = values(n, 16);
        let mut mask = vec![0.0; n];
        q4_0::straight_through_mask(&x, &mut mask);
        let want: Vec<f32> = gradient.iter().zip(mask).map(|(g, m)| g * m).collect();
        rounding::straight_through_q4_0(&x, &mut gradient);
        assert_eq!(gradient, want);
    }
}

#[test]
fn rounding_with_given_scales_is_that_of_the_scalar_rule() {
    for n in [32, 1 << 14, (1 << 14) + 128] {
        let x = values(n, 17);
        let factor = [0.11, -0.13, 0.03, 0.0, 1e-9, -1e6];
        let scales: Vec<f32> = (0..n / 32).map(|i| factor[i % factor.len()]).collect();
        let mut gradient = values(n, 18);
        let mut found = vec![7.0; n];
        rounding::round_scaled(&x, &scales, &mut found);
        let mut of_scales = vec![7.0; n / 32];
        let mut passed = gradient.clone();
        rounding::straight_through_scaled(&x, &scales, &mut passed, &mut of_scales);
        for (i, (block, gradient)) in
            x.as_chunks::<32>().0.iter().zip(gradient.as_chunks_mut::<32>().0).enumerate()
        {
            let at = i * 32..(i + 1) * 32;
            let want = q4_0::BlockQ4_0::quantize_scaled(block, scales[i]).dequantize();
            assert!(found[at.clone()] == want, "block {i} of {n}");
            let before = *gradient;
            let want = q4_0::straight_through_scaled(block, scales[i], gradient);
            assert!(passed[at] == *gradient, "block {i} of {n}");
            // Terms of at most 8 · |g|, added in another order.
            let size: f32 = before.iter().map(|g| 8.0 * g.abs()).sum();
            assert!((of_scales[i] - want).abs() <= 1e-6 * size, "{} {want}", of_scales[i]);
        }
    }
}
