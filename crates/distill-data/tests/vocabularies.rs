//! Tokenizers built from a GGUF's vocabulary give the ids of the model's own tokenizer, and keep
//! them when they are saved. The expected ids come from Hugging Face's `tokenizers` and from
//! llama.cpp (`fixtures/generate.py`).

use std::path::{Path, PathBuf};

use distill_data::{DataError, SpecialTokens, TextTokenizer};
use distill_gguf::{GgufFile, GgufWriter, Value as Gguf};
use serde_json::Value;

const FAMILIES: [&str; 4] = ["gpt-2", "smollm", "llama-bpe", "qwen2"];

fn fixture(name: &str) -> Value {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn family(name: &str) -> Value {
    fixture(&format!("vocabulary-{name}.json"))
}

fn strings(value: &Value) -> Vec<String> {
    value.as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// The metadata of a vocabulary fixture, as a list to change and write.
fn metadata(vocabulary: &Value) -> Vec<(String, Gguf)> {
    let types: Vec<i32> = ids(&vocabulary["token_type"]).into_iter().map(|id| id as i32).collect();
    let mut entries: Vec<(String, Gguf)> = vec![
        ("tokenizer.ggml.model".into(), "gpt2".into()),
        ("tokenizer.ggml.pre".into(), vocabulary["pre"].as_str().unwrap().into()),
        ("tokenizer.ggml.tokens".into(), strings(&vocabulary["tokens"]).into()),
        ("tokenizer.ggml.token_type".into(), types.into()),
        ("tokenizer.ggml.merges".into(), strings(&vocabulary["merges"]).into()),
    ];
    for name in ["bos_token_id", "eos_token_id", "padding_token_id", "unknown_token_id"] {
        if let Some(id) = vocabulary[name].as_u64() {
            entries.push((format!("tokenizer.ggml.{name}"), (id as u32).into()));
        }
    }
    if let Some(add) = vocabulary["add_bos_token"].as_bool() {
        entries.push(("tokenizer.ggml.add_bos_token".into(), add.into()));
    }
    if let Some(template) = vocabulary["chat_template"].as_str() {
        entries.push(("tokenizer.chat_template".into(), template.into()));
    }
    entries
}

fn build(directory: &Path, entries: Vec<(String, Gguf)>) -> Result<TextTokenizer, DataError> {
    let path = directory.join("vocabulary.gguf");
    let mut writer = GgufWriter::create(&path).unwrap();
    writer.set("general.architecture", "llama");
    for (key, value) in entries {
        writer.set(key, value);
    }
    writer.finish().unwrap();
    TextTokenizer::from_gguf(&GgufFile::open(&path).unwrap())
}

fn set(entries: &mut Vec<(String, Gguf)>, key: &str, value: impl Into<Gguf>) {
    entries.retain(|(existing, _)| existing != key);
    entries.push((key.to_owned(), value.into()));
}

#[test]
fn every_family_gives_the_ids_of_the_original_tokenizer() {
    let directory = tempfile::tempdir().unwrap();
    for name in FAMILIES {
        let vocabulary = family(name);
        let tokenizer = build(directory.path(), metadata(&vocabulary)).unwrap();
        assert_eq!(tokenizer.vocab_size(), vocabulary["tokens"].as_array().unwrap().len());
        let cases = vocabulary["cases"].as_array().unwrap();
        assert!(cases.len() > 40, "{name} has {} cases", cases.len());
        for case in cases {
            let text = case["text"].as_str().unwrap();
            let expected = ids(&case["ids"]);
            assert_eq!(tokenizer.encode(text, false).unwrap(), expected, "{name}: {text:?}");
            assert_eq!(tokenizer.decode(&expected), case["decoded"].as_str().unwrap(), "{name}");
        }
    }
}

#[test]
fn a_saved_tokenizer_reads_back_as_the_same_one() {
    let directory = tempfile::tempdir().unwrap();
    for name in FAMILIES {
        let vocabulary = family(name);
        let mut entries = metadata(&vocabulary);
        set(&mut entries, "tokenizer.ggml.add_bos_token", name == "qwen2");
        if name == "qwen2" {
            set(
                &mut entries,
                "tokenizer.ggml.bos_token_id",
                vocabulary["eos_token_id"].as_u64().unwrap() as u32,
            );
        }
        let built = build(directory.path(), entries).unwrap();
        built.save(directory.path()).unwrap();
        let read = TextTokenizer::from_directory(directory.path()).unwrap();
        assert_eq!(read.fingerprint(), built.fingerprint());
        assert_eq!(
            (read.bos(), read.eos(), read.pad(), read.unk(), read.adds_bos(), read.vocab_size()),
            (
                built.bos(),
                built.eos(),
                built.pad(),
                built.unk(),
                built.adds_bos(),
                built.vocab_size()
            ),
        );
        assert_eq!(built.adds_bos(), name == "qwen2");
        assert_eq!(read.chat_template(), built.chat_template());
        assert_eq!(read.chat_template(), vocabulary["chat_template"].as_str());
        built.check_same_vocabulary(&read).unwrap();
        for case in vocabulary["cases"].as_array().unwrap() {
            let text = case["text"].as_str().unwrap();
            for special in [false, true] {
                let expected = built.encode(text, special).unwrap();
                assert_eq!(read.encode(text, special).unwrap(), expected, "{name}: {text:?}");
            }
        }
    }
}

#[test]
fn the_beginning_token_is_added_where_the_family_or_the_file_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let llama = metadata(&family("llama-bpe"));
    let tokenizer = build(directory.path(), llama.clone()).unwrap();
    let bos = tokenizer.bos().unwrap();
    assert!(tokenizer.adds_bos());
    assert_eq!(tokenizer.encode("", true).unwrap(), [bos]);
    assert_eq!(tokenizer.encode("a", true).unwrap()[0], bos);
    assert_ne!(tokenizer.encode("a", false).unwrap()[0], bos);

    let mut without = llama.clone();
    set(&mut without, "tokenizer.ggml.add_bos_token", false);
    assert!(!build(directory.path(), without).unwrap().adds_bos());

    let mut both = llama;
    set(&mut both, "tokenizer.ggml.add_eos_token", true);
    let tokenizer = build(directory.path(), both).unwrap();
    let eos = tokenizer.eos().unwrap();
    let a = tokenizer.id("a").unwrap();
    assert_eq!(tokenizer.encode("a", true).unwrap(), [bos, a, eos]);
}

#[test]
fn padding_of_the_vocabulary_is_no_part_of_it() {
    let directory = tempfile::tempdir().unwrap();
    let vocabulary = family("qwen2");
    let plain = build(directory.path(), metadata(&vocabulary)).unwrap();
    let mut tokens = strings(&vocabulary["tokens"]);
    let mut types: Vec<i32> = ids(&vocabulary["token_type"]).iter().map(|&id| id as i32).collect();
    for kind in [5, 4, 4] {
        // Those of older converters are called user-defined: their names tell them apart.
        tokens.push(format!("[PAD{}]", tokens.len()));
        types.push(kind);
    }
    let mut entries = metadata(&vocabulary);
    set(&mut entries, "tokenizer.ggml.tokens", tokens);
    set(&mut entries, "tokenizer.ggml.token_type", types);
    let padded = build(directory.path(), entries).unwrap();
    assert_eq!(padded.vocab_size(), plain.vocab_size());
    assert_eq!(padded.fingerprint(), plain.fingerprint());
    padded.check_same_vocabulary(&plain).unwrap();
    assert_eq!(padded.id("[PAD0]"), None);
}

#[test]
fn the_first_difference_of_two_vocabularies_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let vocabulary = family("gpt-2");
    let plain = build(directory.path(), metadata(&vocabulary)).unwrap();
    let tokens = strings(&vocabulary["tokens"]);

    let mut swapped = tokens.clone();
    swapped.swap(7, 9);
    let mut entries = metadata(&vocabulary);
    set(&mut entries, "tokenizer.ggml.tokens", swapped);
    let other = build(directory.path(), entries).unwrap();
    assert_ne!(plain.fingerprint(), other.fingerprint());
    let error = plain.check_same_vocabulary(&other).unwrap_err().to_string();
    let expected = format!("differ at id 7: {:?} here, {:?} there", tokens[7], tokens[9]);
    assert!(error.contains(&expected), "{error}");

    let mut merges = strings(&vocabulary["merges"]);
    let dropped = merges.pop().unwrap();
    let rank = merges.len();
    let mut entries = metadata(&vocabulary);
    set(&mut entries, "tokenizer.ggml.merges", merges);
    let other = build(directory.path(), entries).unwrap();
    assert_ne!(plain.fingerprint(), other.fingerprint());
    let error = plain.check_same_vocabulary(&other).unwrap_err().to_string();
    assert!(
        error.contains(&format!("at merge {rank}: {dropped:?} here, nothing there")),
        "{error}"
    );

    let mut longer = tokens.clone();
    longer.push("longer".into());
    let types = vec![1; longer.len()];
    let mut entries = metadata(&vocabulary);
    set(&mut entries, "tokenizer.ggml.tokens", longer);
    set(&mut entries, "tokenizer.ggml.token_type", types);
    let other = build(directory.path(), entries).unwrap();
    let error = plain.check_same_vocabulary(&other).unwrap_err().to_string();
    assert!(
        error.contains(&format!("id {}: nothing here, \"longer\" there", tokens.len())),
        "{error}"
    );
}

