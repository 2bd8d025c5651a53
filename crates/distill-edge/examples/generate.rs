//! Generates text from a GGUF file and says how fast.
//!
//! `cargo run --release -p distill-edge --example generate -- MODEL PROMPT [NEW_TOKENS] [THREADS] [q8_0|float]`
//!
//! With the prompt `--bench`, times prefill of 512 and decode of 128 tokens instead.

use std::io::Write as _;

use distill_edge::{
    Activations, EdgeError, LoadOptions, Model, Sampler, SamplerOptions, Session, SessionOptions,
    bench, generate,
};

fn main() -> Result<(), EdgeError> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [path, prompt, rest @ ..] = arguments.as_slice() else {
        eprintln!("usage: generate MODEL PROMPT|--bench [NEW_TOKENS] [THREADS] [q8_0|float]");
        std::process::exit(2);
    };
    let number =
        |i: usize, default| rest.get(i).and_then(|s: &String| s.parse().ok()).unwrap_or(default);
    let activations =
        rest.get(2).map(|s| if s == "float" { Activations::Float } else { Activations::Q8_0 });
    let options = LoadOptions { activations, threads: number(1, 0), ..LoadOptions::default() };
    let start = std::time::Instant::now();
    let model = Model::load(path.as_ref(), &options)?;
    eprintln!(
        "loaded in {:.0} ms; kernels: {}; {:?} activations",
        start.elapsed().as_secs_f64() * 1e3,
        model.kernel_name(),
        model.activations()
    );
    if prompt == "--bench" {
        let options =
            bench::BenchOptions { generate: number(0, 128), ..bench::BenchOptions::default() };
        println!("{:#?}", bench::bench(&model, &options)?);
        return Ok(());
    }
    let mut session = Session::new(&model, SessionOptions::default())?;
    let mut sampler = Sampler::new(SamplerOptions::default());
    let ids = model.tokenizer().encode(prompt, true);
    let done = generate(&mut session, &ids, number(0, 64), &mut sampler, |_, text| {
        print!("{text}");
        std::io::stdout().flush().is_ok()
    })?;
    println!();
    eprintln!(
        "{} prompt tokens in {:.0} ms; {} tokens at {:.1} tokens/s; stopped: {:?}",
        ids.len(),
        done.prefill.as_secs_f64() * 1e3,
        done.tokens.len(),
        done.tokens.len().saturating_sub(1) as f64 / done.decode.as_secs_f64(),
        done.stop
    );
    Ok(())
}
