//! The tokenizer a GGUF file describes: byte-level BPE or SentencePiece's, with special tokens.
//!
//! Text is cut at special tokens ([`specials`]), then into pieces: by a [`PreTokenizer`] in
//! byte-level vocabularies, at spaces in SentencePiece's ([`sentence_piece`]). A piece becomes
//! [`symbols`], and [`bpe`] merges them; [`encode`] remembers the pieces of a long text. What all
//! this is looked up in is made of a vocabulary's lists ([`parts`]) or mapped ([`stored`]).
//!
//! | `tokenizer.ggml.model` | families | symbols | merges |
//! |---|---|---|---|
//! | `gpt2` | SmolLM2, Llama 3, Qwen 2 to 3.5, GPT-2 | bytes | a list |
//! | `llama` | Llama 2, Gemma to 3, Phi-3 | characters, else bytes | by score |
//! | `gemma4` | Gemma 4 | characters, else bytes | a list |
//!
//! What a GGUF does not say is not done: Qwen 2's NFC is left to the caller, and white space
//! behind a special token stays (Phi-3's own tokenizer drops it).

mod bpe;
mod bytes;
mod encode;
mod from_gguf;
mod hash;
mod parts;
mod pretokenize;
mod sentence_piece;
mod specials;
pub(crate) mod stored;
mod symbols;
mod table;
mod texts;
mod unicode;
mod unicode_tables;
mod vocabulary;

pub use self::bytes::Utf8Stream;
pub use self::pretokenize::PreTokenizer;
pub use self::stored::{StoredTensor, StoredVocabulary};
pub use self::vocabulary::TokenKind;

pub(crate) use self::from_gguf::vocab_size;

use self::bpe::Merges;
use self::encode::Encoder;
use self::parts::PartsError;
use self::specials::{Segment, Specials};
use self::symbols::Symbols;
use self::texts::Index;
use self::vocabulary::Vocabulary;

/// A vocabulary and its rules. Immutable and shared between sessions.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    vocabulary: Vocabulary,
    symbols: Symbols,
    merges: Merges,
    /// Normal tokens by their bytes, only where the rule takes whole pieces.
    whole_pieces: Option<Index>,
    specials: Specials,
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
        let mut ids = Vec::with_capacity(text.len() / 4 + 2);
        if add_special && self.add_bos {
            ids.extend(self.bos);
        }
        self.encode_into(text, false, &mut ids);
        if add_special && self.add_eos {
            ids.extend(self.eos);
        }
        ids
    }

    /// Encodes `text` as text: what looks like a control token is spelt out. For text from
    /// outside that must not be able to write control tokens. User-defined tokens are text.
    pub fn encode_plain(&self, text: &str) -> Vec<u32> {
        let mut ids = Vec::with_capacity(text.len() / 4);
        self.encode_into(text, true, &mut ids);
        ids
    }

    fn encode_into(&self, text: &str, plain: bool, ids: &mut Vec<u32>) {
        let mut encoder = Encoder::new(self, text.len());
        self.specials.cut(text, plain, &mut |segment| match segment {
            Segment::Text(text) => encoder.text(text, ids),
            Segment::Token(id) => ids.push(id),
        });
    }

    /// The text of `ids`, control tokens included; invalid UTF-8 becomes U+FFFD. Ids outside the
    /// vocabulary give nothing.
    ///
    /// Where the vocabulary puts a space before every text, one at the beginning is taken away:
    /// to continue a text, join the [`piece`](Self::piece)s in a [`Utf8Stream`] instead.
    pub fn decode(&self, ids: &[u32]) -> String {
        let mut bytes = Vec::with_capacity(ids.len() * 4);
        let pieces = self.vocabulary.pieces().view();
        ids.iter().for_each(|&id| bytes.extend_from_slice(pieces.get(id)));
        let prefixed = matches!(&self.symbols, Symbols::Characters { spaces, .. } if spaces.prefix);
        let text = bytes.strip_prefix(b" ").filter(|_| prefixed).unwrap_or(&bytes);
        String::from_utf8_lossy(text).into_owned()
    }

    /// The bytes of one token (possibly part of a character); empty outside the vocabulary.
    pub fn piece(&self, id: u32) -> &[u8] {
        self.vocabulary.piece(id)
    }

    /// Number of tokens.
    pub fn vocab_size(&self) -> usize {
        self.vocabulary.len()
    }

    /// The kind of a token; `None` outside the vocabulary.
    pub fn kind(&self, id: u32) -> Option<TokenKind> {
        self.vocabulary.kind(id)
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
        match self.symbols {
            Symbols::Bytes { pre, .. } => pre,
            Symbols::Characters { .. } => PreTokenizer::SentencePiece,
        }
    }
}

