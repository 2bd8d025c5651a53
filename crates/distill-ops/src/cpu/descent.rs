//! Codes and scales of the Q4_0 grid that coordinate descent makes better, from where GPTQ ends.

use distill_quant::{BLOCK, q4_0};
use rayon::prelude::*;

use super::vector::simd;

/// Rows that take a step together, so that H is read once for all.
const ROWS: usize = 16;

/// Lessens (w − ŵ)·H·(w − ŵ)ᵀ of each row, code after code and scale after scale, each the best for
/// all others as they are, in a number of sweeps over the row.
///
/// `target` is w, `[rows, columns]`; `masters` and `scales` (`[rows, columns / 32]`) give ŵ when they
/// are rounded, before and after; `h` is H, symmetric, `[columns, columns]`. GPTQ decides about a
/// column when those before it are fixed and never looks back; here every code is looked at again
/// beside what became of its neighbours.
///
/// # Panics
/// If the lengths do not fit each other.
pub fn descend(
    masters: &mut [f32],
    scales: &mut [f32],
    target: &[f32],
    h: &[f32],
    columns: usize,
    sweeps: usize,
) {
    assert!(columns.is_multiple_of(BLOCK) && masters.len().is_multiple_of(columns));
    assert_eq!(masters.len(), target.len());
    assert_eq!(scales.len() * BLOCK, masters.len());
    assert_eq!(h.len(), columns * columns);
    let blocks = columns / BLOCK;
    masters
        .par_chunks_mut(ROWS * columns)
        .zip(scales.par_chunks_mut(ROWS * blocks))
        .zip(target.par_chunks(ROWS * columns))
        .for_each(|((masters, scales), target)| {
            let mut rows: Vec<Row> = masters
                .chunks(columns)
                .zip(scales.chunks(blocks))
                .map(|(masters, scales)| Row::new(masters, scales))
                .collect();
            for (k, h) in h.chunks(columns).enumerate() {
                for (row, target) in rows.iter_mut().zip(target.chunks(columns)) {
                    add(target[k] - row.value(k), h, &mut row.gradient);
                }
            }
            for row in &mut rows {
                for _ in 0..sweeps {
                    (0..blocks).for_each(|block| row.settle(block, h));
                }
            }
            let written = masters.chunks_mut(columns).zip(scales.chunks_mut(blocks));
            rows.iter()
                .zip(written)
                .for_each(|(row, (masters, scales))| row.write(masters, scales));
        });
}

/// A row on the grid.
struct Row {
    /// −8 … 7.
    codes: Vec<f32>,
    /// As they ship: binary16's values.
    scales: Vec<f32>,
    /// H·(w − ŵ).
    gradient: Vec<f32>,
}

impl Row {
    fn new(masters: &[f32], scales: &[f32]) -> Self {
        let shipped = |scale: &f32| {
            q4_0::given_scale(*scale).map_or(0.0, |(d, _)| distill_quant::f16::to_f32(d))
        };
        let codes = masters.iter().enumerate().map(|(k, &master)| code(master, scales[k / BLOCK]));
        Self {
            codes: codes.collect(),
            scales: scales.iter().map(shipped).collect(),
            gradient: vec![0.0; masters.len()],
        }
    }

    fn value(&self, k: usize) -> f32 {
        self.codes[k] * self.scales[k / BLOCK]
    }

    /// The codes of a block one by one, then its scale.
    fn settle(&mut self, block: usize, h: &[f32]) {
        let columns = self.codes.len();
        let scale = self.scales[block];
        if scale == 0.0 {
            return;
        }
        let of = |k: usize| &h[k * columns..(k + 1) * columns];
        let range = block * BLOCK..(block + 1) * BLOCK;
        for k in range.clone() {
            let curvature = of(k)[k];
            let best = self.codes[k] + self.gradient[k] / (scale * curvature);
            let moved = best.round().clamp(-8.0, 7.0) - self.codes[k];
            let by = moved * scale;
            if moved != 0.0 && by * (by * curvature - 2.0 * self.gradient[k]) < 0.0 {
                self.codes[k] += moved;
                add(-by, of(k), &mut self.gradient);
            }
        }
        let codes = &self.codes[range.clone()];
        let slope: f32 = codes.iter().zip(&self.gradient[range.clone()]).map(|(c, g)| c * g).sum();
        let curved = |(i, c): (usize, &f32)| {
            let row = &of(range.start + i)[range.clone()];
            c * row.iter().zip(codes).map(|(h, c)| h * c).sum::<f32>()
        };
        let curvature: f32 = codes.iter().enumerate().map(curved).sum();
        let Some((best, _)) = q4_0::given_scale(scale + slope / curvature) else { return };
        let by = distill_quant::f16::to_f32(best) - scale;
        if by != 0.0 && by * (by * curvature - 2.0 * slope) < 0.0 {
            self.scales[block] = scale + by;
            for k in range {
                add(-by * self.codes[k], of(k), &mut self.gradient);
            }
        }
    }

