//! Loops over a row, and the functions in them.
//!
//! Sums keep [`LANES`] lanes and add blocks of them up in f64, so that their error does not grow
//! with a vocabulary's length.

/// Lanes of a sum: a register of AVX-512.
pub const LANES: usize = 16;
/// Elements summed in f32 before they are added to an f64.
pub const BLOCK: usize = 1024;

/// Functions that are compiled for several instruction sets, of which a call takes the best that
/// this CPU has. What they call in their loops must be `#[inline(always)]`; a closure is not.
macro_rules! simd {
    ($(
        $(#[$meta:meta])*
        fn $name:ident<$life:lifetime $(, $kind:ident: $bound:path)?>(
            $($argument:ident: $type:ty),* $(,)?
        ) -> $output:ty $body:block
    )*) => {$(
        $(#[$meta])*
        fn $name<$life $(, $kind: $bound)?>($($argument: $type),*) -> $output {
            struct Work<$life $(, $kind: $bound)?> {
                $($argument: $type),*
            }
            impl<$life $(, $kind: $bound)?> pulp::WithSimd for Work<$life $(, $kind)?> {
                type Output = $output;
                #[inline(always)]
                fn with_simd<S: pulp::Simd>(self, _: S) -> $output {
                    let Self { $($argument),* } = self;
                    $body
                }
            }
            pulp::Arch::new().dispatch(Work { $($argument),* })
        }
    )*};
}
pub(crate) use simd;

/// e^x within 2 ulp, for loops that become vectors; flushes to 0 below −87.3.
///
/// Cody and Waite's reduction to ±ln 2 / 2, then the polynomial of Cephes' `expf`.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    // Adding 1.5 · 2²³ leaves no fraction bits, and the integer in the lowest ones.
    const NO_FRACTION: f32 = 12_582_912.0;
    let clamped = x.clamp(-87.3, 88.3);
    let integer = clamped * std::f32::consts::LOG2_E + NO_FRACTION;
    let n = integer - NO_FRACTION;
    let r = n.mul_add(-LN_2_HIGH, clamped);
    let r = n.mul_add(-LN_2_LOW, r);
    let p = 1.987_569_1e-4_f32;
    let p = p.mul_add(r, 1.398_199_9e-3);
    let p = p.mul_add(r, 8.333_452e-3);
    let p = p.mul_add(r, 4.166_579_6e-2);
    let p = p.mul_add(r, 1.666_666_5e-1);
    let p = p.mul_add(r, 0.5);
    let e = p.mul_add(r * r, r + 1.0);
    let scaled = f32::from_bits(e.to_bits().wrapping_add(integer.to_bits() << 23));
    if x < -87.3 { 0.0 } else { scaled }
}

/// ln x within 2 ulp of a positive, normal x, for loops that become vectors.
///
/// x = 2ᵏ·m with m in [√½, √2), then the polynomial of Cephes' `logf`.
#[inline(always)]
pub fn ln(x: f32) -> f32 {
    const SQRT_HALF: u32 = 0x3F35_04F3;
    let shifted = x.to_bits().wrapping_sub(SQRT_HALF);
    let k = (shifted as i32 >> 23) as f32;
    let m = f32::from_bits((shifted & 0x007F_FFFF) + SQRT_HALF);
    let f = m - 1.0;
    let p = 7.037_683_6e-2_f32;
    let p = p.mul_add(f, -1.151_461e-1);
    let p = p.mul_add(f, 1.167_699_9e-1);
    let p = p.mul_add(f, -1.242_014_1e-1);
    let p = p.mul_add(f, 1.424_932_3e-1);
    let p = p.mul_add(f, -1.666_805_7e-1);
    let p = p.mul_add(f, 2.000_071_5e-1);
    let p = p.mul_add(f, -2.499_999_4e-1);
    let p = p.mul_add(f, 3.333_333e-1);
    let square = f * f;
    let low = k.mul_add(-2.121_944_4e-4, square.mul_add(-0.5, p * f * square));
    k.mul_add(0.693_359_4, f + low)
}

/// Σ e^((xᵢ − largest) · by).
#[inline(always)]
pub fn sum_exp(x: &[f32], largest: f32, by: f32) -> f64 {
    let mut total = 0.0_f64;
    for x in x.chunks(BLOCK) {
        let (chunks, rest) = x.as_chunks::<LANES>();
        let mut lanes = [0.0_f32; LANES];
        for x in chunks {
            for lane in 0..LANES {
                lanes[lane] += exp((x[lane] - largest) * by);
            }
        }
        for x in rest {
            lanes[0] += exp((x - largest) * by);
        }
        total += lanes.iter().map(|&lane| f64::from(lane)).sum::<f64>();
    }
    total
}

/// Σ xᵢ.
#[inline(always)]
pub fn sum(x: &[f32]) -> f32 {
    let (chunks, rest) = x.as_chunks::<LANES>();
    let mut lanes = [0.0_f32; LANES];
    for x in chunks {
        for lane in 0..LANES {
            lanes[lane] += x[lane];
        }
    }
    lanes.iter().chain(rest).sum()
}

/// Σ aᵢ·bᵢ.
#[inline(always)]
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let b = &b[..a.len()];
    let (a_chunks, a_rest) = a.as_chunks::<LANES>();
    let (b_chunks, b_rest) = b.as_chunks::<LANES>();
    let mut lanes = [0.0_f32; LANES];
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        for lane in 0..LANES {
            lanes[lane] = a[lane].mul_add(b[lane], lanes[lane]);
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    lanes.iter().sum::<f32>() + rest
}

/// The largest element; −∞ of none.
#[inline(always)]
pub fn max(x: &[f32]) -> f32 {
    let (chunks, rest) = x.as_chunks::<LANES>();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for chunk in chunks {
        for lane in 0..LANES {
            lanes[lane] = if chunk[lane] > lanes[lane] { chunk[lane] } else { lanes[lane] };
        }
    }
    lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |most, &x| most.max(x))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ulps(found: f32, want: f64) -> f64 {
        let ulp = f64::from((want as f32).next_up()) - f64::from(want as f32);
        (f64::from(found) - want).abs() / ulp.abs()
    }

    #[test]
    fn exp_is_within_two_ulp_of_float64() {
        let worst = (-87_000..88_000)
            .map(|i| i as f32 * 1e-3 + 1.234e-4)
            .map(|x| ulps(exp(x), f64::from(x).exp()))
            .fold(0.0, f64::max);
        assert!(worst < 2.0, "{worst} ulp");
        assert_eq!((exp(0.0), exp(-1e30), exp(f32::NEG_INFINITY)), (1.0, 0.0, 0.0));
        assert!(exp(1e30).is_finite() && exp(f32::NAN).is_nan());
    }

    #[test]
    fn ln_is_within_two_ulp_of_float64() {
        let worst = (0..400_000)
            .map(|i| f32::from_bits(0x0080_0000 + i * 5281))
            .filter(|x| x.is_normal() && (x.ln()).abs() > 1e-6)
            .map(|x| ulps(ln(x), f64::from(x).ln()))
            .fold(0.0, f64::max);
        assert!(worst < 2.5, "{worst} ulp");
        assert_eq!(ln(1.0), 0.0);
    }

    #[test]
    fn sums_of_any_length_are_those_of_float64() {
        for n in [0, 1, 15, 16, 17, 1023, 1024, 1025, 49_152] {
            let x: Vec<f32> = (0..n).map(|i| ((i * 37 % 101) as f32 - 40.0) / 17.0).collect();
            let y: Vec<f32> = (0..n).map(|i| ((i * 53 % 97) as f32 - 48.0) / 13.0).collect();
            let want: f64 = x.iter().map(|&x| f64::from(x)).sum();
            let size: f64 = x.iter().map(|&x| f64::from(x.abs())).sum();
            assert!((f64::from(sum(&x)) - want).abs() <= 1e-6 * size.max(1.0));
            let exps: f64 = x.iter().map(|&x| (0.5 * (f64::from(x) - 4.0)).exp()).sum();
            assert!((sum_exp(&x, 4.0, 0.5) - exps).abs() <= 1e-6 * exps);
            let want: f64 = x.iter().zip(&y).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum();
            let scale: f64 = x.iter().zip(&y).map(|(&x, &y)| f64::from((x * y).abs())).sum();
            assert!((f64::from(dot(&x, &y)) - want).abs() <= 1e-6 * scale.max(1.0));
            assert_eq!(max(&x), x.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        }
    }
}
