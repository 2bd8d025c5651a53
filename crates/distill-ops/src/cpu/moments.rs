//! The moments of an optimiser in 16 and in 8 bits.
//!
//! **bfloat16** is the upper half of a binary32.
//!
//! **8 bits** are a dynamic code over a block of 256 with its largest magnitude as the scale (Dettmers
//! et al. 2022, "8-bit Optimizers via Block-wise Quantization"): seven decades, the e-th of them,
//! from 10^(e−7) to 10^(e−6), cut into 2ᵉ equal steps for the signed first moment and 2ᵉ⁺¹ for the
//! second. A level stands at the upper end of its step, so that the highest is 1.
//!
//! | code | first moment, sign in bit 7 | second moment |
//! |---|---|---|
//! | 0 | 0 | 0, and nothing else |
//! | 1 | 10⁻⁶ | 10⁻⁷ |
//! | 2 | 5.5·10⁻⁶ | 5.5·10⁻⁷ |
//! | last | 127: 1 | 255: 1 |
//!
//! Two things are not the paper's. A second moment above 0 never becomes 0, for then the first moment
//! would be divided by ε alone ("zero-point problem", Li et al. 2023, "Memory Efficient Optimizers
//! with 4-bit States"); below 10⁻⁷ of its block's largest it stands at that. And rounding is
//! **stochastic**: to one of the two levels around a value with the probabilities that make the mean
//! the value. With β₂ = 0.999 a second moment moves by a thousandth of itself a step, less than half
//! of bfloat16's 1/128 and of the code's 0.7 to 450 %: rounded to nearest it could rise but never fall.
//! Its expectation here is that of the exact recursion. The random bits are a function of the
//! element's index and of a key for parameter and step, so that a resumed run draws the same.

use super::vector::LANES;

/// Elements that share a scale.
pub const BLOCK: usize = 256;
/// Decades of a code.
const DECADES: usize = 7;

/// A code as a function of the value: the least of some lines. Steps grow from decade to decade, so
/// the function is concave, and its inverse the greatest of the inverse lines.
struct Code {
    /// Value at the lower end of each decade.
    low: [f32; DECADES],
    /// Code there.
    base: [f32; DECADES],
    /// Value from one code to the next.
    step: [f32; DECADES],
    /// Its reciprocal.
    steps: [f32; DECADES],
}

const fn code(steps_of_first: u32, base_of_first: u32, zero_is_a_level: bool) -> Code {
    let mut code = Code {
        low: [0.0; DECADES],
        base: [0.0; DECADES],
        step: [0.0; DECADES],
        steps: [0.0; DECADES],
    };
    let mut e = 0;
    let mut low = 1e-7_f64;
    let mut steps = steps_of_first;
    let mut base = base_of_first;
    while e < DECADES {
        // The signed code's first step begins at 0.
        let from = if e == 0 && zero_is_a_level { 0.0 } else { low };
        let step = (10.0 * low - from) / steps as f64;
        code.low[e] = from as f32;
        code.base[e] = base as f32;
        code.step[e] = step as f32;
        code.steps[e] = (1.0 / step) as f32;
        base += steps;
        steps *= 2;
        low *= 10.0;
        e += 1;
    }
    code
}

const SIGNED: Code = code(1, 0, true);
const UNSIGNED: Code = code(2, 1, false);

impl Code {
    /// Where a magnitude lies between the codes.
    #[inline(always)]
    fn position(&self, x: f32) -> f32 {
        let mut least = (x - self.low[0]).mul_add(self.steps[0], self.base[0]);
        for e in 1..DECADES {
            let line = (x - self.low[e]).mul_add(self.steps[e], self.base[e]);
            least = if line < least { line } else { least };
        }
        least
    }

    /// The magnitude of a code; below 0 for less than the lowest.
    #[inline(always)]
    fn level(&self, code: f32) -> f32 {
        let mut most = (code - self.base[0]).mul_add(self.step[0], self.low[0]);
        for e in 1..DECADES {
            let line = (code - self.base[e]).mul_add(self.step[e], self.low[e]);
            most = if line > most { line } else { most };
        }
        most
    }
}

