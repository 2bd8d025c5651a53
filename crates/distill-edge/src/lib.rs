//! The edge runtime: runs the GGUF files this project exports, on a CPU, with next to no
//! dependencies.
//!
//! ```no_run
//! use distill_edge::{LoadOptions, Model, Sampler, SamplerOptions, Session, SessionOptions, generate};
//!
//! # fn main() -> Result<(), distill_edge::EdgeError> {
//! let model = Model::load("model.gguf".as_ref(), &LoadOptions::default())?;
//! let mut session = Session::new(&model, SessionOptions::default())?;
//! let prompt = model.tokenizer().encode("Once upon a time", true);
//! let mut sampler = Sampler::new(SamplerOptions::default());
//! generate(&mut session, &prompt, 64, &mut sampler, |_token, text| {
//!     print!("{text}");
//!     true
//! })?;
//! # Ok(())
//! # }
//! ```
//!
//! - [`Model`] maps a file (Llama family; F32, F16, Q4_0, Q8_0), checks every tensor up front and
//!   picks the kernels of this CPU.
//! - [`Session`] holds one sequence: its key-value cache, its buffers and its threads. Nothing is
//!   allocated after it is created, except what a caller's own closure does.
//! - [`Batch`] holds many sequences and decodes a token of each in one pass; [`Texts`] generates with
//!   it, each text as if it were alone.
//! - [`Tokenizer`], [`Sampler`] and [`generate`](generate()) turn logits into text.
//! - [`bench`](mod@bench) times prefill and decode; [`predict`] says what a device will do.
//!
//! Results are the same bits for any number of threads, any division of the tokens between calls,
//! and for every kernel set.

mod arena;
mod batch;
mod buffers;
mod cache;
mod config;
mod engine;
mod error;
mod forward;
mod generate;
mod kernels;
mod model;
mod plan;
mod ranked;
mod rope;
mod sampler;
mod session;
mod shared;
mod state;
mod team;
mod texts;
mod tokenizer;
mod trace;
mod weights;

pub mod bench;
pub mod predict;

pub use batch::{Batch, BatchOptions};
pub use cache::KvType;
pub use config::Config;
pub use error::EdgeError;
pub use generate::{Generation, StopReason, generate};
pub use model::{Activations, KernelChoice, LoadOptions, Model};
pub use sampler::{Choice, Sampler, SamplerOptions, argmax};
pub use session::{Session, SessionOptions};
pub use texts::{Generated, Request, Texts};
pub use tokenizer::{
    PreTokenizer, StoredTensor, StoredVocabulary, TokenKind, Tokenizer, Utf8Stream,
};
pub use trace::{LinearInput, QuantizedInput};
