//! One file a verb.

mod bench;
mod benchmark;
mod chat;
mod check;
mod eval;
mod export;
mod generate;
mod plan;
mod preview;
mod profile;
mod quantize;
mod report;
mod run;
mod teacher;
mod verify;

use crate::cli::Command;
use crate::failure::Failure;

/// Does what was typed.
pub fn dispatch(command: Command) -> Result<(), Failure> {
    match command {
        Command::Run(args) => run::run(&args),
        Command::Check(args) => check::check(&args),
        Command::Schema => check::schema(),
        Command::Plan(args) => plan::plan(&args),
        Command::Preview(args) => preview::preview(&args),
        Command::Teacher(command) => teacher::teacher(&command),
        Command::Export(args) => export::command(&args),
        Command::Quantize(args) => quantize::quantize(&args),
        Command::Verify(args) => verify::command(&args),
        Command::Generate(args) => generate::generate(&args),
        Command::Chat(args) => chat::chat(&args),
        Command::Eval(args) => eval::eval(&args),
        Command::Bench(args) => bench::bench(&args),
    }
}
