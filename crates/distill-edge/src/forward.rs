//! The forward pass of one thread. Every thread of a session runs [`Worker::run`] with the same job;
//! five barriers a layer hand the exchanged buffers from their writers to their readers.
//!
//! ```text
//! residual = embedding[token]                                         each thread, all of it
//! for each layer:
//!   input = quantise(rms_norm(residual))                              each thread, all of it
//!   query, key, value rows; RoPE; key and value into the cache        its rows      — barrier
//!   softmax(query · keysᵀ) · values                                   its tasks     — barrier
//!   delta = attention_output(quantise(attention))                     its rows      — barrier
//!   residual += delta;  input = quantise(rms_norm(residual))          each thread, all of it
//!   feed_forward = silu(gate(input)) · up(input)                      its rows      — barrier
//!   delta = down(quantise(feed_forward))                              its rows      — barrier
//!   residual += delta                                                 each thread, all of it
//! logits = head(quantise(rms_norm(residual)))                         its rows      — barrier
//! ```

use std::ops::Range;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::buffers::{Exchange, Exchanges, PANEL, Scratch};
use crate::cache::{Part, Stripe};
use crate::kernels::{BLOCK, Codes};
use crate::model::{Activations, Inner};
use crate::plan::Share;
use crate::rope;
use crate::team::Team;
use crate::trace::{LinearInput, QuantizedInput, Trace};
use crate::weights::{Matrix, WeightType};

/// What the threads of a session share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub model: Arc<Inner>,
    pub team: Team,
    pub shares: Vec<Share>,
    pub exchanges: Exchanges,
    /// One stripe a thread.
    pub cache: Vec<RwLock<Stripe>>,
    /// See [`rope::frequencies`].
    pub frequencies: Vec<f64>,
    /// What to do next.
    pub job: RwLock<Job>,
}

/// One run of all threads.
#[derive(Clone, Debug, Default)]
pub(crate) struct Job {
    /// Tokens to run through the layers, at most [`TILE`](crate::buffers::TILE), from `position`.
    /// They stay in the residual buffers for later jobs with a head only.
    pub tokens: Vec<u32>,
    pub position: usize,
    /// Tokens of the last run layers whose logits to compute, at most
    /// [`HEAD_TILE`](crate::buffers::HEAD_TILE).
    pub head: Range<usize>,
    /// No work: the session ends.
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
    /// Runs the current job; returns when all threads have done their part. Every thread has all of
    /// every quantised input, so `trace` is complete on whichever thread it is given.
    pub fn run(&mut self, trace: &mut Trace<'_>) {
        let shared = Arc::clone(&self.shared);
        let job = read(&shared.job);
        if !job.tokens.is_empty() {
            self.position = job.position;
            self.run_layers(&shared, &job.tokens, trace);
        }
        if !job.head.is_empty() {
            self.run_head(&shared, job.head.clone(), trace);
        }
    }

    fn run_layers(&mut self, shared: &Shared, tokens: &[u32], trace: &mut Trace<'_>) {
        let model = &*shared.model;
        let hidden = model.config.hidden_size;
        for (t, &token) in tokens.iter().enumerate() {
            let row = token as usize;
            let bytes = model.weights.embedding.rows(&model.file, row..row + 1);
            dequantize(
                model,
                model.weights.embedding.ty,
                bytes,
                &mut self.scratch.residual[t * hidden..(t + 1) * hidden],
            );
            let pairs = shared.frequencies.len();
            let rotation = &mut self.scratch.rotation[t * pairs..(t + 1) * pairs];
            rope::rotation_at(self.position + t, &shared.frequencies, rotation);
        }
        for (l, layer) in model.weights.layers.iter().enumerate() {
            self.project_attention(shared, l, tokens.len(), trace);
            shared.team.barrier();
            self.attend(shared, l, tokens.len());
            shared.team.barrier();
            self.gather_attention(shared, tokens.len());
            let input = LinearInput::AttentionOutput { layer: l };
            self.add_rows(shared, &layer.attention_output, tokens.len(), input, trace);
            self.feed_forward(shared, l, tokens.len(), trace);
            shared.team.barrier();
            self.gather(
                &shared.exchanges.feed_forward,
                shared,
                |s| s.feed_forward_rows.clone(),
                tokens.len(),
            );
            let input = LinearInput::Down { layer: l };
            self.add_rows(shared, &layer.down, tokens.len(), input, trace);
        }
    }

