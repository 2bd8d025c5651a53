//! The symbols that merging starts from: bytes in byte-level vocabularies, characters in
//! SentencePiece's, where a character without a token falls back to its bytes.

use super::PreTokenizer;
use super::bytes;
use super::hash::FastMap;
use super::sentence_piece::Spaces;
use super::vocabulary::{TokenKind, named_byte};

/// A token for each byte, where there is one.
type ByteTokens = Box<[Option<u32>; 256]>;

/// How text is cut into pieces and these into symbols.
#[derive(Clone, Debug)]
pub(super) enum Symbols {
    /// Byte-level: pieces by a pre-tokenizer, a symbol a byte.
    Bytes { pre: PreTokenizer, tokens: ByteTokens },
    /// SentencePiece: pieces between spaces, a symbol a character.
    Characters { spaces: Spaces, tokens: FastMap<char, u32>, bytes: ByteTokens },
}

impl Symbols {
    /// `id` finds a token by its text.
    pub(super) fn byte_level(pre: PreTokenizer, id: impl Fn(&str) -> Option<u32>) -> Self {
        let spelt = bytes::alphabet();
        let token = |byte: usize| id(spelt[byte].encode_utf8(&mut [0; 4]));
        Self::Bytes { pre, tokens: Box::new(std::array::from_fn(token)) }
    }

    pub(super) fn characters(spaces: Spaces, tokens: &[String], kinds: &[TokenKind]) -> Self {
        let mut characters = FastMap::default();
        let mut bytes: ByteTokens = Box::new([None; 256]);
        for (id, (text, kind)) in (0..).zip(tokens.iter().zip(kinds)) {
            match kind {
                TokenKind::Normal => {
                    let mut chars = text.chars();
                    if let (Some(c), None) = (chars.next(), chars.next()) {
                        characters.insert(c, id);
                    }
                }
                TokenKind::Byte => {
                    if let Some(byte) = named_byte(text) {
                        bytes[usize::from(byte)] = Some(id);
                    }
                }
                _ => {}
            }
        }
        Self::Characters { spaces, tokens: characters, bytes }
    }

    /// Appends the symbols of a piece to `out`.
    ///
    /// A byte without a token is left out, as in the peers: byte-level vocabularies name an
    /// unknown token but do not use it. A character without tokens becomes `unknown`, neighbouring
    /// ones together, or nothing where there is none.
    pub(super) fn push(&self, piece: &str, unknown: Option<u32>, out: &mut Vec<u32>) {
        match self {
            Self::Bytes { tokens, .. } => {
                out.extend(piece.bytes().filter_map(|b| tokens[usize::from(b)]));
            }
            Self::Characters { tokens, bytes, .. } => {
                let mut after_unknown = false;
                for c in piece.chars() {
                    if let Some(&id) = tokens.get(&c) {
                        out.push(id);
                        after_unknown = false;
                        continue;
                    }
                    let mut spelt = [0; 4];
                    let spelt = c.encode_utf8(&mut spelt).as_bytes();
                    if spelt.iter().all(|&b| bytes[usize::from(b)].is_some()) {
                        out.extend(spelt.iter().filter_map(|&b| bytes[usize::from(b)]));
                        after_unknown = false;
                    } else if !after_unknown {
                        out.extend(unknown);
                        after_unknown = true;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_character_is_its_token_or_all_its_bytes_or_unknown_together_with_its_neighbours() {
        let tokens = ["<unk>", "a", "<0xC3>", "<0xA9>", "ab", "▁"].map(str::to_owned);
        let mut kinds = vec![TokenKind::Normal; 6];
        kinds[0] = TokenKind::Unknown;
        (kinds[2], kinds[3]) = (TokenKind::Byte, TokenKind::Byte);
        let spaces = Spaces::new(false, &tokens, &kinds);
        let symbols = Symbols::characters(spaces, &tokens, &kinds);
        let push = |text, unknown| {
            let mut out = Vec::new();
            symbols.push(text, unknown, &mut out);
            out
        };
        // "é" is C3 A9; of "ö", C3 B6, one byte is missing.
        assert_eq!(push("aéa", Some(0)), [1, 2, 3, 1]);
        assert_eq!(push("öxaö▁", Some(0)), [0, 1, 0, 5]);
        assert_eq!(push("öa", None), [1]);
    }
}
