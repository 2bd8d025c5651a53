//! The tokens: their bytes, one after another, and their kinds.

use distill_gguf::{Bytes, Strings};

use super::PartsError;
use super::bytes::byte_of;
use super::sentence_piece::SPACE;
use super::texts::{Texts, TextsMaker};

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
    pub(super) fn of(tokens: &Strings, codes: &[i32]) -> Vec<Self> {
        let is_padding = |id: usize, text: &str| {
            let named = text.strip_prefix("[PAD").and_then(|rest| rest.strip_suffix(']'));
            named.is_some_and(|digits| digits.parse() == Ok(id))
        };
        let kind = |(id, text)| match codes.get(id) {
            Some(2 | 4) if is_padding(id, text) => Self::Unused,
            Some(&code) => u8::try_from(code).map_or(Self::Unused, Self::of_code),
            None => Self::Normal,
        };
        tokens.iter().enumerate().map(kind).collect()
    }

    /// The kind of a file's type code; those it cannot have are unused tokens too.
    fn of_code(code: u8) -> Self {
        match code {
            1 => Self::Normal,
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            6 => Self::Byte,
            _ => Self::Unused,
        }
    }

    /// The file's type code.
    fn code(self) -> u8 {
        match self {
            Self::Normal => 1,
            Self::Unknown => 2,
            Self::Control => 3,
            Self::UserDefined => 4,
            Self::Unused => 5,
            Self::Byte => 6,
        }
    }

    /// Whether tokens of this kind are matched in text as a whole.
    pub(super) fn is_special(self) -> bool {
        matches!(self, Self::Unknown | Self::Control | Self::UserDefined)
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
    /// The bytes that each token stands for.
    pieces: Texts,
    /// The code of each token's kind.
    kinds: Bytes,
}

impl Vocabulary {
    /// # Errors
    /// If a byte token does not name a byte, or the text is over 4 GiB.
    pub(super) fn new(
        tokens: &Strings,
        kinds: &[TokenKind],
        spelling: Spelling,
    ) -> Result<Self, PartsError> {
        let mut pieces = TextsMaker::with_capacity(tokens.len());
        for (index, (text, kind)) in tokens.iter().zip(kinds).enumerate() {
            match (kind, spelling) {
                (TokenKind::Byte, _) => {
                    let byte = named_byte(text)
                        .ok_or_else(|| PartsError::Byte { index, text: text.to_owned() })?;
                    pieces.push(|bytes| bytes.push(byte))?;
                }
                (TokenKind::Normal, Spelling::ByteLevel) => {
                    pieces.push(|bytes| write_byte_level(text, bytes))?;
                }
                (TokenKind::Normal, Spelling::Text) => {
                    pieces.push(|bytes| write_spaced(text, bytes))?;
                }
                _ => pieces.push(|bytes| bytes.extend_from_slice(text.as_bytes()))?,
            }
        }
        let kinds: Vec<u8> = kinds.iter().map(|kind| kind.code()).collect();
        Ok(Self { pieces: pieces.done(), kinds: kinds.into() })
    }

    /// As a file holds them; there are as many kinds as pieces.
    pub(super) fn of_tables(pieces: Texts, kinds: Bytes) -> Self {
        Self { pieces, kinds }
    }

    pub(super) fn len(&self) -> usize {
        self.pieces.len()
    }

    pub(super) fn kind(&self, id: u32) -> Option<TokenKind> {
        self.kinds.get(id as usize).map(|&code| TokenKind::of_code(code))
    }

    /// The bytes of one token; empty outside the vocabulary.
    pub(super) fn piece(&self, id: u32) -> &[u8] {
        self.pieces.view().get(id)
    }

    /// The bytes of every token.
    pub(super) fn pieces(&self) -> &Texts {
        &self.pieces
    }

    /// The codes of their kinds.
    pub(super) fn codes(&self) -> &Bytes {
        &self.kinds
    }

    /// All kinds, by id.
    pub(super) fn kinds(&self) -> impl Iterator<Item = (u32, TokenKind)> + Clone {
        (0..).zip(self.kinds.iter()).map(|(id, &code)| (id, TokenKind::of_code(code)))
    }
}

/// Characters of the byte alphabet as their bytes, others as they are.
fn write_byte_level(text: &str, bytes: &mut Vec<u8>) {
    for c in text.chars() {
        match byte_of(c) {
            Some(byte) => bytes.push(byte),
            None => bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
}

/// Text with spaces for their marks.
fn write_spaced(text: &str, bytes: &mut Vec<u8>) {
    for (i, part) in text.split(SPACE).enumerate() {
        bytes.extend((i > 0).then_some(b' '));
        bytes.extend_from_slice(part.as_bytes());
    }
}

/// The byte that `<0x0A>` names.
pub(super) fn named_byte(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    let hexadecimal = digits.len() == 2 && digits.bytes().all(|b| b.is_ascii_hexdigit());
    hexadecimal.then(|| u8::from_str_radix(digits, 16).ok()).flatten()
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
        let tokens = ["a", "[PAD1]", "[PAD7]", "[PAD3]", "x"].into_iter().collect();
        use TokenKind::{Control, Normal, Unused, UserDefined};
        let expected = [Normal, Unused, UserDefined, Control, Unused];
        assert_eq!(TokenKind::of(&tokens, &[1, 4, 4, 3, 5]), expected);
        assert_eq!(TokenKind::of(&tokens, &[]), [Normal; 5]);
        assert_eq!(TokenKind::of(&tokens, &[1, -1, 256, 7, 2])[1..4], [Unused; 3]);
    }

    #[test]
    fn spaces_are_marks_in_normal_tokens_only() {
        let tokens = ["▁a▁", "▁"].into_iter().collect();
        let kinds = [TokenKind::Normal, TokenKind::Control];
        let vocabulary = Vocabulary::new(&tokens, &kinds, Spelling::Text).unwrap();
        assert_eq!(vocabulary.piece(0), b" a ");
        assert_eq!(vocabulary.piece(1), "▁".as_bytes());
    }
}
