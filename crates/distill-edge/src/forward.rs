//! The forward pass of one thread. Every thread of an engine runs [`Worker::run`] with the same job;
//! barriers hand what stands on the [`Board`] from its writers to its readers. A tile of tokens is
//! a piece of one sequence or one token of each of many: only where keys and values lie, and which
//! of them a token sees, depends on that.
//!
//! ```text
//! residual = embedding[token]                                  its tokens          — barrier
//! for each layer:
//!   input = quantise(rms_norm(residual))                       *
//!   query, key, value rows; RoPE; keys and values to the cache its rows            — barrier
//!   softmax(query · keysᵀ) · values                            its heads and chunks — barrier
//!   input = quantise(attention)                                *
//!   residual += attention_output(input)                        its rows            — barrier
//!   input = quantise(rms_norm(residual))                       *
//!   feed_forward = silu(gate(input)) · up(input)               its rows            — barrier
//!   input = quantise(feed_forward)                             *
//!   residual += down(input)                                    its rows            — barrier
//! logits = head(quantise(rms_norm(residual)))                  its rows            — barrier
//! the next token of each sequence, where asked for             its tokens          — barrier
//! ```
//! *: for a single token each thread makes the whole input itself, which costs less than a
//! barrier; of several tokens each thread makes its share, and a barrier follows.

#![allow(unsafe_code)]

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::buffers::{AttentionScratch, Board, PANEL, QUERY_TILE, Scratch, TILE};
use crate::cache::{Cache, Part};
use crate::kernels::{BLOCK, CHUNK, Codes, Queries, Total, merge};
use crate::model::{Activations, Inner};
use crate::plan::{share, within};
use crate::rope;
use crate::sampler::{Choice, Sampler};
use crate::team::Team;
use crate::trace::{LinearInput, Trace};
use crate::weights::{Layer, Matrix, Place, Storage};
use distill_quant::packed::{Packed, ROWS};

/// What the threads of an engine share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub model: Arc<Inner>,
    pub team: Team,
    pub board: Board,
    /// One for each sequence.
    pub caches: Vec<Cache>,
    /// See [`rope::frequencies`].
    pub frequencies: Vec<f64>,
    /// What to do next.
    pub job: RwLock<Job>,
    /// One for each sequence, or none. Whichever thread draws locks it, and nobody else then.
    pub draws: Vec<Mutex<Draw>>,
}

/// A token of a tile.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    pub token: u32,
    pub sequence: usize,
    /// In the sequence.
    pub position: usize,
}

/// What a sequence draws its tokens with, and the last one.
#[derive(Debug, Default)]
pub(crate) struct Draw {
    pub sampler: Option<Sampler>,
    pub choice: Choice,
}

/// One run of all threads.
#[derive(Clone, Debug, Default)]
pub(crate) struct Job {
    /// Tokens to run through the layers, at most [`TILE`]; those of a sequence stand together and
    /// follow each other. They stay in the residual buffer for later jobs with a head only.
    pub rows: Vec<Row>,
    /// Tokens of the last run layers whose logits to compute, as many as the board has room for.
    pub head: Range<usize>,
    /// Draw the token after each of `head`, which are all rows.
    pub draw: bool,
    /// No work: the engine ends.
    pub stop: bool,
}

/// Locks for reading. A lock is poisoned only when the session is broken anyway.
pub(crate) fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

/// Locks for writing, likewise.
pub(crate) fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

/// Locks, likewise.
pub(crate) fn lock<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One thread's view.
#[derive(Debug)]
pub(crate) struct Worker {
    pub shared: Arc<Shared>,
    pub index: usize,
    pub scratch: Scratch,
    /// The position of the first token in the residual buffer.
    pub position: usize,
}

impl Worker {
    /// Runs the current job; returns when all threads have done their part. Every thread sees all
    /// of every quantised input, so `trace` is complete on whichever thread it is given.
    pub fn run(&mut self, trace: &mut Trace<'_>) {
        let shared = Arc::clone(&self.shared);
        let job = read(&shared.job);
        let mut pass = Pass {
            shared: &shared,
            model: &shared.model,
            board: &shared.board,
            index: self.index,
            threads: shared.team.size(),
            scratch: &mut self.scratch,
            rows: &job.rows,
            position: self.position,
            tokens: job.rows.len(),
            trace,
        };
        if let Some(first) = job.rows.first() {
            self.position = first.position;
            pass.position = first.position;
            pass.embed();
            for (l, layer) in shared.model.weights.layers.iter().enumerate() {
                pass.project_attention(l, layer);
                pass.attend(l);
                pass.add_attention(l, layer);
                pass.feed_forward(l, layer);
                pass.add_feed_forward(l, layer);
            }
        }
        if !job.head.is_empty() {
            pass.head(job.head.clone());
        }
        if job.draw {
            pass.draw();
        }
    }

