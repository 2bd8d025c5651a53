//! Choosing the next token from logits.
//!
//! Order, as in the field's training libraries: temperature, then top-k, then top-p, then min-p,
//! then one draw. Temperature 0 is greedy and draws nothing.

use std::collections::BinaryHeap;

use crate::ranked::Ranked;

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
    /// Candidates, scored by their logits, the most likely on top. Few are ever taken out, so a
    /// heap does less than sorting all of them would.
    heap: BinaryHeap<Ranked>,
    /// What to draw from, scored by unnormalised probabilities.
    kept: Vec<Ranked>,
}

impl Sampler {
    /// A sampler at the start of its random sequence.
    pub fn new(options: SamplerOptions) -> Self {
        let random = Random::new(options.seed);
        Self { options, random, heap: BinaryHeap::new(), kept: Vec::new() }
    }

    /// The next token for `logits` `[vocab]`; NaN is never chosen. 0 for empty logits.
    pub fn sample(&mut self, logits: &[f32]) -> u32 {
        let SamplerOptions { temperature, top_k, top_p, min_p, .. } = self.options;
        if temperature <= 0.0 {
            return argmax(logits);
        }
        let max = logits.iter().fold(f32::NEG_INFINITY, |max, &logit| max.max(logit));
        // The unnormalised probability exp((l - max) / T).
        let weigh = |c: Ranked| {
            let above = if c.score == max { 0.0 } else { c.score - max };
            Ranked { score: (above / temperature).exp(), id: c.id }
        };
        let all = logits.iter().zip(0..).map(|(&score, id)| Ranked { score, id });
        let all = all.filter(|c| !c.score.is_nan());
        self.kept.clear();
        if top_k == 0 && top_p >= 1.0 && min_p <= 0.0 {
            self.kept.extend(all.map(weigh));
        } else {
            self.heap.clear();
            self.heap.extend(all);
            self.keep_top_k();
            self.keep_top_p_and_min_p(weigh);
        }
        self.draw().unwrap_or_else(|| argmax(logits))
    }

    fn keep_top_k(&mut self) {
        let k = self.options.top_k;
        if k > 0 && k < self.heap.len() {
            self.kept.extend((0..k).map_while(|_| self.heap.pop()));
            self.heap.clear();
            self.heap.extend(self.kept.drain(..));
        }
    }

    /// Takes candidates from the heap, the most likely first, until one of the two says enough.
    fn keep_top_p_and_min_p(&mut self, weigh: impl Fn(Ranked) -> Ranked) {
        let SamplerOptions { top_p, min_p, .. } = self.options;
        let wanted = match top_p < 1.0 {
            true => f64::from(top_p) * total(self.heap.iter().map(|&c| weigh(c))),
            false => f64::INFINITY,
        };
        // The most likely candidate has weight 1.
        let least = min_p.min(1.0);
        let mut sum = 0.0;
        while let Some(candidate) = self.heap.pop().map(&weigh)
            && candidate.score >= least
        {
            self.kept.push(candidate);
            sum += f64::from(candidate.score);
            // The token that reaches the sum is kept, so one always remains.
            if sum >= wanted {
                break;
            }
        }
    }

    fn draw(&mut self) -> Option<u32> {
        let mut left = self.random.unit() * total(self.kept.iter().copied());
        for candidate in &self.kept {
            left -= f64::from(candidate.score);
            if left < 0.0 {
                return Some(candidate.id);
            }
        }
        // Rounding can leave a crumb after the last candidate.
        self.kept.iter().rev().find(|c| c.score > 0.0).map(|c| c.id)
    }
}

fn total(candidates: impl Iterator<Item = Ranked>) -> f64 {
    candidates.map(|c| f64::from(c.score)).sum()
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

    proptest::proptest! {
        #[test]
        fn what_is_kept_is_what_sorting_them_all_keeps(
            logits in proptest::collection::vec(-4_i8..4, 1..40),
            top_k in 0_usize..12,
            top_p in 0.05_f32..1.1,
            min_p in -0.1_f32..1.1,
        ) {
            // Whole numbers, so that many are equal. All are kept by id, fewer by likelihood.
            let logits: Vec<f32> = logits.into_iter().map(f32::from).collect();
            let options = SamplerOptions { temperature: 1.5, top_k, top_p, min_p, seed: 0 };
            let mut sampler = Sampler::new(options);
            sampler.sample(&logits);
            let mut expected: Vec<usize> = (0..logits.len()).collect();
            if top_k > 0 || top_p < 1.0 || min_p > 0.0 {
                expected.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
            }
            if top_k > 0 {
                expected.truncate(top_k);
            }
            let largest = logits[expected[0]];
            let weight = |id: usize| f64::from(((logits[id] - largest) / 1.5).exp());
            if top_p < 1.0 {
                let total: f64 = expected.iter().map(|&id| weight(id)).sum();
                let mut sum = 0.0;
                let reached = expected.iter().position(|&id| {
                    sum += weight(id);
                    sum >= f64::from(top_p) * total
                });
                expected.truncate(reached.unwrap() + 1);
            }
            if min_p > 0.0 {
                expected.retain(|&id| weight(id) >= f64::from(min_p.min(1.0)));
            }
            let kept: Vec<usize> = sampler.kept.iter().map(|c| c.id as usize).collect();
            proptest::prop_assert_eq!(kept, expected);
        }
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
