//! What is made of logits: of many positions at a time, on all threads.

use distill_edge::{EdgeError, Session};
use rayon::prelude::*;

use crate::choose::{log_sum, top};

/// Positions whose logits are kept until there are enough for all threads.
const TILE: usize = 32;

/// The likeliest tokens at a position, and the token that stands there.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Row {
    /// The likeliest first, with ln p.
    pub(super) top: Vec<(u32, f32)>,
    /// The token, ln p of it, and its rank, from 1.
    pub(super) token: (u32, f32, usize),
}

impl Row {
    /// Of logits, in front of `token`.
    pub(super) fn new(logits: &[f32], token: u32, k: usize) -> Self {
        let z = logits.get(token as usize).copied().unwrap_or(f32::NEG_INFINITY);
        let log_p = (f64::from(z) - log_sum(logits, 1.0)) as f32;
        let rank = 1 + logits.iter().filter(|&&other| other > z).count();
        let top = if k == 0 { Vec::new() } else { top(logits, k, 1.0) };
        Self { top, token: (token, log_p, rank) }
    }

    /// The likeliest, and the token if it is not among them.
    pub(super) fn entries(&self) -> impl Iterator<Item = (u32, f32, usize)> + '_ {
        let ranked = self.top.iter().zip(1..).map(|(&(id, log_p), rank)| (id, log_p, rank));
        let is_among = self.top.iter().any(|entry| entry.0 == self.token.0);
        ranked.chain((!is_among).then_some(self.token))
    }
}

/// Reads tokens and makes something of the logits after each; also returns the last logits.
pub(super) fn read<T: Send>(
    session: &mut Session,
    tokens: &[u32],
    each: impl Fn(usize, &[f32]) -> T + Sync,
) -> Result<(Vec<T>, Vec<f32>), EdgeError> {
    let mut made = Vec::with_capacity(tokens.len());
    let mut tile: Vec<f32> = Vec::new();
    let mut width = 0;
    let mut flush = |tile: &mut Vec<f32>, width: usize| {
        if width > 0 {
            let first = made.len();
            let rows = tile.par_chunks(width).enumerate();
            let rows: Vec<T> = rows.map(|(i, logits)| each(first + i, logits)).collect();
            made.extend(rows);
        }
    };
    let mut last = Vec::new();
    session.score(tokens, |position, logits| {
        width = logits.len();
        tile.extend_from_slice(logits);
        if position + 1 == tokens.len() {
            last = logits.to_vec();
        }
        if tile.len() >= TILE * width {
            flush(&mut tile, width);
            tile.clear();
        }
    })?;
    flush(&mut tile, width);
    Ok((made, last))
}
