//! `distill chat`.

use std::io::BufRead;

use distill_data::{Message, render_chat};
use distill_edge::{Sampler, generate as decode};

use super::generate::{open, sampling};
use crate::cli;
use crate::failure::Failure;
use crate::output::put;

/// Talks in turns with the model's own chat template, until an empty line or the end of input.
pub fn chat(args: &cli::Chat) -> Result<(), Failure> {
    let (model, mut session) = open(&args.runtime)?;
    let tokenizer = model.tokenizer();
    let template = tokenizer.chat_template().ok_or_else(|| {
        Failure::Usage(format!(
            "{} has no chat template: it was not made for conversation; use `distill generate`",
            args.runtime.model.display()
        ))
    })?;
    let name = |id: Option<u32>| id.map(|id| tokenizer.decode(&[id])).unwrap_or_default();
    let (bos, eos) = (name(tokenizer.bos()), name(tokenizer.eos()));
    let mut messages: Vec<Message> = Vec::new();
    messages.extend(args.system.iter().map(|text| Message::new("system", text)));
    let mut sampler = Sampler::new(sampling(&args.sampling));
    let mut seen: Vec<u32> = Vec::new();
    loop {
        eprint!("> ");
        let mut line = String::new();
        let read = std::io::stdin().lock().read_line(&mut line);
        if read.unwrap_or(0) == 0 || line.trim().is_empty() {
            return Ok(());
        }
        messages.push(Message::new("user", line.trim()));
        let text = render_chat(template, &messages, &bos, &eos, true)
            .map_err(distill_train::TrainError::from)?;
        let ids = tokenizer.encode(&text, false);
        // What the cache already holds is not computed again, unless the template rewrote it.
        let kept = if ids.starts_with(&seen) { seen.len() } else { 0 };
        if kept == 0 {
            session.reset();
        }
        let max_tokens = args.sampling.max_tokens;
        let answer = decode(&mut session, &ids[kept..], max_tokens, &mut sampler, |_, piece| {
            put!("{piece}").is_ok()
        })?;
        put!("\n")?;
        seen = ids;
        seen.extend(&answer.tokens);
        seen.truncate(session.position());
        messages.push(Message::new("assistant", answer.text));
    }
}