    /// A master keeps its place where that has the code; elsewhere it is the code's own value.
    fn write(&self, masters: &mut [f32], scales: &mut [f32]) {
        scales.copy_from_slice(&self.scales);
        for (k, master) in masters.iter_mut().enumerate() {
            if code(*master, self.scales[k / BLOCK]) != self.codes[k] {
                *master = self.value(k);
            }
        }
    }
}

/// The code of a master, −8 … 7.
fn code(master: f32, scale: f32) -> f32 {
    let Some((_, reciprocal)) = q4_0::given_scale(scale) else { return 0.0 };
    q4_0::position(master, reciprocal).clamp(0.0, 15.0).trunc() - 8.0
}

simd! {
    /// y += by · x.
    fn add<'a>(by: f32, x: &'a [f32], y: &'a mut [f32]) -> () {
        for (y, x) in y.iter_mut().zip(x) {
            *y = x.mul_add(by, *y);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::gptq::search;
    use crate::cpu::gptq::tests::{noise, with_scales};

    /// A symmetric positive definite matrix whose neighbours know of each other.
    fn hessian(columns: usize) -> Vec<f32> {
        let samples = noise(300 * columns, 3);
        let mut h = vec![0.0; columns * columns];
        for x in samples.chunks(columns) {
            for i in 0..columns {
                for j in 0..columns {
                    let of = |i: usize| x[i] + 0.8 * x[(i + 1) % columns];
                    h[i * columns + j] += of(i) * of(j);
                }
            }
        }
        (0..columns).for_each(|i| h[i * columns + i] += 0.5);
        h
    }

    /// (w − ŵ)·H·(w − ŵ)ᵀ of a row, in float64.
    fn error(target: &[f32], values: &[f32], h: &[f32]) -> f64 {
        let e: Vec<f64> = target.iter().zip(values).map(|(t, v)| f64::from(t - v)).collect();
        let n = e.len();
        (0..n * n).map(|i| e[i / n] * f64::from(h[i]) * e[i % n]).sum()
    }

    #[test]
    fn no_code_and_no_scale_can_be_changed_alone_for_the_better() {
        let (rows, columns) = (ROWS + 3, 2 * BLOCK);
        let (target, h) = (noise(rows * columns, 5), hessian(columns));
        let scales = search(&target, &vec![1.0; columns]);
        let (mut masters, mut found) = (target.clone(), scales.clone());
        descend(&mut masters, &mut found, &target, &h, columns, 50);
        let (before, after) = (with_scales(&target, &scales), with_scales(&masters, &found));
        for row in 0..rows {
            let of = |values: &[f32]| -> Vec<f32> { values[row * columns..][..columns].to_vec() };
            let (target, values) = (of(&target), of(&after));
            let least = error(&target, &values, &h);
            assert!(least < error(&target, &of(&before), &h), "row {row}");
            // Sums in f32 know an error to a millionth.
            let room = 1e-5 * least;
            for k in 0..columns {
                let scale = found[row * 2 + k / BLOCK];
                for by in [-scale, scale] {
                    let mut other = values.clone();
                    other[k] += by;
                    if ((other[k] / scale).round() + 0.5).abs() < 8.0 {
                        assert!(error(&target, &other, &h) >= least - room, "row {row}, {k}");
                    }
                }
            }
            for block in 0..2 {
                // The neighbours in binary16.
                for by in [1.0 - 1.0 / 1024.0, 1.0 + 1.0 / 1024.0] {
                    let mut other = values.clone();
                    other[block * BLOCK..][..BLOCK].iter_mut().for_each(|v| *v *= by);
                    assert!(error(&target, &other, &h) >= least - room, "row {row}, {block}");
                }
            }
        }
    }

    #[test]
    fn what_is_best_already_stays() {
        let columns = BLOCK;
        let scale = 0.25;
        let target: Vec<f32> = (0..columns).map(|k| ((k % 16) as f32 - 8.0) * scale).collect();
        let (mut masters, mut scales) = (target.clone(), vec![scale]);
        descend(&mut masters, &mut scales, &target, &hessian(columns), columns, 3);
        assert_eq!((masters, scales), (target, vec![scale]));
        // And a block of zeros has no scale to settle.
        let (mut masters, mut scales) = (vec![0.0; columns], vec![0.0]);
        let zeros = masters.clone();
        descend(&mut masters, &mut scales, &zeros, &hessian(columns), columns, 3);
        assert_eq!((masters, scales), (zeros, vec![0.0]));
    }
}
