//! An array of strings that stays where it lies in a file.

use std::fmt;
use std::sync::Arc;

use crate::bytes::Content;

/// An array of strings. One that was read is a place in its file, so that a vocabulary of a
/// hundred thousand words is not in memory twice; it is walked from the first to the last.
#[derive(Clone)]
pub struct Strings {
    content: Arc<Content>,
    /// Where the first begins: each is its length, u64, and then its text.
    start: usize,
    len: usize,
}

impl Strings {
    /// `len` strings from `start` on, which were all found there, and found to be UTF-8.
    pub(crate) fn new(content: &Arc<Content>, start: usize, len: usize) -> Self {
        Self { content: Arc::clone(content), start, len }
    }

    /// How many there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The strings in their order.
    #[must_use]
    pub fn iter(&self) -> StringsIter<'_> {
        StringsIter { rest: self.content.get(self.start..).unwrap_or_default(), left: self.len }
    }
}

impl<S: AsRef<str>> FromIterator<S> for Strings {
    fn from_iter<I: IntoIterator<Item = S>>(strings: I) -> Self {
        let (mut bytes, mut len) = (Vec::new(), 0);
        for text in strings {
            put(&mut bytes, text.as_ref());
            len += 1;
        }
        Self { content: Arc::new(Content::Memory(bytes.into())), start: 0, len }
    }
}

/// Writes a string as a file spells it.
pub(crate) fn put(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

impl<'a> IntoIterator for &'a Strings {
    type Item = &'a str;
    type IntoIter = StringsIter<'a>;

    fn into_iter(self) -> StringsIter<'a> {
        self.iter()
    }
}

impl PartialEq for Strings {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other)
    }
}

impl fmt::Debug for Strings {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_list().entries(self).finish()
    }
}

/// Walks through [`Strings`].
#[derive(Clone, Debug)]
pub struct StringsIter<'a> {
    /// From the next string's length on.
    rest: &'a [u8],
    left: usize,
}

impl<'a> Iterator for StringsIter<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        self.left = self.left.checked_sub(1)?;
        // Whoever writes to a file that is mapped changes it under us: then the strings from
        // there on are empty, but as many.
        let (text, rest) = split(self.rest).unwrap_or_default();
        self.rest = rest;
        Some(text)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for StringsIter<'_> {}

/// The string at the beginning of `bytes`, and what follows.
#[inline(never)]
fn split(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let (length, rest) = bytes.split_first_chunk()?;
    let length = usize::try_from(u64::from_le_bytes(*length)).ok()?;
    let (text, rest) = rest.split_at_checked(length)?;
    Some((std::str::from_utf8(text).ok()?, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_are_walked_in_order_and_compared_by_their_text() {
        let strings: Strings = ["a", "", "日本"].into_iter().collect();
        assert!(strings.iter().eq(["a", "", "日本"]));
        assert_eq!((strings.len(), strings.iter().len(), strings.is_empty()), (3, 3, false));
        assert_ne!(strings, ["a", ""].into_iter().collect());
        assert_eq!(format!("{strings:?}"), r#"["a", "", "日本"]"#);
    }

    #[test]
    fn strings_that_were_overwritten_are_empty_and_as_many() {
        let content = |bytes: &[u8]| Arc::new(Content::Memory(bytes.to_vec().into()));
        let (mut good, mut long) = (Vec::new(), Vec::new());
        put(&mut good, "ab");
        put(&mut good, "c");
        long.extend(&good);
        long[10] = 0xFF;
        for (bytes, expected) in [
            (&good[..], ["ab", "c", ""]),
            (&good[..good.len() - 1], ["ab", "", ""]),
            (&long, ["ab", "", ""]),
            (b"\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFFab", ["", "", ""]),
            (b"\x01\0\0\0\0\0\0\0\xFF", ["", "", ""]),
            (b"", ["", "", ""]),
        ] {
            assert!(Strings::new(&content(bytes), 0, 3).iter().eq(expected), "{bytes:?}");
        }
        assert!(Strings::new(&content(b""), 1, 1).iter().eq([""]));
    }
}
