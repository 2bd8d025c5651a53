//! The symbols that merging starts from: bytes in byte-level vocabularies, characters in
//! SentencePiece's, where a character without a token falls back to its bytes.

use distill_gguf::Strings;

use super::PreTokenizer;
use super::bytes;
use super::hash::Seed;
use super::sentence_piece::Spaces;
use super::table::{Crowded, Table, TableMaker};
use super::vocabulary::{TokenKind, named_byte};

/// A token for each byte, where there is one.
pub(super) type ByteTokens = Box<[Option<u32>; 256]>;

/// How text is cut into pieces and these into symbols.
#[derive(Clone, Debug)]
pub(super) enum Symbols {
    /// Byte-level: pieces by a pre-tokenizer, a symbol a byte.
    Bytes { pre: PreTokenizer, tokens: ByteTokens },
    /// SentencePiece: pieces between spaces, a symbol a character.
    Characters { spaces: Spaces, tokens: Characters, bytes: ByteTokens },
}

/// Tokens of one character. An entry is the character and the id.
#[derive(Clone, Debug)]
pub(super) struct Characters {
    table: Table<2>,
    seed: Seed,
}

impl Characters {
    pub(super) fn of_table(table: Table<2>, seed: Seed) -> Self {
        Self { table, seed }
    }

    pub(super) fn table(&self) -> &Table<2> {
        &self.table
    }

    fn get(&self, c: char) -> Option<u32> {
        let c = u32::from(c);
        let hash = self.seed.of_word(c.into());
        self.table.view().get(hash, |entry| entry[0] == c).map(|[_, id]| id)
    }
}

impl Symbols {
    /// `id` finds a token by its text.
    pub(super) fn byte_level(pre: PreTokenizer, id: impl Fn(&str) -> Option<u32>) -> Self {
        let spelt = bytes::alphabet();
        let token = |byte: usize| id(spelt[byte].encode_utf8(&mut [0; 4]));
        Self::Bytes { pre, tokens: Box::new(std::array::from_fn(token)) }
    }

    pub(super) fn characters(
        spaces: Spaces,
        tokens: &Strings,
        kinds: &[TokenKind],
        seed: Seed,
    ) -> Result<Self, Crowded> {
        let mut characters = Vec::new();
        let mut bytes: ByteTokens = Box::new([None; 256]);
        for (id, (text, kind)) in (0..).zip(tokens.iter().zip(kinds)) {
            match kind {
                TokenKind::Normal => {
                    let mut chars = text.chars();
                    if let (Some(c), None) = (chars.next(), chars.next()) {
                        characters.push([u32::from(c), id]);
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
        // Of the tokens of one character the last counts.
        let mut table = TableMaker::new(characters.len());
        for &entry in characters.iter().rev() {
            table.add(entry, &|[c, _]| seed.of_word((*c).into()), &|a, b| a[0] == b[0])?;
        }
        let tokens = Characters { table: table.done(tokens.len() as u32), seed };
        Ok(Self::Characters { spaces, tokens, bytes })
    }

    /// Whether a piece that is a token is that token, whatever merging would make of it.
    pub(super) fn takes_whole_pieces(&self) -> bool {
        matches!(self, Self::Bytes { pre, .. } if pre.ignores_merges())
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
                    if let Some(id) = tokens.get(c) {
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
        let tokens = ["<unk>", "a", "<0xC3>", "<0xA9>", "ab", "▁"].into_iter().collect();
        let mut kinds = vec![TokenKind::Normal; 6];
        kinds[0] = TokenKind::Unknown;
        (kinds[2], kinds[3]) = (TokenKind::Byte, TokenKind::Byte);
        let spaces = Spaces::new(false, &tokens, &kinds);
        let symbols = Symbols::characters(spaces, &tokens, &kinds, Seed::default()).unwrap();
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
