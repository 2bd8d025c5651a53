//! SentencePiece's BPE: text without pre-tokenizer, `▁` for spaces, merges ranked by scores.

use std::collections::BinaryHeap;

use distill_gguf::Strings;

use super::PartsError;
use super::bpe::{Merge, MergesMaker};
use super::hash::{FastSet, Seed};
use super::texts::{Index, Texts};
use super::vocabulary::TokenKind;
use crate::ranked::Ranked;

/// What stands for a space in the vocabulary: U+2581.
pub(super) const SPACE: char = '▁';

/// How text becomes the symbols of the vocabulary.
#[derive(Clone, Debug)]
pub(super) struct Spaces {
    /// Whether a space is put before every stretch of text (`add_space_prefix`).
    pub(super) prefix: bool,
    /// The characters that some token joins to a space behind them.
    glued: FastSet<char>,
}

impl Spaces {
    pub(super) fn new(prefix: bool, tokens: &Strings, kinds: &[TokenKind]) -> Self {
        let mut glued = FastSet::default();
        for (text, _) in tokens.iter().zip(kinds).filter(|(_, kind)| **kind == TokenKind::Normal) {
            glued.extend(text.match_indices(SPACE).filter_map(|(at, _)| before(text, at)));
        }
        Self { prefix, glued }
    }

    /// As a file holds them.
    pub(super) fn of_list(prefix: bool, glued: impl Iterator<Item = char>) -> Self {
        Self { prefix, glued: glued.collect() }
    }

    /// The characters that some token joins to a space behind them, in ascending order.
    pub(super) fn glued(&self) -> Vec<char> {
        // The heap's sort is a tenth of `sort`'s code.
        self.glued.iter().copied().collect::<BinaryHeap<_>>().into_sorted_vec()
    }

    /// `text` with marks for spaces, and one before it where the vocabulary wants that.
    pub(super) fn mark(&self, text: &str) -> String {
        let mut marked = String::with_capacity(text.len() + text.len() / 2 + SPACE.len_utf8());
        marked.extend(self.prefix.then_some(SPACE));
        for (i, word) in text.split(' ').enumerate() {
            marked.extend((i > 0).then_some(SPACE));
            marked.push_str(word);
        }
        marked
    }

    /// Calls `emit` with the pieces of marked text: words with the space before them.
    ///
    /// Text is cut between a character and a space that no token joins, and no merge can reach
    /// across such a place: the tokens of the pieces are those of the whole text.
    pub(super) fn split<'t>(&self, marked: &'t str, emit: &mut impl FnMut(&'t str)) {
        let mut from = 0;
        for (at, _) in marked.match_indices(SPACE) {
            let joined = before(marked, at).is_none_or(|c| c == SPACE || self.glued.contains(&c));
            if !joined {
                emit(&marked[from..at]);
                from = at;
            }
        }
        if from < marked.len() {
            emit(&marked[from..]);
        }
    }
}

/// The character that ends before `at`.
fn before(text: &str, at: usize) -> Option<char> {
    text[..at].chars().next_back()
}

/// No token is longer, in bytes, of those that are made by score and of special ones; the limit of
/// SentencePiece itself is 16 characters, and Gemma's longest has 93 bytes. It bounds the work for
/// a vocabulary that lies.
pub(super) const LONGEST: usize = 1024;

