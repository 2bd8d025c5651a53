//! The character classes the pre-tokenizers cut at: `\p{L}`, `\p{N}`, `\p{M}` and `\s` of Unicode 16.

use super::unicode_tables::{LETTERS, MARKS, NUMBERS, WHITE_SPACE};

/// `\p{L}`: a letter of any script.
pub(super) fn is_letter(c: char) -> bool {
    if c.is_ascii() { c.is_ascii_alphabetic() } else { contains(LETTERS, c) }
}

/// `\p{N}`: a decimal digit, a letter-like number or another number of any script.
pub(super) fn is_number(c: char) -> bool {
    if c.is_ascii() { c.is_ascii_digit() } else { contains(NUMBERS, c) }
}

/// `\p{M}`: a combining mark of any script.
pub(super) fn is_mark(c: char) -> bool {
    !c.is_ascii() && contains(MARKS, c)
}

/// `\s`: the White_Space property.
pub(super) fn is_white_space(c: char) -> bool {
    if c.is_ascii() { matches!(c, '\t'..='\r' | ' ') } else { contains(WHITE_SPACE, c) }
}

fn contains(ranges: &[(u32, u32)], c: char) -> bool {
    let c = c as u32;
    let after = ranges.partition_point(|&(first, _)| first <= c);
    after > 0 && c <= ranges[after - 1].1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_sorted_and_apart() {
        for table in [LETTERS, NUMBERS, MARKS, WHITE_SPACE] {
            assert!(table.iter().all(|&(a, b)| a <= b));
            assert!(table.windows(2).all(|w| w[0].1 + 1 < w[1].0));
        }
    }

    #[test]
    fn white_space_agrees_with_the_standard_library() {
        for c in '\0'..=char::MAX {
            assert_eq!(is_white_space(c), c.is_whitespace(), "{:x}", c as u32);
        }
    }

    #[test]
    fn ascii_shortcuts_agree_with_the_tables() {
        for c in '\0'..='\x7f' {
            assert_eq!(is_letter(c), contains(LETTERS, c));
            assert_eq!(is_number(c), contains(NUMBERS, c));
            assert_eq!(is_mark(c), contains(MARKS, c));
        }
    }

    #[test]
    fn marks_are_neither_letters_nor_numbers() {
        assert!(is_letter('é') && is_letter('ß') && is_letter('语') && is_letter('ª'));
        assert!(is_number('²') && is_number('Ⅷ') && is_number('٣') && is_number('½'));
        // A combining acute accent and a Devanagari vowel sign are category M.
        assert!(!is_letter('\u{301}') && !is_letter('\u{93f}') && !is_number('\u{301}'));
        assert!(is_mark('\u{301}') && is_mark('\u{93f}') && is_mark('\u{20dd}') && !is_mark('a'));
    }
}
