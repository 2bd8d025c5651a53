//! Timing prefill and decode on this machine.

use std::time::Instant;

use crate::{EdgeError, KvType, Model, Session, SessionOptions, argmax};

/// What to measure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BenchOptions {
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Tokens to generate after it.
    pub generate: usize,
    /// Threads; 0 is as the model was loaded.
    pub threads: usize,
    /// How keys and values are stored.
    pub kv: KvType,
    /// Measured repetitions, after one that is not.
    pub repetitions: usize,
}

impl Default for BenchOptions {
    fn default() -> Self {
        Self { prompt: 512, generate: 128, threads: 0, kv: KvType::default(), repetitions: 5 }
    }
}

/// Medians over the repetitions; 0 where nothing was asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct BenchReport {
    /// Prompt tokens a second.
    pub prefill_tokens_per_second: f64,
    /// Generated tokens a second, from the position after the prompt.
    pub decode_tokens_per_second: f64,
    /// Time to the first token, in milliseconds: the prompt and one choice.
    pub first_token_ms: f64,
    /// Weights read a second while decoding, in GB (10⁹ bytes), the cache not counted.
    pub decode_bandwidth_gbps: f64,
    /// Each repetition's prefill rate, in order.
    pub prefill_samples: Vec<f64>,
    /// Each repetition's decode rate, in order.
    pub decode_samples: Vec<f64>,
    /// Threads that ran.
    pub threads: usize,
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Tokens generated.
    pub generate: usize,
    /// `avx2` or `scalar`.
    pub kernels: &'static str,
    /// Bytes of weights read for one token.
    pub weight_bytes: usize,
}

/// Measures `model`. The prompt is a fixed walk through the vocabulary; decoding is greedy and
/// does not stop at end-of-generation tokens.
///
/// # Errors
/// If the session cannot be opened.
pub fn bench(model: &Model, options: &BenchOptions) -> Result<BenchReport, EdgeError> {
    let context = (options.prompt + options.generate).max(1);
    let session_options = SessionOptions { context, kv: options.kv, threads: options.threads };
    let mut session = Session::new(model, session_options)?;
    let vocab = model.config().vocab_size;
    let prompt: Vec<u32> = (0..options.prompt).map(|i| (i * 7919 % vocab) as u32).collect();
    let (mut prefill, mut decode, mut first) = (Vec::new(), Vec::new(), Vec::new());
    for repetition in 0..=options.repetitions {
        session.reset();
        let start = Instant::now();
        let mut next = 0;
        if !prompt.is_empty() {
            next = argmax(session.prefill(&prompt)?);
        }
        let prefill_seconds = start.elapsed().as_secs_f64();
        let start = Instant::now();
        for _ in 0..options.generate {
            next = argmax(session.decode(next)?);
        }
        let decode_seconds = start.elapsed().as_secs_f64();
        if repetition > 0 {
            prefill.push(prompt.len() as f64 / prefill_seconds);
            decode.push(options.generate as f64 / decode_seconds);
            first.push(1e3 * prefill_seconds);
        }
    }
    let decode_rate = if options.generate == 0 { 0.0 } else { median(&decode) };
    Ok(BenchReport {
        prefill_tokens_per_second: if prompt.is_empty() { 0.0 } else { median(&prefill) },
        decode_tokens_per_second: decode_rate,
        first_token_ms: median(&first),
        decode_bandwidth_gbps: decode_rate * model.weight_bytes() as f64 / 1e9,
        prefill_samples: prefill,
        decode_samples: decode,
        threads: session.threads(),
        prompt: options.prompt,
        generate: options.generate,
        kernels: model.kernel_name(),
        weight_bytes: model.weight_bytes(),
    })
}

/// The middle value, or the mean of the two middle ones; 0 of none.
fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        n if n % 2 == 1 => sorted[n / 2],
        n => (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_ignores_outliers() {
        assert_eq!(median(&[3.0, 1e9, 1.0]), 3.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 1e9]), 3.0);
        assert_eq!(median(&[]), 0.0);
    }
}
