//! The command line of distill.
//!
//! Results go to stdout, progress and logs to stderr. Exit codes: 0 done; 1 the work failed
//! (parity, a device's budget, training, a disk); 2 what the user wrote is wrong.

mod budget;
mod cli;
mod commands;
mod failure;
mod hardware;
mod hub;
mod output;
mod progress;
mod run_directory;
mod writer;

use std::process::ExitCode;

use clap::Parser;
use distill_ops::memory::Aligned;

#[global_allocator]
static ALLOCATOR: Aligned = Aligned;

fn main() -> ExitCode {
    let command = cli::Cli::parse().command;
    match commands::dispatch(command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}
