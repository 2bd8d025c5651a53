//! The tokens: their bytes, one after another, and their kinds.

use super::PartsError;
use super::bytes::byte_of;
use super::hash::Seed;
use super::sentence_piece::SPACE;
use std::hash::BuildHasher;

/// How a token came to be in the vocabulary (`tokenizer.ggml.token_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenKind {
    /// A token that merging makes.
    Normal,
    /// The unknown token.
    Unknown,
    /// A control token: matched in text, never shown (`<|im_start|>`).
    Control,
    /// An added token that is ordinary text: matched in text and shown.
    UserDefined,
    /// A padding entry without a text of its own.
    Unused,
    /// One byte of a character that has no token (`<0x0A>`).
    Byte,
}

impl TokenKind {
    /// The kinds of `tokens` by their type codes; without codes all are normal, and tokens of
    /// unknown codes are never made.
    ///
    /// Some converters call padding user-defined or unknown, and name each after its id
    /// (`[PAD151646]`): no text means it.
    pub(super) fn of(tokens: &[String], codes: &[i32]) -> Vec<Self> {
        let is_padding = |id: usize, text: &str| {
            let named = text.strip_prefix("[PAD").and_then(|rest| rest.strip_suffix(']'));
            named.is_some_and(|digits| digits.parse() == Ok(id))
        };
        let kind = |(id, text): (usize, &String)| match codes.get(id) {
            None | Some(1) => Self::Normal,
            Some(2 | 4) if is_padding(id, text) => Self::Unused,
            Some(2) => Self::Unknown,
            Some(3) => Self::Control,
            Some(4) => Self::UserDefined,
            Some(6) => Self::Byte,
            Some(_) => Self::Unused,
        };
        tokens.iter().enumerate().map(kind).collect()
    }
}

/// How normal tokens are spelt in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spelling {
    /// Each byte as a printable character (GPT-2).
    ByteLevel,
    /// As text, with `▁` for a space (SentencePiece).
    Text,
}

/// The bytes and the kind of every token.
#[derive(Clone, Debug)]
pub(super) struct Vocabulary {
    /// The bytes that tokens stand for, one after another; `ends[id]` is where the id-th ends.
    bytes: Vec<u8>,
    ends: Vec<u32>,
    kinds: Vec<TokenKind>,
}

impl Vocabulary {
    /// # Errors
    /// If a byte token does not name a byte, or the text is over 4 GiB.
    pub(super) fn new(
        tokens: &[String],
        kinds: Vec<TokenKind>,
        spelling: Spelling,
    ) -> Result<Self, PartsError> {
        let mut bytes = Vec::with_capacity(tokens.len() * 8);
        let mut ends = Vec::with_capacity(tokens.len());
        for (index, (text, kind)) in tokens.iter().zip(&kinds).enumerate() {
            match (kind, spelling) {
                (TokenKind::Byte, _) => bytes.push(
                    named_byte(text)
                        .ok_or_else(|| PartsError::Byte { index, text: text.clone() })?,
                ),
                (TokenKind::Normal, Spelling::ByteLevel) => {
                    for c in text.chars() {
                        match byte_of(c) {
                            Some(byte) => bytes.push(byte),
                            None => {
                                bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                            }
                        }
                    }
                }
                (TokenKind::Normal, Spelling::Text) => {
                    for (i, part) in text.split(SPACE).enumerate() {
                        bytes.extend((i > 0).then_some(b' '));
                        bytes.extend_from_slice(part.as_bytes());
                    }
                }
                _ => bytes.extend_from_slice(text.as_bytes()),
            }
            ends.push(u32::try_from(bytes.len()).map_err(|_| PartsError::TooLarge)?);
        }
        Ok(Self { bytes, ends, kinds })
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(super) fn kind(&self, id: u32) -> Option<TokenKind> {
        self.kinds.get(id as usize).copied()
    }

    /// The bytes of one token; empty outside the vocabulary.
    pub(super) fn piece(&self, id: u32) -> &[u8] {
        let id = id as usize;
        let Some(&end) = self.ends.get(id) else { return &[] };
        let start = if id == 0 { 0 } else { self.ends[id - 1] };
        &self.bytes[start as usize..end as usize]
    }
}

/// The byte that `<0x0A>` names.
pub(super) fn named_byte(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    let hexadecimal = digits.len() == 2 && digits.bytes().all(|b| b.is_ascii_hexdigit());
    hexadecimal.then(|| u8::from_str_radix(digits, 16).ok()).flatten()
}

/// The normal tokens by their bytes, without a copy of them: open addressing over ids.
#[derive(Clone, Debug)]
pub(super) struct PieceIndex {
    slots: Vec<u32>,
    seed: Seed,
}

/// A free slot; no vocabulary has so many tokens.
const FREE: u32 = u32::MAX;

impl PieceIndex {
    /// Of tokens with the same bytes the last is found.
    pub(super) fn new(vocabulary: &Vocabulary) -> Self {
        let size = (2 * vocabulary.len()).next_power_of_two();
        let mut index = Self { slots: vec![FREE; size], seed: Seed::default() };
        for (id, kind) in (0..).zip(&vocabulary.kinds) {
            if *kind == TokenKind::Normal {
                let slot = index.slot(vocabulary, vocabulary.piece(id));
                index.slots[slot] = id;
            }
        }
        index
    }

