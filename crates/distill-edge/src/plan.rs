//! Who computes what: the rows of every matrix, split over the threads once per session.
//!
//! Keys and values are split by whole heads, because their owner writes them straight into its
//! part of the cache; queries fill up what the heads leave uneven. All else is split evenly.

use std::ops::Range;

use crate::config::Config;

/// Rows are handed out in groups of this size: the widest tile of the kernels.
const GROUP: usize = 4;

/// One thread's share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Share {
    /// Rows of the query projection, [heads · head_dim]; even, so that RoPE pairs stay together.
    pub query_rows: Range<usize>,
    /// Key/value heads.
    pub kv_heads: Range<usize>,
    /// Rows of the projections that write to the residual stream, [hidden].
    pub hidden_rows: Range<usize>,
    /// Rows of gate and up, [feed_forward].
    pub feed_forward_rows: Range<usize>,
    /// Rows of the head, [vocab].
    pub vocab_rows: Range<usize>,
}

/// The shares of all threads, in order; the ranges of each kind follow one another without gaps.
pub(crate) fn shares(config: &Config, threads: usize) -> Vec<Share> {
    let mut query_from = 0;
    query_rows(config, threads)
        .into_iter()
        .enumerate()
        .map(|(w, rows)| {
            let share = Share {
                query_rows: query_from..query_from + rows,
                kv_heads: even(config.kv_heads, w, threads, 1),
                hidden_rows: even(config.hidden_size, w, threads, GROUP),
                feed_forward_rows: even(config.feed_forward, w, threads, GROUP),
                vocab_rows: even(config.vocab_size, w, threads, GROUP),
            };
            query_from += rows;
            share
        })
        .collect()
}

/// The w-th of `parts` nearly equal ranges of 0..n that begin at multiples of `group`.
fn even(n: usize, w: usize, parts: usize, group: usize) -> Range<usize> {
    let groups = n.div_ceil(group);
    let edge = |w: usize| (groups * w / parts * group).min(n);
    edge(w)..edge(w + 1)
}

/// Query rows of each thread, such that with its keys and values all have about the same number.
fn query_rows(config: &Config, threads: usize) -> Vec<usize> {
    let total = config.heads * config.head_dim;
    let kv_rows = |w: usize| 2 * config.head_dim * even(config.kv_heads, w, threads, 1).len();
    let all_kv: usize = (0..threads).map(kv_rows).sum();
    let wanted = (total + all_kv).div_ceil(threads);
    let mut left = total;
    let mut rows: Vec<usize> = (0..threads)
        .map(|w| {
            let rows =
                (wanted.saturating_sub(kv_rows(w)).next_multiple_of(GROUP)).min(left) / 2 * 2;
            left -= rows;
            rows
        })
        .collect();
    // Where heads alone exceed the mean, rows remain.
    for (w, rows) in rows.iter_mut().enumerate() {
        *rows += even(left, w, threads, 2).len();
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_cover_every_row_once_and_keep_pairs_together() {
        for (heads, kv_heads, head_dim) in
            [(9, 3, 64), (4, 4, 16), (32, 8, 64), (3, 1, 2), (8, 1, 10)]
        {
            for threads in 1..=9 {
                let config = Config {
                    heads,
                    kv_heads,
                    head_dim,
                    hidden_size: 70,
                    feed_forward: 90,
                    vocab_size: 1001,
                    ..Config::default()
                };
                let shares = shares(&config, threads);
                let covers = |range: fn(&Share) -> Range<usize>, n: usize| {
                    let end = shares.iter().fold(0, |from, share| {
                        assert_eq!(range(share).start, from);
                        range(share).end
                    });
                    assert_eq!(end, n);
                };
                covers(|s| s.query_rows.clone(), heads * head_dim);
                covers(|s| s.kv_heads.clone(), kv_heads);
                covers(|s| s.hidden_rows.clone(), 70);
                covers(|s| s.feed_forward_rows.clone(), 90);
                covers(|s| s.vocab_rows.clone(), 1001);
                assert!(shares.iter().all(|s| s.query_rows.start % 2 == 0));
            }
        }
    }

    #[test]
    fn uneven_heads_are_balanced_by_queries() {
        let config =
            Config { heads: 9, kv_heads: 3, head_dim: 64, hidden_size: 576, ..Config::default() };
        let shares = shares(&config, 2);
        let rows = |s: &Share| s.query_rows.len() + 2 * 64 * s.kv_heads.len();
        assert_eq!((rows(&shares[0]), rows(&shares[1])), (480, 480));
    }
}
