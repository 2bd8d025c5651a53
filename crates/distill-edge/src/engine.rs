//! The threads that compute together, with all that they compute on: what one sequence alone and a
//! batch of many have in common.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, RwLock};
use std::thread::JoinHandle;

use crate::EdgeError;
use crate::buffers::{Board, Scratch, TILE};
use crate::cache::{Cache, KvType};
use crate::config::Config;
use crate::forward::{Draw, Job, Row, Shared, Worker, lock, read, write};
use crate::model::{Activations, Inner, Model};
use crate::rope;
use crate::team::Team;
use crate::trace::Trace;

/// What an engine holds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    /// Sequences, each with a cache of its own.
    pub sequences: usize,
    /// The most tokens of a sequence.
    pub context: usize,
    pub kv: KvType,
    /// Threads, the caller's included.
    pub threads: usize,
    /// Tokens whose logits are computed together, at most [`TILE`].
    pub head_tile: usize,
    /// Whether threads draw the next tokens.
    pub draws: bool,
}

impl Plan {
    /// What [`Engine::new`] allocates.
    pub fn bytes(&self, model: &Inner) -> u128 {
        let config = &model.config;
        let integer = model.activations == Activations::Q8_0;
        let draws = if self.draws { size_of::<Mutex<Draw>>() * self.sequences } else { 0 };
        let a_sequence = Cache::bytes(config, self.context, self.kv) + size_of::<Cache>() as u128;
        let others = size_of::<Row>() * TILE + size_of::<f64>() * (config.head_dim / 2) + draws;
        a_sequence * self.sequences as u128
            + Board::bytes(config, self.context, integer, self.head_tile)
            + Scratch::bytes(config, integer) * self.threads as u128
            + others as u128
    }

    fn caches(&self, config: &Config) -> Result<Vec<Cache>, EdgeError> {
        (0..self.sequences).map(|_| Cache::new(config, self.context, self.kv)).collect()
    }
}

/// Caches, buffers and threads, which live as long as it does.
#[derive(Debug)]
pub(crate) struct Engine {
    /// This thread's part.
    worker: Worker,
    threads: Vec<JoinHandle<()>>,
}

impl Engine {
    /// Allocates everything, [`Plan::bytes`] of which `bytes` is what the caller says it needs in
    /// all, and starts the threads.
    ///
    /// # Errors
    /// If that does not fit into memory or the system gives no thread.
    pub fn new(model: &Model, plan: Plan, bytes: usize) -> Result<Self, EdgeError> {
        let inner = &model.inner;
        let Plan { context, threads, sequences, .. } = plan;
        let config = &inner.config;
        let integer = inner.activations == Activations::Q8_0;
        // Reserving first turns "out of memory" into an error; the zeroed allocations that
        // follow, unlike filling the reserved one, leave their pages untouched.
        Vec::<u8>::new()
            .try_reserve_exact(bytes)
            .map_err(|_| EdgeError::Memory { context, bytes })?;
        let draws = if plan.draws { sequences } else { 0 };
        let shared = Arc::new(Shared {
            team: Team::new(threads),
            caches: plan.caches(config)?,
            board: Board::new(config, context, integer, plan.head_tile),
            frequencies: rope::frequencies(config, inner.weights.rope_factors.as_deref()),
            job: RwLock::new(Job { rows: Vec::with_capacity(TILE), ..Job::default() }),
            draws: (0..draws).map(|_| Mutex::default()).collect(),
            model: Arc::clone(inner),
        });
        let worker = |index: usize| Worker {
            scratch: Scratch::new(config, integer),
            shared: Arc::clone(&shared),
            index,
            position: 0,
        };
        let mut engine = Self { worker: worker(0), threads: Vec::new() };
        for index in 1..threads {
            let worker = worker(index);
            let thread = std::thread::Builder::new()
                .name(format!("edge-{index}"))
                .spawn(move || follow(worker))
                .map_err(|source| EdgeError::Thread { index, threads, source })?;
            engine.threads.push(thread);
        }
        Ok(engine)
    }

    /// One job for all threads; returns when it is done. `rows`, at most [`TILE`], go through the
    /// layers; then come the logits of those in `head`, and with `draw` the next token of each.
    pub fn run(
        &mut self,
        rows: impl Iterator<Item = Row>,
        head: Range<usize>,
        draw: bool,
        trace: &mut Trace<'_>,
    ) {
        let shared = Arc::clone(&self.worker.shared);
        {
            let mut job = write(&shared.job);
            job.rows.clear();
            job.rows.extend(rows);
            job.head = head;
            job.draw = draw;
        }
        shared.team.start_job();
        shared.team.guarded(|| self.worker.run(trace));
    }

    /// Threads that compute, the caller's included.
    pub fn threads(&self) -> usize {
        self.worker.shared.team.size()
    }

    /// The cache of a sequence. Threads compute only while the engine is borrowed mutably.
    pub fn cache(&self, sequence: usize) -> &Cache {
        &self.worker.shared.caches[sequence]
    }

    /// What a sequence draws with.
    pub fn draw(&self, sequence: usize) -> MutexGuard<'_, Draw> {
        lock(&self.worker.shared.draws[sequence])
    }

    /// See [`Worker::hidden_state`].
    pub fn hidden_state(&self, token: usize, values: &mut [f32]) {
        self.worker.hidden_state(token, values);
    }

    /// The logits of the `t`-th token of the last head, `[vocab]`.
    #[allow(unsafe_code)]
    pub fn logits(&self, t: usize) -> &[f32] {
        let vocab = self.worker.shared.model.config.vocab_size;
        // SAFETY: threads write only while a job runs, which needs the engine mutably.
        unsafe { self.worker.shared.board.logits.read(t * vocab..(t + 1) * vocab) }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        write(&self.worker.shared.job).stop = true;
        self.worker.shared.team.start_job();
        for thread in self.threads.drain(..) {
            // A thread that panicked has already ended the job it was in.
            let _ = thread.join();
        }
    }
}

/// The life of a thread that is not the caller's.
fn follow(mut worker: Worker) {
    let shared = Arc::clone(&worker.shared);
    let mut seen = 0;
    loop {
        seen = shared.team.wait_for_job(seen);
        if read(&shared.job).stop {
            return;
        }
        shared.team.guarded(|| worker.run(&mut Trace::default()));
    }
}