    pub(super) fn get(&self, vocabulary: &Vocabulary, bytes: &[u8]) -> Option<u32> {
        Some(self.slots[self.slot(vocabulary, bytes)]).filter(|&id| id != FREE)
    }

    /// The slot of `bytes`, or the free one where they belong.
    fn slot(&self, vocabulary: &Vocabulary, bytes: &[u8]) -> usize {
        let mask = self.slots.len() - 1;
        let mut slot = self.seed.hash_one(bytes) as usize & mask;
        while self.slots[slot] != FREE && vocabulary.piece(self.slots[slot]) != bytes {
            slot = (slot + 1) & mask;
        }
        slot
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_tokens_are_two_hexadecimal_digits() {
        assert_eq!((named_byte("<0x0A>"), named_byte("<0xff>")), (Some(10), Some(255)));
        for wrong in ["<0x>", "<0xA>", "<0x0AA>", "<0x+A>", "0x0A", "<0x0A", "a", ""] {
            assert_eq!(named_byte(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn padding_is_known_by_its_code_or_by_the_id_in_its_name() {
        let tokens = ["a", "[PAD1]", "[PAD7]", "[PAD3]", "x"].map(str::to_owned);
        use TokenKind::{Control, Normal, Unused, UserDefined};
        let expected = [Normal, Unused, UserDefined, Control, Unused];
        assert_eq!(TokenKind::of(&tokens, &[1, 4, 4, 3, 5]), expected);
        assert_eq!(TokenKind::of(&tokens, &[]), [Normal; 5]);
    }

    #[test]
    fn only_normal_tokens_are_found_by_their_bytes_and_the_last_of_equals() {
        let tokens = ["Ġa", "b", "b", "c", ""].map(str::to_owned);
        let mut kinds = vec![TokenKind::Normal; 5];
        kinds[3] = TokenKind::Control;
        let vocabulary = Vocabulary::new(&tokens, kinds, Spelling::ByteLevel).unwrap();
        let index = PieceIndex::new(&vocabulary);
        let found = [" a", "b", "c", "", "x"].map(|text| index.get(&vocabulary, text.as_bytes()));
        assert_eq!(found, [Some(0), Some(2), None, Some(4), None]);
    }

    #[test]
    fn spaces_are_marks_in_normal_tokens_only() {
        let tokens = ["▁a▁", "▁"].map(str::to_owned);
        let kinds = vec![TokenKind::Normal, TokenKind::Control];
        let vocabulary = Vocabulary::new(&tokens, kinds, Spelling::Text).unwrap();
        assert_eq!(vocabulary.piece(0), b" a ");
        assert_eq!(vocabulary.piece(1), "▁".as_bytes());
    }
}
