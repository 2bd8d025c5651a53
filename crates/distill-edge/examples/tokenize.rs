//! Times the tokenizer of a GGUF file: loading it, and encoding and decoding a text.
//!
//! ```sh
//! cargo run --release -p distill-edge --example tokenize -- model.gguf text.txt
//! ```

use std::error::Error;
use std::time::Instant;

use distill_edge::Tokenizer;
use distill_gguf::GgufFile;

/// Of so many runs the fastest counts.
const RUNS: usize = 5;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, text] = arguments.as_slice() else {
        return Err("expected a GGUF file and a text file".into());
    };
    let text = std::fs::read_to_string(text)?;
    let open = || -> Result<_, Box<dyn Error>> {
        let started = Instant::now();
        let file = GgufFile::open(model.as_ref())?;
        let read_ms = started.elapsed().as_secs_f64() * 1e3;
        let started = Instant::now();
        let tokenizer = Tokenizer::from_gguf(&file)?;
        Ok((tokenizer, read_ms, started.elapsed().as_secs_f64() * 1e3))
    };
    let (tokenizer, mut read_ms, mut build_ms) = open()?;
    for _ in 1..RUNS {
        let (_, read, build) = open()?;
        (read_ms, build_ms) = (read_ms.min(read), build_ms.min(build));
    }
    println!("{} tokens: read {read_ms:.1} ms, build {build_ms:.1} ms", tokenizer.vocab_size());

    let (mut encode_s, mut decode_s, mut count) = (f64::INFINITY, f64::INFINITY, 0);
    for _ in 0..RUNS {
        let started = Instant::now();
        let ids = tokenizer.encode(&text, false);
        encode_s = encode_s.min(started.elapsed().as_secs_f64());
        let started = Instant::now();
        let decoded = tokenizer.decode(&ids);
        decode_s = decode_s.min(started.elapsed().as_secs_f64());
        assert!(decoded == text, "decoding does not invert encoding");
        count = ids.len();
    }
    let megabytes = text.len() as f64 / 1e6;
    println!(
        "{megabytes:.1} MB, {count} ids: encode {:.1} MB/s, decode {:.0} MB/s",
        megabytes / encode_s,
        megabytes / decode_s
    );
    Ok(())
}
