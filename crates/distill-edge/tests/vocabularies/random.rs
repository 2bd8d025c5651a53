//! Random texts, the same in every run.

use std::cell::RefCell;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRng, TestRunner};

use super::Vocabulary;

/// Runs `check` on 400 texts, the same in every run.
pub fn for_texts(texts: impl Strategy<Value = String>, check: impl FnMut(&str)) {
    let config = Config { failure_persistence: None, ..Config::with_cases(400) };
    let rng = TestRng::deterministic_rng(config.rng_algorithm);
    let mut runner = TestRunner::new_with_rng(config, rng);
    let check = RefCell::new(check);
    runner
        .run(&texts, |text| {
            (check.borrow_mut())(&text);
            Ok(())
        })
        .unwrap();
}

/// Random Unicode: any characters, and mixtures in which neighbours matter.
pub fn unicode() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        any::<char>().prop_map(String::from),
        "\\PC{1,8}",
        "[a-zA-Z]{1,10}",
        "[ \\t\\r\\n\u{a0}\u{3000}\u{85}]{1,5}",
        "[0-9²Ⅷ٣½]{1,6}",
        "[!-/:-@\\[-`{-~]{1,6}",
        "'(s|S|t|RE|ve|M|lL|d|ſ)",
        "[\\p{M}é\u{200d}\u{feff}🙂👍🏽]{1,4}",
        "\\p{Han}{1,6}|\\p{Cyrillic}{1,8}|\\p{Devanagari}{1,6}|\\p{Thai}{1,8}|\\p{Hangul}{1,5}|\\p{Arabic}{1,6}",
        "(a|ab|=|-|\\n| |é|日){1,40}",
    ];
    proptest::collection::vec(part, 0..12).prop_map(|parts| parts.concat())
}

/// Text with special tokens, whole, cut short and touching each other.
pub fn with_special(vocabulary: &Vocabulary) -> impl Strategy<Value = String> + use<> {
    let tokens = vocabulary.file.metadata().strings("tokenizer.ggml.tokens").unwrap();
    let special: Vec<String> = (0..)
        .zip(tokens)
        .filter(|&(id, _)| {
            use distill_edge::TokenKind::{Control, Unknown, UserDefined};
            let kind = vocabulary.tokenizer.kind(id).unwrap();
            matches!(kind, Control | Unknown | UserDefined)
        })
        .map(|(_, token)| token.to_owned())
        .collect();
    let special = prop::sample::select(special);
    let cut = (special.clone(), 1_usize..6)
        .prop_map(|(token, at)| token.chars().take(at).collect::<String>());
    let part = prop_oneof![3 => special, 1 => cut, 2 => "[ a-z\\n.<>|é]{0,8}"];
    proptest::collection::vec(part, 0..8).prop_map(|parts| parts.concat())
}