    /// The residual stream of a token of the last tile after the final norm.
    pub fn hidden_state(&self, token: usize, values: &mut [f32]) {
        let model = &self.shared.model;
        let hidden = values.len();
        // SAFETY: no job is running: this is the session's own thread, which waits for the others.
        let residual =
            unsafe { self.shared.board.residual.read(token * hidden..(token + 1) * hidden) };
        let (weight, epsilon) = (&model.weights.output_norm, model.config.rms_epsilon);
        (model.kernels.rms_norm)(residual, weight, epsilon, values);
    }
}

/// One job on one thread.
///
/// # Safety of the shared slices
/// A stage writes only this thread's rows, tokens or tasks, which [`share`] makes disjoint, and
/// reads only what an earlier stage wrote before a barrier. What a stage writes is read by no other
/// thread before the barrier that ends it. Each `SAFETY` comment below says which rule applies.
struct Pass<'a, 't> {
    shared: &'a Shared,
    model: &'a Inner,
    board: &'a Board,
    index: usize,
    threads: usize,
    scratch: &'a mut Scratch,
    /// The tile.
    rows: &'a [Row],
    /// The position of its first token, or of the last tile's if there is none.
    position: usize,
    /// Tokens of the tile.
    tokens: usize,
    trace: &'a mut Trace<'t>,
}

impl Pass<'_, '_> {
    fn barrier(&self) {
        self.shared.team.barrier();
    }

    fn share(&self, n: usize) -> Range<usize> {
        share(n, self.index, self.threads)
    }

    /// Puts the embeddings and the rotations of the tile on the board.
    fn embed(&mut self) {
        let (hidden, pairs) = (self.model.config.hidden_size, self.shared.frequencies.len());
        for t in self.share(self.tokens) {
            let Row { token, position, .. } = self.rows[t];
            // SAFETY: this thread's tokens.
            let (row, rotation) = unsafe {
                (
                    self.board.residual.write(t * hidden..(t + 1) * hidden),
                    self.board.rotation.write(t * pairs..(t + 1) * pairs),
                )
            };
            embedding(self.model, token as usize, row);
            rope::rotation_at(position, &self.shared.frequencies, rotation);
        }
        self.barrier();
    }

    /// Puts this thread's queries on the board, and its keys and values into the cache.
    fn project_attention(&mut self, l: usize, layer: &Layer) {
        let input = LinearInput::Attention { layer: l };
        self.normalise(input, &layer.attention_norm, 0..self.tokens);
        let (model, board, tokens) = (self.model, self.board, self.tokens);
        let config = &model.config;
        let (head_dim, columns) = (config.head_dim, config.heads * config.head_dim);
        let pairs = head_dim / 2;
        let matrices = [&layer.query, &layer.key, &layer.value];
        // What the cache stores together is not divided among threads, nor among panels.
        let together = self.shared.caches[0].kv().block().div_ceil(ROWS);
        let groups: usize = matrices.iter().map(|m| m.groups()).sum();
        let mine = self.share(groups.div_ceil(together));
        let mine = mine.start * together..groups.min(mine.end * together);
        let mut from = 0;
        for (kind, matrix) in matrices.into_iter().enumerate() {
            let groups = within(&mine, from, matrix.groups());
            from += matrix.groups();
            for panel in panels(groups) {
                self.multiply(matrix, panel.clone(), tokens, 0);
                let rows = matrix.rows_of(&panel);
                let results = self.scratch.panels[0].chunks_exact_mut(PANEL * ROWS);
                for (t, (token, result)) in self.rows.iter().zip(results).enumerate() {
                    let result = &mut result[..rows.len()];
                    if kind < 2 {
                        // SAFETY: written before the barrier of `embed`.
                        let rotation = unsafe { board.rotation.read(t * pairs..(t + 1) * pairs) };
                        rope::rotate(result, rows.start, head_dim, rotation);
                    }
                    // SAFETY: this thread's rows; the last readers of queries and of these
                    // positions stood before an earlier barrier.
                    unsafe {
                        match kind {
                            0 => board
                                .query
                                .write(t * columns + rows.start..t * columns + rows.end)
                                .copy_from_slice(result),
                            _ => self.shared.caches[token.sequence].write(
                                if kind == 1 { Part::Key } else { Part::Value },
                                l,
                                token.position,
                                rows.start,
                                result,
                                model.kernels,
                            ),
                        }
                    }
                }
            }
        }
        self.barrier();
    }

