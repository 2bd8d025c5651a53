//! Continues a text: `cargo run --release -p distill-edge --example generate -- model.edge "Once
//! upon a time" [tokens]`.

use std::io::Write;

use distill_edge::{
    LoadOptions, Model, Sampler, SamplerOptions, Session, SessionOptions, generate,
};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(path), Some(prompt)) = (arguments.next(), arguments.next()) else {
        return Err("usage: generate MODEL PROMPT [TOKENS]".into());
    };
    let tokens = arguments.next().map_or(Ok(64), |text| text.parse())?;
    let model = Model::load(path.as_ref(), &LoadOptions::default())?;
    let prompt = model.tokenizer().encode(&prompt, true);
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
