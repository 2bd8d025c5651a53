//! Matrix products on slices whose bounds are checked: with AVX-512 by our own kernel, elsewhere by
//! the `gemm` crate.

#![allow(unsafe_code)]

#[cfg(target_arch = "x86_64")]
mod avx512;

use gemm::Parallelism;
use rayon::prelude::*;

/// A matrix in a slice: element (r, c) is `data[r · row_stride + c · column_stride]`.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    data: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Matrix<'a> {
    /// Row-major `[rows, columns]`.
    ///
    /// # Panics
    /// If the slice is shorter.
    pub fn new(data: &'a [f32], rows: usize, columns: usize) -> Self {
        assert!(data.len() >= rows * columns);
        Self { data, rows, columns, row_stride: columns, column_stride: 1 }
    }

    /// Some consecutive rows.
    fn rows(self, first: usize, count: usize) -> Self {
        assert!(first + count <= self.rows);
        Self { data: &self.data[first * self.row_stride..], rows: count, ..self }
    }

    /// The same elements, `[columns, rows]`.
    pub fn transposed(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }
}

/// What happens to what stands in the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// It is replaced.
    Replace,
    /// The product is added to it.
    Add,
}

/// How many threads work on a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Threads {
    /// The caller's alone: it is one of many.
    One,
    /// All of rayon's.
    All,
}

/// Rows of a product that are worth a task of their own.
const TASK: usize = 128;

/// `out = scale · a · b`, row-major `[a.rows, b.columns]`, or that added to it.
///
/// # Panics
/// If the shapes do not fit.
pub fn multiply(
    a: Matrix<'_>,
    b: Matrix<'_>,
    scale: f32,
    output: Output,
    out: &mut [f32],
    threads: Threads,
) {
    assert_eq!(a.columns, b.rows);
    let out = &mut out[..a.rows * b.columns];
    if out.is_empty() {
        return;
    }
    #[cfg(target_arch = "x86_64")]
    if avx512::available() && a.columns > 0 {
        // SAFETY: the CPU was asked; `out` has the size of the product, and `Matrix::new` checked
        // the inputs.
        return unsafe { avx512::multiply(a, b, scale, output, out.as_mut_ptr(), threads) };
    }
    match threads {
        Threads::One => product(a, b, scale, output, out, Parallelism::None),
        Threads::All if a.rows < 2 * TASK => {
            product(a, b, scale, output, out, Parallelism::Rayon(0));
        }
        // Tasks that need not wait for each other: where another program takes a core away, the
        // other cores go on.
        Threads::All => {
            let rows = a.rows.div_ceil(2 * rayon::current_num_threads()).max(TASK);
            out.par_chunks_mut(rows * b.columns).enumerate().for_each(|(i, out)| {
                let a = a.rows(i * rows, out.len() / b.columns);
                product(a, b, scale, output, out, Parallelism::None);
            });
        }
    }
}

fn product(
    a: Matrix<'_>,
    b: Matrix<'_>,
    scale: f32,
    output: Output,
    out: &mut [f32],
    parallelism: Parallelism,
) {
    let (m, n, k) = (a.rows, b.columns, a.columns);
    assert_eq!(out.len(), m * n);
    // SAFETY: every matrix holds the elements that its shape and strides name: `Matrix::new`
    // checked the inputs, the assertion above the output; `out` is borrowed exclusively.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            n as isize,
            output == Output::Add,
            a.data.as_ptr(),
            a.column_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.column_stride as isize,
            b.row_stride as isize,
            1.0,
            scale,
            false,
            false,
            false,
            parallelism,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every layout of both operands, edges of tiles, blocks of the inner dimension, and panels.
    #[test]
    fn products_of_any_layout_equal_float64_on_any_number_of_threads() {
        let value = |i: usize| ((i * 37 % 101) as f32 - 50.0) / 29.0;
        let transposed = |x: &[f32], rows: usize, columns: usize| -> Vec<f32> {
            (0..rows * columns).map(|i| x[i % rows * columns + i / rows]).collect()
        };
        for (m, n, k) in [
            (1, 1, 1),
            (3, 5, 7),
            (64, 33, 17),
            (5, 128, 64),
            (2, 3, 0),
            (300, 7, 9),
            (14, 32, 16),
            (15, 31, 641),
            (43, 65, 1300),
            (700, 40, 33),
        ] {
            let a: Vec<f32> = (0..m * k).map(value).collect();
            let b: Vec<f32> = (0..k * n).map(|i| value(i + 11)).collect();
            let want: Vec<f64> = (0..m * n)
                .map(|i| {
                    let row = a[i / n * k..][..k].iter().enumerate();
                    row.map(|(j, a)| f64::from(*a) * f64::from(b[j * n + i % n])).sum()
                })
                .collect();
            let (at, bt) = (transposed(&a, m, k), transposed(&b, k, n));
            let lefts = [Matrix::new(&a, m, k), Matrix::new(&at, k, m).transposed()];
            let rights = [Matrix::new(&b, k, n), Matrix::new(&bt, n, k).transposed()];
            for (left, right) in lefts.into_iter().flat_map(|l| rights.map(|r| (l, r))) {
                for (output, base) in [(Output::Replace, 0.0), (Output::Add, 2.0)] {
                    let [all, one] = [Threads::All, Threads::One].map(|threads| {
                        let mut out = vec![2.0; m * n];
                        multiply(left, right, 0.5, output, &mut out, threads);
                        out
                    });
                    for (found, want) in all.iter().zip(&want) {
                        let want = base + 0.5 * want;
                        let bound = 1e-4 * (1.0 + (k as f64).sqrt() / 4.0);
                        assert!((f64::from(*found) - want).abs() < bound, "{found} {want}");
                    }
                    #[cfg(target_arch = "x86_64")]
                    assert!(!avx512::available() || all == one);
                    let _ = one;
                }
            }
        }
    }
}
