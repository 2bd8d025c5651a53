//! Choosing the next token from logits.
//!
//! Order, as in the field's training libraries: temperature, then top-k, then top-p, then min-p,
//! then one draw. Temperature 0 is greedy and draws nothing.

/// How to choose the next token.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplerOptions {
    /// Divides the logits; 0 (or less) chooses the largest logit, the lowest id among equals.
    pub temperature: f32,
    /// Keep only the k most likely tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep the most likely tokens until their probabilities reach this sum; 1 keeps all.
    pub top_p: f32,
    /// Keep the tokens at least this fraction as likely as the most likely one; 0 keeps all.
    pub min_p: f32,
    /// Seed of the random draws: the same seed and logits give the same tokens.
    pub seed: u64,
}

impl Default for SamplerOptions {
    /// Greedy.
    fn default() -> Self {
        Self { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed: 0 }
    }
}

/// Draws tokens; owns its random state and its scratch.
#[derive(Clone, Debug)]
pub struct Sampler {
    options: SamplerOptions,
    random: Random,
    /// (logit, then weight; token id), the candidates left.
    candidates: Vec<(f32, u32)>,
}

impl Sampler {
    /// A sampler at the start of its random sequence.
    pub fn new(options: SamplerOptions) -> Self {
        let random = Random::new(options.seed);
        Self { options, random, candidates: Vec::new() }
    }

    /// The next token for `logits` `[vocab]`; NaN is never chosen. 0 for empty logits.
    pub fn sample(&mut self, logits: &[f32]) -> u32 {
        if self.options.temperature <= 0.0 {
            return argmax(logits);
        }
        self.candidates.clear();
        self.candidates
            .extend(logits.iter().zip(0..).filter(|(l, _)| !l.is_nan()).map(|(&l, id)| (l, id)));
        self.keep_top_k();
        self.weigh();
        self.keep_top_p();
        self.keep_min_p();
        self.draw().unwrap_or_else(|| argmax(logits))
    }

    fn keep_top_k(&mut self) {
        let k = self.options.top_k;
        let keeps_all_unsorted = self.options.top_p >= 1.0 && self.options.min_p <= 0.0;
        if k > 0 && k < self.candidates.len() {
            self.candidates.select_nth_unstable_by(k - 1, by_likelihood);
            self.candidates.truncate(k);
        } else if keeps_all_unsorted {
            return;
        }
        self.candidates.sort_unstable_by(by_likelihood);
    }

    /// Turns logits into unnormalised probabilities exp((l - max) / T).
    fn weigh(&mut self) {
        let max = self.candidates.iter().fold(f32::NEG_INFINITY, |m, c| m.max(c.0));
        let temperature = self.options.temperature;
        for candidate in &mut self.candidates {
            let above = if candidate.0 == max { 0.0 } else { candidate.0 - max };
            candidate.0 = (above / temperature).exp();
        }
    }

    fn keep_top_p(&mut self) {
        if self.options.top_p >= 1.0 {
            return;
        }
        let wanted = f64::from(self.options.top_p) * self.total();
        let mut sum = 0.0;
        // The token that reaches the sum is kept, so one always remains.
        let reached = self.candidates.iter().position(|c| {
            sum += f64::from(c.0);
            sum >= wanted
        });
        if let Some(last) = reached {
            self.candidates.truncate(last + 1);
        }
    }

    fn keep_min_p(&mut self) {
        if self.options.min_p > 0.0 {
            // The most likely candidate has weight 1.
            let least = self.options.min_p.min(1.0);
            self.candidates.retain(|c| c.0 >= least);
        }
    }

    fn total(&self) -> f64 {
        self.candidates.iter().map(|c| f64::from(c.0)).sum()
    }

    fn draw(&mut self) -> Option<u32> {
        let mut left = self.random.unit() * self.total();
        for &(weight, id) in &self.candidates {
            left -= f64::from(weight);
            if left < 0.0 {
                return Some(id);
            }
        }
        // Rounding can leave a crumb after the last candidate.
        self.candidates.iter().rev().find(|c| c.0 > 0.0).map(|c| c.1)
    }
}

/// Most likely first; equals by id, so that the order never depends on the sort.
fn by_likelihood(a: &(f32, u32), b: &(f32, u32)) -> std::cmp::Ordering {
    b.0.total_cmp(&a.0).then(a.1.cmp(&b.1))
}

/// The id of the largest logit, the lowest among equals; NaN never wins.
pub fn argmax(logits: &[f32]) -> u32 {
    // The value first, over independent lanes: a comparison that carries an index along would wait
    // for the one before it. `f32::max` passes over NaN.
    let (chunks, rest) = logits.as_chunks::<16>();
    let mut lanes = [f32::NEG_INFINITY; 16];
    for chunk in chunks {
        for (lane, logit) in lanes.iter_mut().zip(chunk) {
            *lane = if *logit > *lane { *logit } else { *lane };
        }
    }
    let largest = lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |most, &x| most.max(x));
    let is_largest = |&logit: &f32| logit == largest && logit > f32::NEG_INFINITY;
    logits.iter().position(is_largest).unwrap_or(0) as u32
}

