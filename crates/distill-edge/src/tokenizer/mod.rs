//! The tokenizer: byte-level BPE as the GGUF file describes it, with special tokens.
//!
//! Text is cut at special tokens, then by the [`PreTokenizer`] into pieces, and each piece is
//! merged by [`bpe`]. No normalisation is applied (Qwen 2's NFC is left to the caller).

mod bpe;
mod bytes;
mod from_gguf;
mod pretokenize;
mod unicode;
mod unicode_tables;

use std::collections::HashMap;

use self::bpe::{Merge, Merges};
pub use self::bytes::Utf8Stream;
pub use self::pretokenize::PreTokenizer;

/// How a token came to be in the vocabulary (`tokenizer.ggml.token_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenKind {
    /// A byte-level BPE token.
    Normal,
    /// The unknown token.
    Unknown,
    /// A control token: matched in text, never shown (`<|im_start|>`).
    Control,
    /// An added token that is ordinary text: matched in text and shown.
    UserDefined,
    /// A padding entry without a text of its own.
    Unused,
}

/// A vocabulary and its rules. Immutable and shared between sessions.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    pre: PreTokenizer,
    /// Byte pieces of all tokens, one after another; `piece_ends[id]` is where the id-th ends.
    pieces: Vec<u8>,
    piece_ends: Vec<u32>,
    kinds: Vec<TokenKind>,
    /// The token of each single byte; a byte without one encodes to `unknown` or to nothing.
    byte_tokens: [Option<u32>; 256],
    merges: Merges,
    /// Normal tokens by their bytes, only where the rule takes whole pieces.
    whole_pieces: HashMap<Vec<u8>, u32>,
    /// Tokens matched in text before BPE, by first byte, longest first.
    specials: HashMap<u8, Vec<(Vec<u8>, u32)>>,
    unknown: Option<u32>,
    bos: Option<u32>,
    eos: Option<u32>,
    end_of_generation: Vec<u32>,
    add_bos: bool,
    add_eos: bool,
    chat_template: Option<String>,
}

impl Tokenizer {
    /// Encodes `text`; special tokens written in it (`<|im_end|>`) become their ids.
    ///
    /// With `add_special`, the BOS and EOS tokens are added as the model's file asks.
    pub fn encode(&self, text: &str, add_special: bool) -> Vec<u32> {
        let mut ids = Vec::with_capacity(text.len() / 3 + 2);
        if add_special && self.add_bos {
            ids.extend(self.bos);
        }
        let mut plain_from = 0;
        let mut at = 0;
        while at < text.len() {
            let Some((length, id)) = self.special_at(&text.as_bytes()[at..]) else {
                at += 1;
                continue;
            };
            self.encode_plain_into(&text[plain_from..at], &mut ids);
            ids.push(id);
            at += length;
            plain_from = at;
        }
        self.encode_plain_into(&text[plain_from..], &mut ids);
        if add_special && self.add_eos {
            ids.extend(self.eos);
        }
        ids
    }

    /// Encodes `text` as text: what looks like a special token is spelled out. For text from
    /// outside that must not be able to write control tokens.
    pub fn encode_plain(&self, text: &str) -> Vec<u32> {
        let mut ids = Vec::with_capacity(text.len() / 3);
        self.encode_plain_into(text, &mut ids);
        ids
    }

    /// The longest special token that starts `bytes`, and its length.
    fn special_at(&self, bytes: &[u8]) -> Option<(usize, u32)> {
        let candidates = self.specials.get(bytes.first()?)?;
        candidates
            .iter()
            .find(|(text, _)| bytes.starts_with(text))
            .map(|(text, id)| (text.len(), *id))
    }

