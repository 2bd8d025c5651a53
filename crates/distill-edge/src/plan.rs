//! Who computes what: a static split, so that no thread ever asks for work.

use std::ops::Range;

/// The `thread`-th of `threads` nearly equal parts of 0..n.
pub(crate) fn share(n: usize, thread: usize, threads: usize) -> Range<usize> {
    n * thread / threads..n * (thread + 1) / threads
}

/// The part of `range` that lies in `from..from + length`, counted from `from`.
pub(crate) fn within(range: &Range<usize>, from: usize, length: usize) -> Range<usize> {
    let edge = |at: usize| at.clamp(from, from + length) - from;
    edge(range.start)..edge(range.end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_cover_everything_once_and_differ_by_at_most_one() {
        for n in [0, 1, 7, 60, 3072] {
            for threads in [1, 2, 3, 8] {
                let mut end = 0;
                for thread in 0..threads {
                    let part = share(n, thread, threads);
                    assert_eq!(part.start, end);
                    assert!(part.len() == n / threads || part.len() == n / threads + 1);
                    end = part.end;
                }
                assert_eq!(end, n);
            }
        }
    }

    #[test]
    fn a_range_over_several_matrices_is_cut_at_their_edges() {
        let lengths = [36, 12, 12];
        let parts = |range: Range<usize>| {
            let mut from = 0;
            lengths.map(|length| {
                from += length;
                within(&range, from - length, length)
            })
        };
        assert_eq!(parts(30..50), [30..36, 0..12, 0..2]);
        assert_eq!(parts(0..30), [0..30, 0..0, 0..0]);
    }
}
