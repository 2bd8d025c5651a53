//! The pre-tokenizers, by hand: each cuts text into the pieces inside which BPE merges.
//!
//! A piece is described by an ordered alternation; the first alternative that matches at the
//! current place wins, as in a regular expression. With L = `\p{L}`, N = `\p{N}`:
//!
//! | name | alternatives |
//! |---|---|
//! | `gpt-2` | `'s\|'t\|'re\|'ve\|'m\|'ll\|'d`, ` ?L+`, ` ?N+`, ` ?[^\s L N]+`, `\s+(?!\S)`, `\s+` |
//! | `smollm` | every N alone; what lies between as `gpt-2` |
//! | `llama-bpe` | contractions in either case, `[^\r\n L N]?L+`, `N{1,3}`, ` ?[^\s L N]+[\r\n]*`, `\s*[\r\n]+`, `\s+(?!\S)`, `\s+` |
//! | `qwen2` | as `llama-bpe` with `N` instead of `N{1,3}` |
//! | `qwen35` | as `qwen2` with marks among the letters: `[L M]` where those have L, but `[^\r\n L N]?` |

use super::unicode::{is_letter, is_mark, is_number, is_white_space};

/// The rule that cuts text into pieces before BPE; the GGUF key `tokenizer.ggml.pre` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PreTokenizer {
    /// `gpt-2`.
    Gpt2,
    /// `smollm`: digits apart, then `gpt-2`.
    SmolLm,
    /// `llama-bpe`: Llama 3.
    LlamaBpe,
    /// `qwen2`: Qwen 2 and 3.
    Qwen2,
    /// `qwen35`: Qwen 3.5, where combining marks are parts of words.
    Qwen35,
    /// No rule: the vocabularies of SentencePiece, whose tokens bring their spaces with them.
    SentencePiece,
}

impl PreTokenizer {
    /// The names [`PreTokenizer::from_name`] accepts.
    pub const NAMES: &'static str = "gpt-2, smollm, llama-bpe, qwen2, qwen35";

    /// The rule of a `tokenizer.ggml.pre` value.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "gpt-2" => Some(Self::Gpt2),
            "smollm" => Some(Self::SmolLm),
            "llama-bpe" | "llama3" | "llama-v3" => Some(Self::LlamaBpe),
            "qwen2" => Some(Self::Qwen2),
            "qwen35" => Some(Self::Qwen35),
            _ => None,
        }
    }

    /// Whether a piece that is itself a token is taken whole, without merging (as Llama 3 does).
    pub(super) fn ignores_merges(self) -> bool {
        self == Self::LlamaBpe
    }

    /// Calls `emit` with each piece of `text` in order; the pieces concatenate to `text`.
    pub fn split<'t>(self, text: &'t str, emit: &mut impl FnMut(&'t str)) {
        match self {
            Self::Gpt2 => split_by(gpt2_piece, text, emit),
            Self::SmolLm => {
                let mut rest = text;
                while let Some((at, digit)) = rest.char_indices().find(|&(_, c)| is_number(c)) {
                    let (before, from_digit) = rest.split_at(at);
                    let (digit, after) = from_digit.split_at(digit.len_utf8());
                    split_by(gpt2_piece, before, emit);
                    emit(digit);
                    rest = after;
                }
                split_by(gpt2_piece, rest, emit);
            }
            Self::LlamaBpe => split_by(|rest| llama_piece(rest, 3, is_letter), text, emit),
            Self::Qwen2 => split_by(|rest| llama_piece(rest, 1, is_letter), text, emit),
            Self::Qwen35 => split_by(|rest| llama_piece(rest, 1, is_letter_or_mark), text, emit),
            Self::SentencePiece => {
                if !text.is_empty() {
                    emit(text);
                }
            }
        }
    }
}

/// Cuts `text` piece by piece; `piece_len` gives the bytes of the piece that starts the rest.
fn split_by<'t>(
    piece_len: impl Fn(&str) -> usize,
    mut text: &'t str,
    emit: &mut impl FnMut(&'t str),
) {
    while !text.is_empty() {
        let (piece, rest) = text.split_at(piece_len(text));
        emit(piece);
        text = rest;
    }
}

/// `[L M]`: what a word is made of where combining marks belong to it.
fn is_letter_or_mark(c: char) -> bool {
    is_letter(c) || is_mark(c)
}

/// What is neither white space, letter nor number: `[^\s L N]`.
fn is_other(c: char) -> bool {
    !is_white_space(c) && !is_letter(c) && !is_number(c)
}

/// Bytes of the longest prefix of `text` whose characters all satisfy `class`.
fn run(text: &str, class: impl Fn(char) -> bool) -> usize {
    text.find(|c| !class(c)).unwrap_or(text.len())
}

/// The first piece of `rest` by `gpt-2`; `rest` is not empty.
fn gpt2_piece(rest: &str) -> usize {
    const CONTRACTIONS: [&str; 7] = ["'s", "'t", "'re", "'ve", "'m", "'ll", "'d"];
    if let Some(found) = CONTRACTIONS.iter().find(|c| rest.starts_with(**c)) {
        return found.len();
    }
    let space = usize::from(rest.starts_with(' '));
    let word = &rest[space..];
    for class in [is_letter, is_number, is_other] {
        let length = run(word, class);
        if length > 0 {
            return space + length;
        }
    }
    white_space_piece(rest)
}

