//! Chat templates render as `transformers` renders them (`fixtures/generate.py`).

use std::path::PathBuf;

use distill_data::{DataError, Message, render_chat, render_chat_at};
use serde_json::Value;

fn fixture() -> Value {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/chat.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn line_and_reason(template: &str) -> (usize, String) {
    match render_chat(template, &[Message::new("user", "Hi")], "", "", false) {
        Err(DataError::ChatTemplate { line, reason }) => (line, reason),
        other => panic!("expected a template error, found {other:?}"),
    }
}

#[test]
fn templates_render_as_transformers_renders_them() {
    let fixture = fixture();
    let cases = fixture["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 12);
    for case in cases {
        let name = case["template"].as_str().unwrap();
        let messages: Vec<Message> = serde_json::from_value(case["messages"].clone()).unwrap();
        let rendered = render_chat_at(
            fixture["templates"][name].as_str().unwrap(),
            &messages,
            "<|bos|>",
            "<|eos|>",
            case["add_generation_prompt"].as_bool().unwrap(),
            fixture["now"].as_u64().unwrap(),
        )
        .unwrap();
        assert_eq!(rendered, case["rendered"].as_str().unwrap(), "{name}");
    }
}

#[test]
fn an_exception_of_the_template_is_an_error_with_its_line() {
    let (line, reason) = line_and_reason("a\n{{ raise_exception('roles must alternate') }}");
    assert_eq!((line, reason.as_str()), (2, "roles must alternate"));
}

#[test]
fn a_template_that_does_not_parse_is_an_error_with_its_line() {
    let (line, reason) = line_and_reason("a\n\n{% for x in %}");
    assert_eq!(line, 3, "{reason}");
}

#[test]
fn unknown_methods_and_wrong_arguments_are_errors() {
    for template in [
        "{{ 'a'.nonsense() }}",
        "{{ [1].append(2) }}",
        "{{ 'a'.split('') }}",
        "{{ 'a'.strip(1, 2) }}",
        "{{ 'a'.upper(1) }}",
        "{{ strftime_now('%Q') }}",
        "{{ [1].index(2) }}",
    ] {
        assert_eq!(line_and_reason(template).0, 1, "{template}");
    }
}

#[test]
fn a_template_that_never_ends_is_stopped() {
    let endless =
        "{% for a in range(99999) %}{% for b in range(99999) %}{{ a }}{% endfor %}{% endfor %}";
    let (_, reason) = line_and_reason(endless);
    assert!(reason.contains("fuel"), "{reason}");
}
