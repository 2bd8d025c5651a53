//! Rotary position embedding on interleaved pairs, as GGUF files of this architecture store them.
//!
//! Pair i of a head, rows 2i and 2i + 1, turns by the angle p · theta^(−2i / head_dim) / factor_i at
//! position p. Angles are computed in f64 and rounded to f32 after cosine and sine, as in training.

use crate::config::Config;

/// Turns a second per pair: theta^(−2i / head_dim) / factor_i, [head_dim / 2].
pub(crate) fn frequencies(config: &Config, factors: Option<&[f32]>) -> Vec<f64> {
    (0..config.head_dim / 2)
        .map(|i| {
            let exponent = -2.0 * i as f64 / config.head_dim as f64;
            let factor = factors.map_or(1.0, |factors| f64::from(factors[i]));
            f64::from(config.rope_theta).powf(exponent) / factor
        })
        .collect()
}

/// Fills `rotation` [head_dim / 2] with cos and sin of each pair's angle at `position`.
pub(crate) fn rotation_at(position: usize, frequencies: &[f64], rotation: &mut [[f32; 2]]) {
    for (rotation, frequency) in rotation.iter_mut().zip(frequencies) {
        let (sin, cos) = (position as f64 * frequency).sin_cos();
        *rotation = [cos as f32, sin as f32];
    }
}

/// Turns `rows`, which begin at row `first` (even) of a projection with whole heads.
pub(crate) fn rotate(rows: &mut [f32], first: usize, head_dim: usize, rotation: &[[f32; 2]]) {
    for (pair, [x, y]) in rows.as_chunks_mut::<2>().0.iter_mut().enumerate() {
        let [cos, sin] = rotation[(first / 2 + pair) % (head_dim / 2)];
        (*x, *y) = (*x * cos - *y * sin, *x * sin + *y * cos);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_turns_by_its_angle_and_keeps_its_length() {
        let config = Config { head_dim: 4, rope_theta: 10_000.0, ..Config::default() };
        let frequencies = frequencies(&config, Some(&[1.0, 2.0]));
        assert_eq!(frequencies, [1.0, 0.005]);
        let mut rotation = [[0.0; 2]; 2];
        rotation_at(3, &frequencies, &mut rotation);
        // Two heads, from the second pair of the first: pairs 1, 0, 1.
        let mut rows = [1.0, 0.0, 1.0, 0.0, 0.0, 2.0];
        rotate(&mut rows, 2, 4, &rotation);
        let want = [
            0.015_f64.cos(),
            0.015_f64.sin(),
            3_f64.cos(),
            3_f64.sin(),
            -2.0 * 0.015_f64.sin(),
            2.0 * 0.015_f64.cos(),
        ];
        for (got, want) in rows.iter().zip(want) {
            assert!((f64::from(*got) - want).abs() < 1e-6);
        }
    }
}
