//! A saved session goes on as if it had never stopped, and no other file passes for one.

mod tiny_model;

use std::path::Path;

use distill_edge::{EdgeError, KvType, LoadOptions, Model, Session, SessionOptions};
use distill_gguf::GgmlType;
use tiny_model::{SHAPE, Shape, TinyModel, tokens};

fn session(tiny: &TinyModel, context: usize, kv: KvType, threads: usize) -> Session {
    let model = Model::load(&tiny.path, &LoadOptions::default()).unwrap();
    Session::new(&model, SessionOptions { context, kv, threads }).unwrap()
}

fn message(result: Result<(), EdgeError>, directory: &Path) -> String {
    let error = result.expect_err("refused").to_string();
    error.replace(&directory.display().to_string(), "<dir>")
}

#[test]
fn a_restored_session_goes_on_with_the_same_bits() {
    let tiny = TinyModel::new(SHAPE, GgmlType::Q4_0, GgmlType::Q8_0);
    let path = tiny.directory.path().join("prompt.state");
    for kv in [KvType::F16, KvType::F32, KvType::Q8_0] {
        let ids = tokens(90);
        let mut first = session(&tiny, 90, kv, 2);
        first.prefill(&ids[..37]).unwrap();
        first.save(&path).unwrap();
        let want = first.prefill(&ids[37..]).unwrap().to_vec();

        // With another context and other threads, and something else in it before.
        let mut second = session(&tiny, 128, kv, 3);
        second.prefill(&ids[50..80]).unwrap();
        second.restore(&path).unwrap();
        assert_eq!(second.tokens(), &ids[..37]);
        assert_eq!(second.prefill(&ids[37..]).unwrap(), want);
        assert_eq!(second.tokens(), ids);
    }
}

#[test]
fn a_state_that_does_not_fit_is_refused_and_leaves_the_session_empty() {
    let tiny = TinyModel::new(SHAPE, GgmlType::Q4_0, GgmlType::Q8_0);
    let other = TinyModel::new(Shape { layers: 1, ..SHAPE }, GgmlType::Q4_0, GgmlType::Q8_0);
    let directory = tiny.directory.path();
    let path = directory.join("prompt.state");
    let mut first = session(&tiny, 40, KvType::F16, 1);
    first.prefill(&tokens(20)).unwrap();
    first.save(&path).unwrap();

    insta::assert_snapshot!(message(session(&tiny, 40, KvType::F32, 1).restore(&path), directory), @"<dir>/prompt.state: the type of keys and values is f16; expected f32. Compute the prompt again and save it anew");
    let error = message(session(&tiny, 40, KvType::Q8_0, 1).restore(&path), directory);
    assert!(error.contains("the type of keys and values is f16; expected q8_0"), "{error}");
    insta::assert_snapshot!(message(session(&tiny, 19, KvType::F16, 1).restore(&path), directory), @"<dir>/prompt.state: the number of tokens is 20; expected at most 19, the session's context. Compute the prompt again and save it anew");
    let error = message(session(&other, 40, KvType::F16, 1).restore(&path), directory);
    assert!(error.contains("the model's hash is"), "{error}");
    let nowhere = directory.join("nowhere.state");
    insta::assert_snapshot!(message(session(&tiny, 40, KvType::F16, 1).restore(&nowhere), directory), @"cannot read <dir>/nowhere.state: No such file or directory (os error 2)");

    let whole = std::fs::read(&path).unwrap();
    let mut session = session(&tiny, 40, KvType::F16, 1);
    for cut in (0..whole.len()).step_by(97).chain([whole.len() - 1]) {
        std::fs::write(&path, &whole[..cut]).unwrap();
        session.prefill(&[1, 2]).unwrap();
        let error = message(session.restore(&path), directory);
        assert!(error.contains("prompt.state"), "{cut}: {error}");
        assert_eq!(session.position(), 0);
    }
    let mut absurd = whole.clone();
    absurd[16..20].copy_from_slice(&3_u32.to_le_bytes());
    std::fs::write(&path, &absurd).unwrap();
    let error = message(session.restore(&path), directory);
    assert!(error.contains("the type of keys and values is 3; expected f16"), "{error}");
    absurd.clone_from(&whole);
    absurd[20..24].copy_from_slice(&u32::MAX.to_le_bytes());
    std::fs::write(&path, &absurd).unwrap();
    insta::assert_snapshot!(message(session.restore(&path), directory), @"<dir>/prompt.state: the number of tokens is 4294967295; expected at most 40, the session's context. Compute the prompt again and save it anew");
    absurd.clone_from(&whole);
    absurd[24..28].copy_from_slice(&1_000_000_u32.to_le_bytes());
    std::fs::write(&path, &absurd).unwrap();
    insta::assert_snapshot!(message(session.restore(&path), directory), @"<dir>/prompt.state: a token id is 1000000; expected an id below 261. Compute the prompt again and save it anew");
}
