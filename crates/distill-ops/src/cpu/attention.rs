//! Causal grouped-query attention with rotary positions, in blocks of queries (Dao et al. 2022):
//! the scores of a block are made, used and dropped, and made again for the gradients.
//!
//! ```text
//! q̂, k̂ = rotate(q), rotate(k)                    rotate-half RoPE (Su et al. 2021)
//! p     = softmax(q̂·k̂ᵀ / √head_dim)              over the keys first[query] … query
//! y     = p·v
//!
//! ∂p = g·vᵀ,  ∂s = p ∘ (∂p − Σ p ∘ ∂p) / √head_dim
//! ∂q̂ = ∂s·k̂,  ∂k̂ = ∂sᵀ·q̂,  ∂v = pᵀ·g
//! ```
//! `first` keeps packed documents apart: a query sees its own document from the first token on.

use rayon::prelude::*;

use super::product::{Matrix, Output, Threads, multiply};
use super::vector::{dot, exp, max, simd, sum};

/// Queries whose scores are made together.
const QUERIES: usize = 64;

/// Dimensions of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Sequences.
    pub batch: usize,
    /// Tokens of a sequence.
    pub tokens: usize,
    /// Query heads, a multiple of `kv_heads`.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Elements of a head, even.
    pub head_dim: usize,
}

impl Shape {
    fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }

    /// Elements of one head of one sequence.
    fn head(&self) -> usize {
        self.tokens * self.head_dim
    }

    /// Where the keys lie that the i-th query head of the batch shares with its group.
    fn shared_by(&self, i: usize) -> std::ops::Range<usize> {
        let (sequence, head) = (i / self.heads, i % self.heads);
        let kv = sequence * self.kv_heads + head * self.kv_heads / self.heads;
        kv * self.head()..(kv + 1) * self.head()
    }
}

/// Where tokens stand.
#[derive(Clone, Copy, Debug)]
pub struct Positions<'a> {
    /// Cosines and sines of the angles, `[batch, tokens, head_dim / 2]` each.
    pub cos: &'a [f32],
    /// See `cos`.
    pub sin: &'a [f32],
    /// The first key that each query sees, `[batch, tokens]`, at most the query itself.
    pub first: &'a [usize],
}

/// What the backward pass needs of the forward pass.
#[derive(Clone, Debug)]
pub struct Saved {
    /// Rotated queries, `[batch, heads, tokens, head_dim]`.
    pub queries: Vec<f32>,
    /// Rotated keys, `[batch, kv_heads, tokens, head_dim]`.
    pub keys: Vec<f32>,
    /// Values, as the keys.
    pub values: Vec<f32>,
    /// ln Σ e^score of each query, `[batch, heads, tokens]`.
    pub log_sums: Vec<f32>,
}

/// Attention of a batch.
///
/// # Shapes
/// `q`, result: `[batch, tokens, heads · head_dim]`; `k`, `v`: `[batch, tokens, kv_heads · head_dim]`.
pub fn forward(
    q: &[f32],
    k: &[f32],
    v: &[f32],
    positions: Positions<'_>,
    shape: Shape,
) -> (Vec<f32>, Saved) {
    let Shape { batch, tokens, heads, kv_heads, head_dim } = shape;
    let queries = split(q, shape, heads, Some(positions));
    let keys = split(k, shape, kv_heads, Some(positions));
    let values = split(v, shape, kv_heads, None);
    let mut mixed = vec![0.0; batch * heads * shape.head()];
    let mut log_sums = vec![0.0; batch * heads * tokens];
    mixed.par_chunks_mut(shape.head()).zip(log_sums.par_chunks_mut(tokens)).enumerate().for_each(
        |(i, (mixed, log_sums))| {
            let queries = &queries[i * shape.head()..][..shape.head()];
            let (keys, values) = (&keys[shape.shared_by(i)], &values[shape.shared_by(i)]);
            let first = &positions.first[i / heads * tokens..][..tokens];
            mixed
                .par_chunks_mut(QUERIES * head_dim)
                .zip(log_sums.par_chunks_mut(QUERIES))
                .enumerate()
                .for_each_init(Vec::new, |scores, (block, (mixed, log_sums))| {
                    let block = Block::new(block, first);
                    block.scores(queries, keys, shape, scores);
                    softmax(scores, log_sums, &block);
                    let weights = Matrix::new(scores, block.queries, block.keys);
                    let values = block.keys_of(values, head_dim);
                    multiply(weights, values, 1.0, Output::Replace, mixed, Threads::One);
                });
        },
    );
    (merge(&mixed, shape, heads, None), Saved { queries, keys, values, log_sums })
}