#[cfg(test)]
mod tests {
    use distill_gguf::Strings;

    use super::hash::Seed;
    use super::parts::{Lists, Scheme, Settings};
    use super::*;

    fn strings(texts: &[&str]) -> Strings {
        texts.iter().collect()
    }

    fn build(
        scheme: Scheme<'_>,
        tokens: &Strings,
        types: &[i32],
        settings: Settings,
    ) -> Result<Tokenizer, PartsError> {
        Lists { scheme, tokens, types }.tables(Seed::default())?.tokenizer(settings)
    }

    /// All 256 byte tokens, `he`, `ll`, `hell`, ` hell`, then special tokens.
    fn byte_level(pre: &str) -> Tokenizer {
        let mut tokens: Vec<String> = bytes::alphabet().iter().map(char::to_string).collect();
        tokens.extend(["he", "ll", "hell", "Ġhell", "<|im_end|>", "<|im", "Ġx"].map(String::from));
        let mut types = vec![1; tokens.len()];
        types[260] = 3;
        types[261] = 4;
        let merges = strings(&["h e", "l l", "he ll", "Ġ hell"]);
        let scheme = Scheme::ByteLevel { pre, merges: &merges };
        let settings = Settings { eos: Some(260), bos: Some(260), ..Settings::default() };
        build(scheme, &tokens.iter().collect(), &types, settings).unwrap()
    }

    /// Unknown, BOS, the 256 bytes from id 2, then characters and words with descending scores.
    fn sentence_piece(space_prefix: bool) -> Tokenizer {
        let mut tokens = ["<unk>", "<s>"].map(String::from).to_vec();
        tokens.extend((0..256).map(|byte| format!("<0x{byte:02X}>")));
        tokens.extend(["▁a", "ab", "▁", "a", "b", "\n\n", "▁▁"].map(String::from));
        let mut types = vec![1; tokens.len()];
        (types[0], types[1], types[263]) = (2, 3, 4);
        types[2..258].fill(6);
        let scores: Vec<f32> = (0..tokens.len()).map(|id| -(id as f32)).collect();
        let scheme = Scheme::Scores { scores: &scores, space_prefix };
        let settings = Settings { bos: Some(1), ..Settings::default() };
        build(scheme, &tokens.iter().collect(), &types, settings).unwrap()
    }

    #[test]
    fn merges_apply_in_rank_order_inside_pieces() {
        let t = byte_level("gpt-2");
        assert_eq!(t.encode("hello hell", false), [258, u32::from(b'o'), 259]);
        assert_eq!(t.decode(&t.encode("hello hell — 语\n", false)), "hello hell — 语\n");
    }

    #[test]
    fn special_tokens_in_text_match_longest_first_and_plain_text_cannot_write_control_tokens() {
        let t = byte_level("gpt-2");
        assert_eq!(t.encode("<|im_end|><|im", false), [260, 261]);
        // "<|im" is user-defined: ordinary text that is one token wherever it stands.
        assert_eq!(t.encode_plain("<|im_end|>")[0], 261);
        assert_eq!(t.encode_plain("<|im_end|>").len(), 1 + "_end|>".len());
        assert!(t.is_eog(260) && !t.is_eog(261));
    }

    #[test]
    fn bos_is_added_only_when_asked_and_wanted() {
        assert_eq!(byte_level("llama-bpe").encode("", true), [260]);
        assert_eq!(byte_level("llama-bpe").encode("", false), []);
        assert_eq!(byte_level("gpt-2").encode("", true), []);
        assert_eq!(sentence_piece(true).encode("", true), [1]);
    }

