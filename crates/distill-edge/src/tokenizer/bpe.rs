//! Byte-pair merging of one piece: repeatedly joins the adjacent pair with the lowest rank, of
//! equal ranks the leftmost.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::hash::Seed;
use super::table::{Crowded, Table, TableMaker, TableView};

/// What two adjacent tokens merge into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Merge {
    /// The place in the merge list: lower merges first.
    pub rank: u32,
    /// The token of the two joined texts.
    pub token: u32,
}

impl Merge {
    /// Behind every rank of a list.
    pub(super) const NONE: Self = Self { rank: u32::MAX, token: 0 };
}

/// The merge list by token pair. An entry is left, right, rank and the token they make.
#[derive(Clone, Debug)]
pub(super) struct Merges {
    table: Table<4>,
    seed: Seed,
}

/// A merge list as merging reads it.
#[derive(Clone, Copy, Debug)]
pub(super) struct MergesView<'t> {
    table: TableView<'t, 4>,
    seed: Seed,
}

/// A merge list in the making.
#[derive(Debug)]
pub(super) struct MergesMaker {
    table: TableMaker<4>,
    seed: Seed,
}

impl MergesMaker {
    /// For so many merges.
    pub(super) fn new(merges: usize, seed: Seed) -> Self {
        Self { table: TableMaker::new(merges), seed }
    }

    /// Adds a merge; of two for the same pair the first counts.
    pub(super) fn add(&mut self, left: u32, right: u32, merge: Merge) -> Result<(), Crowded> {
        let seed = self.seed;
        self.table.add(
            [left, right, merge.rank, merge.token],
            &|&[left, right, ..]| seed.of_word(key(left, right)),
            &|a, b| a[..2] == b[..2],
        )
    }

    /// The list, for a vocabulary of `tokens`.
    pub(super) fn done(self, tokens: usize) -> Merges {
        Merges { table: self.table.done(tokens as u32), seed: self.seed }
    }
}

impl Merges {
    pub(super) fn of_table(table: Table<4>, seed: Seed) -> Self {
        Self { table, seed }
    }

    pub(super) fn table(&self) -> &Table<4> {
        &self.table
    }

    pub(super) fn view(&self) -> MergesView<'_> {
        MergesView { table: self.table.view(), seed: self.seed }
    }
}

impl MergesView<'_> {
    /// [`Merge::NONE`] where the list has none.
    pub(super) fn of(&self, left: u32, right: u32) -> Merge {
        let hash = self.seed.of_word(key(left, right));
        match self.table.get(hash, |entry| entry[..2] == [left, right]) {
            Some([.., rank, token]) => Merge { rank, token },
            None => Merge::NONE,
        }
    }
}

fn key(left: u32, right: u32) -> u64 {
    u64::from(left) << 32 | u64::from(right)
}

/// Up to so many tokens, looking through all pairs for the best is faster than keeping a heap.
const SHORT: usize = 64;

/// The room that merging needs, kept from piece to piece.
#[derive(Debug, Default)]
pub(super) struct Merger {
    pairs: Vec<Merge>,
    links: Vec<Link>,
    heap: BinaryHeap<Reverse<Candidate>>,
}

/// A token in the doubly linked list of a piece; a merged-away one has `live == false`.
#[derive(Debug)]
struct Link {
    token: u32,
    before: u32,
    after: u32,
    live: bool,
}

/// A pair that may merge: rank, the places of its tokens, the tokens, and what they become.
/// Ordered by rank, then by place.
type Candidate = (u32, u32, u32, u64, u32);

const END: u32 = u32::MAX;

impl Merger {
    /// Merges `tokens`, the symbols of a piece, and appends the result to `out`.
    ///
    /// O(n log n) for n symbols, whatever they are. `tokens` is left in any state.
    pub(super) fn merge_into(
        &mut self,
        merges: MergesView<'_>,
        tokens: &mut Vec<u32>,
        out: &mut Vec<u32>,
    ) {
        if tokens.len() <= SHORT {
            self.merge_short(merges, tokens);
            out.extend_from_slice(tokens);
        } else {
            // Links have 32 bits, so a piece of 4 Gi symbols is merged in parts.
            for part in tokens.chunks(END as usize - 1) {
                self.merge_long(merges, part, out);
            }
        }
    }

