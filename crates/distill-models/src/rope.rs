//! Rotary position embeddings in Hugging Face's layout (halves, not interleaved pairs).
//!
//! Angles are computed in f64 as position × θ^(−2i/d) and rounded once to f32; the edge
//! runtime does the same, so that the two never part by an accumulated frequency.

use crate::RopeScaling;

/// Inverse frequencies, `[head_dim / 2]`, with Llama 3's scaling applied.
///
/// Source: `rope_type = "llama3"` of the Llama 3.1 release: wavelengths longer than
/// `original / low_freq_factor` are divided by `factor`, those shorter than
/// `original / high_freq_factor` are kept, and between them the two are blended linearly.
pub fn inverse_frequencies(theta: f64, head_dim: usize, scaling: Option<&RopeScaling>) -> Vec<f64> {
    let plain = (0..head_dim / 2).map(|i| theta.powf(-2.0 * i as f64 / head_dim as f64));
    match scaling {
        None => plain.collect(),
        Some(RopeScaling::Divisors { rope_divisors }) => {
            plain.zip(rope_divisors).map(|(f, &d)| f / f64::from(d)).collect()
        }
        Some(RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings,
            ..
        }) => plain
            .map(|frequency| {
                let original = *original_max_position_embeddings as f64;
                let turns = original * frequency / (2.0 * std::f64::consts::PI);
                if turns < *low_freq_factor {
                    frequency / factor
                } else if turns > *high_freq_factor {
                    frequency
                } else {
                    let smooth = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    (1.0 - smooth) * frequency / factor + smooth * frequency
                }
            })
            .collect(),
    }
}