/// xoshiro256++ (Blackman and Vigna, "Scrambled linear pseudorandom number generators", 2021),
/// its state filled by SplitMix64 from the seed.
#[derive(Clone, Debug)]
struct Random {
    state: [u64; 4],
}

impl Random {
    fn new(seed: u64) -> Self {
        let mut z = seed;
        let state = std::array::from_fn(|_| {
            z = z.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut x = z;
            x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            x ^ (x >> 31)
        });
        Self { state }
    }

    fn next(&mut self) -> u64 {
        let [a, b, c, d] = &mut self.state;
        let result = a.wrapping_add(*d).rotate_left(23).wrapping_add(*a);
        let shifted = *b << 17;
        *c ^= *a;
        *d ^= *b;
        *b ^= *c;
        *a ^= *d;
        *c ^= shifted;
        *d = d.rotate_left(45);
        result
    }

    /// Uniform in [0, 1) with 53 bits.
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 * (1.0 / (1_u64 << 53) as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 5] = [1.0, 3.0, 2.0, 3.0, f32::NAN];

    fn share(options: SamplerOptions, logits: &[f32]) -> Vec<f64> {
        const DRAWS: usize = 20_000;
        let mut sampler = Sampler::new(options);
        let mut count = vec![0.0; logits.len()];
        for _ in 0..DRAWS {
            count[sampler.sample(logits) as usize] += 1.0 / DRAWS as f64;
        }
        count
    }

    #[test]
    fn greedy_takes_the_lowest_id_of_equals_and_never_nan() {
        assert_eq!(Sampler::new(SamplerOptions::default()).sample(&LOGITS), 1);
        assert_eq!(argmax(&[f32::NAN, f32::NEG_INFINITY]), 0);
    }

    #[test]
    fn draws_follow_the_softmax_at_the_temperature() {
        let options = SamplerOptions { temperature: 2.0, seed: 7, ..SamplerOptions::default() };
        let got = share(options, &LOGITS);
        let weights: Vec<f64> = LOGITS[..4].iter().map(|&l| (f64::from(l) / 2.0).exp()).collect();
        let total: f64 = weights.iter().sum();
        for (got, want) in got.iter().zip(weights.iter().map(|w| w / total)) {
            // 20,000 draws: the standard deviation is below 0.0036; the bound is 4 of them.
            assert!((got - want).abs() < 0.0145, "{got} {want}");
        }
        assert_eq!(got[4], 0.0);
    }

    #[test]
    fn top_k_top_p_and_min_p_cut_the_tail() {
        let base = SamplerOptions { temperature: 1.0, ..SamplerOptions::default() };
        let alive = |options| share(options, &LOGITS).iter().map(|&s| s > 0.0).collect::<Vec<_>>();
        assert_eq!(
            alive(SamplerOptions { top_k: 1, ..base.clone() }),
            [false, true, false, false, false]
        );
        assert_eq!(
            alive(SamplerOptions { top_k: 3, ..base.clone() }),
            [false, true, true, true, false]
        );
        // Probabilities: 0.43, 0.43, 0.16 (id 2), 0.06 (id 0) in descending order.
        assert_eq!(
            alive(SamplerOptions { top_p: 0.5, ..base.clone() }),
            [false, true, false, true, false]
        );
        assert_eq!(
            alive(SamplerOptions { top_p: 0.0, ..base.clone() }),
            [false, true, false, false, false]
        );
        assert_eq!(alive(SamplerOptions { min_p: 0.3, ..base }), [false, true, true, true, false]);
    }

    #[test]
    fn the_same_seed_draws_the_same_tokens() {
        let options = |seed| SamplerOptions { temperature: 1.0, seed, ..SamplerOptions::default() };
        let run = |seed| {
            let mut sampler = Sampler::new(options(seed));
            (0..64).map(|_| sampler.sample(&LOGITS)).collect::<Vec<_>>()
        };
        assert_eq!(run(3), run(3));
        assert_ne!(run(3), run(4));
    }

    #[test]
    fn the_generator_matches_its_published_first_outputs() {
        // xoshiro256++ from state 1, 2, 3, 4: the reference implementation's first outputs.
        let mut random = Random { state: [1, 2, 3, 4] };
        assert_eq!(
            [random.next(), random.next(), random.next()],
            [41_943_041, 58_720_359, 3_588_806_011_781_223]
        );
    }

    #[test]
    fn infinite_logits_do_not_break_the_draw() {
        let mut sampler = Sampler::new(SamplerOptions {
            temperature: 1.0,
            top_p: 0.9,
            ..SamplerOptions::default()
        });
        assert_eq!(sampler.sample(&[f32::NEG_INFINITY, 1.0, f32::NEG_INFINITY]), 1);
        assert_eq!(sampler.sample(&[0.0, f32::INFINITY]), 1);
        assert!(sampler.sample(&[f32::NEG_INFINITY; 3]) < 3);
        assert_eq!(sampler.sample(&[f32::NAN; 3]), 0);
        assert_eq!(sampler.sample(&[]), 0);
    }
}
