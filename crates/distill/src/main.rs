//! The command line of distill.
fn main() {}
