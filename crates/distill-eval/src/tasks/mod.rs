//! What is measured: each task keeps a record for every chunk or item, and its figures are made of
//! the records alone, so that they can be recomputed, and drawn anew for an interval
//! ([`crate::bootstrap`]).

pub mod choice;
pub mod continuation;
pub mod divergence;
pub mod last_word;
pub mod perplexity;
pub mod windows;

pub use choice::Choice;
pub use divergence::Divergence;
pub use last_word::LastWord;
pub use perplexity::Perplexity;
pub use windows::Windows;

/// Hears how many chunks or items are done, and of how many.
pub type Progress<'a> = dyn FnMut(usize, usize) + 'a;