#[test]
fn vocabularies_that_contradict_themselves_are_refused_with_key_and_index() {
    let directory = tempfile::tempdir().unwrap();
    let vocabulary = family("smollm");
    let tokens = strings(&vocabulary["tokens"]);
    let merges = strings(&vocabulary["merges"]);
    let count = tokens.len();
    let with = |list: &[String], index: usize, text: &str| {
        let mut list = list.to_vec();
        list[index] = text.into();
        Gguf::from(list)
    };
    let cases: Vec<(&str, Gguf, String)> = vec![
        (
            "tokenizer.ggml.model",
            "llama".into(),
            "tokenizer.ggml.model = \"llama\" is not supported; expected one of \"gpt2\"".into(),
        ),
        (
            "tokenizer.ggml.pre",
            "tekken".into(),
            "tokenizer.ggml.pre = \"tekken\" is not supported; expected one of \"gpt-2\", \"smollm\", \"llama-bpe\", \"qwen2\"".into(),
        ),
        (
            "tokenizer.ggml.token_type",
            vec![1_i32; 3].into(),
            format!("tokenizer.ggml.token_type: 3 types for {count} tokens"),
        ),
        (
            "tokenizer.ggml.tokens",
            with(&tokens, 30, &tokens[20]),
            format!("tokenizer.ggml.tokens: tokens 20 and 30 are both {:?}", tokens[20]),
        ),
        (
            "tokenizer.ggml.merges",
            with(&merges, 2, "nospace"),
            "tokenizer.ggml.merges: merge 2 is \"nospace\", expected two tokens".into(),
        ),
        (
            "tokenizer.ggml.merges",
            with(&merges, 2, "a Zebra"),
            "tokenizer.ggml.merges: merge 2 needs \"Zebra\", which is no token".into(),
        ),
        (
            "tokenizer.ggml.eos_token_id",
            u32::MAX.into(),
            format!("tokenizer.ggml.eos_token_id: 4294967295 is not below {count} tokens"),
        ),
        ("tokenizer.ggml.eos_token_id", "two".into(), "tokenizer.ggml.eos_token_id".into()),
        ("tokenizer.ggml.tokens", vec![1_i32].into(), "tokenizer.ggml.tokens".into()),
    ];
    for (key, value, expected) in cases {
        let mut entries = metadata(&vocabulary);
        set(&mut entries, key, value);
        let error = build(directory.path(), entries).unwrap_err().to_string();
        assert!(error.contains("vocabulary.gguf") && error.contains(&expected), "{error}");
    }
    for key in ["tokenizer.ggml.tokens", "tokenizer.ggml.merges", "tokenizer.ggml.pre"] {
        let mut entries = metadata(&vocabulary);
        entries.retain(|(existing, _)| existing != key);
        let error = build(directory.path(), entries).unwrap_err().to_string();
        assert!(error.contains(key), "{error}");
    }
}

