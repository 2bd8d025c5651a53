//! Byte-pair merging of one piece: repeatedly joins the adjacent pair with the lowest rank.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

/// What two adjacent tokens merge into.
#[derive(Clone, Copy, Debug)]
pub(super) struct Merge {
    /// The place in the merge list: lower merges first.
    pub rank: u32,
    /// The token of the two joined texts.
    pub token: u32,
}

/// The merge list by token pair.
pub(super) type Merges = HashMap<(u32, u32), Merge>;

/// A token in the doubly linked list of a piece; merged-away symbols have `live == false`.
struct Symbol {
    token: u32,
    before: usize,
    after: usize,
    live: bool,
}

const NONE: usize = usize::MAX;

/// Merges `symbols` (the byte tokens of a piece) and appends the resulting tokens to `out`.
///
/// A heap holds the candidate pairs by (rank, position), so the cost is O(n log n) for a piece of
/// n bytes; of equal ranks the leftmost merges first.
pub(super) fn merge_into(merges: &Merges, tokens: &[u32], out: &mut Vec<u32>) {
    if tokens.len() < 2 {
        out.extend_from_slice(tokens);
        return;
    }
    let mut symbols: Vec<Symbol> = tokens
        .iter()
        .enumerate()
        .map(|(i, &token)| Symbol {
            token,
            before: i.wrapping_sub(1),
            after: if i + 1 < tokens.len() { i + 1 } else { NONE },
            live: true,
        })
        .collect();
    let mut heap = BinaryHeap::new();
    let push = |heap: &mut BinaryHeap<_>, symbols: &[Symbol], left: usize, right: usize| {
        let pair = (symbols[left].token, symbols[right].token);
        if let Some(merge) = merges.get(&pair) {
            heap.push(Reverse((merge.rank, left, right, pair, merge.token)));
        }
    };
    for left in 0..tokens.len() - 1 {
        push(&mut heap, &symbols, left, left + 1);
    }
    while let Some(Reverse((_, left, right, pair, token))) = heap.pop() {
        // A candidate is stale when either side has merged since it was pushed.
        let fresh = symbols[left].live && symbols[right].live && symbols[left].after == right;
        if !fresh || (symbols[left].token, symbols[right].token) != pair {
            continue;
        }
        let after = symbols[right].after;
        symbols[right].live = false;
        symbols[left].token = token;
        symbols[left].after = after;
        if after != NONE {
            symbols[after].before = left;
            push(&mut heap, &symbols, left, after);
        }
        let before = symbols[left].before;
        if before != NONE {
            push(&mut heap, &symbols, before, left);
        }
    }
    out.extend(symbols.iter().filter(|s| s.live).map(|s| s.token));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The textbook definition: scan for the best pair, merge its leftmost occurrence, repeat.
    fn naive(merges: &Merges, tokens: &[u32]) -> Vec<u32> {
        let mut tokens = tokens.to_vec();
        loop {
            let best = (0..tokens.len().saturating_sub(1))
                .filter_map(|i| {
                    merges.get(&(tokens[i], tokens[i + 1])).map(|m| (m.rank, i, m.token))
                })
                .min();
            let Some((_, i, token)) = best else { return tokens };
            tokens[i] = token;
            tokens.remove(i + 1);
        }
    }

    proptest::proptest! {
        #[test]
        fn heap_merging_equals_the_textbook_definition(
            piece in proptest::collection::vec(0_u32..4, 0..40),
            pairs in proptest::collection::vec((0_u32..12, 0_u32..12), 0..20),
        ) {
            let merges: Merges = pairs
                .iter()
                .enumerate()
                .map(|(rank, &pair)| (pair, Merge { rank: rank as u32, token: 4 + rank as u32 }))
                .collect();
            let mut out = Vec::new();
            merge_into(&merges, &piece, &mut out);
            proptest::prop_assert_eq!(out, naive(&merges, &piece));
        }
    }
}
