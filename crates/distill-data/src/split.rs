//! Sequences to train on or to measure on: of one stream of text, or a mix of several.

use sha2::{Digest, Sha256};

use crate::batch::{Batch, Sequence};
use crate::cursor::{Cursor, Order};
use crate::error::DataError;
use crate::fingerprint::hex;
use crate::packed::Packed;
use crate::shuffle::SplitMix64;

/// The shuffle's streams for the walks through the parts of a mix; epochs count up from 0.
const PART_STREAMS: u64 = 1 << 62;
/// Streams of a part: passes through it.
const PASSES: u64 = 1 << 40;

/// Sequences of a fixed length, of one stream of packed documents or of several parts.
///
/// An epoch holds as many sequences as there are. Of one stream it holds each of them once. Of a
/// mix, each part has its share of every epoch: it is walked through in a seeded order of its own,
/// and where an epoch ends within it the next one goes on. A part that is short for its share comes
/// several times in an epoch, and one that is long for it takes several epochs.
#[derive(Clone, Debug)]
pub struct Split {
    /// At least one.
    parts: Vec<Packed>,
    /// Part and index of each sequence; all in order where there is one part.
    listed: Vec<(u32, u32)>,
    /// Sequences of each part in an epoch; empty: each listed one once.
    quotas: Vec<usize>,
    fingerprint: String,
}

impl Split {
    /// One stream.
    pub(crate) fn one(packed: Packed) -> Self {
        let listed = (0..packed.len() as u32).map(|index| (0, index)).collect();
        let fingerprint = packed.fingerprint().to_owned();
        Self { parts: vec![packed], listed, quotas: Vec::new(), fingerprint }
    }

    /// A mix of parts, none of them empty, with their weights, for training: all sequences are
    /// listed part by part, and epochs hold them by their weights.
    pub(crate) fn mixed(parts: Vec<Packed>, weights: &[f64]) -> Self {
        debug_assert!(parts.len() == weights.len() && parts.iter().all(|part| part.len() > 0));
        let list = |(p, part): (usize, &Packed)| {
            (0..part.len() as u32).map(move |index| (p as u32, index)).collect::<Vec<_>>()
        };
        let listed: Vec<(u32, u32)> = parts.iter().enumerate().flat_map(list).collect();
        let quotas = quotas(weights, listed.len());
        let fingerprint = fingerprint("mixed", &parts, weights);
        Self { parts, listed, quotas, fingerprint }
    }

    /// The same for measuring: the first sequences, however many, hold the parts by their weights.
    /// The list ends where a part does.
    pub(crate) fn interleaved(parts: Vec<Packed>, weights: &[f64]) -> Self {
        debug_assert!(parts.len() == weights.len() && parts.iter().all(|part| part.len() > 0));
        let mut taken = vec![0; parts.len()];
        let mut listed = Vec::new();
        loop {
            // The part that is furthest behind its share.
            let behind = |p: usize| (taken[p] as f64 + 0.5) / weights[p];
            let next = (0..parts.len()).min_by(|&a, &b| behind(a).total_cmp(&behind(b)));
            match next.filter(|&p| taken[p] < parts[p].len()) {
                Some(p) => {
                    listed.push((p as u32, taken[p] as u32));
                    taken[p] += 1;
                }
                None => break,
            }
        }
        let fingerprint = fingerprint("interleaved", &parts, weights);
        Self { parts, listed, quotas: Vec::new(), fingerprint }
    }

    /// Number of sequences.
    #[must_use]
    pub fn len(&self) -> usize {
        self.listed.len()
    }