    fn encode_plain_into(&self, text: &str, ids: &mut Vec<u32>) {
        let mut byte_ids = Vec::new();
        self.pre.split(text, &mut |piece| {
            if let Some(&id) = self.whole_pieces.get(piece.as_bytes()) {
                ids.push(id);
                return;
            }
            byte_ids.clear();
            byte_ids.extend(
                piece.bytes().filter_map(|b| self.byte_tokens[usize::from(b)].or(self.unknown)),
            );
            bpe::merge_into(&self.merges, &byte_ids, ids);
        });
    }

    /// The text of `ids`, control tokens included; invalid UTF-8 becomes U+FFFD. Ids outside the
    /// vocabulary give nothing.
    pub fn decode(&self, ids: &[u32]) -> String {
        let bytes: Vec<u8> = ids.iter().flat_map(|&id| self.piece(id)).copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The bytes of one token (possibly part of a character); empty outside the vocabulary.
    pub fn piece(&self, id: u32) -> &[u8] {
        let id = id as usize;
        let Some(&end) = self.piece_ends.get(id) else { return &[] };
        let start = if id == 0 { 0 } else { self.piece_ends[id - 1] };
        &self.pieces[start as usize..end as usize]
    }

    /// Number of tokens.
    pub fn vocab_size(&self) -> usize {
        self.piece_ends.len()
    }

    /// The kind of a token; `None` outside the vocabulary.
    pub fn kind(&self, id: u32) -> Option<TokenKind> {
        self.kinds.get(id as usize).copied()
    }

    /// Beginning of sequence.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// End of sequence.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// Whether generation stops at `id`: the file's eos, eot and eom tokens, and the control
    /// tokens that are known to end a turn.
    pub fn is_eog(&self, id: u32) -> bool {
        self.end_of_generation.contains(&id)
    }

    /// The model's chat template (Jinja), as the file ships it.
    pub fn chat_template(&self) -> Option<&str> {
        self.chat_template.as_deref()
    }

    /// The rule that cuts text into pieces.
    pub fn pre_tokenizer(&self) -> PreTokenizer {
        self.pre
    }
}

/// Everything a tokenizer is made of, as GGUF metadata spells it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Parts<'a> {
    pub pre: &'a str,
    pub tokens: &'a [String],
    /// One code a token (1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte), or
    /// empty: all normal.
    pub types: &'a [i32],
    pub merges: &'a [String],
    pub unknown: Option<u32>,
    pub bos: Option<u32>,
    pub eos: Option<u32>,
    /// Further ids that end a turn.
    pub ends: &'a [u32],
    pub add_bos: Option<bool>,
    pub add_eos: bool,
    pub chat_template: Option<String>,
}

/// What is wrong with [`Parts`], without the file's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PartsError {
    Pre(String),
    TypeCount(usize),
    Merge { index: usize, text: String },
    Id { what: &'static str, id: u32 },
    TooLarge,
}

/// Control tokens that end a turn in the model families this runtime reads.
const TURN_ENDS: [&str; 6] =
    ["<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<|endoftext|>", "<|end_of_text|>"];