/// The merge list of a vocabulary with scores: every way to make a normal token of two others.
///
/// Ranked by the token's score, highest first, then by the ids of the token and of its parts,
/// as Hugging Face's converters write these vocabularies.
///
/// # Errors
/// If there is not one finite score a token, or a token is over 1024 bytes.
pub(super) fn merges_by_score(
    texts: &Texts,
    kinds: &[TokenKind],
    scores: &[f32],
    seed: Seed,
) -> Result<MergesMaker, PartsError> {
    if scores.len() != texts.len() {
        return Err(PartsError::ScoreCount(scores.len()));
    }
    if let Some(index) = scores.iter().position(|score| !score.is_finite()) {
        return Err(PartsError::Score { index, score: scores[index] });
    }
    let is_normal = |id: u32| kinds[id as usize] == TokenKind::Normal;
    let normal = (0..kinds.len() as u32).filter(|&id| is_normal(id));
    let length = |id| texts.view().get(id).len();
    if let Some(id) = normal.clone().find(|&id| length(id) > LONGEST) {
        return Err(PartsError::Length { index: id as usize, bytes: length(id) });
    }
    let ids = Index::new(texts, &is_normal, seed)?;
    let (ids, texts) = (ids.view(texts), texts.view());
    let mut by_score: BinaryHeap<Ranked> =
        normal.map(|id| Ranked { score: scores[id as usize], id }).collect();

    let mut list = Vec::with_capacity(2 * kinds.len());
    let mut pairs = Vec::new();
    while let Some(Ranked { id: token, .. }) = by_score.pop() {
        let text = texts.get(token);
        pairs.clear();
        // No token begins inside a character, that is with one of its continuation bytes.
        for at in (1..text.len()).filter(|&at| text[at] & 0xC0 != 0x80) {
            let (left, right) = text.split_at(at);
            if let Some(left) = ids.get(left)
                && let Some(right) = ids.get(right)
            {
                // Few, so each is put in its place.
                let at = pairs.partition_point(|&pair| pair < (left, right));
                pairs.insert(at, (left, right));
            }
        }
        for &(left, right) in &pairs {
            list.push((left, right, token));
        }
    }
    let mut merges = MergesMaker::new(list.len(), seed);
    for (rank, (left, right, token)) in (0..).zip(list) {
        merges.add(left, right, Merge { rank, token })?;
    }
    Ok(merges)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::bpe::MergesView;
    use crate::tokenizer::texts::TextsMaker;

    fn texts(of: &[&str]) -> Texts {
        let mut texts = TextsMaker::default();
        for text in of {
            texts.push(|bytes| bytes.extend_from_slice(text.as_bytes())).unwrap();
        }
        texts.done()
    }

    fn spaces(prefix: bool, tokens: &[&str]) -> Spaces {
        let tokens: Strings = tokens.iter().collect();
        let kinds = vec![TokenKind::Normal; tokens.len()];
        Spaces::new(prefix, &tokens, &kinds)
    }

    #[test]
    fn spaces_become_marks_with_one_in_front_where_the_vocabulary_wants_it() {
        assert_eq!(spaces(true, &[]).mark(" a  b "), "▁▁a▁▁b▁");
        assert_eq!(spaces(false, &[]).mark("a b"), "a▁b");
        assert_eq!(spaces(false, &[]).mark(""), "");
    }

    #[test]
    fn text_is_cut_before_spaces_unless_a_token_reaches_across() {
        let pieces = |spaces: &Spaces, text| {
            let mut out = Vec::new();
            spaces.split(text, &mut |piece: &str| out.push(piece.to_owned()));
            out
        };
        let plain = spaces(true, &["▁a", "▁▁", "b"]);
        assert_eq!(pieces(&plain, "▁a>▁▁b\n▁c▁"), ["▁a>", "▁▁b\n", "▁c", "▁"]);
        let glued = spaces(true, &["▁a", ">▁"]);
        assert_eq!(pieces(&glued, "a▁a>▁b▁c"), ["a", "▁a>▁b", "▁c"]);
        assert_eq!(pieces(&plain, ""), [""; 0]);
    }

    #[test]
    fn a_token_merges_from_every_pair_of_tokens_that_spells_it() {
        let tokens = texts(&["a", "b", "ab", "bb", "abb"]);
        let kinds = [TokenKind::Normal; 5];
        let scores = [0.0, 0.0, -2.0, -1.0, -3.0];
        let merges = merges_by_score(&tokens, &kinds, &scores, Seed::default()).unwrap();
        let mut expected = MergesMaker::new(4, Seed::default());
        // "bb" scores highest; "abb" is a + bb before ab + b: the lower id is the left one.
        for (rank, (left, right, token)) in (0..).zip([(1, 1, 3), (0, 1, 2), (0, 3, 4), (2, 1, 4)])
        {
            expected.add(left, right, Merge { rank, token }).unwrap();
        }
        let (merges, expected) = (merges.done(5), expected.done(5));
        assert_eq!(
            format!("{:?}", sorted(merges.view())),
            format!("{:?}", sorted(expected.view()))
        );
    }

    fn sorted(merges: MergesView<'_>) -> Vec<(u32, u32, Merge)> {
        let ids = (0..5).flat_map(|left| (0..5).map(move |right| (left, right)));
        ids.map(|(left, right)| (left, right, merges.of(left, right))).collect()
    }

    #[test]
    fn scores_that_are_missing_or_not_finite_are_refused() {
        let tokens = texts(&["a", "b"]);
        let kinds = [TokenKind::Normal; 2];
        let seed = Seed::default();
        let error = |scores: &[f32]| merges_by_score(&tokens, &kinds, scores, seed).unwrap_err();
        assert_eq!(error(&[0.0]), PartsError::ScoreCount(1));
        assert!(matches!(error(&[0.0, f32::NAN]), PartsError::Score { index: 1, .. }));
        let long = texts(&["a", &"x".repeat(1025)]);
        let error = merges_by_score(&long, &kinds, &[0.0; 2], seed).unwrap_err();
        assert_eq!(error, PartsError::Length { index: 1, bytes: 1025 });
    }
}