    /// Whether there is no sequence at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.listed.is_empty()
    }

    /// Positions a sequence, `S`.
    #[must_use]
    pub fn sequence_length(&self) -> usize {
        self.parts[0].sequence_length()
    }

    /// Tokens of text, end-of-sequence tokens included, padding not.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.parts.iter().map(Packed::tokens).sum()
    }

    /// Documents, or parts of documents where the split cut one.
    #[must_use]
    pub fn documents(&self) -> usize {
        self.parts.iter().map(Packed::documents).sum()
    }

    /// Positions that the loss counts when each sequence is read once.
    #[must_use]
    pub fn valid_tokens(&self) -> usize {
        let all: usize = self.parts.iter().map(Packed::len).sum();
        if all == self.len() {
            return self.parts.iter().map(Packed::valid_tokens).sum();
        }
        let valid =
            |&(p, index): &(u32, u32)| self.parts[p as usize].valid_tokens_of(index as usize);
        self.listed.iter().map(valid).sum()
    }

    /// Sequences of each part, and how many of them an epoch holds.
    #[must_use]
    pub fn parts(&self) -> Vec<(usize, usize)> {
        let sequences = self.parts.iter().map(Packed::len);
        match self.quotas.is_empty() {
            true => sequences.map(|n| (n, n)).collect(),
            false => sequences.zip(self.quotas.iter().copied()).collect(),
        }
    }

    /// A hash of the tokens and of how they are cut and mixed; two splits with the same one give the
    /// same batches.
    #[must_use]
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Sequence `index` in the order of the documents.
    ///
    /// # Panics
    /// If `index` is not below [`Split::len`].
    #[must_use]
    pub fn sequence(&self, index: usize) -> Sequence {
        self.batch(&[index]).row(0)
    }

    /// The named sequences as one batch, in the order named (evaluation takes `0, 1, 2 …`).
    ///
    /// # Panics
    /// If an index is not below [`Split::len`].
    #[must_use]
    pub fn batch(&self, indices: &[usize]) -> Batch {
        let mut batch = Batch::with_capacity(indices.len(), self.sequence_length());
        for &index in indices {
            self.append(index, &mut batch);
        }
        batch
    }

    /// The start of the walk in the order of `seed`.
    #[must_use]
    pub fn cursor(&self, seed: u64) -> Cursor {
        Cursor { seed, epoch: 0, index: 0, split: self.fingerprint.clone(), order: None }
    }

    /// A cursor that was saved, if it belongs to this split.
    ///
    /// # Errors
    /// [`DataError::CursorMismatch`] if it was saved over other data.
    pub fn resume(&self, saved: Cursor) -> Result<Cursor, DataError> {
        if saved.split == self.fingerprint && saved.index <= self.len() as u64 {
            Ok(saved)
        } else {
            Err(DataError::CursorMismatch { saved: saved.split, actual: self.fingerprint.clone() })
        }
    }

    /// The next `batch_size` sequences of the walk. After the last sequence of an epoch comes
    /// the first of the next one, in a new order, within the same batch if need be.
    ///
    /// # Panics
    /// If the split is empty, `batch_size` is 0, or the cursor was made by another split.
    pub fn next_batch(&self, cursor: &mut Cursor, batch_size: usize) -> Batch {
        assert!(!self.is_empty(), "an empty split has no batch");
        assert!(batch_size > 0, "a batch has at least one sequence");
        assert_eq!(cursor.split, self.fingerprint, "the cursor was made by another split");
        let mut batch = Batch::with_capacity(batch_size, self.sequence_length());
        while batch.batch < batch_size {
            if cursor.index >= self.len() as u64 {
                cursor.epoch += 1;
                cursor.index = 0;
            }
            let at = cursor.index as usize;
            self.append(self.order(cursor)[at] as usize, &mut batch);
            cursor.index += 1;
        }
        batch
    }

    fn order<'c>(&self, cursor: &'c mut Cursor) -> &'c [u32] {
        let (seed, epoch) = (cursor.seed, cursor.epoch);
        if cursor.order.as_ref().is_none_or(|order| order.epoch != epoch) {
            let mut sequences = SplitMix64::new(seed, epoch).permutation(self.len());
            if !self.quotas.is_empty() {
                let chosen = self.chosen(seed, epoch);
                sequences.iter_mut().for_each(|at| *at = chosen[*at as usize]);
            }
            cursor.order = Some(Order { epoch, sequences });
        }
        cursor.order.as_ref().map_or(&[], |order| &order.sequences)
    }

    /// The sequences of an epoch of a mix, part by part: where each part's walk has come to.
    fn chosen(&self, seed: u64, epoch: u64) -> Vec<u32> {
        let mut chosen = Vec::with_capacity(self.len());
        let mut first = 0;
        for (p, (part, &quota)) in (0_u64..).zip(self.parts.iter().zip(&self.quotas)) {
            let (mut at, count) = (epoch * quota as u64, part.len() as u64);
            let end = at + quota as u64;
            while at < end {
                let (pass, from) = (at / count, at % count);
                let to = count.min(from + end - at);
                let stream = PART_STREAMS + p * PASSES + pass;
                let order = SplitMix64::new(seed, stream).permutation(part.len());
                chosen.extend(order[from as usize..to as usize].iter().map(|index| first + index));
                at += to - from;
            }
            first += count as u32;
        }
        chosen
    }

    /// Appends sequence `index` as one more row.
    fn append(&self, index: usize, batch: &mut Batch) {
        assert!(index < self.len(), "sequence {index} of {}", self.len());
        let (part, index) = self.listed[index];
        self.parts[part as usize].append(index as usize, batch);
    }
}

