//! `distill generate`.

use distill_edge::{
    LoadOptions, Model, Sampler, SamplerOptions, Session, SessionOptions, generate as decode,
};

use crate::cli;
use crate::failure::Failure;
use crate::output::{put, put_line};

/// Streams the continuation of a prompt, or prints ids and text as JSON.
pub fn generate(args: &cli::Generate) -> Result<(), Failure> {
    let (model, mut session) = open(&args.runtime)?;
    let tokenizer = model.tokenizer();
    let prompt = tokenizer.encode(&args.prompt, true);
    if prompt.is_empty() {
        return Err(Failure::Usage(
            "the prompt is empty and this model adds no first token; give --prompt some text"
                .into(),
        ));
    }
    let mut sampler = Sampler::new(sampling(&args.sampling));
    let answer =
        decode(&mut session, &prompt, args.sampling.max_tokens, &mut sampler, |_, piece| {
            args.json || put!("{piece}").is_ok()
        })?;
    if args.json {
        let (ids, text) = (answer.tokens, answer.text);
        put_line!("{}", serde_json::json!({ "prompt_ids": prompt, "ids": ids, "text": text }))?;
    } else {
        put!("\n")?;
    }
    Ok(())
}

/// Loads the model and opens a session.
pub fn open(args: &cli::Runtime) -> Result<(Model, Session), Failure> {
    let activations = args.activations.map(Into::into);
    let load = LoadOptions { activations, threads: args.threads, ..LoadOptions::default() };
    let model = Model::load(&args.model, &load)?;
    let options =
        SessionOptions { context: args.context, kv: args.kv.into(), threads: args.threads };
    let session = Session::new(&model, options)?;
    Ok((model, session))
}

/// The sampler's options as typed.
pub fn sampling(args: &cli::Sampling) -> SamplerOptions {
    SamplerOptions {
        temperature: args.temperature,
        top_k: args.top_k,
        top_p: args.top_p,
        min_p: args.min_p,
        seed: args.seed,
    }
}
