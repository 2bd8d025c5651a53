//! Results, on stdout.

use std::fmt::Arguments;
use std::io::{ErrorKind, Write};
use std::path::Path;

use crate::failure::Failure;

/// Writes to stdout at once. A reader that has gone away (`distill … | head`) is no error: what
/// the command does besides still counts.
pub fn write(text: Arguments<'_>) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_fmt(text).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::io("writing", Path::new("stdout"))(error))
        }
        _ => Ok(()),
    }
}

/// `print!` that returns an error instead of panicking.
macro_rules! put {
    ($($text:tt)*) => { $crate::output::write(format_args!($($text)*)) };
}

/// `println!` that returns an error instead of panicking.
macro_rules! put_line {
    ($($text:tt)*) => { $crate::output::write(format_args!("{}\n", format_args!($($text)*))) };
}

pub(crate) use {put, put_line};
