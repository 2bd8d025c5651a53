//! Sources and a tokenizer become two splits that share no token: training and held-out.

use std::collections::BTreeMap;
use std::ops::Range;

use sha2::{Digest, Sha256};

use crate::error::DataError;
use crate::packed::Packed;
use crate::shuffle::SplitMix64;
use crate::source::{Source, documents};
use crate::split::Split;
use crate::tokenizer::TextTokenizer;

/// The longest sequence that can be asked for.
const MAX_SEQUENCE_LENGTH: usize = 1 << 20;
/// From this many different documents on, whole documents are held out.
const MIN_DOCUMENTS: usize = 20;
/// At most so many separate blocks are held out where documents are cut.
const MAX_BLOCKS: usize = 8;
/// Text is tokenised in parallel, so many bytes at a time.
const CHUNK_BYTES: usize = 4 << 20;
/// The shuffle's stream for the choice of what is held out; epochs count up from 0.
const HELD_OUT_STREAM: u64 = u64::MAX;

/// How text is packed and split.
#[derive(Clone, Debug, PartialEq)]
pub struct PackingOptions {
    /// Positions a sequence, at least 2.
    pub sequence_length: usize,
    /// The part never trained on, `0 ≤ f < 1`, of the tokens; with 0 the held-out split is empty.
    pub held_out_fraction: f64,
    /// Decides what is held out. (The order of training has its own: [`Split::cursor`].)
    pub seed: u64,
}

/// What was read so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Documents tokenised.
    pub documents: usize,
    /// Bytes of text tokenised.
    pub bytes: u64,
    /// Tokens made of them.
    pub tokens: usize,
}

/// How the held-out part was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SplitRule {
    /// Nothing is held out.
    None,
    /// Whole documents are held out; no document is in both splits, equal ones stay together.
    Documents,
    /// Contiguous blocks of sequences are held out: too few documents, or too unequal ones. A
    /// document may be cut between the splits, no token is in both, and no label reaches across.
    Blocks,
}

/// A part of the text.
#[derive(Clone, Debug, Default)]
pub struct Part {
    /// What it is called in messages.
    pub name: String,
    /// Files of text.
    pub sources: Vec<Source>,
    /// Documents that are tokens already, as they are: nothing is put before or behind them.
    pub documents: Vec<Vec<u32>>,
    /// Its weight among the parts.
    pub weight: f64,
}

/// Packed text, split in two.
///
/// Each part is split by itself, so that both splits are mixed alike: see [`Split`].
///
/// With at least 20 different documents, documents are drawn in seeded order and held out while
/// they fit into the fraction; documents with the same tokens count as one. If that is not
/// possible (fewer documents, or none small enough to reach half of the fraction), the stream is
/// cut into sequences and up to 8 blocks of neighbouring sequences, spread over the whole
/// stream at seeded places, are held out.
#[derive(Clone, Debug)]
pub struct Dataset {
    /// What is trained on.
    pub train: Split,
    /// What is only measured on.
    pub held_out: Split,
    /// How the two were told apart.
    pub rule: SplitRule,
    /// What was read.
    pub read: Progress,
}

impl Dataset {
    /// Reads, tokenises, packs and splits. The text is never held as a whole: the tokens are.
    ///
    /// # Errors
    /// What reading and tokenising can fail with; [`DataError::NoText`] and
    /// [`DataError::NoValidTokens`] for data with nothing to learn from;
    /// [`DataError::CannotSplit`] if one of the splits would be empty.
    pub fn prepare(
        tokenizer: &TextTokenizer,
        sources: &[Source],
        options: &PackingOptions,
    ) -> Result<Self, DataError> {
        Self::prepare_with_progress(tokenizer, sources, options, &mut |_| {})
    }