#[test]
fn training_gives_the_vocabulary_that_hugging_faces_trainer_gives() {
    let expected = fixture("trained.json");
    let special = SpecialTokens { pad: Some("<|pad|>".into()), ..SpecialTokens::default() };
    let texts = || strings(&expected["texts"]).into_iter().map(Ok);
    let tokenizer = TextTokenizer::train(texts(), 300, &special).unwrap();
    let tokens: Vec<String> = (0..300).map(|id| tokenizer.token(id).unwrap()).collect();
    assert_eq!(tokens, strings(&expected["tokens"]));
    assert_eq!((tokenizer.eos(), tokenizer.pad(), tokenizer.bos()), (Some(0), Some(1), None));
    let text = expected["text"].as_str().unwrap();
    assert_eq!(tokenizer.encode(text, true).unwrap(), ids(&expected["ids"]));
    assert_eq!(tokenizer.decode(&ids(&expected["ids"])), text);
    let again = TextTokenizer::train(texts(), 300, &special).unwrap();
    assert_eq!(again.fingerprint(), tokenizer.fingerprint());

    let directory = tempfile::tempdir().unwrap();
    tokenizer.save(directory.path()).unwrap();
    let read = TextTokenizer::from_directory(directory.path()).unwrap();
    assert_eq!(read.fingerprint(), tokenizer.fingerprint());
    assert_eq!((read.eos(), read.pad(), read.bos()), (Some(0), Some(1), None));
}