    fn merge_short(&mut self, merges: MergesView<'_>, tokens: &mut Vec<u32>) {
        let pairs = &mut self.pairs;
        pairs.clear();
        pairs.extend(tokens.windows(2).map(|pair| merges.of(pair[0], pair[1])));
        loop {
            let (mut best, mut at) = (Merge::NONE, 0);
            for (i, pair) in pairs.iter().enumerate() {
                if pair.rank < best.rank {
                    (best, at) = (*pair, i);
                }
            }
            if best.rank == Merge::NONE.rank {
                return;
            }
            tokens[at] = best.token;
            tokens.remove(at + 1);
            pairs.remove(at);
            if at > 0 {
                pairs[at - 1] = merges.of(tokens[at - 1], tokens[at]);
            }
            if at < pairs.len() {
                pairs[at] = merges.of(tokens[at], tokens[at + 1]);
            }
        }
    }

    fn merge_long(&mut self, merges: MergesView<'_>, tokens: &[u32], out: &mut Vec<u32>) {
        let Self { links, heap, .. } = self;
        let count = tokens.len() as u32;
        links.clear();
        links.extend((0..count).zip(tokens).map(|(i, &token)| Link {
            token,
            before: i.wrapping_sub(1),
            after: if i + 1 < count { i + 1 } else { END },
            live: true,
        }));
        heap.clear();
        let push = |heap: &mut BinaryHeap<_>, links: &[Link], left: u32, right: u32| {
            let (a, b) = (links[left as usize].token, links[right as usize].token);
            let merge = merges.of(a, b);
            if merge.rank != Merge::NONE.rank {
                heap.push(Reverse((merge.rank, left, right, key(a, b), merge.token)));
            }
        };
        for left in 0..count - 1 {
            push(heap, links, left, left + 1);
        }
        while let Some(Reverse((_, left, right, pair, token))) = heap.pop() {
            let (l, r) = (left as usize, right as usize);
            // A candidate is stale when either side has merged since it was pushed.
            let fresh = links[l].live && links[r].live && links[l].after == right;
            if !fresh || key(links[l].token, links[r].token) != pair {
                continue;
            }
            let after = links[r].after;
            links[r].live = false;
            links[l].token = token;
            links[l].after = after;
            if after != END {
                links[after as usize].before = left;
                push(heap, links, left, after);
            }
            let before = links[l].before;
            if before != END {
                push(heap, links, before, left);
            }
        }
        out.extend(links.iter().filter(|link| link.live).map(|link| link.token));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The textbook definition: scan for the best pair, merge its leftmost occurrence, repeat.
    fn textbook(merges: MergesView<'_>, tokens: &[u32]) -> Vec<u32> {
        let mut tokens = tokens.to_vec();
        loop {
            let pairs = (0..tokens.len().saturating_sub(1))
                .map(|i| (merges.of(tokens[i], tokens[i + 1]), i));
            let best = pairs.filter(|(merge, _)| *merge != Merge::NONE);
            let Some((merge, i)) = best.min_by_key(|(merge, i)| (merge.rank, *i)) else {
                return tokens;
            };
            tokens[i] = merge.token;
            tokens.remove(i + 1);
        }
    }

    proptest::proptest! {
        #[test]
        fn merging_equals_the_textbook_definition_with_and_without_a_heap(
            piece in proptest::collection::vec(0_u32..4, 0..90),
            pairs in proptest::collection::vec((0_u32..12, 0_u32..12, 0_u32..20), 0..20),
        ) {
            let mut merges = MergesMaker::new(pairs.len(), Seed::default());
            for (i, &(left, right, rank)) in (0..).zip(&pairs) {
                merges.add(left, right, Merge { rank, token: 4 + i }).unwrap();
            }
            let merges = merges.done(24);
            let merges = merges.view();
            let expected = textbook(merges, &piece);
            let mut merger = Merger::default();
            let mut short = piece.clone();
            merger.merge_short(merges, &mut short);
            proptest::prop_assert_eq!(&short, &expected);
            let mut either = Vec::new();
            merger.merge_into(merges, &mut piece.clone(), &mut either);
            proptest::prop_assert_eq!(&either, &expected);
            if !piece.is_empty() {
                let mut long = Vec::new();
                merger.merge_long(merges, &piece, &mut long);
                proptest::prop_assert_eq!(&long, &expected);
            }
        }
    }
}