/// Gradients of q, k and v, of their shapes, from that of the result.
pub fn backward(
    saved: &Saved,
    gradient: &[f32],
    positions: Positions<'_>,
    shape: Shape,
) -> [Vec<f32>; 3] {
    let Shape { batch, tokens, heads, kv_heads, head_dim } = shape;
    let g = split(gradient, shape, heads, None);
    let size = batch * heads * shape.head();
    let [mut dq, mut dk, mut dv] = [(); 3].map(|()| vec![0.0; size]);
    dq.par_chunks_mut(shape.head())
        .zip(dk.par_chunks_mut(shape.head()).zip(dv.par_chunks_mut(shape.head())))
        .enumerate()
        .for_each_init(
            || [Vec::new(), Vec::new()],
            |[weights, slopes], (i, (dq, (dk, dv)))| {
                let own = i * shape.head()..(i + 1) * shape.head();
                let queries = &saved.queries[own.clone()];
                let keys = &saved.keys[shape.shared_by(i)];
                let values = &saved.values[shape.shared_by(i)];
                let g = &g[own];
                let log_sums = &saved.log_sums[i * tokens..(i + 1) * tokens];
                let first = &positions.first[i / heads * tokens..][..tokens];
                for block in 0..tokens.div_ceil(QUERIES) {
                    let block = Block::new(block, first);
                    let rows = block.start * head_dim..(block.start + block.queries) * head_dim;
                    let seen = block.lowest * head_dim..(block.lowest + block.keys) * head_dim;
                    let g_block = Matrix::new(&g[rows.clone()], block.queries, head_dim);
                    let q_block = Matrix::new(&queries[rows.clone()], block.queries, head_dim);
                    block.scores(queries, keys, shape, weights);
                    slopes.resize(block.queries * block.keys, 0.0);
                    let values = block.keys_of(values, head_dim).transposed();
                    multiply(g_block, values, 1.0, Output::Replace, slopes, Threads::One);
                    let log_sums = &log_sums[block.start..][..block.queries];
                    score_gradients(weights, slopes, log_sums, shape.scale(), &block);
                    let slopes = Matrix::new(slopes, block.queries, block.keys);
                    let weights = Matrix::new(weights, block.queries, block.keys);
                    let keys = block.keys_of(keys, head_dim);
                    multiply(slopes, keys, 1.0, Output::Replace, &mut dq[rows], Threads::One);
                    let (dk, dv) = (&mut dk[seen.clone()], &mut dv[seen]);
                    multiply(slopes.transposed(), q_block, 1.0, Output::Add, dk, Threads::One);
                    multiply(weights.transposed(), g_block, 1.0, Output::Add, dv, Threads::One);
                }
            },
        );
    let dk = add_groups(dk, shape);
    let dv = add_groups(dv, shape);
    [
        merge(&dq, shape, heads, Some(positions)),
        merge(&dk, shape, kv_heads, Some(positions)),
        merge(&dv, shape, kv_heads, None),
    ]
}

/// Some consecutive queries of a head and the keys that any of them sees.
struct Block<'a> {
    /// The first query.
    start: usize,
    queries: usize,
    /// The first key.
    lowest: usize,
    keys: usize,
    /// The first key of each query of the sequence.
    first: &'a [usize],
}

impl<'a> Block<'a> {
    fn new(index: usize, first: &'a [usize]) -> Self {
        let start = index * QUERIES;
        let end = first.len().min(start + QUERIES);
        let lowest = first[start..end].iter().copied().min().unwrap_or(start);
        Self { start, queries: end - start, lowest, keys: end - lowest, first }
    }

    /// The block's rows of a head's keys or values.
    fn keys_of<'x>(&self, head: &'x [f32], head_dim: usize) -> Matrix<'x> {
        Matrix::new(&head[self.lowest * head_dim..], self.keys, head_dim)
    }

    /// `[queries, keys]` scores into `out`, masked ones too.
    fn scores(&self, queries: &[f32], keys: &[f32], shape: Shape, out: &mut Vec<f32>) {
        out.resize(self.queries * self.keys, 0.0);
        let queries = &queries[self.start * shape.head_dim..];
        let queries = Matrix::new(queries, self.queries, shape.head_dim);
        let keys = self.keys_of(keys, shape.head_dim).transposed();
        multiply(queries, keys, shape.scale(), Output::Replace, out, Threads::One);
    }

    /// The keys that a query of the block sees, counted from the block's first.
    #[inline(always)]
    fn seen(&self, query: usize) -> std::ops::Range<usize> {
        let query = self.start + query;
        self.first[query] - self.lowest..query + 1 - self.lowest
    }
}