/// 32 random bits of an element: a counter scattered by multiplications and shifts, the finaliser
/// that Wellons' search found least biased ("Prospecting for Hash Functions", 2018).
#[inline(always)]
fn random(index: u32, key: u32) -> u32 {
    let x = index.wrapping_mul(0x9E37_79B9) ^ key;
    let x = (x ^ (x >> 16)).wrapping_mul(0x7FEB_352D);
    let x = (x ^ (x >> 15)).wrapping_mul(0x846C_A68B);
    x ^ (x >> 16)
}

/// A random number in [0, 1) from 16 bits.
#[inline(always)]
fn uniform(bits: u32) -> f32 {
    // 1.x from 23 bits of fraction, less 1: no conversion.
    f32::from_bits(0x3F80_0000 | (bits & 0xFFFF) << 7) - 1.0
}

/// The values of bfloat16 bits.
#[inline(always)]
pub(super) fn widen_bf16(bits: &[u16], values: &mut [f32]) {
    for (value, &bits) in values.iter_mut().zip(bits) {
        *value = f32::from_bits(u32::from(bits) << 16);
    }
}

/// Both moments rounded: the lower half of each, drawn against 16 random bits, carries or not.
#[inline(always)]
pub(super) fn narrow_bf16(
    wide_m: &[f32],
    wide_v: &[f32],
    m: &mut [u16],
    v: &mut [u16],
    first: u32,
    key: u32,
) {
    let mut index = first;
    for ((wide_m, wide_v), (m, v)) in wide_m.iter().zip(wide_v).zip(m.iter_mut().zip(v)) {
        let bits = random(index, key);
        *m = (wide_m.to_bits().wrapping_add(bits >> 16) >> 16) as u16;
        *v = (wide_v.to_bits().wrapping_add(bits & 0xFFFF) >> 16) as u16;
        index = index.wrapping_add(1);
    }
}

/// The values of a block of the first moment.
#[inline(always)]
pub(super) fn widen_signed(codes: &[u8], scale: f32, values: &mut [f32]) {
    for (value, &code) in values.iter_mut().zip(codes) {
        let magnitude = SIGNED.level(f32::from(code & 0x7F)) * scale;
        *value = if code & 0x80 == 0 { magnitude } else { -magnitude };
    }
}

/// The codes of a block of the first moment, and its scale.
#[inline(always)]
pub(super) fn narrow_signed(values: &[f32], codes: &mut [u8], first: u32, key: u32) -> f32 {
    let mut index = first;
    let scale = largest(values);
    for (value, code) in values.iter().zip(codes) {
        let position = SIGNED.position(value.abs() / scale);
        let drawn = position + uniform(random(index, key) >> 16);
        let drawn = if drawn < 127.5 { drawn } else { 127.5 };
        let drawn = if drawn > 0.5 { drawn } else { 0.5 };
        *code = (floor(drawn) | (value.to_bits() >> 24 & 0x80)) as u8;
        index = index.wrapping_add(1);
    }
    scale
}

/// The values of a block of the second moment.
#[inline(always)]
pub(super) fn widen_unsigned(codes: &[u8], scale: f32, values: &mut [f32]) {
    for (value, &code) in values.iter_mut().zip(codes) {
        let level = UNSIGNED.level(f32::from(code));
        *value = if level > 0.0 { level * scale } else { 0.0 };
    }
}

/// The codes of a block of the second moment, and its scale.
#[inline(always)]
pub(super) fn narrow_unsigned(values: &[f32], codes: &mut [u8], first: u32, key: u32) -> f32 {
    let mut index = first;
    let scale = largest(values);
    for (value, code) in values.iter().zip(codes) {
        let position = UNSIGNED.position(value / scale);
        let drawn = position + uniform(random(index, key));
        let drawn = if drawn < 255.5 { drawn } else { 255.5 };
        let drawn = if drawn > 1.5 { drawn } else { 1.5 };
        *code = (if *value > 0.0 { floor(drawn) } else { 0 }) as u8;
        index = index.wrapping_add(1);
    }
    scale
}