    /// Attention of the tile's queries. A single token's tasks are the chunks of each kv head;
    /// several tokens' are tiles of queries of each sequence and kv head, over all chunks.
    fn attend(&mut self, l: usize) {
        if self.tokens == 1 {
            self.attend_chunks(l);
        } else {
            let (mut task, mut start) = (0, 0);
            for rows in self.rows.chunk_by(|a, b| a.sequence == b.sequence) {
                let end = start + rows.len();
                for first in (start..end).step_by(QUERY_TILE) {
                    for head in 0..self.model.config.kv_heads {
                        if task % self.threads == self.index {
                            self.attend_tile(l, head, first..end.min(first + QUERY_TILE));
                        }
                        task += 1;
                    }
                }
                start = end;
            }
        }
        self.barrier();
    }

    fn attend_chunks(&mut self, l: usize) {
        let config = &self.model.config;
        let (head_dim, heads) = (config.head_dim, config.heads / config.kv_heads);
        let positions = self.position + 1;
        let chunks = positions.div_ceil(CHUNK);
        // Chunk by chunk, as they lie in memory.
        for task in self.share(chunks * config.kv_heads) {
            let (chunk, head) = (task / config.kv_heads, task % config.kv_heads);
            let seen = CHUNK.min(positions - chunk * CHUNK);
            let scratch = &mut self.scratch.attention;
            scratch.seen[..heads].fill(seen as u32);
            // SAFETY: queries and cache were written before the last barrier; this task's results.
            unsafe {
                let first = head * heads * head_dim;
                let queries = Queries {
                    queries: self.board.query.read(first..first + heads * head_dim),
                    seen: &scratch.seen[..heads],
                    scale: scale(head_dim),
                    weights: &mut scratch.weights,
                    totals: self.board.totals.write(task * heads..(task + 1) * heads),
                    mixed: self
                        .board
                        .mixed
                        .write(task * heads * head_dim..(task + 1) * heads * head_dim),
                };
                let cache = &self.shared.caches[self.rows[0].sequence];
                cache.attend(l, head, chunk, seen, queries, self.model.kernels);
            }
        }
    }

    /// Attention of some tokens of one sequence.
    fn attend_tile(&mut self, l: usize, head: usize, tokens: Range<usize>) {
        let config = &self.model.config;
        let (head_dim, heads) = (config.head_dim, config.heads / config.kv_heads);
        let (columns, width) = (config.heads * head_dim, heads * head_dim);
        let AttentionScratch { queries, seen, weights, totals, mixed, all_totals, all_mixed } =
            &mut self.scratch.attention;
        for (t, query) in tokens.clone().zip(queries.chunks_exact_mut(width)) {
            let from = t * columns + head * width;
            // SAFETY: written before the last barrier.
            query.copy_from_slice(unsafe { self.board.query.read(from..from + width) });
        }
        let Row { sequence, position, .. } = self.rows[tokens.start];
        let end = position + tokens.len();
        for first in (0..end).step_by(CHUNK) {
            // The tokens before the chunk do not see it.
            let blind = first.saturating_sub(position);
            let (sees, positions) = (tokens.start + blind..tokens.end, CHUNK.min(end - first));
            let (skip, count) = (blind * heads, sees.len() * heads);
            for (t, seen) in sees.zip(seen.chunks_exact_mut(heads)) {
                seen.fill((self.rows[t].position + 1 - first).min(CHUNK) as u32);
            }
            let queries = Queries {
                queries: &queries[skip * head_dim..(skip + count) * head_dim],
                seen: &seen[..count],
                scale: scale(head_dim),
                weights,
                totals: &mut totals[..count],
                mixed: &mut mixed[..count * head_dim],
            };
            // SAFETY: the cache was written before the last barrier.
            unsafe {
                let (cache, chunk) = (&self.shared.caches[sequence], first / CHUNK);
                cache.attend(l, head, chunk, positions, queries, self.model.kernels);
            }
            let all =
                all_totals[skip..].iter_mut().zip(all_mixed.chunks_exact_mut(head_dim).skip(skip));
            for ((all_total, all), (total, mixed)) in
                all.zip(totals[..count].iter().zip(mixed.chunks_exact(head_dim)))
            {
                add_chunk(first == 0, all_total, all, *total, mixed);
            }
        }
        for (i, t) in tokens.enumerate() {
            let from = t * columns + head * width;
            // SAFETY: this task's results; their last readers stood before an earlier barrier.
            let out = unsafe { self.board.attention.write(from..from + width) };
            let found = &all_mixed[i * width..(i + 1) * width];
            out.copy_from_slice(found);
            for (out, total) in out.chunks_exact_mut(head_dim).zip(&all_totals[i * heads..]) {
                normalise(out, *total);
            }
        }
    }