/// `total` divided by weights, to whole numbers: the largest remainders are rounded up.
fn quotas(weights: &[f64], total: usize) -> Vec<usize> {
    let sum: f64 = weights.iter().sum();
    let exact: Vec<f64> = weights.iter().map(|weight| weight / sum * total as f64).collect();
    let mut quotas: Vec<usize> = exact.iter().map(|share| *share as usize).collect();
    let mut order: Vec<usize> = (0..weights.len()).collect();
    order.sort_by(|&a, &b| exact[b].fract().total_cmp(&exact[a].fract()));
    let left = total.saturating_sub(quotas.iter().sum());
    order.into_iter().take(left).for_each(|part| quotas[part] += 1);
    quotas
}

fn fingerprint(kind: &str, parts: &[Packed], weights: &[f64]) -> String {
    let mut hash = Sha256::new();
    hash.update(kind);
    for (part, weight) in parts.iter().zip(weights) {
        hash.update(part.fingerprint());
        hash.update(weight.to_le_bytes());
    }
    hex(&hash.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const EOS: u32 = 0;
    const PAD: u32 = 99;

    /// A split of documents, each given with its end-of-sequence token.
    fn split(documents: &[Vec<u32>], sequence_length: usize) -> Split {
        let mut starts = Vec::new();
        let mut tokens = Vec::new();
        for document in documents {
            starts.push(tokens.len());
            tokens.extend(document);
        }
        Split::one(Packed::new(tokens, starts, sequence_length, PAD))
    }

    /// Packing as its definition reads: one list of (token, document), cut and padded, each
    /// field derived position by position from the whole list.
    fn slow(documents: &[Vec<u32>], length: usize) -> Vec<Sequence> {
        let stream: Vec<(u32, usize)> = documents
            .iter()
            .enumerate()
            .flat_map(|(document, tokens)| tokens.iter().map(move |&token| (token, document)))
            .collect();
        let mut sequences = Vec::new();
        for start in (0..stream.len()).step_by(length) {
            let here: Vec<Option<(u32, usize)>> =
                (start..start + length).map(|t| stream.get(t).copied()).collect();
            let document = |t: usize| here[t].map(|(_, document)| document);
            let first = |t: usize| (0..=t).find(|&s| document(s) == document(t)).unwrap();
            let mut distinct: Vec<Option<usize>> = (0..length).map(document).collect();
            distinct.dedup();
            let next = |t: usize| stream.get(start + t + 1).copied();
            sequences.push(Sequence {
                input_ids: here.iter().map(|at| at.map_or(PAD, |(token, _)| token)).collect(),
                labels: (0..length).map(|t| next(t).map_or(PAD, |(token, _)| token)).collect(),
                loss_mask: (0..length)
                    .map(|t| here[t].is_some() && next(t).map(|(_, d)| d) == document(t))
                    .collect(),
                document_ids: (0..length)
                    .map(|t| distinct.iter().position(|&d| d == document(t)).unwrap() as u32)
                    .collect(),
                position_ids: (0..length).map(|t| (t - first(t)) as u32).collect(),
            });
        }
        if sequences.last().is_some_and(|last| !last.loss_mask.contains(&true)) {
            sequences.pop();
        }
        sequences
    }

    #[test]
    fn two_documents_and_a_half_pack_as_computed_by_hand() {
        let split = split(&[vec![5, 6, EOS], vec![7, EOS], vec![8, 9, 10, EOS]], 6);
        assert_eq!((split.len(), split.tokens(), split.valid_tokens()), (2, 9, 6));
        let (yes, no) = (true, false);
        assert_eq!(
            split.sequence(0),
            Sequence {
                input_ids: vec![5, 6, EOS, 7, EOS, 8],
                labels: vec![6, EOS, 7, EOS, 8, 9],
                loss_mask: vec![yes, yes, no, yes, no, yes],
                document_ids: vec![0, 0, 0, 1, 1, 2],
                position_ids: vec![0, 1, 2, 0, 1, 0],
            }
        );
        assert_eq!(
            split.sequence(1),
            Sequence {
                input_ids: vec![9, 10, EOS, PAD, PAD, PAD],
                labels: vec![10, EOS, PAD, PAD, PAD, PAD],
                loss_mask: vec![yes, yes, no, no, no, no],
                document_ids: vec![0, 0, 0, 1, 1, 1],
                position_ids: vec![0, 1, 2, 0, 1, 2],
            }
        );
    }

    #[test]
    fn a_last_sequence_with_nothing_to_learn_is_left_out() {
        assert_eq!(split(&[vec![5, 6, 7, 8, EOS]], 4).len(), 1);
        assert_eq!(split(&[vec![EOS]], 4).len(), 0);
        assert_eq!(split(&[], 4).len(), 0);
    }

    fn documents() -> impl Strategy<Value = Vec<Vec<u32>>> {
        let document = proptest::collection::vec(1_u32..50, 0..12);
        proptest::collection::vec(document, 0..12).prop_map(|mut documents| {
            documents.iter_mut().for_each(|document| document.push(EOS));
            documents
        })
    }

    proptest! {
        #[test]
        fn packing_is_what_its_definition_says(documents in documents(), length in 2_usize..9) {
            let split = split(&documents, length);
            let expected = slow(&documents, length);
            prop_assert_eq!(split.len(), expected.len());
            for (index, expected) in expected.iter().enumerate() {
                prop_assert_eq!(&split.sequence(index), expected);
            }
            let valid: usize = (0..split.len()).map(|i| split.batch(&[i]).valid_tokens()).sum();
            prop_assert_eq!(split.valid_tokens(), valid);
        }

        #[test]
        fn a_restored_cursor_gives_the_batches_of_an_uninterrupted_one(
            sequences in 1_usize..20,
            batch_size in 1_usize..7,
            interrupted_after in 0_usize..12,
            seed: u64,
        ) {
            let split = split(&[(0..4 * sequences as u32).map(|t| t + 1).collect()], 4);
            let mut uninterrupted = split.cursor(seed);
            let expected: Vec<Batch> =
                (0..12).map(|_| split.next_batch(&mut uninterrupted, batch_size)).collect();
            let mut cursor = split.cursor(seed);
            for (step, expected) in expected.iter().enumerate() {
                if step == interrupted_after {
                    let saved = serde_json::to_string(&cursor).unwrap();
                    cursor = split.resume(serde_json::from_str(&saved).unwrap()).unwrap();
                }
                prop_assert_eq!(&split.next_batch(&mut cursor, batch_size), expected);
            }
            prop_assert_eq!(cursor, uninterrupted);
        }
    }

    /// One document of so many sequences of 4 tokens, which begin with `1000 · part + number`.
    fn part(part: u32, sequences: u32) -> Packed {
        let tokens = (0..sequences).flat_map(|n| [1000 * part + n, 7, 7, 7]).collect();
        Packed::new(tokens, vec![0], 4, PAD)
    }

    fn firsts(batch: &Batch) -> Vec<u32> {
        batch.input_ids.chunks(4).map(|row| row[0]).collect()
    }

    /// How often each part comes in a list of first tokens.
    fn count(firsts: &[u32]) -> [usize; 3] {
        [0, 1, 2].map(|part| firsts.iter().filter(|&&first| first / 1000 == part).count())
    }

    const WEIGHTS: [f64; 3] = [1.0, 1.0, 2.5];

    fn mix() -> Split {
        Split::mixed(vec![part(0, 100), part(1, 7), part(2, 793)], &WEIGHTS)
    }

    #[test]
    fn every_epoch_of_a_mix_holds_each_part_by_its_weight() {
        let split = mix();
        assert_eq!((split.len(), split.tokens()), (900, 3600));
        assert_eq!(split.parts(), [(100, 200), (7, 200), (793, 500)]);
        let mut cursor = split.cursor(5);
        let mut long = Vec::new();
        for epoch in 0..4 {
            let firsts = firsts(&split.next_batch(&mut cursor, 900));
            assert_eq!(count(&firsts), [200, 200, 500], "epoch {epoch}");
            // A short part comes as evenly as it can.
            for n in 0..7 {
                let times = firsts.iter().filter(|&&first| first == 1000 + n).count();
                assert!((27..=30).contains(&times), "{times}");
            }
            assert!((0..100).all(|n| firsts.iter().filter(|&&first| first == n).count() == 2));
            // The parts stand among each other, not behind each other.
            assert!(count(&firsts[..90]).into_iter().all(|part| part > 5), "{firsts:?}");
            long.extend(firsts.into_iter().filter(|first| *first >= 2000));
        }
        // A long part is read to its end before anything of it comes again.
        let times = |n: u32| long.iter().filter(|&&first| first == 2000 + n).count();
        assert!((0..793).all(|n| (2..=3).contains(&times(n))), "2000 of 793");
        let once = long[..500].iter().collect::<std::collections::BTreeSet<_>>();
        assert_eq!(once.len(), 500);
    }

    #[test]
    fn a_restored_cursor_of_a_mix_gives_the_same_batches() {
        let split = mix();
        let mut uninterrupted = split.cursor(9);
        let mut cursor = split.cursor(9);
        for _ in 0..40 {
            let expected = split.next_batch(&mut uninterrupted, 53);
            cursor = mix()
                .resume(serde_json::from_str(&serde_json::to_string(&cursor).unwrap()).unwrap())
                .unwrap();
            assert_eq!(split.next_batch(&mut cursor, 53), expected);
        }
        let other = Split::mixed(vec![part(0, 100), part(1, 7), part(2, 793)], &[1.0, 1.0, 2.0]);
        assert!(other.resume(cursor).is_err(), "other weights are other data");
    }

    #[test]
    fn any_number_of_first_sequences_to_measure_on_holds_the_parts_by_their_weights() {
        let split = Split::interleaved(vec![part(0, 30), part(1, 30), part(2, 50)], &WEIGHTS);
        let firsts = firsts(&split.batch(&(0..split.len()).collect::<Vec<_>>()));
        for n in 1..=firsts.len() {
            for (count, weight) in count(&firsts[..n]).into_iter().zip(WEIGHTS) {
                let share = weight / WEIGHTS.iter().sum::<f64>() * n as f64;
                assert!((count as f64 - share).abs() <= 1.0, "{n}: {count} of {share}");
            }
        }
        // The third part ends first, and the list with it.
        assert_eq!(count(&firsts)[2], 50);
        assert!((88..=92).contains(&split.len()), "{}", split.len());
        let valid: usize = (0..split.len()).map(|i| split.batch(&[i]).valid_tokens()).sum();
        assert_eq!(split.valid_tokens(), valid);
    }

    #[test]
    fn every_epoch_holds_every_sequence_once_in_another_order() {
        let split = split(&[(1..=4 * 50).collect()], 4);
        let mut cursor = split.cursor(3);
        let mut epochs = Vec::new();
        for epoch in 0..3 {
            let batch = split.next_batch(&mut cursor, 50);
            assert_eq!((cursor.epoch(), cursor.index()), (epoch, 50));
            let firsts: Vec<u32> = batch.input_ids.chunks(4).map(|row| row[0]).collect();
            let mut sorted = firsts.clone();
            sorted.sort_unstable();
            assert!(sorted.into_iter().eq((0..50).map(|sequence| 4 * sequence + 1)));
            assert!(!epochs.contains(&firsts));
            epochs.push(firsts);
        }
        let other_seed = split.next_batch(&mut split.cursor(4), 50);
        assert!(!epochs.contains(&other_seed.input_ids.chunks(4).map(|row| row[0]).collect()));
    }

    #[test]
    fn a_batch_reaches_across_the_end_of_an_epoch() {
        let split = split(&[(1..=12).collect()], 4);
        let mut cursor = split.cursor(0);
        let batch = split.next_batch(&mut cursor, 5);
        assert_eq!((batch.batch, cursor.epoch(), cursor.index()), (5, 1, 2));
        assert_eq!(batch.input_ids.len(), 20);
    }

    #[test]
    fn a_cursor_of_other_data_is_refused() {
        let (one, other) = (split(&[(1..=12).collect()], 4), split(&[(2..=13).collect()], 4));
        let error = other.resume(one.cursor(0)).unwrap_err().to_string();
        assert!(
            error.contains(one.fingerprint()) && error.contains(other.fingerprint()),
            "{error}"
        );
        let shorter = split(&[(1..=12).collect()], 3);
        assert!(shorter.resume(one.cursor(0)).is_err());
        let mut beyond = one.cursor(0);
        beyond.index = 4;
        assert!(one.resume(beyond).is_err());
    }
}