simd! {
    /// Scores → weights, 0 where a query may not look, and the logarithms of their sums.
    fn softmax<'a>(scores: &'a mut [f32], log_sums: &'a mut [f32], block: &'a Block<'a>) -> () {
        for (query, (row, log_sum)) in
            scores.chunks_exact_mut(block.keys).zip(log_sums).enumerate()
        {
            let seen = block.seen(query);
            row[..seen.start].fill(0.0);
            row[seen.end..].fill(0.0);
            let row = &mut row[seen];
            let largest = max(row);
            row.iter_mut().for_each(|x| *x = exp(*x - largest));
            let sum = sum(row);
            let inverse = 1.0 / sum;
            row.iter_mut().for_each(|x| *x *= inverse);
            *log_sum = largest + sum.ln();
        }
    }

    /// Scores → weights, gradients of weights → gradients of scores.
    fn score_gradients<'a>(
        scores: &'a mut [f32],
        slopes: &'a mut [f32],
        log_sums: &'a [f32],
        scale: f32,
        block: &'a Block<'a>,
    ) -> () {
        let rows = scores.chunks_exact_mut(block.keys).zip(slopes.chunks_exact_mut(block.keys));
        for (query, ((weights, slopes), log_sum)) in rows.zip(log_sums).enumerate() {
            let seen = block.seen(query);
            for row in [&mut *weights, &mut *slopes] {
                row[..seen.start].fill(0.0);
                row[seen.end..].fill(0.0);
            }
            let (weights, slopes) = (&mut weights[seen.clone()], &mut slopes[seen]);
            weights.iter_mut().for_each(|weight| *weight = exp(*weight - log_sum));
            let mean = dot(weights, slopes);
            for (weight, slope) in weights.iter().zip(slopes) {
                *slope = weight * (*slope - mean) * scale;
            }
        }
    }

    /// Rotates the two halves of a head by a token's angles, or back.
    fn rotate<'a>(
        x: &'a [f32],
        positions: Positions<'a>,
        token: usize,
        direction: f32,
        out: &'a mut [f32],
    ) -> () {
        let half = x.len() / 2;
        let cos = &positions.cos[token * half..][..half];
        let sin = &positions.sin[token * half..][..half];
        let (first, second) = x.split_at(half);
        let (out_first, out_second) = out.split_at_mut(half);
        let angles = || cos.iter().zip(sin.iter().map(|sin| direction * sin));
        for (out, ((a, b), (cos, sin))) in out_first.iter_mut().zip(first.iter().zip(second).zip(angles())) {
            *out = a * cos - b * sin;
        }
        for (out, ((a, b), (cos, sin))) in out_second.iter_mut().zip(first.iter().zip(second).zip(angles())) {
            *out = b * cos + a * sin;
        }
    }
}

/// `[batch, tokens, heads · head_dim]` → `[batch, heads, tokens, head_dim]`, rotated if asked to.
fn split(x: &[f32], shape: Shape, heads: usize, rotation: Option<Positions<'_>>) -> Vec<f32> {
    let Shape { tokens, head_dim, .. } = shape;
    let mut out = vec![0.0; x.len()];
    out.par_chunks_mut(shape.head()).enumerate().for_each(|(i, out)| {
        let (sequence, head) = (i / heads, i % heads);
        for (t, out) in out.chunks_exact_mut(head_dim).enumerate() {
            let token = sequence * tokens + t;
            let row = &x[(token * heads + head) * head_dim..][..head_dim];
            match rotation {
                Some(positions) => rotate(row, positions, token, 1.0, out),
                None => out.copy_from_slice(row),
            }
        }
    });
    out
}

/// The way back; what was rotated is rotated back, as gradients must be.
fn merge(x: &[f32], shape: Shape, heads: usize, rotation: Option<Positions<'_>>) -> Vec<f32> {
    let Shape { tokens, head_dim, .. } = shape;
    let mut out = vec![0.0; x.len()];
    out.par_chunks_mut(heads * head_dim).enumerate().for_each(|(token, out)| {
        let (sequence, t) = (token / tokens, token % tokens);
        for (head, out) in out.chunks_exact_mut(head_dim).enumerate() {
            let row = &x[((sequence * heads + head) * tokens + t) * head_dim..][..head_dim];
            match rotation {
                Some(positions) => rotate(row, positions, token, -1.0, out),
                None => out.copy_from_slice(row),
            }
        }
    });
    out
}

/// `[batch, heads, tokens, head_dim]` → `[batch, kv_heads, …]`: the sum over a group's queries.
fn add_groups(x: Vec<f32>, shape: Shape) -> Vec<f32> {
    let group = shape.heads / shape.kv_heads;
    if group == 1 {
        return x;
    }
    let mut out = vec![0.0; x.len() / group];
    out.par_chunks_mut(shape.head()).zip(x.par_chunks(group * shape.head())).for_each(
        |(out, group)| {
            for x in group.chunks_exact(shape.head()) {
                out.iter_mut().zip(x).for_each(|(out, x)| *out += x);
            }
        },
    );
    out
}
