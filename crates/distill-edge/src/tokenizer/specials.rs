//! Tokens that are found in text as a whole, before anything is merged.

use std::collections::BinaryHeap;
use std::ops::Range;

use super::PartsError;
use super::sentence_piece::LONGEST;
use super::vocabulary::TokenKind;

/// The texts of special tokens in ascending order: those that begin alike stand together, so a
/// match is narrowed byte by byte by bisection, and thousands of them (Gemma's) cost no more than
/// a few.
#[derive(Clone, Debug)]
pub(super) struct Specials {
    sorted: Vec<Special>,
    /// The part of `sorted` that begins with each byte.
    starts: Vec<Range<usize>>,
}

/// Ordered by text, then by id.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Special {
    text: Box<[u8]>,
    id: u32,
    /// Whether it is ordinary text, so that it is found in plain text too.
    user_defined: bool,
}

/// A stretch of text, or a special token that stood in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Segment<'t> {
    Text(&'t str),
    Token(u32),
}

impl Specials {
    /// Of tokens with the same text the first is found; empty texts are left out.
    ///
    /// # Errors
    /// If a special token has over 1024 bytes. At every place of a text, as many bytes are compared
    /// as the longest has: the bound keeps cutting linear for a vocabulary that lies.
    pub(super) fn new<'a>(
        tokens: impl Iterator<Item = (u32, &'a str, TokenKind)> + Clone,
    ) -> Result<Self, PartsError> {
        let too_long =
            |&(_, text, kind): &(_, &str, TokenKind)| kind.is_special() && text.len() > LONGEST;
        if let Some((id, text, _)) = tokens.clone().find(too_long) {
            return Err(PartsError::Length { index: id as usize, bytes: text.len() });
        }
        let specials: BinaryHeap<Special> = tokens
            .filter(|&(_, text, kind)| kind.is_special() && !text.is_empty())
            .map(|(id, text, kind)| Special {
                text: text.as_bytes().into(),
                id,
                user_defined: kind == TokenKind::UserDefined,
            })
            .collect();
        // The heap's sort is a tenth of `sort`'s code.
        let mut sorted = specials.into_sorted_vec();
        sorted.dedup_by(|later, first| later.text == first.text);
        let starts = (0..=255)
            .map(|byte| {
                let from = sorted.partition_point(|special| special.text[0] < byte);
                from..sorted.partition_point(|special| special.text[0] <= byte)
            })
            .collect();
        Ok(Self { sorted, starts })
    }

    /// Cuts `text` at the special tokens in it: the leftmost, of several the longest. With `plain`
    /// only user-defined ones count. Segments of text are never empty.
    pub(super) fn cut<'t>(&self, text: &'t str, plain: bool, emit: &mut impl FnMut(Segment<'t>)) {
        let bytes = text.as_bytes();
        let (mut from, mut at) = (0, 0);
        if !self.sorted.is_empty() {
            while let Some(skipped) = self.next_start(&bytes[at..]) {
                at += skipped;
                let Some((length, id)) = self.longest(&bytes[at..], plain) else {
                    at += 1;
                    continue;
                };
                if from < at {
                    emit(Segment::Text(&text[from..at]));
                }
                emit(Segment::Token(id));
                at += length;
                from = at;
            }
        }
        if from < text.len() {
            emit(Segment::Text(&text[from..]));
        }
    }

    /// The place of the first byte that a special token begins with.
    fn next_start(&self, bytes: &[u8]) -> Option<usize> {
        bytes.iter().position(|&byte| !self.starts[usize::from(byte)].is_empty())
    }

    /// Length and id of the longest special token that `bytes`, which is not empty, begins with.
    fn longest(&self, bytes: &[u8], plain: bool) -> Option<(usize, u32)> {
        let mut range = self.starts[usize::from(bytes[0])].clone();
        let mut found = None;
        let mut depth = 1;
        // Every text in `range` begins with the first `depth` bytes; the one of exactly that
        // length sorts before its continuations.
        while let Some(first) = self.sorted[range.clone()].first() {
            if first.text.len() == depth && (first.user_defined || !plain) {
                found = Some((depth, first.id));
            }
            let Some(&next) = bytes.get(depth) else { break };
            let candidates = &self.sorted[range.clone()];
            let from = candidates.partition_point(|s| s.text.get(depth) < Some(&next));
            let to = candidates.partition_point(|s| s.text.get(depth) <= Some(&next));
            range = range.start + from..range.start + to;
            depth += 1;
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segments<'t>(specials: &Specials, text: &'t str, plain: bool) -> Vec<Segment<'t>> {
        let mut out = Vec::new();
        specials.cut(text, plain, &mut |segment| out.push(segment));
        out
    }

    #[test]
    fn the_leftmost_and_then_the_longest_is_found() {
        use Segment::{Text, Token};
        use TokenKind::{Control, Normal, Unknown, UserDefined};
        let tokens = [
            (0, "<a>", Control),
            (1, "<a><b>", UserDefined),
            (2, "a", Normal),
            (3, "<", UserDefined),
            (4, "é", Unknown),
            (5, "<a>", Control),
            (6, "", Control),
        ];
        let specials = Specials::new(tokens.into_iter()).unwrap();
        let found = segments(&specials, "a<a><b>é<a<a>", false);
        assert_eq!(found, [Text("a"), Token(1), Token(4), Token(3), Text("a"), Token(0)]);
        // In plain text a control token is spelt out, but user-defined ones are text.
        let plain = segments(&specials, "é<a><a><b>", true);
        assert_eq!(plain, [Text("é"), Token(3), Text("a>"), Token(1)]);
        assert_eq!(segments(&specials, "", false), []);
    }

    #[test]
    fn a_special_token_longer_than_any_is_refused() {
        let long = "<".repeat(1025);
        let new = |kind| Specials::new([(0, "a", kind), (1, &long[..], kind)].into_iter());
        let error = new(TokenKind::Control).unwrap_err();
        assert_eq!(error, PartsError::Length { index: 1, bytes: 1025 });
        assert!(new(TokenKind::Normal).is_ok());
    }

    proptest::proptest! {
        #[test]
        fn bisection_equals_trying_every_token(
            texts in proptest::collection::vec("[ab]{1,4}", 0..6),
            text in "[abc]{0,20}",
        ) {
            let tokens = texts.iter().enumerate();
            let specials = Specials::new(
                tokens.map(|(id, text)| (id as u32, text.as_str(), TokenKind::Control)),
            )
            .unwrap();
            for at in 0..text.len() {
                let rest = &text[at..];
                let longest = texts.iter().filter(|s| rest.starts_with(*s)).max_by_key(|s| s.len());
                let expected = longest
                    .map(|s| (s.len(), texts.iter().position(|t| t == s).unwrap() as u32));
                proptest::prop_assert_eq!(specials.longest(rest.as_bytes(), false), expected);
            }
        }
    }
}