#[test]
fn a_trained_vocabulary_begins_texts_with_its_beginning_token() {
    let special = SpecialTokens { bos: Some("<s>".into()), ..SpecialTokens::default() };
    let texts = ["some text".to_owned()].into_iter().map(Ok);
    let tokenizer = TextTokenizer::train(texts, 260, &special).unwrap();
    assert!(tokenizer.adds_bos());
    assert_eq!(tokenizer.encode("", true).unwrap(), [tokenizer.bos().unwrap()]);
}

#[test]
fn training_needs_room_and_text() {
    let train = |texts: Vec<Result<String, DataError>>, size| {
        TextTokenizer::train(texts.into_iter(), size, &SpecialTokens::default()).unwrap_err()
    };
    let error = train(vec![Ok("text".into())], 256).to_string();
    assert!(error.contains("need at least 257"), "{error}");
    assert!(matches!(train(vec![], 300), DataError::NoTrainingText));
    let broken = vec![Ok("text".into()), Err(DataError::NoSources)];
    assert!(matches!(train(broken, 300), DataError::NoSources));
}

#[test]
fn directories_that_are_no_tokenizer_are_refused_with_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(directory.path().join(name), text).unwrap();
    let error = || TextTokenizer::from_directory(directory.path()).unwrap_err().to_string();
    assert!(error().contains("no tokenizer.json"), "{}", error());
    write("tokenizer.json", "{\"version\": \"1.0\"");
    assert!(error().contains("tokenizer.json: not a tokenizer"), "{}", error());
    build(directory.path(), metadata(&family("smollm"))).unwrap().save(directory.path()).unwrap();
    for (config, expected) in [
        ("[1]", "tokenizer_config.json: expected a JSON object"),
        ("{\"eos_token\": 3}", "eos_token: expected a string"),
        (
            "{\"eos_token\": \"</none>\"}",
            "eos_token is \"</none>\", which is not in the vocabulary",
        ),
        ("{\"chat_template\": 3}", "chat_template: expected a string or a list"),
    ] {
        write("tokenizer_config.json", config);
        assert!(error().contains(expected), "{}", error());
    }
}

#[test]
fn special_tokens_are_found_in_every_file_that_may_name_them() {
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(directory.path().join(name), text).unwrap();
    let built = build(directory.path(), metadata(&family("smollm"))).unwrap();
    built.save(directory.path()).unwrap();
    write(
        "tokenizer_config.json",
        r#"{"bos_token": {"content": "<|im_start|>"}, "eos_token": null}"#,
    );
    write("special_tokens_map.json", r#"{"pad_token": "<|im_end|>"}"#);
    write(
        "config.json",
        r#"{"eos_token_id": [2, 0], "bos_token_id": 0, "unk_token_id": 4000000000}"#,
    );
    write("chat_template.jinja", "{{ bos_token }}");
    let read = TextTokenizer::from_directory(directory.path()).unwrap();
    let id = |token: &str| built.id(token);
    assert_eq!(read.bos(), id("<|im_start|>"));
    assert_eq!(read.pad(), id("<|im_end|>"));
    assert_eq!(read.eos(), Some(2));
    assert_eq!(read.unk(), None);
    assert_eq!(read.chat_template(), Some("{{ bos_token }}"));
}