    #[test]
    fn llama_bpe_takes_a_whole_piece_that_is_a_token() {
        // No merge makes "Ġx", but the piece " x" is that token.
        let apart = [u32::from(b' '), u32::from(b'x')];
        assert_eq!(byte_level("llama-bpe").encode(" x", false), [262]);
        assert_eq!(byte_level("gpt-2").encode(" x", false), apart);
    }

    #[test]
    fn a_remembered_piece_has_the_ids_it_had_the_first_time() {
        for t in [byte_level("gpt-2"), byte_level("llama-bpe"), sentence_piece(true)] {
            let text = "hello ab é ";
            let long = text.repeat(1000);
            let once = t.encode(&text.repeat(3), false);
            let period = (once.len() - t.encode(&text.repeat(2), false).len()).max(1);
            let ids = t.encode(&long, false);
            // All but the ends repeats.
            let middle = &ids[period..ids.len() - period];
            assert!(middle.iter().zip(&middle[period..]).all(|(a, b)| a == b));
            assert_eq!(t.decode(&ids), long);
        }
    }

    #[test]
    fn scores_order_the_merges_and_bytes_stand_in_for_unknown_characters() {
        let t = sentence_piece(true);
        // "▁a" scores above "ab", so the second "b" stays alone.
        assert_eq!(t.encode("ab", false), [258, 262]);
        assert_eq!(t.encode("bab", false), [260, 262, 259]);
        assert_eq!(t.encode("é", false), [260, 2 + 0xC3, 2 + 0xA9]);
        assert_eq!(sentence_piece(false).encode("ab", false), [259]);
    }

    #[test]
    fn a_space_is_put_before_every_stretch_of_text_and_decoding_takes_the_first_away() {
        let t = sentence_piece(true);
        assert_eq!(t.encode("a<s>a\n\nb", false), [258, 1, 258, 263, 260, 262]);
        for text in ["ab é\n b", " a", "", "  ", "\n"] {
            assert_eq!(t.decode(&t.encode(text, false)), text);
            assert_eq!(
                sentence_piece(false).decode(&sentence_piece(false).encode(text, false)),
                text
            );
        }
        assert_eq!(t.piece(258), b" a");
        assert_eq!((t.kind(0), t.kind(2)), (Some(TokenKind::Unknown), Some(TokenKind::Byte)));
    }

    #[test]
    fn broken_parts_are_refused() {
        let (tokens, none) = (strings(&["a"]), strings(&[]));
        let error = |scheme, types: &[i32], eos| {
            build(scheme, &tokens, types, Settings { eos, ..Settings::default() }).unwrap_err()
        };
        let listed = |pre| Scheme::ByteLevel { pre, merges: &none };
        assert_eq!(error(listed("bert"), &[], None), PartsError::Pre("bert".into()));
        assert_eq!(error(listed("gpt-2"), &[1, 1], None), PartsError::TypeCount(2));
        assert_eq!(error(listed("gpt-2"), &[], Some(1)), PartsError::Id { what: "eos", id: 1 });
        let byte = PartsError::Byte { index: 0, text: "a".into() };
        assert_eq!(error(listed("gpt-2"), &[6], None), byte);
        let merges = strings(&["a b"]);
        let bad = PartsError::Merge { index: 0, text: "a b".into() };
        let scheme = Scheme::ByteLevel { pre: "gpt-2", merges: &merges };
        assert_eq!(error(scheme, &[], None), bad);
        let scheme = Scheme::Merges { merges: &merges, space_prefix: false };
        assert_eq!(error(scheme, &[], None), bad);
        let scheme = Scheme::Scores { scores: &[], space_prefix: false };
        assert_eq!(error(scheme, &[], None), PartsError::ScoreCount(0));
    }

    #[test]
    fn ids_outside_the_vocabulary_decode_to_nothing() {
        assert_eq!(byte_level("gpt-2").decode(&[u32::MAX, 256]), "he");
    }
}