    /// Writes this thread's queries to the exchange, and its keys and values to the cache.
    fn project_attention(
        &mut self,
        shared: &Shared,
        l: usize,
        tokens: usize,
        trace: &mut Trace<'_>,
    ) {
        let model = &*shared.model;
        let layer = &model.weights.layers[l];
        let share = &shared.shares[self.index];
        let head_dim = model.config.head_dim;
        self.normalise(model, &layer.attention_norm, 0..tokens);
        let input = LinearInput::Attention { layer: l };
        self.prepare_input(model, self.position, tokens, input, trace);

        let mut query = write(&shared.exchanges.query.stripes[self.index]);
        let rows = share.query_rows.len();
        self.scratch.multiply(model, &layer.query, share.query_rows.clone(), tokens, &mut query);
        if rows > 0 {
            for (query, rotation) in query
                .chunks_exact_mut(rows)
                .zip(self.scratch.rotation.chunks_exact(head_dim / 2))
                .take(tokens)
            {
                rope::rotate(query, share.query_rows.start, head_dim, rotation);
            }
        }

        let kv_rows = share.kv_heads.start * head_dim..share.kv_heads.end * head_dim;
        let mut cache = write(&shared.cache[self.index]);
        for (part, matrix) in [(Part::Key, &layer.key), (Part::Value, &layer.value)] {
            let mut new = std::mem::take(&mut self.scratch.key_value);
            self.scratch.multiply(model, matrix, kv_rows.clone(), tokens, &mut new);
            // [tokens, heads, head_dim]
            for (n, head) in
                new.chunks_exact_mut(head_dim).take(tokens * share.kv_heads.len()).enumerate()
            {
                let (t, h) = (n / share.kv_heads.len(), n % share.kv_heads.len());
                if part == Part::Key {
                    let pairs = head_dim / 2;
                    rope::rotate(
                        head,
                        0,
                        head_dim,
                        &self.scratch.rotation[t * pairs..(t + 1) * pairs],
                    );
                }
                cache.write(part, l, h, self.position + t, head, model.kernels);
            }
            self.scratch.key_value = new;
        }
    }

    /// Computes this thread's (head, token) tasks; the tile's token t sees positions
    /// up to its own.
    fn attend(&mut self, shared: &Shared, l: usize, tokens: usize) {
        let config = &shared.model.config;
        let head_dim = config.head_dim;
        let queries: Vec<_> = shared.exchanges.query.stripes.iter().map(read).collect();
        let mut out = write(&shared.exchanges.attention.stripes[self.index]);
        let tasks = (self.index..config.heads * tokens).step_by(shared.team.size());
        for (task, out) in tasks.zip(out.chunks_exact_mut(head_dim)) {
            let (head, t) = (task / tokens, task % tokens);
            // A head's query rows may lie in several stripes.
            let wanted = head * head_dim..(head + 1) * head_dim;
            for (share, stripe) in shared.shares.iter().zip(&queries) {
                let rows = &share.query_rows;
                let (from, to) = (wanted.start.max(rows.start), wanted.end.min(rows.end));
                if from < to {
                    let source = t * rows.len() + from - rows.start;
                    self.scratch.query[from - wanted.start..to - wanted.start]
                        .copy_from_slice(&stripe[source..source + to - from]);
                }
            }
            let kv_head = head / (config.heads / config.kv_heads);
            // Every kv head is in exactly one share.
            let owner =
                shared.shares.iter().position(|s| s.kv_heads.contains(&kv_head)).unwrap_or(0);
            let cache = read(&shared.cache[owner]);
            let local = kv_head - shared.shares[owner].kv_heads.start;
            let scores = &mut self.scratch.scores[..self.position + t + 1];
            cache.attend(l, local, &self.scratch.query, scores, out, shared.model.kernels);
        }
    }