/// The largest magnitude; 1 for a block of zeros, whose codes are 0 then.
#[inline(always)]
fn largest(values: &[f32]) -> f32 {
    let (chunks, rest) = values.as_chunks::<LANES>();
    let mut lanes = [0.0_f32; LANES];
    for chunk in chunks {
        for lane in 0..LANES {
            let size = chunk[lane].abs();
            lanes[lane] = if size > lanes[lane] { size } else { lanes[lane] };
        }
    }
    let most = lanes.iter().chain(rest).fold(0.0_f32, |most, x| most.max(x.abs()));
    if most > 0.0 { most } else { 1.0 }
}

/// ⌊x⌋ of 0 ≤ x < 2²², without a conversion that saturates: those do not become vectors. Half is taken
/// away and what 2²³ leaves no bits for is rounded; a whole number may become the one below.
#[inline(always)]
fn floor(x: f32) -> u32 {
    ((x - 0.5) + 8_388_608.0).to_bits() & 0x007F_FFFF
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The levels by the definition, in f64: each decade's steps by their upper ends.
    fn levels(first: u32, lowest: &[f64]) -> Vec<f64> {
        let decade = |e: u32| {
            let (low, steps) = (10f64.powi(e as i32 - 7), first << e);
            (1..=steps).map(move |i| low * (1.0 + 9.0 * f64::from(i) / f64::from(steps)))
        };
        lowest.iter().copied().chain((0..7).flat_map(decade)).collect()
    }

    fn close(found: f32, want: f64) -> bool {
        (f64::from(found) - want).abs() <= 3e-7 * want
    }

    #[test]
    fn codes_stand_for_the_levels_of_the_definition() {
        let codes: Vec<u8> = (0..=255).collect();
        let mut values = [7.0; 256];
        widen_unsigned(&codes, 1.0, &mut values);
        let want = levels(2, &[0.0, 1e-7]);
        assert_eq!(want.len(), 256);
        for (code, (found, want)) in values.iter().zip(&want).enumerate() {
            assert!(close(*found, *want), "{code}: {found} {want}");
        }
        widen_signed(&codes, 2.0, &mut values);
        let want = levels(1, &[0.0]);
        assert_eq!(want.len(), 128);
        for (code, want) in want.iter().enumerate() {
            let (plus, minus) = (values[code], values[code + 128]);
            assert!(close(plus, 2.0 * want) && minus == -plus, "{code}: {plus} {minus} {want}");
        }
    }

    #[test]
    fn a_level_keeps_its_code_whatever_is_drawn() {
        // But for the arithmetic of positions, whose error of 2e-5 codes moves one draw in 50,000.
        let codes: Vec<u8> = (0..=255).collect();
        let (mut values, mut again) = ([0.0; 256], [7; 256]);
        let mut moved = 0;
        for key in 0..200 {
            widen_unsigned(&codes, 0.3, &mut values);
            let scale = narrow_unsigned(&values, &mut again, 0, key);
            assert_eq!(scale, values[255]);
            moved += codes.iter().zip(again).filter(|(a, b)| **a != *b).count();
            widen_signed(&codes, 0.3, &mut values);
            narrow_signed(&values, &mut again, 0, key);
            moved += (0..256).filter(|&i| again[i] != codes[i] && i != 128).count();
        }
        assert!(moved <= 10, "{moved} of 102,400");
    }

    #[test]
    fn rounding_is_right_on_average_and_never_leaves_the_neighbouring_levels() {
        const DRAWS: u32 = 4000;
        let mut values: Vec<f32> =
            (0..BLOCK).map(|i| 10f32.powf(-6.9 * i as f32 / 255.0) * 0.77).collect();
        values[0] = 1.0;
        let of = |levels: &[f64], x: f64| {
            let above = levels.iter().position(|&level| level >= x * (1.0 - 1e-6)).expect("≤ 1");
            [levels[above.saturating_sub(1)], levels[above]]
        };
        let (signed, unsigned) = (levels(1, &[0.0]), levels(2, &[0.0, 1e-7]));
        let mut sums = vec![[0.0_f64; 3]; BLOCK];
        let (mut codes, mut back) = ([0; BLOCK], [0.0; BLOCK]);
        let (mut m16, mut v16) = ([0; BLOCK], [0; BLOCK]);
        for key in 0..DRAWS {
            let key = key.wrapping_mul(0x85EB_CA6B);
            let scale = narrow_signed(&values, &mut codes, 512, key);
            widen_signed(&codes, scale, &mut back);
            for ((x, y), sums) in values.iter().zip(back).zip(&mut sums) {
                let near = of(&signed, f64::from(*x));
                assert!(near.iter().any(|&level| close(y, level)), "{x} became {y}, not {near:?}");
                sums[0] += f64::from(y);
            }
            let scale = narrow_unsigned(&values, &mut codes, 512, key);
            widen_unsigned(&codes, scale, &mut back);
            for ((x, y), sums) in values.iter().zip(back).zip(&mut sums) {
                let near = of(&unsigned, f64::from(*x));
                assert!(near.iter().any(|&level| close(y, level)), "{x} became {y}, not {near:?}");
                sums[1] += f64::from(y);
            }
            narrow_bf16(&values, &values, &mut m16, &mut v16, 512, key);
            widen_bf16(&v16, &mut back);
            sums.iter_mut().zip(back).for_each(|(sums, y)| sums[2] += f64::from(y));
        }
        // A draw between two levels a step apart has a standard deviation of half a step at most;
        // five of those of the mean, for 768 means.
        let bound = |step: f64| 5.0 * 0.5 * step / f64::from(DRAWS).sqrt();
        for (x, sums) in values.iter().zip(sums) {
            let x = f64::from(*x);
            let [m, v, b] = sums.map(|sum| sum / f64::from(DRAWS));
            let step = |levels: &[f64]| {
                let [low, high] = of(levels, x);
                high - low
            };
            assert!((m - x).abs() <= bound(step(&signed)) + 1e-6 * x, "first: {m} {x}");
            assert!((v - x).abs() <= bound(step(&unsigned)) + 1e-6 * x, "second: {v} {x}");
            assert!((b - x).abs() <= bound(x / 128.0), "bfloat16: {b} {x}");
        }
    }

    #[test]
    fn only_zero_becomes_zero_in_the_second_moment() {
        let mut values = [0.0; 40];
        (values[1], values[2], values[3]) = (1e30, 1e-30, f32::from_bits(1));
        let mut codes = [7; 40];
        for key in 0..100 {
            let scale = narrow_unsigned(&values, &mut codes, 0, key);
            assert_eq!((scale, &codes[..5]), (1e30, &[0, 255, 1, 1, 0][..]));
        }
        let zeros = [0.0; 40];
        let scale = narrow_unsigned(&zeros, &mut codes, 0, 3);
        assert_eq!((scale, codes), (1.0, [0; 40]));
        assert_eq!((narrow_signed(&zeros, &mut codes, 0, 3), codes), (1.0, [0; 40]));
    }

    #[test]
    fn random_bits_are_even_and_differ_from_key_to_key() {
        const N: u32 = 1 << 16;
        for key in [0, 1, 0xDEAD_BEEF] {
            let mut ones = [0_u32; 32];
            let mut same = 0;
            for index in 0..N {
                let bits = random(index, key);
                same += u32::from((bits ^ random(index, key ^ 1)) & 0xFF == 0);
                (0..32).for_each(|bit| ones[bit] += bits >> bit & 1);
            }
            // Six standard deviations of a fair coin, and of one in 256.
            assert!(ones.iter().all(|&ones| ones.abs_diff(N / 2) < 6 * 128), "{ones:?}");
            assert!(same.abs_diff(N / 256) < 6 * 16, "{same}");
        }
    }
}
