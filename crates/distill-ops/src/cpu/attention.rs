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

#![allow(unsafe_code)]

use std::mem::MaybeUninit;
use std::ops::Range;

use rayon::prelude::*;

use super::product::{Destination, Matrix, Threads, multiply};
use super::scratch::{self, filled};
use super::vector::{dot, exp, max, simd, sum};

/// Queries whose scores are made together.
const QUERIES: usize = 64;
/// Parts of a sequence whose gradients are made at the same time, each with gradients of keys and
/// values of its own.
const PARTS: usize = 8;

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

    /// Elements of a token: its queries, then its keys, then its values.
    pub fn width(&self) -> usize {
        self.queries() + 2 * self.keys()
    }

    fn queries(&self) -> usize {
        self.heads * self.head_dim
    }

    fn keys(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Columns of a query head among a token's elements.
    fn query_head(&self, head: usize) -> Range<usize> {
        head * self.head_dim..(head + 1) * self.head_dim
    }

    /// Columns of the keys that a query head shares with its group.
    fn key_head(&self, head: usize) -> Range<usize> {
        let start = self.queries() + head * self.kv_heads / self.heads * self.head_dim;
        start..start + self.head_dim
    }

    /// Columns of the values.
    fn value_head(&self, head: usize) -> Range<usize> {
        let key = self.key_head(head);
        key.start + self.keys()..key.end + self.keys()
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
    /// The input with its queries and keys rotated, `[batch, tokens, width]`.
    pub rotated: Vec<f32>,
    /// ln Σ e^score of each query, `[batch, tokens, heads]`.
    pub log_sums: Vec<f32>,
}

/// Attention of a batch.
///
/// # Shapes
/// `qkv`: `[batch, tokens, (heads + 2 · kv_heads) · head_dim]`; result: `[batch, tokens, heads · head_dim]`.
///
/// # Panics
/// If `qkv` is of another length.
pub fn forward(qkv: &[f32], positions: Positions<'_>, shape: Shape) -> (Vec<f32>, Saved) {
    let Shape { batch, tokens, heads, .. } = shape;
    let (width, wide) = (shape.width(), shape.queries());
    assert_eq!(qkv.len(), batch * tokens * width);
    let rotated = rotated(qkv, positions, shape);
    let mut log_sums = vec![0.0; batch * tokens * heads];
    let fill = |y: &mut [MaybeUninit<f32>]| {
        y.par_chunks_mut((tokens * wide).max(1))
            .zip(log_sums.par_chunks_mut((tokens * heads).max(1)))
            .zip(rotated.par_chunks((tokens * width).max(1)))
            .zip(positions.first.par_chunks(tokens.max(1)))
            .for_each(|(((y, log_sums), x), first)| {
                let y = y.chunks_mut(QUERIES * wide);
                let blocks = y.zip(log_sums.chunks_mut(QUERIES * heads)).enumerate().collect();
                balanced(blocks).into_par_iter().with_max_len(1).for_each(|(i, (y, log_sums))| {
                    Block::new(i, first, shape).forward(x, y, log_sums)
                });
            });
    };
    // SAFETY: the blocks are all queries, and each head writes its columns of them.
    let y = unsafe { filled(batch * tokens * wide, fill) };
    (y, Saved { rotated, log_sums })
}

/// The gradient of `qkv` from that of the result.
///
/// # Panics
/// If `gradient` has not the result's length.
pub fn backward(
    saved: &Saved,
    gradient: &[f32],
    positions: Positions<'_>,
    shape: Shape,
) -> Vec<f32> {
    let Shape { batch, tokens, heads, .. } = shape;
    let (width, wide) = (shape.width(), shape.queries());
    assert_eq!(gradient.len(), batch * tokens * wide);
    let fill = |out: &mut [MaybeUninit<f32>]| {
        out.par_chunks_mut((tokens * width).max(1)).enumerate().for_each(|(sequence, out)| {
            let own = sequence * tokens..(sequence + 1) * tokens;
            let positions = positions.of(own.clone(), shape.head_dim);
            let rows = |of: usize| own.start * of..own.end * of;
            let x = &saved.rotated[rows(width)];
            let (g, log_sums) = (&gradient[rows(wide)], &saved.log_sums[rows(heads)]);
            // The queries' columns, and what each part adds to the other ones.
            let mut rest = out;
            let parts: Vec<_> = parts(tokens)
                .into_iter()
                .map(|part| {
                    let end = tokens.min(part.end * QUERIES) - tokens.min(part.start * QUERIES);
                    (part, rest.split_off_mut(..end * width).unwrap_or_default())
                })
                .collect();
            let (sums, outs): (Vec<_>, Vec<_>) = balanced(parts)
                .into_par_iter()
                .with_max_len(1)
                .map(|(part, out)| {
                    let end = tokens.min(part.end * QUERIES);
                    let mut sums = vec![0.0; end * 2 * shape.keys()];
                    for (i, out) in part.clone().zip(out.chunks_mut(QUERIES * width)) {
                        let block = Block::new(i, positions.first, shape);
                        block.backward([x, g, log_sums], positions, out, &mut sums);
                    }
                    (sums, (part.start * QUERIES, out))
                })
                .unzip();
            for (first, out) in outs {
                out.par_chunks_mut(width).enumerate().for_each(|(i, out)| {
                    key_gradients(&sums, first + i, positions, shape, &mut out[wide..]);
                });
            }
        });
    };
    // SAFETY: blocks write the queries' columns, `key_gradients` the other ones.
    unsafe { filled(batch * tokens * width, fill) }
}

/// Ranges of blocks of about the same work, which grows with the position.
fn parts(tokens: usize) -> Vec<Range<usize>> {
    let blocks = tokens.div_ceil(QUERIES);
    let work = |blocks: usize| blocks * (blocks + 1);
    let (mut parts, mut start) = (Vec::new(), 0);
    for end in 1..=blocks {
        if end == blocks || work(end) * PARTS >= work(blocks) * (parts.len() + 1) {
            parts.push(start..end);
            start = end;
        }
    }
    parts
}

/// Tasks whose work grows from the first to the last, in an order of which every half has about half
/// the work: the last, the first, the last but one, the second…
fn balanced<T>(tasks: Vec<T>) -> Vec<T> {
    let mut tasks = std::collections::VecDeque::from(tasks);
    let mut order = Vec::with_capacity(tasks.len());
    while let Some(last) = tasks.pop_back() {
        order.push(last);
        order.extend(tasks.pop_front());
    }
    order
}

/// The gradients of a token's keys and values: the parts' sums, the keys' rotated back.
fn key_gradients(
    parts: &[Vec<f32>],
    token: usize,
    positions: Positions<'_>,
    shape: Shape,
    out: &mut [MaybeUninit<f32>],
) {
    let width = 2 * shape.keys();
    scratch::with(width, |total| {
        total.fill(0.0);
        for part in parts {
            if let Some(part) = part.get(token * width..(token + 1) * width) {
                total.iter_mut().zip(part).for_each(|(total, part)| *total += part);
            }
        }
        let (keys, values) = total.split_at(shape.keys());
        let (of_keys, of_values) = out.split_at_mut(shape.keys());
        let heads = keys.chunks_exact(shape.head_dim);
        for (x, out) in heads.zip(of_keys.chunks_exact_mut(shape.head_dim)) {
            rotate(x, positions, token, -1.0, out);
        }
        of_values.write_copy_of_slice(values);
    });
}

impl<'a> Positions<'a> {
    /// Those of some tokens.
    fn of(self, tokens: Range<usize>, head_dim: usize) -> Self {
        let angles = tokens.start * head_dim / 2..tokens.end * head_dim / 2;
        Self { cos: &self.cos[angles.clone()], sin: &self.sin[angles], first: &self.first[tokens] }
    }
}

/// Some consecutive queries of a sequence and the keys that any of them sees.
struct Block<'a> {
    /// The first query.
    start: usize,
    queries: usize,
    /// The first key.
    lowest: usize,
    keys: usize,
    /// The first key of each query of the sequence.
    first: &'a [usize],
    shape: Shape,
}

