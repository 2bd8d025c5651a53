//! Writes texts that a model makes up, many at a time, as lines of JSON: `cargo run --release
//! -p distill-edge --example sample -- model.gguf --tokens 1000000 --begin "<|endoftext|>"
//! [--batch 32] [--context 512] [--temperature 1] [--top-p 1] [--seed 0] [--threads 0]
//! [--kv f16] [--end "<|endoftext|>"] [--out samples.jsonl]`.
//!
//! Several `--begin` are used in turn. The same arguments give the same lines for any `--batch` and
//! `--threads`: texts stand in the order of their numbers, and the seed of text n is `seed + n`.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::time::Instant;

use distill_edge::{
    BatchOptions, Generated, KvType, LoadOptions, Model, Request, SamplerOptions, Texts, Tokenizer,
};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or("which model?")?;
    let mut options = Vec::new();
    while let Some(name) = arguments.next() {
        let value = arguments.next().ok_or_else(|| format!("{name} needs a value"))?;
        options.push((name, value));
    }
    let all = |name: &str| options.iter().filter(|o| o.0 == name).map(|o| &o.1[..]).collect();
    let one = |name: &str, default: &'static str| {
        let all: Vec<&str> = all(name);
        all.last().copied().unwrap_or(default).to_owned()
    };
    let (batch, context) = (one("--batch", "32").parse()?, one("--context", "512").parse()?);
    let (wanted, seed): (usize, u64) =
        (one("--tokens", "100000").parse()?, one("--seed", "0").parse()?);
    let (temperature, top_p) = (one("--temperature", "1").parse()?, one("--top-p", "1").parse()?);
    let (threads, kv): (_, KvType) = (one("--threads", "0").parse()?, one("--kv", "f16").parse()?);

    let model = Model::load(path.as_ref(), &LoadOptions::default())?;
    let tokenizer = model.tokenizer();
    let encoded = |name: &str| {
        let texts: Vec<&str> = all(name);
        texts.into_iter().map(|text| tokenizer.encode(text, true)).collect::<Vec<_>>()
    };
    let (begin, end) = (encoded("--begin"), encoded("--end").concat());
    if begin.is_empty() {
        return Err("--begin is missing: what do texts begin with?".into());
    }
    let request = |index: u64| Request {
        prompt: begin[index as usize % begin.len()].clone(),
        max_new: context,
        end: end.clone(),
        sampler: SamplerOptions {
            temperature,
            top_p,
            seed: seed.wrapping_add(index),
            ..SamplerOptions::default()
        },
    };
    let mut out: Box<dyn Write> = match &one("--out", "")[..] {
        "" => Box::new(std::io::stdout()),
        path => Box::new(BufWriter::new(File::create(path)?)),
    };
    let options = BatchOptions { sequences: batch, context, kv, threads };
    let mut texts = Texts::new(&model, &options)?;
    let (start, mut steps, mut drawn) = (Instant::now(), 0, 0);
    let (mut begun, mut written, mut tokens) = (0, 0, 0);
    let mut waiting: BTreeMap<u64, Generated> = BTreeMap::new();
    while tokens < wanted {
        while texts.free() > 0 {
            texts.begin(begun, request(begun))?;
            begun += 1;
        }
        drawn += texts.live();
        for text in texts.step()? {
            waiting.insert(text.index, text);
        }
        while let Some(text) = waiting.remove(&written).filter(|_| tokens < wanted) {
            let prompt = &begin[written as usize % begin.len()];
            tokens += text.tokens.len();
            writeln!(out, "{}", line(tokenizer, prompt, &text))?;
            written += 1;
        }
        steps += 1;
        if steps % 100 == 0 {
            let speed = drawn as f64 / start.elapsed().as_secs_f64();
            eprint!("\r{tokens} of {wanted} tokens, {written} texts, {speed:.0} tokens/s  ");
        }
    }
    out.flush()?;
    let speed = drawn as f64 / start.elapsed().as_secs_f64();
    eprintln!("\r{tokens} tokens in {written} texts; {speed:.1} tokens/s, {batch} at a time  ");
    Ok(())
}

/// `{"index": 0, "log_prob": -1.5, "ids": […], "text": "…"}`: the mean logarithm of the
/// probabilities of the tokens, all tokens with those it began with, their text.
fn line(tokenizer: &Tokenizer, prompt: &[u32], text: &Generated) -> String {
    let ids: Vec<u32> = prompt.iter().chain(&text.tokens).copied().collect();
    let mean = text.log_prob / text.tokens.len().max(1) as f64;
    let mut line = format!("{{\"index\": {}, \"log_prob\": {mean:.4}, ", text.index);
    let _ = write!(line, "\"ids\": {ids:?}, \"text\": \"");
    for c in tokenizer.decode(&ids).chars() {
        let _ = match c {
            '"' | '\\' => write!(line, "\\{c}"),
            '\n' => write!(line, "\\n"),
            c if c < ' ' => write!(line, "\\u{:04x}", u32::from(c)),
            c => write!(line, "{c}"),
        };
    }
    line + "\"}"
}