    /// Adds the attention's output to the residual stream.
    fn add_attention(&mut self, l: usize, layer: &Layer) {
        let config = &self.model.config;
        let (head_dim, heads) = (config.head_dim, config.heads / config.kv_heads);
        let (columns, kv_heads) = (config.heads * head_dim, config.kv_heads);
        let (board, tokens, chunks) =
            (self.board, self.tokens, (self.position + 1).div_ceil(CHUNK));
        let input = LinearInput::AttentionOutput { layer: l };
        self.prepare(input, 0..self.tokens, |t, values| {
            if tokens > 1 {
                // SAFETY: written before the last barrier.
                values.copy_from_slice(unsafe {
                    board.attention.read(t * columns..(t + 1) * columns)
                });
                return;
            }
            for (h, out) in values.chunks_exact_mut(head_dim).enumerate() {
                let mut all = Total::default();
                for chunk in 0..chunks {
                    let task = chunk * kv_heads + h / heads;
                    let n = task * heads + h % heads;
                    // SAFETY: written before the last barrier.
                    let (total, mixed) = unsafe {
                        (
                            board.totals.read(n..n + 1)[0],
                            board.mixed.read(n * head_dim..(n + 1) * head_dim),
                        )
                    };
                    add_chunk(chunk == 0, &mut all, out, total, mixed);
                }
                normalise(out, all);
            }
        });
        self.add_to_residual(&layer.attention_output);
    }

    /// Puts this thread's rows of silu(gate) · up on the board.
    fn feed_forward(&mut self, l: usize, layer: &Layer) {
        let input = LinearInput::FeedForward { layer: l };
        self.normalise(input, &layer.feed_forward_norm, 0..self.tokens);
        let columns = self.model.config.feed_forward;
        for panel in panels(self.share(layer.gate.groups())) {
            self.multiply(&layer.gate, panel.clone(), self.tokens, 0);
            self.multiply(&layer.up, panel.clone(), self.tokens, 1);
            let rows = layer.gate.rows_of(&panel);
            let [gates, ups] = &mut self.scratch.panels;
            let results = gates.chunks_exact_mut(PANEL * ROWS).zip(ups.chunks_exact(PANEL * ROWS));
            for (t, (gate, up)) in results.take(self.tokens).enumerate() {
                let gate = &mut gate[..rows.len()];
                (self.model.kernels.silu_mul)(gate, &up[..rows.len()]);
                // SAFETY: this thread's rows; the last readers stood before an earlier barrier.
                let out = unsafe {
                    self.board.feed_forward.write(t * columns + rows.start..t * columns + rows.end)
                };
                out.copy_from_slice(gate);
            }
        }
        self.barrier();
    }

    /// Adds the feed-forward network's output to the residual stream.
    fn add_feed_forward(&mut self, l: usize, layer: &Layer) {
        let (board, columns) = (self.board, self.model.config.feed_forward);
        self.prepare(LinearInput::Down { layer: l }, 0..self.tokens, |t, values| {
            // SAFETY: written before the last barrier.
            let row = unsafe { board.feed_forward.read(t * columns..(t + 1) * columns) };
            values.copy_from_slice(row);
        });
        self.add_to_residual(&layer.down);
    }

    /// Adds this thread's rows of a product to the residual stream.
    fn add_to_residual(&mut self, matrix: &Matrix) {
        let hidden = self.model.config.hidden_size;
        for panel in panels(self.share(matrix.groups())) {
            self.multiply(matrix, panel.clone(), self.tokens, 0);
            let rows = matrix.rows_of(&panel);
            let results = self.scratch.panels[0].chunks_exact(PANEL * ROWS).take(self.tokens);
            for (t, result) in results.enumerate() {
                // SAFETY: this thread's rows; the last readers stood before an earlier barrier.
                let residual = unsafe {
                    self.board.residual.write(t * hidden + rows.start..t * hidden + rows.end)
                };
                for (x, result) in residual.iter_mut().zip(result) {
                    *x += result;
                }
            }
        }
        self.barrier();
    }

