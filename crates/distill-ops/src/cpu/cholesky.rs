//! The factor of an inverse, as the quantisation of GPTQ wants it.

use rayon::prelude::*;

use super::vector::simd;

/// Lanes of a sum in f64.
const LANES: usize = 8;

/// R, upper triangular, of H⁻¹ = RᵀR, for a symmetric positive definite H, both `[n, n]` row-major.
/// `None` if H is not positive definite.
///
/// With the order of rows and columns turned around, H = L·Lᵀ is H = U·Uᵀ with an upper U, so that
/// H⁻¹ = U⁻ᵀU⁻¹ and R = U⁻¹: one factorisation and one triangular inverse, and no inverse of H.
///
/// # Panics
/// If H has not n² elements.
pub fn inverse_factor(h: &[f64], n: usize) -> Option<Vec<f64>> {
    assert_eq!(h.len(), n * n);
    let mut l: Vec<f64> = (0..n * n).map(|i| h[n * n - 1 - i]).collect();
    factor(&mut l, n)?;
    let inverse = inverse_of_lower(&l, n);
    // Row j of `inverse` is column j of L⁻¹; turned around, column n − 1 − j of R.
    let mut r = vec![0.0; n * n];
    for j in 0..n {
        for i in j..n {
            r[(n - 1 - i) * n + (n - 1 - j)] = inverse[j * n + i];
        }
    }
    Some(r)
}

/// L of H = L·Lᵀ in the place of H's lower triangle, column by column.
fn factor(h: &mut [f64], n: usize) -> Option<()> {
    for j in 0..n {
        let (above, below) = h.split_at_mut((j + 1) * n);
        let row = &mut above[j * n..];
        let pivot = row[j] - dot(&row[..j], &row[..j]);
        if pivot.is_nan() || pivot <= 0.0 {
            return None;
        }
        let pivot = pivot.sqrt();
        row[j] = pivot;
        let row = &row[..j];
        below.par_chunks_mut(n).with_min_len(64).for_each(|other| {
            other[j] = (other[j] - dot(&other[..j], row)) / pivot;
        });
    }
    Some(())
}

/// The inverse of a lower triangle, transposed: row j holds its column j.
fn inverse_of_lower(l: &[f64], n: usize) -> Vec<f64> {
    let mut inverse = vec![0.0; n * n];
    inverse.par_chunks_mut(n).enumerate().for_each(|(j, column)| {
        column[j] = 1.0 / l[j * n + j];
        for i in j + 1..n {
            let row = &l[i * n..(i + 1) * n];
            column[i] = -dot(&row[j..i], &column[j..i]) / row[i];
        }
    });
    inverse
}

simd! {
    /// Σ aᵢ·bᵢ.
    fn dot<'a>(a: &'a [f64], b: &'a [f64]) -> f64 {
        let (a_chunks, a_rest) = a.as_chunks::<LANES>();
        let (b_chunks, b_rest) = b[..a.len()].as_chunks::<LANES>();
        let mut lanes = [0.0_f64; LANES];
        for (a, b) in a_chunks.iter().zip(b_chunks) {
            for lane in 0..LANES {
                lanes[lane] = a[lane].mul_add(b[lane], lanes[lane]);
            }
        }
        let rest: f64 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
        lanes.iter().sum::<f64>() + rest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A positive definite matrix.
    fn gram(n: usize) -> Vec<f64> {
        let x = |i: usize, j: usize| ((i * 31 + j * 17 + i * j) % 23) as f64 / 11.0 - 1.0;
        let mut h = vec![0.0; n * n];
        for i in 0..n {
            for j in 0..n {
                h[i * n + j] = (0..2 * n).map(|k| x(k, i) * x(k, j)).sum();
            }
            h[i * n + i] += 1.0;
        }
        h
    }

    #[test]
    fn the_factor_times_its_transpose_inverts_the_matrix() {
        for n in [1, 2, 7, 8, 9, 33, 100] {
            let h = gram(n);
            let r = inverse_factor(&h, n).unwrap();
            for i in 0..n {
                assert!(r[i * n..i * n + i].iter().all(|&x| x == 0.0), "upper");
                for j in 0..n {
                    // (RᵀR · H)[i, j]
                    let inverse = |a: usize, b: usize| -> f64 {
                        (0..n).map(|k| r[k * n + a] * r[k * n + b]).sum()
                    };
                    let found: f64 = (0..n).map(|k| inverse(i, k) * h[k * n + j]).sum();
                    assert!(
                        (found - f64::from(u8::from(i == j))).abs() < 1e-9,
                        "{n}: {i} {j} {found}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_matrix_that_is_not_positive_definite_has_none() {
        assert_eq!(inverse_factor(&[1.0, 2.0, 2.0, 1.0], 2), None);
        assert_eq!(inverse_factor(&[0.0], 1), None);
        assert_eq!(inverse_factor(&[f64::NAN], 1), None);
    }
}
