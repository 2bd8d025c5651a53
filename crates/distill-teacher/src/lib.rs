//! Teachers that are not simply computed: asked over a network, or once for all.
//!
//! A teacher says of a text which tokens it expected where: a [`Signal`], by position some tokens
//! and a value of each. [`choose`] makes one of logits, [`Cache`] keeps them.
//!
//! There is no Burn here: a cache can be filled, looked into and moved without it.

mod cache;
mod choose;
mod client;
mod error;
pub mod parquet;
mod probe;
pub mod protocol;
pub mod serve;
mod signal;

pub use cache::{
    About, Cache, CacheStatistics, Key, Query, Writer, decode_signal, encode_signal, queries,
};
pub use choose::{choose, sample, top};
pub use client::{Asked, Client, ClientOptions, Secret, tokens_of};
pub use error::TeacherError;
pub use probe::{Finding, Local, ProbeReport, TEXT as PROBE_TEXT, probe};
pub use signal::{Choice, Kind, Signal, Spec};