impl Parts<'_> {
    pub(crate) fn build(self) -> Result<Tokenizer, PartsError> {
        let pre = PreTokenizer::from_name(self.pre)
            .ok_or_else(|| PartsError::Pre(self.pre.to_owned()))?;
        if !self.types.is_empty() && self.types.len() != self.tokens.len() {
            return Err(PartsError::TypeCount(self.types.len()));
        }
        let ids = [("unknown", self.unknown), ("bos", self.bos), ("eos", self.eos)];
        for (what, id) in
            ids.into_iter().chain(self.ends.iter().map(|&id| ("end of turn", Some(id))))
        {
            if let Some(id) = id.filter(|&id| id as usize >= self.tokens.len()) {
                return Err(PartsError::Id { what, id });
            }
        }
        let kinds: Vec<TokenKind> =
            (0..self.tokens.len()).map(|i| kind(self.types.get(i))).collect();
        let (pieces, piece_ends) = pieces(self.tokens, &kinds)?;
        let mut end_of_generation: Vec<u32> =
            self.eos.into_iter().chain(self.ends.iter().copied()).collect();
        let mut specials: HashMap<u8, Vec<(Vec<u8>, u32)>> = HashMap::new();
        for (id, (text, kind)) in self.tokens.iter().zip(&kinds).enumerate() {
            if matches!(kind, TokenKind::Normal | TokenKind::Unused) {
                continue;
            }
            if let Some(&first) = text.as_bytes().first() {
                specials.entry(first).or_default().push((text.as_bytes().to_vec(), id as u32));
            }
            if *kind == TokenKind::Control && TURN_ENDS.contains(&text.as_str()) {
                end_of_generation.push(id as u32);
            }
        }
        for candidates in specials.values_mut() {
            candidates.sort_by_key(|(text, id)| (std::cmp::Reverse(text.len()), *id));
        }
        end_of_generation.sort_unstable();
        end_of_generation.dedup();

        let by_text: HashMap<&str, u32> =
            (0..).zip(self.tokens).map(|(id, text)| (text.as_str(), id)).collect();
        let alphabet = bytes::alphabet();
        let byte_tokens = std::array::from_fn(|byte| {
            by_text.get(alphabet[byte].encode_utf8(&mut [0; 4]) as &str).copied()
        });
        let whole_pieces = if pre.ignores_merges() {
            let normal = (0..).zip(&kinds).filter(|(_, kind)| **kind == TokenKind::Normal);
            normal
                .map(|(id, _)| (piece_bytes(&pieces, &piece_ends, id).to_vec(), id as u32))
                .collect()
        } else {
            HashMap::new()
        };
        Ok(Tokenizer {
            pre,
            merges: merges(self.merges, &by_text)?,
            pieces,
            piece_ends,
            kinds,
            byte_tokens,
            whole_pieces,
            specials,
            unknown: self.unknown,
            bos: self.bos,
            eos: self.eos,
            end_of_generation,
            // Llama 3's rule implies a BOS where the file does not say.
            add_bos: self.add_bos.unwrap_or(pre == PreTokenizer::LlamaBpe),
            add_eos: self.add_eos,
            chat_template: self.chat_template,
        })
    }
}

fn kind(code: Option<&i32>) -> TokenKind {
    match code {
        None | Some(1) => TokenKind::Normal,
        Some(2) => TokenKind::Unknown,
        Some(3) => TokenKind::Control,
        Some(4) => TokenKind::UserDefined,
        Some(_) => TokenKind::Unused,
    }
}

/// The bytes of all tokens: byte-level characters become their bytes, special tokens their text.
fn pieces(tokens: &[String], kinds: &[TokenKind]) -> Result<(Vec<u8>, Vec<u32>), PartsError> {
    let (mut pieces, mut ends) = (Vec::new(), Vec::with_capacity(tokens.len()));
    for (text, kind) in tokens.iter().zip(kinds) {
        if *kind == TokenKind::Normal {
            for c in text.chars() {
                match bytes::byte_of(c) {
                    Some(byte) => pieces.push(byte),
                    None => pieces.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
                }
            }
        } else {
            pieces.extend_from_slice(text.as_bytes());
        }
        ends.push(u32::try_from(pieces.len()).map_err(|_| PartsError::TooLarge)?);
    }
    Ok((pieces, ends))
}

fn piece_bytes<'p>(pieces: &'p [u8], ends: &[u32], id: usize) -> &'p [u8] {
    let start = if id == 0 { 0 } else { ends[id - 1] };
    &pieces[start as usize..ends[id] as usize]
}

