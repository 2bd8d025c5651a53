//! Timing prefill and decode on this machine, against what the machine could do at best.
//!
//! Decoding reads every weight and the whole cache for each token, so memory bandwidth bounds it;
//! prefill multiplies every weight by every token, so integer arithmetic does. [`limits`] measures
//! both bounds.

pub mod limits;

use std::time::Instant;

use crate::{EdgeError, KvType, Model, Session, SessionOptions, argmax};

/// What to measure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BenchOptions {
    /// Tokens of the prompt whose prefill is timed; 0 leaves prefill out.
    pub prompt: usize,
    /// Tokens whose decoding is timed; 0 leaves decoding out.
    pub generate: usize,
    /// Tokens in the cache before decoding begins.
    pub depth: usize,
    /// Threads; 0 is as the model was loaded.
    pub threads: usize,
    /// How keys and values are stored.
    pub kv: KvType,
    /// Measured repetitions, after one that is not.
    pub repetitions: usize,
}

impl Default for BenchOptions {
    fn default() -> Self {
        Self {
            prompt: 512,
            generate: 128,
            depth: 0,
            threads: 0,
            kv: KvType::default(),
            repetitions: 5,
        }
    }
}

/// Tokens a second, of each repetition in order; empty where nothing was asked for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Samples(pub Vec<f64>);

impl Samples {
    /// The middle value, or the mean of the two middle ones; 0 of none.
    pub fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        match sorted.len() {
            0 => 0.0,
            n if n % 2 == 1 => sorted[n / 2],
            n => (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0,
        }
    }

    /// The largest distance of a value from the median, as a share of it.
    pub fn spread(&self) -> f64 {
        let median = self.median();
        let furthest = self.0.iter().fold(0.0, |most: f64, x| most.max((x - median).abs()));
        if median > 0.0 { furthest / median } else { 0.0 }
    }
}

/// What was measured.
#[derive(Clone, Debug, PartialEq)]
pub struct BenchReport {
    /// Prompt tokens a second.
    pub prefill: Samples,
    /// Generated tokens a second.
    pub decode: Samples,
    /// Bytes that decoding one token reads: the weights, and keys and values of all positions up
    /// to the middle of the tokens generated.
    pub decode_bytes: usize,
    /// Multiplications and additions of one prompt token in the layers' matrices.
    pub prefill_operations: usize,
    /// Threads that ran.
    pub threads: usize,
    /// The kernels that ran, as [`Model::kernel_name`] has them.
    pub kernels: &'static str,
}

impl BenchReport {
    /// Bytes read a second while decoding, in GB (10⁹ bytes).
    pub fn decode_bandwidth_gbps(&self) -> f64 {
        self.decode.median() * self.decode_bytes as f64 / 1e9
    }

    /// Operations a second in prefill, in 10⁹.
    pub fn prefill_gops(&self) -> f64 {
        self.prefill.median() * self.prefill_operations as f64 / 1e9
    }
}

/// Measures `model`. The prompt is a fixed walk through the vocabulary; decoding is greedy and
/// does not stop at end-of-generation tokens.
///
/// # Errors
/// If the session cannot be opened.
pub fn bench(model: &Model, options: &BenchOptions) -> Result<BenchReport, EdgeError> {
    let before = options.depth.max(1);
    let context = options.prompt.max(before + options.generate);
    let session_options = SessionOptions { context, kv: options.kv, threads: options.threads };
    let mut session = Session::new(model, session_options)?;
    let vocab = model.config().vocab_size;
    let text: Vec<u32> =
        (0..options.prompt.max(before)).map(|i| (i * 7919 % vocab) as u32).collect();
    let (mut prefill, mut decode) = (Samples::default(), Samples::default());
    for repetition in 0..=options.repetitions {
        if options.prompt == 0 {
            break;
        }
        session.reset();
        let start = Instant::now();
        session.prefill(&text[..options.prompt])?;
        if repetition > 0 {
            prefill.0.push(options.prompt as f64 / start.elapsed().as_secs_f64());
        }
    }
    session.reset();
    let first = argmax(session.prefill(&text[..before])?);
    for repetition in 0..=options.repetitions {
        if options.generate == 0 {
            break;
        }
        session.truncate(before);
        let start = Instant::now();
        let mut next = first;
        for _ in 0..options.generate {
            next = argmax(session.decode(next)?);
        }
        if repetition > 0 {
            decode.0.push(options.generate as f64 / start.elapsed().as_secs_f64());
        }
    }
    let position_bytes = model.cache_bytes(options.kv);
    Ok(BenchReport {
        prefill,
        decode,
        decode_bytes: model.weight_bytes() + position_bytes * (before + options.generate / 2),
        prefill_operations: 2 * model.layer_weights(),
        threads: session.threads(),
        kernels: model.kernel_name(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_ignores_outliers_and_the_spread_does_not() {
        let samples = |values: &[f64]| Samples(values.to_vec());
        assert_eq!(samples(&[3.0, 1e9, 1.0]).median(), 3.0);
        assert_eq!(samples(&[4.0, 1.0, 2.0, 1e9]).median(), 3.0);
        assert_eq!(samples(&[]).median(), 0.0);
        assert_eq!(samples(&[10.0, 11.0, 8.0]).spread(), 0.2);
        assert_eq!(samples(&[]).spread(), 0.0);
    }
}
