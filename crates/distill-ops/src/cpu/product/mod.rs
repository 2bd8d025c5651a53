//! Matrix products on slices whose bounds are checked: with AVX-512 by our own kernel, elsewhere by
//! the `gemm` crate.

#![allow(unsafe_code)]

#[cfg(target_arch = "x86_64")]
mod avx512;

use std::marker::PhantomData;
use std::mem::MaybeUninit;

use gemm::Parallelism;
use rayon::prelude::*;

use super::scratch::filled;

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

    /// Rows of `columns` elements, `stride` apart.
    ///
    /// # Panics
    /// If the slice is shorter.
    pub fn strided(data: &'a [f32], rows: usize, columns: usize, stride: usize) -> Self {
        assert!(columns <= stride && data.len() >= reach(rows, columns, stride));
        Self { data, rows, columns, row_stride: stride, column_stride: 1 }
    }

    /// How many rows.
    pub fn height(self) -> usize {
        self.rows
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

/// Elements from the first to the last of a matrix.
fn reach(rows: usize, columns: usize, stride: usize) -> usize {
    if rows == 0 { 0 } else { (rows - 1) * stride + columns }
}

/// Where a product goes: rows that are `stride` elements apart.
#[derive(Debug)]
pub struct Destination<'a> {
    data: *mut f32,
    len: usize,
    stride: usize,
    add: bool,
    life: PhantomData<&'a mut [f32]>,
}

impl<'a> Destination<'a> {
    /// The product replaces what stands there.
    pub fn replace(data: &'a mut [f32], stride: usize) -> Self {
        let (data, len) = (data.as_mut_ptr(), data.len());
        Self { data, len, stride, add: false, life: PhantomData }
    }

    /// The product is added to what stands there.
    pub fn add(data: &'a mut [f32], stride: usize) -> Self {
        Self { add: true, ..Self::replace(data, stride) }
    }

    /// The product is the first that stands there.
    pub fn fill(data: &'a mut [MaybeUninit<f32>], stride: usize) -> Self {
        let (data, len) = (data.as_mut_ptr().cast(), data.len());
        Self { data, len, stride, add: false, life: PhantomData }
    }
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

/// `a · b` on all threads, row-major `[a.rows, b.columns]`, in memory of its own.
pub fn product(a: Matrix<'_>, b: Matrix<'_>) -> Vec<f32> {
    let fill = |out: &mut [MaybeUninit<f32>]| {
        multiply(a, b, 1.0, Destination::fill(out, b.columns), Threads::All);
    };
    // SAFETY: a product writes each of its elements.
    unsafe { filled(a.rows * b.columns, fill) }
}

/// `scale · a · b`, `[a.rows, b.columns]`. Every element is written.
///
/// # Panics
/// If the shapes do not fit.
pub fn multiply(a: Matrix<'_>, b: Matrix<'_>, scale: f32, out: Destination<'_>, threads: Threads) {
    assert_eq!(a.columns, b.rows);
    assert!(b.columns <= out.stride && out.len >= reach(a.rows, b.columns, out.stride));
    if a.rows * b.columns == 0 {
        return;
    }
    let out = Out { data: out.data, stride: out.stride, scale, add: out.add };
    #[cfg(target_arch = "x86_64")]
    if avx512::available() && a.columns > 0 {
        // SAFETY: the CPU was asked; the destination has the size of the product, and `Matrix::new`
        // checked the inputs.
        return unsafe { avx512::multiply(a, b, out, threads) };
    }
    // SAFETY: as above.
    let part = |first: usize, rows: usize, parallelism| unsafe {
        by_gemm(a.rows(first, rows), b, out.at_row(first), parallelism);
    };
    match threads {
        Threads::One => part(0, a.rows, Parallelism::None),
        Threads::All if a.rows < 2 * TASK => part(0, a.rows, Parallelism::Rayon(0)),
        // Tasks that need not wait for each other: where another program takes a core away, the
        // other cores go on.
        Threads::All => {
            let rows = a.rows.div_ceil(2 * rayon::current_num_threads()).max(TASK);
            (0..a.rows.div_ceil(rows)).into_par_iter().for_each(|i| {
                part(i * rows, rows.min(a.rows - i * rows), Parallelism::None);
            });
        }
    }
}

/// The output of a product, of which every task writes elements of its own.
#[derive(Clone, Copy)]
struct Out {
    data: *mut f32,
    stride: usize,
    scale: f32,
    add: bool,
}

impl Out {
    /// # Safety
    /// The row exists.
    unsafe fn at_row(self, row: usize) -> Self {
        // SAFETY: the caller's contract.
        Self { data: unsafe { self.data.add(row * self.stride) }, ..self }
    }
}

// SAFETY: tasks write to different elements.
unsafe impl Send for Out {}
// SAFETY: as above.
unsafe impl Sync for Out {}

/// # Safety
/// `out` has room for the product, and nobody else uses it.
unsafe fn by_gemm(a: Matrix<'_>, b: Matrix<'_>, out: Out, parallelism: Parallelism) {
    // SAFETY: the caller's contract; `Matrix::new` checked the inputs.
    unsafe {
        gemm::gemm(
            a.rows,
            b.columns,
            a.columns,
            out.data,
            1,
            out.stride as isize,
            out.add,
            a.data.as_ptr(),
            a.column_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.column_stride as isize,
            b.row_stride as isize,
            1.0,
            out.scale,
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
            (3, 34, 10_300),
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
                for base in [0.0, 2.0] {
                    let [all, one] = [Threads::All, Threads::One].map(|threads| {
                        let mut out = vec![2.0; m * n];
                        let destination = match base {
                            0.0 => Destination::replace(&mut out, n),
                            _ => Destination::add(&mut out, n),
                        };
                        multiply(left, right, 0.5, destination, threads);
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