/// The first piece of `rest` by `llama-bpe`; `rest` is not empty; at most `digits` numbers a piece,
/// and words are made of `in_word`.
fn llama_piece(rest: &str, digits: usize, in_word: fn(char) -> bool) -> usize {
    if let Some(length) = contraction_any_case(rest) {
        return length;
    }
    let Some(first) = rest.chars().next() else { return 0 };
    let after_first = &rest[first.len_utf8()..];
    // A word that begins with a mark is the same word if `[^\r\n L N]?` takes that mark.
    if in_word(first) {
        return run(rest, in_word);
    }
    if is_number(first) {
        return rest.chars().take(digits).take_while(|&c| is_number(c)).map(char::len_utf8).sum();
    }
    if !matches!(first, '\r' | '\n') {
        let letters = run(after_first, in_word);
        if letters > 0 {
            return first.len_utf8() + letters;
        }
    }
    let space = usize::from(first == ' ');
    let others = run(&rest[space..], |c| is_other(c) && !in_word(c));
    if others > 0 {
        let end = space + others;
        return end + run(&rest[end..], |c| matches!(c, '\r' | '\n'));
    }
    let white = &rest[..run(rest, is_white_space)];
    match white.rfind(['\r', '\n']) {
        Some(newline) => newline + 1,
        None => white_space_piece(rest),
    }
}

/// `(?i:'s|'t|'re|'ve|'m|'ll|'d)`: the long s (U+017F) folds to `s`, as regular expressions do.
fn contraction_any_case(rest: &str) -> Option<usize> {
    let after = rest.strip_prefix('\'')?;
    let mut chars = after.chars();
    let first = chars.next()?;
    match first.to_ascii_lowercase() {
        's' | 't' | 'm' | 'd' | 'ſ' => Some(1 + first.len_utf8()),
        'r' | 'v' => matches!(chars.next()?, 'e' | 'E').then_some(3),
        'l' => matches!(chars.next()?, 'l' | 'L').then_some(3),
        _ => None,
    }
}

/// `\s+(?!\S)|\s+`: white space, leaving its last character to the word that follows.
fn white_space_piece(rest: &str) -> usize {
    let white = run(rest, is_white_space);
    if white == rest.len() {
        return white;
    }
    let last = rest[..white].chars().next_back().map_or(0, char::len_utf8);
    if white > last { white - last } else { white }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(rule: PreTokenizer, text: &str) -> Vec<&str> {
        let mut out = Vec::new();
        rule.split(text, &mut |piece| out.push(piece));
        assert_eq!(out.concat(), text);
        assert!(out.iter().all(|p| !p.is_empty()));
        out
    }

    #[test]
    fn gpt2_keeps_the_space_with_the_word_and_cuts_contractions() {
        assert_eq!(
            pieces(PreTokenizer::Gpt2, "I've  got 123 apples!\n\n you're"),
            ["I", "'ve", " ", " got", " 123", " apples", "!", "\n\n", " you", "'re"]
        );
        assert_eq!(pieces(PreTokenizer::Gpt2, "a \n"), ["a", " \n"]);
        assert_eq!(pieces(PreTokenizer::Gpt2, "I'VE"), ["I", "'", "VE"]);
    }

    #[test]
    fn smollm_puts_every_digit_alone() {
        assert_eq!(pieces(PreTokenizer::SmolLm, "in 1984²"), ["in", " ", "1", "9", "8", "4", "²"]);
    }

    #[test]
    fn llama_bpe_groups_three_digits_and_gives_one_sign_to_a_word() {
        assert_eq!(
            pieces(PreTokenizer::LlamaBpe, "It'S $12345 (ok)\r\n\n  x\n"),
            ["It", "'S", " $", "123", "45", " (", "ok", ")\r\n\n", " ", " x", "\n"]
        );
        assert_eq!(pieces(PreTokenizer::LlamaBpe, " \n \n a"), [" \n \n", " a"]);
        assert_eq!(pieces(PreTokenizer::LlamaBpe, "'ſo"), ["'ſ", "o"]);
    }

    #[test]
    fn qwen2_puts_every_digit_alone() {
        assert_eq!(pieces(PreTokenizer::Qwen2, "a 12"), ["a", " ", "1", "2"]);
    }

    #[test]
    fn qwen35_keeps_marks_with_their_letters() {
        let text = "e\u{301}t \u{301}\u{301}a !\u{301} 1\u{301}";
        assert_eq!(
            pieces(PreTokenizer::Qwen35, text),
            ["e\u{301}t", " \u{301}\u{301}a", " !", "\u{301}", " ", "1", "\u{301}"]
        );
        let qwen2 = ["e", "\u{301}t", " \u{301}\u{301}", "a", " !\u{301}", " ", "1", "\u{301}"];
        assert_eq!(pieces(PreTokenizer::Qwen2, text), qwen2);
    }

    proptest::proptest! {
        #[test]
        fn pieces_concatenate_to_the_text(text in "\\PC{0,40}|[ \\r\\n\\ta'sS1²é!]{0,40}") {
            use PreTokenizer::{Gpt2, LlamaBpe, Qwen2, Qwen35, SentencePiece, SmolLm};
            for rule in [Gpt2, SmolLm, LlamaBpe, Qwen2, Qwen35, SentencePiece] {
                pieces(rule, &text);
            }
        }
    }
}