impl<'a> Block<'a> {
    fn new(index: usize, first: &'a [usize], shape: Shape) -> Self {
        let start = index * QUERIES;
        let end = first.len().min(start + QUERIES);
        let lowest = first[start..end].iter().copied().min().unwrap_or(start);
        Self { start, queries: end - start, lowest, keys: end - lowest, first, shape }
    }

    /// The block's queries in some columns of rows of `width` elements.
    fn of_queries<'x>(&self, x: &'x [f32], columns: Range<usize>, width: usize) -> Matrix<'x> {
        let first = self.start * width + columns.start;
        Matrix::strided(&x[first..], self.queries, columns.len(), width)
    }

    /// The block's keys, or values.
    fn of_keys<'x>(&self, x: &'x [f32], columns: Range<usize>, width: usize) -> Matrix<'x> {
        let first = self.lowest * width + columns.start;
        Matrix::strided(&x[first..], self.keys, columns.len(), width)
    }

    /// `[queries, keys]` scores of a head, masked ones too.
    fn scores(&self, x: &[f32], head: usize, out: &mut [f32]) {
        let (shape, width) = (self.shape, self.shape.width());
        let queries = self.of_queries(x, shape.query_head(head), width);
        let keys = self.of_keys(x, shape.key_head(head), width).transposed();
        let out = Destination::replace(out, self.keys);
        multiply(queries, keys, shape.scale(), out, Threads::One);
    }

    /// The block's rows of the result, `[queries, heads · head_dim]`, and `[queries, heads]`.
    fn forward(&self, x: &[f32], y: &mut [MaybeUninit<f32>], log_sums: &mut [f32]) {
        let (shape, wide) = (self.shape, self.shape.queries());
        scratch::with(self.queries * self.keys, |scores| {
            for head in 0..shape.heads {
                self.scores(x, head, scores);
                softmax(scores, &mut log_sums[head..], self);
                let weights = Matrix::new(scores, self.queries, self.keys);
                let values = self.of_keys(x, shape.value_head(head), shape.width());
                let out = Destination::fill(&mut y[shape.query_head(head).start..], wide);
                multiply(weights, values, 1.0, out, Threads::One);
            }
        });
    }

    /// The gradient of the block's queries into their columns of `out` `[queries, width]`; those of
    /// the keys (still rotated) and values added to `sums` `[tokens, 2 · kv_heads · head_dim]`.
    fn backward(
        &self,
        [x, g, log_sums]: [&[f32]; 3],
        positions: Positions<'_>,
        out: &mut [MaybeUninit<f32>],
        sums: &mut [f32],
    ) {
        let shape = self.shape;
        let (width, wide, narrow) = (shape.width(), shape.queries(), 2 * shape.keys());
        let area = self.queries * self.keys;
        scratch::with(2 * area + self.queries * shape.head_dim, |room| {
            let (weights, room) = room.split_at_mut(area);
            let (slopes, of_queries) = room.split_at_mut(area);
            for head in 0..shape.heads {
                self.scores(x, head, weights);
                let g = self.of_queries(g, shape.query_head(head), wide);
                let values = self.of_keys(x, shape.value_head(head), width).transposed();
                let to = Destination::replace(slopes, self.keys);
                multiply(g, values, 1.0, to, Threads::One);
                let log_sums = &log_sums[self.start * shape.heads + head..];
                score_gradients(weights, slopes, log_sums, self);
                let weights = Matrix::new(weights, self.queries, self.keys);
                let slopes = Matrix::new(slopes, self.queries, self.keys);

                let keys = self.of_keys(x, shape.key_head(head), width);
                let to = Destination::replace(of_queries, shape.head_dim);
                multiply(slopes, keys, 1.0, to, Threads::One);
                let rows = of_queries.chunks_exact(shape.head_dim);
                for (i, (x, out)) in rows.zip(out.chunks_exact_mut(width)).enumerate() {
                    let out = &mut out[shape.query_head(head)];
                    rotate(x, positions, self.start + i, -1.0, out);
                }

                let queries = self.of_queries(x, shape.query_head(head), width);
                let column = |of: Range<usize>| self.lowest * narrow + of.start - wide;
                let to = Destination::add(&mut sums[column(shape.key_head(head))..], narrow);
                multiply(slopes.transposed(), queries, 1.0, to, Threads::One);
                let to = Destination::add(&mut sums[column(shape.value_head(head))..], narrow);
                multiply(weights.transposed(), g, 1.0, to, Threads::One);
            }
        });
    }

    /// The keys that a query of the block sees, counted from the block's first.
    #[inline(always)]
    fn seen(&self, query: usize) -> Range<usize> {
        let query = self.start + query;
        self.first[query] - self.lowest..query + 1 - self.lowest
    }
}

