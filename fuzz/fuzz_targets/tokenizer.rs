//! A vocabulary of any kind, its rules, and a text.
#![no_main]

use arbitrary::{Arbitrary, Result, Unstructured};
use distill_edge::Tokenizer;
use distill_fuzz::container::{Container, Value, store_vocabulary};
use distill_fuzz::limits::{LOAD_CONSTANT, LOAD_FACTOR, assert_within};
use distill_fuzz::meter::{peak, without_leaks};
use distill_fuzz::run;
use distill_gguf::GgufFile;
use libfuzzer_sys::fuzz_target;

/// What tokens and texts are made of: characters of all lengths, the marks of both spellings, the
/// characters that pre-tokenizers look for, bytes and special tokens.
const WORDS: [&str; 32] = [
    "a",
    "b",
    "ab",
    "A",
    "é",
    "語",
    "\u{1F600}",
    "\u{301}",
    " ",
    "  ",
    "\n",
    "\r\n",
    "\t",
    "\u{A0}",
    "▁",
    "▁▁",
    "Ġ",
    "Ċ",
    "ł",
    "1",
    "23",
    "½",
    "'s",
    "'LL",
    "'ſ",
    ".",
    "<0x41>",
    "<0xC3>",
    "<|end|>",
    "<|im_end|>",
    "[PAD3]",
    "",
];

#[derive(Debug)]
struct Input {
    lists: Vec<u8>,
    /// The same vocabulary in tables, and whether they were damaged then.
    tables: Vec<u8>,
    damaged: bool,
    text: String,
}

impl<'a> Arbitrary<'a> for Input {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        let text = words(u, 40)?;
        let mut container = vocabulary(u)?;
        let lists = container.bytes();
        store_vocabulary(&mut container);
        let damaged = !container.tensors.is_empty() && u.ratio(2, 3)?;
        if damaged {
            for _ in 0..u.int_in_range(1..=8)? {
                damage(&mut container, u)?;
            }
        }
        Ok(Self { lists, tables: container.bytes(), damaged, text })
    }
}

fn words(u: &mut Unstructured<'_>, most: usize) -> Result<String> {
    let mut text = String::new();
    for _ in 0..u.int_in_range(0..=most)? {
        match u.int_in_range(0..=20_u8)? {
            0 => text.push(u.arbitrary()?),
            1 => text = text.repeat(2),
            _ => text.push_str(u.choose(&WORDS)?),
        }
        // Repeating doubles; this is enough for every path.
        if text.len() > 3000 {
            break;
        }
    }
    Ok(text)
}

fn vocabulary(u: &mut Unstructured<'_>) -> Result<Container> {
    let mut container = Container::default();
    let mut tokens = Vec::new();
    for _ in 0..u.int_in_range(0..=24)? {
        tokens.push(words(u, 3)?);
    }
    let count = tokens.len() + usize::from(u.ratio(1, 50)?);
    let mut types = Vec::new();
    let mut scores = Vec::new();
    for _ in 0..count {
        types.push(if u.ratio(3, 4)? { 1 } else { u.int_in_range(-1..=7)? });
        scores.push(match u.arbitrary()? {
            x if u.ratio(1, 100)? => f32::from_bits(x),
            x => -((x % 16) as f32),
        });
    }
    let mut merges = Vec::new();
    for _ in 0..u.int_in_range(0..=12)? {
        if tokens.is_empty() || u.ratio(1, 50)? {
            merges.push(words(u, 3)?);
        } else {
            let (left, right) = (u.choose(&tokens)?.clone(), u.choose(&tokens)?.clone());
            let whole = format!("{left}{right}");
            if !tokens.contains(&whole) && count == types.len() && types.len() == tokens.len() {
                tokens.push(whole);
                types.push(1);
                scores.push(-1.0);
            }
            merges.push(format!("{left} {right}"));
        }
    }
    let model = *u.choose(&["gpt2", "llama", "gemma4", "bert"])?;
    let pre = *u.choose(&["gpt-2", "smollm", "llama-bpe", "qwen2", "qwen35", "", "x"])?;
    container.set("tokenizer.ggml.model", Value::Text(model.into()));
    container.set("tokenizer.ggml.pre", Value::Text(pre.into()));
    container.set("tokenizer.ggml.tokens", Value::Texts(tokens));
    if u.ratio(7, 8)? {
        container.set("tokenizer.ggml.token_type", Value::I32s(types));
    }
    container.set("tokenizer.ggml.scores", Value::F32s(scores));
    container.set("tokenizer.ggml.merges", Value::Texts(merges));
    for key in ["unknown_token_id", "bos_token_id", "eos_token_id", "eot_token_id", "eom_token_id"]
    {
        if u.ratio(1, 4)? {
            let id = u32::from(u.arbitrary::<u8>()?) % (count as u32 + 2);
            container.set(&format!("tokenizer.ggml.{key}"), Value::U32(id));
        }
    }
    for key in ["add_bos_token", "add_eos_token", "add_space_prefix"] {
        if u.arbitrary()? {
            container.set(&format!("tokenizer.ggml.{key}"), Value::Bool(u.arbitrary()?));
        }
    }
    Ok(container)
}

/// Something in a table that the export did not write: mostly small numbers, which look like ids.
fn damage(container: &mut Container, u: &mut Unstructured<'_>) -> Result<()> {
    let table = u.choose_index(container.tensors.len())?;
    let bytes = &mut container.tensors[table].bytes;
    if u.ratio(1, 16)? {
        bytes.fill(u.arbitrary()?);
    } else if let Some(at) = bytes.len().checked_sub(4) {
        let at = u.int_in_range(0..=at)? & !3;
        let word = match u.arbitrary()? {
            x if u.ratio(1, 8)? => x,
            x => x % 40,
        };
        bytes[at..at + 4].copy_from_slice(&u32::to_le_bytes(word));
    } else {
        bytes[0] = u.arbitrary()?;
    }
    Ok(())
}

fuzz_target!(|input: Input| without_leaks(|| check(&input)));

fn check(input: &Input) {
    let listed = encoded(&input.lists, &input.text);
    let mapped = encoded(&input.tables, &input.text);
    if !input.damaged {
        assert_eq!(mapped, listed);
    }
}

/// What a text becomes, if the vocabulary can be.
fn encoded(file: &[u8], text: &str) -> Option<[Vec<u32>; 2]> {
    let bytes = file.to_vec();
    let (tokenizer, used) = peak(|| {
        let gguf = GgufFile::from_bytes(bytes, run::name()).expect("a valid container");
        Tokenizer::from_gguf(&gguf)
    });
    assert_within("a vocabulary", used, LOAD_FACTOR, file.len(), LOAD_CONSTANT);
    let tokenizer = tokenizer.map_err(|error| error.to_string()).ok()?;
    let ids = run::text(&tokenizer, text);
    for id in ids.into_iter().chain([u32::MAX]) {
        tokenizer.kind(id);
        tokenizer.is_eog(id);
    }
    Some([tokenizer.encode(text, true), tokenizer.encode_plain(text)])
}
