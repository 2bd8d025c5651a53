//! Long texts in pieces: the library keeps about a hundred bytes a token while it encodes, and
//! one text is encoded by one thread.
//!
//! A text is cut behind a line feed that stands between a visible character and an ASCII letter.
//! For the byte-level families that is a border of words whatever stands around it: their words
//! begin a letter run at the letter, or at one character before it that is no line feed; and
//! white space of which the line feed is the last and the only character is one word on its own
//! or ends the word of the punctuation before it. So the ids of the pieces, one behind the
//! other, are the ids of the text. Other tokenizers encode texts whole.

use tokenizers::Tokenizer;

use super::byte_level;

/// Pieces are at least so long, in bytes.
const PIECE_BYTES: usize = 1 << 18;

/// `text` in pieces that are encoded apart.
pub(super) fn pieces(text: &str) -> impl Iterator<Item = &str> {
    pieces_of(text, PIECE_BYTES)
}

fn pieces_of(text: &str, at_least: usize) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let (piece, behind) = rest.split_at(border(rest, at_least));
        rest = behind;
        Some(piece)
    })
}

/// The first border of words from `at_least` on, or the end.
fn border(text: &str, at_least: usize) -> usize {
    let bytes = text.as_bytes();
    // Bytes 0x80 and above are parts of longer characters, some of which are white space.
    let borders = |at: &usize| {
        bytes[*at - 1] == b'\n'
            && bytes[*at - 2].is_ascii_graphic()
            && bytes[*at].is_ascii_alphabetic()
    };
    (at_least.max(2)..bytes.len()).find(borders).unwrap_or(bytes.len())
}

/// Whether a tokenizer splits words as one of the families does, and matches no token that
/// reaches across a line feed.
pub(super) fn can_cut(tokenizer: &Tokenizer) -> bool {
    let Some(pre_tokenizer) = tokenizer.get_pre_tokenizer() else { return false };
    // Whatever cannot be serialised is not one of the families.
    let known = serde_json::to_value(pre_tokenizer).is_ok_and(|json| byte_level::is_known(&json));
    known
        && !tokenizer
            .get_added_tokens_decoder()
            .values()
            .any(|token| token.content.contains('\n') || token.lstrip || token.rstrip)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{SpecialTokens, TextTokenizer};
    use proptest::prelude::*;

    #[test]
    fn a_text_is_cut_between_a_line_and_a_letter_alone() {
        let cut = |text| pieces_of(text, 2).collect::<Vec<_>>();
        assert_eq!(
            cut("one\ntwo\n\nthree \nfour\n4\n é\nfive"),
            ["one\n", "two\n\nthree \nfour\n4\n é\nfive"]
        );
        assert_eq!(cut("a.\nb"), ["a.\n", "b"]);
        assert_eq!(cut(""), [""; 0]);
    }

    proptest! {
        #[test]
        fn pieces_make_the_whole(text in "[a.\\n é]{0,60}", at_least in 0_usize..9) {
            let pieces: Vec<&str> = pieces_of(&text, at_least).collect();
            prop_assert_eq!(pieces.concat(), text.as_str());
            prop_assert!(pieces.iter().all(|piece| !piece.is_empty()));
        }
    }

    proptest! {
        #[test]
        fn pieces_have_the_ids_of_the_whole(
            text in "([a-c]{1,3}|[ \\t]{1,2}|\\r?\\n|[.!']|12|é|\u{a0}|\u{301}|<e>){0,40}",
        ) {
            for name in ["gpt-2", "smollm", "llama-bpe", "qwen2"] {
                let tokenizer = byte_level::example(name);
                let whole = tokenizer.encode_fast(text.as_str(), false).unwrap();
                let mut parts = Vec::new();
                for piece in pieces_of(&text, 2) {
                    parts.extend_from_slice(tokenizer.encode_fast(piece, false).unwrap().get_ids());
                }
                prop_assert_eq!(&parts, whole.get_ids(), "{}", name);
            }
        }
    }

    #[test]
    fn a_long_text_has_the_same_ids_alone_and_in_a_batch() {
        let line = "It's the 1st of 2 lines,\nthen more.\n\nAnd   on\n";
        let long = line.repeat(3 * PIECE_BYTES / line.len());
        let special = SpecialTokens { bos: Some("<s>".into()), ..SpecialTokens::default() };
        let texts = [line.to_owned()].into_iter().map(Ok);
        let tokenizer = TextTokenizer::train(texts, 280, &special).unwrap();
        let texts = ["a".to_owned(), long.clone(), String::new()];
        for special in [false, true] {
            let batch = tokenizer.encode_batch(&texts, special).unwrap();
            for (ids, text) in batch.iter().zip(&texts) {
                assert_eq!(*ids, tokenizer.encode(text, special).unwrap());
            }
        }
        assert!(pieces(&long).count() > 2);
    }
}