    /// [`Dataset::prepare`], calling `progress` after every few megabytes of text.
    ///
    /// # Errors
    /// As [`Dataset::prepare`].
    pub fn prepare_with_progress(
        tokenizer: &TextTokenizer,
        sources: &[Source],
        options: &PackingOptions,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Self, DataError> {
        let part = Part { sources: sources.to_vec(), weight: 1.0, ..Part::default() };
        Self::mixed(tokenizer, vec![part], options, progress)
    }

    /// As [`Dataset::prepare_with_progress`], of several parts.
    ///
    /// # Errors
    /// As [`Dataset::prepare`]; [`DataError::Part`] if a part is too short to be split by itself.
    pub fn mixed(
        tokenizer: &TextTokenizer,
        parts: Vec<Part>,
        options: &PackingOptions,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Self, DataError> {
        check(options)?;
        let eos = tokenizer.eos().ok_or(DataError::NoEos)?;
        let pad = tokenizer.pad().unwrap_or(eos);
        let (mut read, mut halves, mut weights) = (Progress::default(), Vec::new(), Vec::new());
        let several = parts.len() > 1;
        for part in parts {
            let (name, weight) = (part.name.clone(), part.weight);
            let mut all = |now: Progress| progress(read.and(now));
            let stream = Stream::read(tokenizer, part, eos, &mut all)?;
            read = read.and(stream.read);
            halves.push(stream.halves(options, pad).map_err(|error| match several {
                true => DataError::Part { name, source: Box::new(error) },
                false => error,
            })?);
            weights.push(weight);
        }
        Ok(Self::of(halves, &weights, read))
    }

    /// Puts the halves of the parts together.
    fn of(halves: Vec<Halves>, weights: &[f64], read: Progress) -> Self {
        let blocks = halves.iter().any(|half| half.rule == SplitRule::Blocks);
        let rule = if blocks { SplitRule::Blocks } else { halves[0].rule };
        let (mut train, mut held_out): (Vec<_>, Vec<_>) =
            halves.into_iter().map(|half| (half.train, half.held_out)).unzip();
        let (train, held_out) = match (weights.len(), rule) {
            (1, _) => (Split::one(train.remove(0)), Split::one(held_out.remove(0))),
            (_, SplitRule::None) => (Split::mixed(train, weights), Split::one(held_out.remove(0))),
            _ => (Split::mixed(train, weights), Split::interleaved(held_out, weights)),
        };
        Self { train, held_out, rule, read }
    }
}

impl Progress {
    fn and(self, other: Self) -> Self {
        Self {
            documents: self.documents + other.documents,
            bytes: self.bytes + other.bytes,
            tokens: self.tokens + other.tokens,
        }
    }
}

/// A part, split in two.
struct Halves {
    train: Packed,
    held_out: Packed,
    rule: SplitRule,
}

fn check(options: &PackingOptions) -> Result<(), DataError> {
    let (value, fraction) = (options.sequence_length, options.held_out_fraction);
    if !(2..=MAX_SEQUENCE_LENGTH).contains(&value) {
        return Err(DataError::SequenceLength { value, limit: MAX_SEQUENCE_LENGTH });
    }
    if !(0.0..1.0).contains(&fraction) {
        return Err(DataError::HeldOutFraction { fraction });
    }
    Ok(())
}

/// Groups documents so that each group has about [`CHUNK_BYTES`].
fn chunks(
    mut documents: impl Iterator<Item = Result<String, DataError>>,
) -> impl Iterator<Item = Result<Vec<String>, DataError>> {
    std::iter::from_fn(move || {
        let (mut chunk, mut bytes) = (Vec::new(), 0);
        while bytes < CHUNK_BYTES {
            match documents.next() {
                Some(Ok(text)) => {
                    bytes += text.len();
                    chunk.push(text);
                }
                Some(Err(error)) => return Some(Err(error)),
                None => break,
            }
        }
        (!chunk.is_empty()).then_some(Ok(chunk))
    })
}

/// All documents' tokens, one behind the other.
#[derive(Default)]
struct Stream {
    tokens: Vec<u32>,
    /// Where each document begins in `tokens`.
    starts: Vec<usize>,
    read: Progress,
}

impl Stream {
    /// The text of a part, then its documents of tokens.
    fn read(
        tokenizer: &TextTokenizer,
        part: Part,
        eos: u32,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Self, DataError> {
        let mut stream = Self::default();
        // With documents of tokens there need not be any file.
        let texts = match part.sources.is_empty() && !part.documents.is_empty() {
            true => Box::new(std::iter::empty()),
            false => documents(&part.sources)?,
        };
        for chunk in chunks(texts) {
            let chunk = chunk?;
            stream.read.documents += chunk.len();
            stream.read.bytes += chunk.iter().map(|text| text.len() as u64).sum::<u64>();
            for ids in tokenizer.encode_batch(&chunk, true)? {
                stream.push(ids, eos);
            }
            stream.read.tokens = stream.tokens.len();
            progress(stream.read);
        }
        for ids in part.documents.iter().filter(|ids| !ids.is_empty()) {
            stream.starts.push(stream.tokens.len());
            stream.tokens.extend(ids);
            stream.read.documents += 1;
        }
        stream.read.tokens = stream.tokens.len();
        progress(stream.read);
        match (stream.read.documents, part.sources.first()) {
            (0, Some(first)) => Err(DataError::NoText {
                files: part.sources.len(),
                first: first.path().to_path_buf(),
            }),
            _ => Ok(stream),
        }
    }

    /// Adds a document, ended by one end-of-sequence token.
    fn push(&mut self, ids: Vec<u32>, eos: u32) {
        self.starts.push(self.tokens.len());
        self.tokens.extend(&ids);
        if ids.last() != Some(&eos) {
            self.tokens.push(eos);
        }
    }

    fn document(&self, index: usize) -> Range<usize> {
        self.starts[index]..self.starts.get(index + 1).copied().unwrap_or(self.tokens.len())
    }

    fn halves(self, options: &PackingOptions, pad: u32) -> Result<Halves, DataError> {
        let (rule, held_out) = self.choose(options)?;
        let read = self.read;
        let (train, held_out) = self.partition(&held_out);
        let cut = |(tokens, starts)| Packed::new(tokens, starts, options.sequence_length, pad);
        let (train, held_out) = (cut(train), cut(held_out));
        if train.len() == 0 && held_out.len() == 0 {
            return Err(DataError::NoValidTokens {
                tokens: read.tokens,
                documents: read.documents,
            });
        }
        if train.len() == 0 || (held_out.len() == 0 && rule != SplitRule::None) {
            return Err(DataError::CannotSplit {
                sequences: train.len() + held_out.len(),
                sequence_length: options.sequence_length,
                fraction: options.held_out_fraction,
            });
        }
        Ok(Halves { train, held_out, rule })
    }

    /// The ranges of `tokens` to hold out, ascending and apart from each other.
    fn choose(
        &self,
        options: &PackingOptions,
    ) -> Result<(SplitRule, Vec<Range<usize>>), DataError> {
        if options.held_out_fraction == 0.0 {
            return Ok((SplitRule::None, Vec::new()));
        }
        if let Some(ranges) = self.choose_documents(options) {
            return Ok((SplitRule::Documents, ranges));
        }
        self.choose_blocks(options).map(|ranges| (SplitRule::Blocks, ranges))
    }

    /// Whole documents whose tokens make up between half and all of the fraction, if possible.
    fn choose_documents(&self, options: &PackingOptions) -> Option<Vec<Range<usize>>> {
        let groups = self.equal_documents();
        if groups.len() < MIN_DOCUMENTS {
            return None;
        }
        let target = (options.held_out_fraction * self.tokens.len() as f64).round() as usize;
        let mut chosen = Vec::new();
        let mut chosen_tokens = 0;
        let mut random = SplitMix64::new(options.seed, HELD_OUT_STREAM);
        for group in random.permutation(groups.len()) {
            let group = &groups[group as usize];
            let size: usize = group.iter().map(|&index| self.document(index).len()).sum();
            if chosen_tokens + size <= target {
                chosen_tokens += size;
                chosen.extend(group);
            }
        }
        if chosen.is_empty() || chosen_tokens < target.div_ceil(2) {
            return None;
        }
        chosen.sort_unstable();
        Some(chosen.into_iter().map(|index| self.document(index)).collect())
    }

    /// Documents with the same tokens, together; groups in the order of their first document.
    fn equal_documents(&self) -> Vec<Vec<usize>> {
        let mut groups: Vec<Vec<usize>> = Vec::new();
        let mut group_of = BTreeMap::new();
        for index in 0..self.starts.len() {
            let mut hash = Sha256::new();
            for token in &self.tokens[self.document(index)] {
                hash.update(token.to_le_bytes());
            }
            let group = *group_of.entry(hash.finalize()).or_insert(groups.len());
            if group == groups.len() {
                groups.push(Vec::new());
            }
            groups[group].push(index);
        }
        groups
    }

    /// Blocks of neighbouring sequences, spread evenly with a seeded offset each.
    fn choose_blocks(&self, options: &PackingOptions) -> Result<Vec<Range<usize>>, DataError> {
        let length = options.sequence_length;
        let sequences = self.tokens.len().div_ceil(length);
        let held = ((options.held_out_fraction * sequences as f64).round() as usize).max(1);
        if held >= sequences {
            return Err(DataError::CannotSplit {
                sequences,
                sequence_length: length,
                fraction: options.held_out_fraction,
            });
        }
        let (kept, blocks) = (sequences - held, held.min(MAX_BLOCKS));
        let mut random = SplitMix64::new(options.seed, HELD_OUT_STREAM);
        let ranges = (0..blocks).map(|block| {
            // Sequences of training and held-out text before this block; the former anywhere in
            // the block's share of them.
            let share = kept * block / blocks..kept * (block + 1) / blocks;
            let kept_before = share.start + random.below(share.len() as u64 + 1) as usize;
            let held_before = held * block / blocks;
            let first = kept_before + held_before;
            let count = held * (block + 1) / blocks - held_before;
            first * length..((first + count) * length).min(self.tokens.len())
        });
        Ok(ranges.collect())
    }

    /// Tokens and document starts outside the ranges, and inside. Wherever the two sides were
    /// joined, or cut, a document begins: no label and no attention reaches across.
    fn partition(self, held_out: &[Range<usize>]) -> (Side, Side) {
        let (mut train, mut held) = (Side::default(), Side::default());
        let mut done = 0;
        for range in held_out {
            append(&mut train, &self, done..range.start);
            append(&mut held, &self, range.clone());
            done = range.end;
        }
        if done == 0 {
            return ((self.tokens, self.starts), held);
        }
        append(&mut train, &self, done..self.tokens.len());
        (train, held)
    }
}

/// Tokens and document starts of one split.
type Side = (Vec<u32>, Vec<usize>);

fn append((tokens, starts): &mut Side, stream: &Stream, range: Range<usize>) {
    if range.is_empty() {
        return;
    }
    let offset = tokens.len();
    starts.push(offset);
    let inside = stream.starts.partition_point(|&start| start <= range.start)
        ..stream.starts.partition_point(|&start| start < range.end);
    starts.extend(stream.starts[inside].iter().map(|start| start - range.start + offset));
    tokens.extend_from_slice(&stream.tokens[range]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const EOS: u32 = 0;

    /// Documents of the given lengths in which no token but the last comes twice.
    fn stream(lengths: &[usize]) -> Stream {
        let mut stream = Stream::default();
        let mut next = 1;
        for &length in lengths {
            stream.push((next..next + length as u32).collect(), EOS);
            next += length as u32;
        }
        stream.read = Progress { documents: lengths.len(), bytes: 0, tokens: stream.tokens.len() };
        stream
    }

    fn split(lengths: &[usize], options: &PackingOptions) -> Result<Dataset, DataError> {
        dataset(stream(lengths), options)
    }

    fn dataset(stream: Stream, options: &PackingOptions) -> Result<Dataset, DataError> {
        let read = stream.read;
        Ok(Dataset::of(vec![stream.halves(options, EOS)?], &[1.0], read))
    }

    fn options(sequence_length: usize, held_out_fraction: f64, seed: u64) -> PackingOptions {
        PackingOptions { sequence_length, held_out_fraction, seed }
    }

    /// The tokens of a split, without end and padding, in order; each with whether it is an
    /// input or a counted label.
    fn seen(split: &Split) -> (Vec<u32>, Vec<u32>) {
        let batch = split.batch(&(0..split.len()).collect::<Vec<_>>());
        let labels = batch.labels.iter().zip(&batch.loss_mask).filter(|(_, mask)| **mask);
        let real = |token: &u32| *token != EOS;
        (
            batch.input_ids.into_iter().filter(real).collect(),
            labels.map(|(&label, _)| label).filter(real).collect(),
        )
    }

    proptest! {
        #[test]
        fn no_token_is_in_both_splits_and_none_is_lost(
            lengths in proptest::collection::vec(1_usize..30, 1..60),
            length in 2_usize..10,
            fraction in 0.02_f64..0.5,
            seed: u64,
        ) {
            let Ok(dataset) = split(&lengths, &options(length, fraction, seed)) else {
                // Too little for two splits.
                prop_assume!(false);
                unreachable!();
            };
            let (train, train_labels) = seen(&dataset.train);
            let (held_out, held_out_labels) = seen(&dataset.held_out);
            let mut all: Vec<u32> = train.iter().chain(&held_out).copied().collect();
            all.sort_unstable();
            let total: usize = lengths.iter().sum();
            // A split may leave out a last token that has no label.
            prop_assert!(all.len() >= total - 2);
            all.dedup();
            prop_assert!(all.len() >= total - 2, "a token is in both splits");
            // Labels are inputs of the same split, and each input's successor.
            prop_assert!(train_labels.iter().all(|label| train.contains(label)));
            prop_assert!(held_out_labels.iter().all(|label| held_out.contains(label)));
            if dataset.rule == SplitRule::Documents {
                prop_assert_eq!(
                    dataset.train.documents() + dataset.held_out.documents(),
                    lengths.len()
                );
                let held = dataset.held_out.tokens() as f64;
                let target = fraction * dataset.read.tokens as f64;
                prop_assert!(held <= target + 0.5 && held >= target / 2.0 - 0.5);
            }
            let again = split(&lengths, &options(length, fraction, seed)).unwrap();
            prop_assert_eq!(again.train.fingerprint(), dataset.train.fingerprint());
            prop_assert_eq!(again.held_out.fingerprint(), dataset.held_out.fingerprint());
        }
    }

    #[test]
    fn many_documents_are_held_out_whole() {
        let dataset = split(&[9; 100], &options(16, 0.1, 5)).unwrap();
        assert_eq!(dataset.rule, SplitRule::Documents);
        assert_eq!((dataset.train.documents(), dataset.held_out.documents()), (90, 10));
        // Every held-out document begins where one of the originals does.
        let (held_out, _) = seen(&dataset.held_out);
        assert!(held_out.chunks(9).all(|document| document[0] % 9 == 1));
        let other = split(&[9; 100], &options(16, 0.1, 6)).unwrap();
        assert_ne!(other.held_out.fingerprint(), dataset.held_out.fingerprint());
    }

    #[test]
    fn one_long_document_is_held_out_in_blocks_all_over_it() {
        let dataset = split(&[10_000], &options(10, 0.05, 1)).unwrap();
        assert_eq!(dataset.rule, SplitRule::Blocks);
        assert_eq!(dataset.held_out.len(), 50);
        assert_eq!(dataset.held_out.documents(), MAX_BLOCKS);
        let (held_out, _) = seen(&dataset.held_out);
        for eighth in 0..8 {
            let part = eighth * 1250..(eighth + 1) * 1250 + 100;
            assert!(held_out.iter().any(|token| part.contains(token)), "nothing from {part:?}");
        }
    }

    #[test]
    fn a_block_of_one_document_ends_without_a_label_across_the_cut() {
        let dataset = split(&[40], &options(10, 0.25, 3)).unwrap();
        let (held_out, labels) = seen(&dataset.held_out);
        assert_eq!((held_out.len(), labels.len()), (10, 9));
        let batch = dataset.train.batch(&(0..dataset.train.len()).collect::<Vec<_>>());
        for (input, (label, mask)) in
            batch.input_ids.iter().zip(batch.labels.iter().zip(&batch.loss_mask))
        {
            assert!(!mask || *label == input + 1 || *label == EOS, "{input} → {label}");
        }
    }

    #[test]
    fn documents_with_the_same_tokens_stay_on_one_side() {
        let mut stream = Stream::default();
        for copy in 0..200_u32 {
            let first = 10 * (copy % 25) + 1;
            stream.push((first..first + 6).collect(), EOS);
        }
        let dataset = dataset(stream, &options(8, 0.2, 9)).unwrap();
        assert_eq!(dataset.rule, SplitRule::Documents);
        let (train, _) = seen(&dataset.train);
        let (held_out, _) = seen(&dataset.held_out);
        assert!(held_out.iter().all(|token| !train.contains(token)));
    }

    #[test]
    fn one_dominating_document_does_not_keep_text_from_being_held_out() {
        let mut lengths = vec![2; 30];
        lengths.push(5000);
        let dataset = split(&lengths, &options(10, 0.1, 0)).unwrap();
        assert_eq!(dataset.rule, SplitRule::Blocks);
        assert_eq!(dataset.held_out.len(), 51);
    }

    #[test]
    fn nothing_is_held_out_of_a_fraction_of_zero() {
        let dataset = split(&[50; 30], &options(10, 0.0, 0)).unwrap();
        assert_eq!((dataset.rule, dataset.held_out.len()), (SplitRule::None, 0));
        assert_eq!(dataset.train.tokens(), 30 * 51);
    }

    #[test]
    fn data_that_cannot_be_split_says_so() {
        let cases = [
            (vec![5], options(10, 0.1, 0), "1 sequence(s) of 10 tokens cannot be split"),
            (vec![5], options(1, 0.1, 0), "sequence_length = 1: expected 2"),
            (vec![5], options(10, 1.0, 0), "held_out = 1: expected a fraction"),
            (vec![5], options(10, f64::NAN, 0), "held_out = NaN"),
            (vec![0], options(10, 0.0, 0), "no position to learn from"),
        ];
        for (lengths, options, expected) in cases {
            let error = check(&options).and_then(|()| split(&lengths, &options)).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
        }
    }
}