simd! {
    /// Scores → weights, 0 where a query may not look, and the logarithms of their sums, one for
    /// every head.
    fn softmax<'a>(scores: &'a mut [f32], log_sums: &'a mut [f32], block: &'a Block<'a>) -> () {
        let log_sums = log_sums.iter_mut().step_by(block.shape.heads);
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
        block: &'a Block<'a>,
    ) -> () {
        let scale = block.shape.scale();
        let log_sums = log_sums.iter().step_by(block.shape.heads);
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
        out: &'a mut [MaybeUninit<f32>],
    ) -> () {
        let half = x.len() / 2;
        let cos = &positions.cos[token * half..][..half];
        let sin = &positions.sin[token * half..][..half];
        let (first, second) = x.split_at(half);
        let (out_first, out_second) = out.split_at_mut(half);
        let angles = || cos.iter().zip(sin.iter().map(|sin| direction * sin));
        for (out, ((a, b), (cos, sin))) in out_first.iter_mut().zip(first.iter().zip(second).zip(angles())) {
            out.write(a * cos - b * sin);
        }
        for (out, ((a, b), (cos, sin))) in out_second.iter_mut().zip(first.iter().zip(second).zip(angles())) {
            out.write(b * cos + a * sin);
        }
    }
}

/// The input with its queries and keys rotated.
fn rotated(qkv: &[f32], positions: Positions<'_>, shape: Shape) -> Vec<f32> {
    let (width, head_dim) = (shape.width(), shape.head_dim);
    let fill = |out: &mut [MaybeUninit<f32>]| {
        let rows = out.par_chunks_mut(width).zip(qkv.par_chunks(width)).enumerate();
        rows.with_min_len(16).for_each(|(token, (out, x))| {
            let (x, values) = x.split_at(width - shape.keys());
            let (out, out_values) = out.split_at_mut(x.len());
            for (x, out) in x.chunks_exact(head_dim).zip(out.chunks_exact_mut(head_dim)) {
                rotate(x, positions, token, 1.0, out);
            }
            out_values.write_copy_of_slice(values);
        });
    };
    // SAFETY: the rows are all tokens, and each is written whole.
    unsafe { filled(qkv.len(), fill) }
}