    /// Collects all attention results into the input, [tokens, heads · head_dim].
    fn gather_attention(&mut self, shared: &Shared, tokens: usize) {
        let config = &shared.model.config;
        let (head_dim, threads) = (config.head_dim, shared.team.size());
        let stripes: Vec<_> = shared.exchanges.attention.stripes.iter().map(read).collect();
        let columns = config.heads * head_dim;
        for task in 0..config.heads * tokens {
            let (head, t) = (task / tokens, task % tokens);
            let from = task / threads * head_dim;
            let to = t * columns + head * head_dim;
            self.scratch.input[to..to + head_dim]
                .copy_from_slice(&stripes[task % threads][from..from + head_dim]);
        }
    }

    /// Collects an exchange of rows into the input, [tokens, all rows].
    fn gather(
        &mut self,
        exchange: &Exchange,
        shared: &Shared,
        rows: fn(&Share) -> Range<usize>,
        tokens: usize,
    ) {
        let columns = shared.shares.last().map_or(0, |share| rows(share).end);
        for (share, stripe) in shared.shares.iter().zip(&exchange.stripes) {
            let (rows, stripe) = (rows(share), read(stripe));
            for t in 0..tokens {
                self.scratch.input[t * columns + rows.start..t * columns + rows.end]
                    .copy_from_slice(&stripe[t * rows.len()..(t + 1) * rows.len()]);
            }
        }
    }

    /// Multiplies the input, waits for all rows, and adds them to the residual stream.
    fn add_rows(
        &mut self,
        shared: &Shared,
        matrix: &Matrix,
        tokens: usize,
        input: LinearInput,
        trace: &mut Trace<'_>,
    ) {
        let model = &*shared.model;
        self.prepare_input(model, self.position, tokens, input, trace);
        {
            let mut delta = write(&shared.exchanges.delta.stripes[self.index]);
            self.scratch.multiply(
                model,
                matrix,
                shared.shares[self.index].hidden_rows.clone(),
                tokens,
                &mut delta,
            );
        }
        shared.team.barrier();
        let hidden = model.config.hidden_size;
        for (share, stripe) in shared.shares.iter().zip(&shared.exchanges.delta.stripes) {
            let (rows, stripe) = (share.hidden_rows.clone(), read(stripe));
            for t in 0..tokens {
                let residual =
                    &mut self.scratch.residual[t * hidden + rows.start..t * hidden + rows.end];
                for (x, delta) in
                    residual.iter_mut().zip(&stripe[t * rows.len()..(t + 1) * rows.len()])
                {
                    *x += delta;
                }
            }
        }
    }

    /// Writes this thread's rows of silu(gate) · up to the exchange.
    fn feed_forward(&mut self, shared: &Shared, l: usize, tokens: usize, trace: &mut Trace<'_>) {
        let model = &*shared.model;
        let layer = &model.weights.layers[l];
        let rows = shared.shares[self.index].feed_forward_rows.clone();
        self.normalise(model, &layer.feed_forward_norm, 0..tokens);
        let input = LinearInput::FeedForward { layer: l };
        self.prepare_input(model, self.position, tokens, input, trace);
        let mut gate = write(&shared.exchanges.feed_forward.stripes[self.index]);
        let mut up = std::mem::take(&mut self.scratch.up);
        self.scratch.multiply(model, &layer.gate, rows.clone(), tokens, &mut gate);
        self.scratch.multiply(model, &layer.up, rows.clone(), tokens, &mut up);
        let used = tokens * rows.len();
        (model.kernels.silu_mul)(&mut gate[..used], &up[..used]);
        self.scratch.up = up;
    }

