//! Teachers that are not simply computed: asked over a network, or once for all.
//!
//! A teacher says of a text which tokens it expected where: a [`Signal`], by position some tokens
//! and a value of each. [`choose`] makes one of logits, [`Cache`] keeps them.
//!
//! There is no Burn here: a cache can be filled, looked into and moved without it.

mod cache;
mod choose;
mod error;
mod signal;

pub use cache::{About, Cache, CacheStatistics, Key, Query, Writer, queries};
pub use choose::{choose, sample, top};
pub use error::TeacherError;
pub use signal::{Choice, Kind, Signal, Spec};
