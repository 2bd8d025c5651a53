//! Text on disk → batches of tokens, the same on every machine and after every interruption.
//!
//! [`Source`] names files, [`documents`] reads them one text at a time, [`TextTokenizer`] turns
//! text into ids, [`Dataset::prepare`] packs the ids into fixed-length sequences and splits off
//! the held-out part, and a [`Cursor`] walks a [`Split`] in a seeded order that can be saved.
//! [`render_chat`] renders a model's own chat template and [`preview`] shows what the loss sees.
//!
//! A text may also be tokens that a model drew, from a [`SampleDirectory`]; several [`Part`]s are
//! mixed by their weights.
//!
//! There is no tensor library here and no network: what is trained on is a file on disk, and
//! what comes out are plain vectors.

#![forbid(unsafe_code)]

mod batch;
mod chat;
mod cursor;
mod dataset;
mod error;
mod fingerprint;
mod packed;
mod preview;
mod record;
mod samples;
mod shuffle;
mod source;
mod split;
mod tokenizer;

pub use batch::{Batch, Sequence};
pub use chat::{Message, render_chat, render_chat_at};
pub use cursor::Cursor;
pub use dataset::{Dataset, PackingOptions, Part, Progress, SplitRule};
pub use error::{DataError, Place};
pub use fingerprint::hash_files;
pub use preview::preview;
pub use record::{Record, Records, records};
pub use samples::{SHARD, Sample, SampleCounts, SampleDirectory, SampleFilters};
pub use shuffle::SplitMix64;
pub use source::{Documents, Source, SourceOptions, documents};
pub use split::Split;
pub use tokenizer::{SpecialTokens, TextTokenizer};
