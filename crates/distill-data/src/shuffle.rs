//! The seeded shuffle: the same order on every platform and in every version.
//!
//! The generator is SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number
//! generators", 2014): the state grows by the golden gamma, the output is a bijective mix of it.
//! Bounded numbers come from the high half of a 128-bit product, with the biased low products
//! rejected (Lemire, "Fast random integer generation in an interval", 2019). The permutation is
//! Fisher–Yates from the last element down.

const GOLDEN_GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// SplitMix64.
#[derive(Clone, Debug)]
pub struct SplitMix64 {
    state: u64,
}

impl SplitMix64 {
    /// The generator of `seed`; different `stream`s (epochs, purposes) of one seed are unrelated.
    #[must_use]
    pub fn new(seed: u64, stream: u64) -> Self {
        let mut of_seed = Self { state: seed };
        let mut of_stream = Self { state: of_seed.next() ^ stream };
        Self { state: of_stream.next() }
    }

    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(GOLDEN_GAMMA);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number in `0..bound`, each equally likely.
    ///
    /// # Panics
    /// If the bound is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        assert!(bound > 0, "an empty range has no number to draw");
        let biased = bound.wrapping_neg() % bound;
        loop {
            let product = u128::from(self.next()) * u128::from(bound);
            if product as u64 >= biased {
                return (product >> 64) as u64;
            }
        }
    }

    /// A number in [0, 1), a multiple of 2⁻⁵³.
    pub fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// A permutation of `0..len`.
    pub(crate) fn permutation(&mut self, len: usize) -> Vec<u32> {
        let len = u32::try_from(len).expect("a split holds fewer than 2^32 sequences");
        let mut order: Vec<u32> = (0..len).collect();
        for last in (1..order.len()).rev() {
            let other = self.below(last as u64 + 1) as usize;
            order.swap(last, other);
        }
        order
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_generator_is_the_published_one() {
        // The first outputs for the seed 1234567, from the reference implementation
        // (https://prng.di.unimi.it/splitmix64.c).
        let mut generator = SplitMix64 { state: 1_234_567 };
        let drawn: Vec<u64> = (0..5).map(|_| generator.next()).collect();
        assert_eq!(
            drawn,
            [
                6_457_827_717_110_365_317,
                3_203_168_211_198_807_973,
                9_817_491_932_198_370_423,
                4_593_380_528_125_082_431,
                16_408_922_859_458_223_821,
            ]
        );
    }

    #[test]
    fn a_permutation_holds_every_index_once() {
        for len in [0, 1, 2, 3, 10, 1000] {
            let mut order = SplitMix64::new(7, 0).permutation(len);
            order.sort_unstable();
            assert!(order.iter().copied().eq(0..len as u32));
        }
    }

    #[test]
    fn every_order_of_three_is_equally_likely() {
        let mut counts = std::collections::BTreeMap::<Vec<u32>, u32>::new();
        for seed in 0..6000 {
            *counts.entry(SplitMix64::new(seed, 0).permutation(3)).or_default() += 1;
        }
        assert_eq!(counts.len(), 6);
        // 1000 expected, standard deviation 29: six of them either way.
        for (order, count) in counts {
            assert!((826..1174).contains(&count), "{order:?} came {count} times");
        }
    }

    #[test]
    fn the_order_is_pinned_so_that_old_runs_can_be_resumed() {
        assert_eq!(SplitMix64::new(42, 0).permutation(8), SplitMix64::new(42, 0).permutation(8));
        assert_ne!(SplitMix64::new(42, 0).permutation(64), SplitMix64::new(42, 1).permutation(64));
        assert_ne!(SplitMix64::new(42, 0).permutation(64), SplitMix64::new(43, 0).permutation(64));
    }
}