    /// Puts this thread's rows of the logits of some tokens on the board.
    fn head(&mut self, tokens: Range<usize>) {
        let model = self.model;
        let (matrix, vocab) = (&model.weights.head, model.config.vocab_size);
        let count = tokens.len();
        self.normalise(LinearInput::Head, &model.weights.output_norm, tokens);
        for panel in panels(self.share(matrix.groups())) {
            self.multiply(matrix, panel.clone(), count, 0);
            let rows = matrix.rows_of(&panel);
            let results = self.scratch.panels[0].chunks_exact(PANEL * ROWS).take(count);
            for (t, result) in results.enumerate() {
                // SAFETY: this thread's rows; the session reads them after the barrier.
                let logits = unsafe {
                    self.board.logits.write(t * vocab + rows.start..t * vocab + rows.end)
                };
                logits.copy_from_slice(&result[..rows.len()]);
            }
        }
        self.barrier();
    }

    /// Draws the token after each of this thread's rows, whose logits are all on the board.
    fn draw(&mut self) {
        let vocab = self.model.config.vocab_size;
        for t in self.share(self.tokens) {
            // SAFETY: written before the last barrier.
            let logits = unsafe { self.board.logits.read(t * vocab..(t + 1) * vocab) };
            let Draw { sampler, choice } = &mut *lock(&self.shared.draws[self.rows[t].sequence]);
            if let Some(sampler) = sampler {
                *choice = sampler.choose(logits);
            }
        }
        self.barrier();
    }

    /// The normalised residual stream of some tokens as the input of linear layers.
    fn normalise(&mut self, input: LinearInput, weight: &[f32], tokens: Range<usize>) {
        let (model, board) = (self.model, self.board);
        let (hidden, first) = (model.config.hidden_size, tokens.start);
        self.prepare(input, tokens, |t, values| {
            let t = first + t;
            // SAFETY: written before the last barrier.
            let residual = unsafe { board.residual.read(t * hidden..(t + 1) * hidden) };
            (model.kernels.rms_norm)(residual, weight, model.config.rms_epsilon, values);
        });
    }

    /// Makes the input of linear layers for some tokens of the tile: `fill(t, values)` gives the
    /// values of the t-th of them.
    fn prepare(
        &mut self,
        input: LinearInput,
        tokens: Range<usize>,
        fill: impl Fn(usize, &mut [f32]),
    ) {
        let columns = input.columns(&self.model.config);
        let (count, integer) = (tokens.len(), self.model.activations == Activations::Q8_0);
        let inputs = if count == 1 { &self.scratch.inputs } else { &self.board.inputs };
        // Where nobody reads the values but to quantise them, they need not leave the nearest cache.
        let keep = !integer || self.model.has_float_linears;
        // Whole tiles of tokens, whose blocks lie side by side.
        let width = Codes::width(count);
        let tile = width * columns / BLOCK;
        let mine = if count == 1 { 0..1 } else { self.share(count.div_ceil(width)) };
        for t in mine.start * width..count.min(mine.end * width) {
            // SAFETY: this thread's tokens (or its own inputs); the last readers stood before an
            // earlier barrier.
            let values = unsafe {
                match keep {
                    true => inputs.values.write(t * columns..(t + 1) * columns),
                    false => self.scratch.inputs.values.write(0..columns),
                }
            };
            fill(t, values);
            if !integer {
                continue;
            }
            // SAFETY: likewise.
            let blocks = unsafe { inputs.blocks.write(t / width * tile..(t / width + 1) * tile) };
            let blocks = &mut blocks[t % width..];
            (self.model.kernels.quantize_activations)(values, blocks, width);
            if self.model.has_float_linears {
                // Linear layers of floats read what the codes stand for.
                let values = values.as_chunks_mut::<BLOCK>().0.iter_mut();
                for (values, block) in values.zip(blocks.iter().step_by(width)) {
                    *values = block.codes.map(|code| f32::from(code) * block.scale);
                }
            }
        }
        if count > 1 {
            self.barrier();
        }
        if integer {
            let position = self.position + tokens.start;
            // SAFETY: written before the barrier, or by this thread for itself.
            let codes = unsafe { inputs.codes(count, columns) };
            self.trace.show(input, position, columns, codes);
        }
    }

