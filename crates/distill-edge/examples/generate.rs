//! Continues a text: `cargo run --release -p distill-edge --example generate -- model.edge "Once
//! upon a time" [tokens]`.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use distill_edge::{
    EdgeError, LoadOptions, Model, Sampler, SamplerOptions, Session, SessionOptions, generate,
};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let tokens = arguments.get(2).map_or(Some(64), |text| text.parse().ok());
    let (Some(path), Some(prompt), Some(tokens)) = (arguments.first(), arguments.get(1), tokens)
    else {
        eprintln!("usage: generate MODEL PROMPT [TOKENS]");
        return ExitCode::from(2);
    };
    match run(path.as_ref(), prompt, tokens) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(path: &Path, prompt: &str, tokens: usize) -> Result<(), EdgeError> {
    let model = Model::load(path, &LoadOptions::default())?;
    let prompt = model.tokenizer().encode(prompt, true);
    let options = SessionOptions { context: prompt.len() + tokens, ..SessionOptions::default() };
    let mut session = Session::new(&model, options)?;
    let mut sampler = Sampler::new(SamplerOptions::default());
    generate(&mut session, &prompt, tokens, &mut sampler, |_, text| {
        let mut out = std::io::stdout();
        out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_ok()
    })?;
    println!();
    Ok(())
}