    /// Writes this thread's rows of the logits of some tokens to the exchange.
    fn run_head(&mut self, shared: &Shared, tokens: Range<usize>, trace: &mut Trace<'_>) {
        let model = &*shared.model;
        let head = &model.weights.head;
        self.normalise(model, &model.weights.output_norm, tokens.clone());
        let position = self.position + tokens.start;
        self.prepare_input(model, position, tokens.len(), LinearInput::Head, trace);
        {
            let mut logits = write(&shared.exchanges.logits.stripes[self.index]);
            let rows = shared.shares[self.index].vocab_rows.clone();
            self.scratch.multiply(model, head, rows, tokens.len(), &mut logits);
        }
        shared.team.barrier();
    }

    /// input[0..n] = rms_norm(residual[tokens]).
    fn normalise(&mut self, model: &Inner, weight: &[f32], tokens: Range<usize>) {
        let hidden = model.config.hidden_size;
        let residual =
            self.scratch.residual[tokens.start * hidden..tokens.end * hidden].chunks_exact(hidden);
        for (x, out) in residual.zip(self.scratch.input.chunks_exact_mut(hidden)) {
            (model.kernels.rms_norm)(x, weight, model.config.rms_epsilon, out);
        }
    }

    /// In the integer path: quantises the input, and where linear layers of floats will read it
    /// too, replaces it by what the codes stand for.
    fn prepare_input(
        &mut self,
        model: &Inner,
        position: usize,
        tokens: usize,
        input: LinearInput,
        trace: &mut Trace<'_>,
    ) {
        if model.activations == Activations::Float {
            return;
        }
        let columns = input.columns(&model.config);
        let Scratch { input: values, codes, scales, .. } = &mut self.scratch;
        let n = tokens * columns;
        let (codes, scales) = (&mut codes[..n], &mut scales[..n / BLOCK]);
        (model.kernels.quantize_activations)(&values[..n], codes, scales);
        trace.show(QuantizedInput { input, position, columns, codes, scales });
        if model.has_float_linears {
            let blocks = values[..n].as_chunks_mut::<BLOCK>().0.iter_mut();
            for ((block, codes), scale) in blocks.zip(codes.as_chunks::<BLOCK>().0).zip(&*scales) {
                *block = codes.map(|code| f32::from(code) * scale);
            }
        }
    }
}

impl Scratch {
    /// `y[t, r] = matrix[rows.start + r] · input[t]`, with `y` [tokens, rows].
    fn multiply(
        &mut self,
        model: &Inner,
        matrix: &Matrix,
        rows: Range<usize>,
        tokens: usize,
        y: &mut [f32],
    ) {
        let (columns, stride) = (matrix.columns, rows.len());
        if rows.is_empty() {
            return;
        }
        let n = tokens * columns;
        if model.activations == Activations::Q8_0 && matrix.ty.is_quantized() {
            let x = Codes { codes: &self.codes[..n], scales: &self.scales[..n / BLOCK] };
            let bytes = matrix.rows(&model.file, rows);
            match matrix.ty {
                WeightType::Q4_0 => (model.kernels.matmul_q4_0_q8_0)(bytes, x, columns, y, stride),
                _ => (model.kernels.matmul_q8_0_q8_0)(bytes, x, columns, y, stride),
            }
            return;
        }
        for first in rows.clone().step_by(PANEL) {
            let last = (first + PANEL).min(rows.end);
            let panel = &mut self.panel[..(last - first) * columns];
            dequantize(model, matrix.ty, matrix.rows(&model.file, first..last), panel);
            (model.kernels.matmul_f32)(
                panel,
                &self.input[..n],
                columns,
                &mut y[first - rows.start..],
                stride,
            );
        }
    }
}

/// Widens rows to f32.
fn dequantize(model: &Inner, ty: WeightType, bytes: &[u8], values: &mut [f32]) {
    match ty {
        WeightType::Q4_0 => (model.kernels.dequantize_q4_0)(bytes, values),
        WeightType::Q8_0 => (model.kernels.dequantize_q8_0)(bytes, values),
        WeightType::F16 => (model.kernels.dequantize_f16)(bytes, values),
        WeightType::F32 => {
            for (value, bytes) in values.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *value = f32::from_le_bytes(*bytes);
            }
        }
    }
}
