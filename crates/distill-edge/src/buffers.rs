//! Every buffer of a session with its shape, allocated when the session is created and never after.
//!
//! T stands for [`TILE`], the tokens computed together; a thread's rows are those of its
//! [`Share`]. Each thread keeps its own copy of the residual stream, and the threads meet only in
//! the [`Exchange`] buffers: so that no memory is written by two of them, and norms and
//! quantisation need no barrier.

use std::sync::RwLock;

use crate::config::Config;
use crate::kernels::BLOCK;
use crate::plan::Share;

/// Tokens computed together in prefill: a weight row is read once for all of them.
pub(crate) const TILE: usize = 32;
/// Tokens whose logits are computed together; a row of logits is long.
pub(crate) const HEAD_TILE: usize = 8;
/// Weight rows dequantised together in the float path.
pub(crate) const PANEL: usize = 8;

/// What one thread alone uses.
#[derive(Debug)]
pub(crate) struct Scratch {
    /// Residual stream, [T, hidden].
    pub residual: Vec<f32>,
    /// Input of the current linear layers, [T, max(hidden, heads · head_dim, feed_forward)].
    pub input: Vec<f32>,
    /// The same as Q8_0 codes, and scales a block; empty in the float path.
    pub codes: Vec<i8>,
    pub scales: Vec<f32>,
    /// Dequantised weight rows, [PANEL, longest row].
    pub panel: Vec<f32>,
    /// New keys and values of this thread's heads, [T, kv_heads · head_dim].
    pub key_value: Vec<f32>,
    /// The up projection's rows, [T, feed_forward_rows].
    pub up: Vec<f32>,
    /// RoPE of each token of the tile: cos and sin, [T, head_dim / 2, 2].
    pub rotation: Vec<[f32; 2]>,
    /// One query, [head_dim].
    pub query: Vec<f32>,
    /// Attention scores of one query, [context].
    pub scores: Vec<f32>,
}

impl Scratch {
    pub fn new(config: &Config, share: &Share, context: usize, integer: bool) -> Self {
        let query_rows = config.heads * config.head_dim;
        let longest = config.hidden_size.max(query_rows).max(config.feed_forward);
        let codes = if integer { TILE * longest } else { 0 };
        Self {
            residual: vec![0.0; TILE * config.hidden_size],
            input: vec![0.0; TILE * longest],
            codes: vec![0; codes],
            scales: vec![0.0; codes / BLOCK],
            panel: vec![0.0; PANEL * longest],
            key_value: vec![0.0; TILE * share.kv_heads.len() * config.head_dim],
            up: vec![0.0; TILE * share.feed_forward_rows.len()],
            rotation: vec![[1.0, 0.0]; TILE * config.head_dim / 2],
            query: vec![0.0; config.head_dim],
            scores: vec![0.0; context],
        }
    }
}

/// A result that all threads need, in one stripe a thread: written by its owner before a barrier,
/// read by everyone after it. The locks are therefore never contended; they are what makes a
/// missing barrier a wait instead of a data race.
#[derive(Debug)]
pub(crate) struct Exchange {
    pub stripes: Vec<RwLock<Vec<f32>>>,
}

impl Exchange {
    fn new(lengths: impl Iterator<Item = usize>) -> Self {
        Self { stripes: lengths.map(|n| RwLock::new(vec![0.0; n])).collect() }
    }
}

/// The exchanges of a session; the stripe of thread w has that thread's rows or tasks.
#[derive(Debug)]
pub(crate) struct Exchanges {
    /// Queries after RoPE, stripes [T, query_rows].
    pub query: Exchange,
    /// Attention results. Task n = head · tokens + token belongs to thread n % threads, where it
    /// is row n / threads: stripes [ceil(T · heads / threads), head_dim].
    pub attention: Exchange,
    /// What a block adds to the residual stream, stripes [T, hidden_rows].
    pub delta: Exchange,
    /// silu(gate) · up, stripes [T, feed_forward_rows].
    pub feed_forward: Exchange,
    /// Logits, stripes [HEAD_TILE, vocab_rows].
    pub logits: Exchange,
}

impl Exchanges {
    pub fn new(config: &Config, shares: &[Share]) -> Self {
        let tasks = (TILE * config.heads).div_ceil(shares.len());
        let stripes = |rows: fn(&Share) -> usize, tokens: usize| {
            Exchange::new(shares.iter().map(move |share| tokens * rows(share)))
        };
        Self {
            query: stripes(|s| s.query_rows.len(), TILE),
            attention: Exchange::new(shares.iter().map(|_| tasks * config.head_dim)),
            delta: stripes(|s| s.hidden_rows.len(), TILE),
            feed_forward: stripes(|s| s.feed_forward_rows.len(), TILE),
            logits: stripes(|s| s.vocab_rows.len(), HEAD_TILE),
        }
    }
}