/// The merge table; every merge is `left right`, and all three texts must be tokens.
fn merges(list: &[String], by_text: &HashMap<&str, u32>) -> Result<Merges, PartsError> {
    let mut merges = Merges::with_capacity(list.len());
    let mut joined = String::new();
    for (index, text) in list.iter().enumerate() {
        let bad = || PartsError::Merge { index, text: text.clone() };
        let (left, right) = text.split_once(' ').ok_or_else(bad)?;
        joined.clear();
        joined.push_str(left);
        joined.push_str(right);
        let id = |text: &str| by_text.get(text).copied().ok_or_else(bad);
        let merge = Merge {
            rank: u32::try_from(index).map_err(|_| PartsError::TooLarge)?,
            token: id(&joined)?,
        };
        merges.entry((id(left)?, id(right)?)).or_insert(merge);
    }
    Ok(merges)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All 256 byte tokens, `he`, `ll`, `hell`, ` hell`, then special tokens.
    fn tiny(pre: &str, merge_list: &[&str]) -> Tokenizer {
        let mut tokens: Vec<String> = bytes::alphabet().iter().map(char::to_string).collect();
        tokens.extend(["he", "ll", "hell", "Ġhell", "<|im_end|>", "<|im", "Ġx"].map(str::to_owned));
        let mut types = vec![1; tokens.len()];
        types[260] = 3;
        types[261] = 4;
        let merges: Vec<String> = merge_list.iter().map(|s| (*s).to_owned()).collect();
        let parts = Parts {
            pre,
            tokens: &tokens,
            types: &types,
            merges: &merges,
            eos: Some(260),
            bos: Some(260),
            ..Parts::default()
        };
        parts.build().unwrap()
    }

    const MERGES: [&str; 4] = ["h e", "l l", "he ll", "Ġ hell"];

    #[test]
    fn merges_apply_in_rank_order_inside_pieces() {
        let t = tiny("gpt-2", &MERGES);
        assert_eq!(t.encode("hello hell", false), [258, u32::from(b'o'), 259]);
        assert_eq!(t.decode(&t.encode("hello hell — 语\n", false)), "hello hell — 语\n");
    }

    #[test]
    fn special_tokens_in_text_match_longest_first_and_plain_text_cannot_write_them() {
        let t = tiny("gpt-2", &MERGES);
        assert_eq!(t.encode("<|im_end|><|im", false), [260, 261]);
        assert_eq!(t.encode_plain("<|im_end|>").len(), "<|im_end|>".len());
        assert!(t.is_eog(260) && !t.is_eog(261));
    }

    #[test]
    fn bos_is_added_only_when_asked_and_wanted() {
        assert_eq!(tiny("llama-bpe", &MERGES).encode("", true), [260]);
        assert_eq!(tiny("llama-bpe", &MERGES).encode("", false), []);
        assert_eq!(tiny("gpt-2", &MERGES).encode("", true), []);
    }

    #[test]
    fn llama_bpe_takes_a_whole_piece_that_is_a_token() {
        // No merge makes "Ġx", but the piece " x" is that token.
        assert_eq!(tiny("llama-bpe", &MERGES).encode(" x", false), [262]);
        assert_eq!(tiny("gpt-2", &MERGES).encode(" x", false), [u32::from(b' '), u32::from(b'x')]);
    }

    #[test]
    fn broken_parts_are_refused() {
        let tokens = ["a".to_owned()];
        let parts = |pre| Parts { pre, tokens: &tokens, ..Parts::default() };
        assert_eq!(parts("bert").build().unwrap_err(), PartsError::Pre("bert".into()));
        let types = Parts { types: &[1, 1], ..parts("gpt-2") };
        assert_eq!(types.build().unwrap_err(), PartsError::TypeCount(2));
        let merge = Parts { merges: &["a b".to_owned()], ..parts("gpt-2") };
        assert_eq!(merge.build().unwrap_err(), PartsError::Merge { index: 0, text: "a b".into() });
        let id = Parts { eos: Some(1), ..parts("gpt-2") };
        assert_eq!(id.build().unwrap_err(), PartsError::Id { what: "eos", id: 1 });
    }

    #[test]
    fn ids_outside_the_vocabulary_decode_to_nothing() {
        assert_eq!(tiny("gpt-2", &MERGES).decode(&[u32::MAX, 256]), "he");
    }
}