    /// Multiplies the input of `tokens` tokens by some groups of rows, into a panel:
    /// `panels[panel][t, r] = matrix[first row + r] · input[t]`.
    fn multiply(&mut self, matrix: &Matrix, groups: Range<usize>, tokens: usize, panel: usize) {
        let (model, columns) = (self.model, matrix.columns);
        let inputs = if tokens == 1 { &self.scratch.inputs } else { &self.board.inputs };
        let y = &mut self.scratch.panels[panel];
        if let (Activations::Q8_0, Storage::Packed(grid, place)) =
            (model.activations, &matrix.storage)
        {
            let bytes = packed(model, *grid, columns, place, groups);
            // SAFETY: written before the last barrier, or by this thread for itself.
            let x = unsafe { inputs.codes(tokens, columns) };
            let product = match grid {
                Packed::Q4_0 => model.kernels.product_q4_0,
                Packed::Q8_0 => model.kernels.product_q8_0,
            };
            product(bytes, x, columns, y, PANEL * ROWS);
            return;
        }
        // SAFETY: as above.
        let x = unsafe { inputs.values.read(0..tokens * columns) };
        for (i, group) in groups.enumerate() {
            let rows = matrix.rows_of(&(group..group + 1));
            let weights = &mut self.scratch.weights[..rows.len() * columns];
            for (r, weights) in rows.zip(weights.chunks_exact_mut(columns)) {
                row_of(model, matrix, r, weights);
            }
            (model.kernels.matmul_f32)(weights, x, columns, &mut y[i * ROWS..], PANEL * ROWS);
        }
    }
}

/// Runs of at most [`PANEL`] groups.
fn panels(groups: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    groups.clone().step_by(PANEL).map(move |first| first..groups.end.min(first + PANEL))
}

/// Multiplies scores: 1 / √head_dim.
fn scale(head_dim: usize) -> f32 {
    1.0 / (head_dim as f32).sqrt()
}

/// Adds a chunk's result to those before it.
fn add_chunk(first: bool, all_total: &mut Total, all: &mut [f32], total: Total, mixed: &[f32]) {
    if first {
        *all_total = total;
        all.copy_from_slice(mixed);
    } else {
        merge(all_total, all, total, mixed);
    }
}

/// Divides by the sum of weights.
fn normalise(mixed: &mut [f32], total: Total) {
    let scale = 1.0 / total.sum;
    for mixed in mixed {
        *mixed *= scale;
    }
}

/// The bytes of some groups of a packed matrix.
fn packed<'m>(
    model: &'m Inner,
    grid: Packed,
    columns: usize,
    place: &Place,
    groups: Range<usize>,
) -> &'m [u8] {
    let bytes = grid.group_bytes(columns);
    let matrix = match place {
        Place::File(range) => &model.file.bytes()[range.clone()],
        Place::Arena(range) => &model.weights.arena.bytes()[range.clone()],
    };
    &matrix[groups.start * bytes..groups.end * bytes]
}

/// The embedding of a token.
fn embedding(model: &Inner, token: usize, values: &mut [f32]) {
    row_of(model, &model.weights.embedding, token, values);
}

/// One row of a matrix as floats.
pub(crate) fn row_of(model: &Inner, matrix: &Matrix, row: usize, values: &mut [f32]) {
    let columns = matrix.columns;
    match &matrix.storage {
        Storage::Packed(grid, place) => {
            let group = packed(model, *grid, columns, place, row / ROWS..row / ROWS + 1);
            grid.dequantize_row(group, row % ROWS, values);
        }
        Storage::F16(range) => {
            let bytes = &model.file.bytes()[range.clone()];
            let row = &bytes[2 * row * columns..2 * (row + 1) * columns];
            (model.kernels.dequantize_f16)(row, values);
        }
        Storage::F32(range) => {
            let bytes = &model.file.bytes()[range.clone()];
            let row = &bytes[4 * row * columns..4 * (row + 1) * columns];
            for (value, bytes) in values.iter_mut().zip(row.as_chunks::<4>().0) {
                *value = f32::from_le_bytes(*bytes);
            }
        }
    }
}

const _: () = assert!(TILE.is_multiple_of(QUERY_TILE) && (PANEL * ROWS).is_multiple_of(BLOCK));
