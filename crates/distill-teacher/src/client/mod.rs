//! Asking servers: many at a time, until all has come.
//!
//! Every endpoint has threads of its own, each with a request on its way, and all of them take texts
//! from one list. What comes is handed over one by one, and only then is more asked for: a slow disk
//! slows the asking down.
//!
//! What may pass (no connection, a time-out, 408, 425, 429, 5xx, an answer that is no JSON) is tried
//! again after a pause that doubles, with jitter, or as long as `Retry-After` says, which holds back
//! all of an endpoint's threads. An endpoint that fails a text too often is given up, and the others
//! take over what it had. What would fail again ends the asking: 400, 401, 404 … at once, an answer about
//! another text when it comes a third time.

mod endpoint;
mod pace;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use distill_data::Sequence;

use crate::cache::{Key, Query, Writer, encode_signal, queries};
use crate::error::TeacherError;
use crate::protocol::{Protocol, Rows, Scored, check};
use crate::signal::{Signal, Spec};
use endpoint::{Endpoint, Failure};
use pace::Pace;

/// A key that is sent and never shown.
#[derive(Clone)]
pub struct Secret(String);

impl Secret {
    /// The value of an environment variable.
    ///
    /// # Errors
    /// [`TeacherError::NoKey`] if it is not set.
    pub fn from_env(variable: &str) -> Result<Self, TeacherError> {
        match std::env::var(variable) {
            Ok(key) if !key.is_empty() => Ok(Self(key)),
            _ => Err(TeacherError::NoKey { variable: variable.to_owned() }),
        }
    }

    /// For tests.
    #[must_use]
    pub fn new(key: &str) -> Self {
        Self(key.to_owned())
    }

    /// Whether a header bears it, in a time that does not tell how much of it is right.
    pub(crate) fn is(&self, header: &[u8]) -> bool {
        let expected = self.header();
        let differs = expected.bytes().zip(header).fold(0, |all, (a, b)| all | (a ^ b));
        expected.len() == header.len() && differs == 0
    }

    fn header(&self) -> String {
        format!("Bearer {}", self.0)
    }

    /// A message without it.
    fn hide(&self, message: &str) -> String {
        message.replace(&self.0, "…")
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// How to ask.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// Addresses, as `http://host:8000`; `/v1` at the end is left out.
    pub endpoints: Vec<String>,
    /// Sent as a bearer token.
    pub key: Option<Secret>,
    /// Requests on their way to an endpoint at a time.
    pub concurrency: usize,
    /// The longest that an answer may take.
    pub timeout: Duration,
    /// How often a text is tried before its endpoint is given up.
    pub attempts: u32,
    /// The pause after the first failure; it doubles with each, up to a minute.
    pub pause: Duration,
    /// Requests that all endpoints together get in a minute.
    pub requests_per_minute: Option<f64>,
    /// Tokens, likewise.
    pub tokens_per_minute: Option<f64>,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            endpoints: Vec::new(),
            key: None,
            concurrency: 8,
            timeout: Duration::from_secs(300),
            attempts: 6,
            pause: Duration::from_millis(500),
            requests_per_minute: None,
            tokens_per_minute: None,
        }
    }
}

/// How far an asking has come.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Asked {
    /// Texts whose signal is there.
    pub texts: usize,
    /// Texts that are needed.
    pub of: usize,
    /// Tokens that were sent for them, those of earlier runs included.
    pub tokens: u64,
    /// Requests that were sent in this run.
    pub requests: u64,
    /// Requests that failed and were sent again.
    pub retries: u64,
    /// Positions asked about in this run.
    pub positions: u64,
    /// Those of which the server said nothing.
    pub silent: u64,
    /// Whether the budget ended before the texts.
    pub budget_spent: bool,
    /// Seconds that requests were on their way, all threads together.
    pub busy_seconds: f64,
}

/// How often an answer about something else is asked for again: something on the way may have answered
/// in the server's place. What is wrong so often is no accident.
const MISREAD: u32 = 2;

/// A way to one or more servers of the same teacher.
pub struct Client {
    options: ClientOptions,
    endpoints: Vec<Endpoint>,
    protocol: Box<dyn Protocol>,
    vocabulary: usize,
    pace: Pace,
    requests: AtomicU64,
    retries: AtomicU64,
    busy_micros: AtomicU64,
    stop: AtomicBool,
}

/// A text on its way.
struct Job {
    key: Key,
    sequence: Sequence,
}

/// What a thread hands over.
enum Came {
    Signal {
        key: Key,
        block: Vec<u8>,
        tokens: u64,
        positions: u64,
        silent: u64,
    },
    /// An endpoint was given up; the text goes back.
    Lost {
        job: Job,
        error: TeacherError,
    },
    Error(TeacherError),
}

/// Texts to hand out, and what they may cost.
struct Work<'a> {
    next: Box<dyn Iterator<Item = (Key, Sequence)> + Send + 'a>,
    again: VecDeque<Job>,
    /// Texts that threads have taken and not brought back.
    out: usize,
    tokens: u64,
    budget: Option<u64>,
    budget_spent: bool,
}

impl Client {
    /// A client that speaks `protocol` about a vocabulary of that many tokens.
    ///
    /// # Errors
    /// [`TeacherError::Address`] of an endpoint that is none.
    pub fn new(
        options: ClientOptions,
        protocol: Box<dyn Protocol>,
        vocabulary: usize,
    ) -> Result<Self, TeacherError> {
        let endpoints = options.endpoints.iter().map(|address| Endpoint::new(address, &options));
        Ok(Self {
            endpoints: endpoints.collect::<Result<_, _>>()?,
            protocol,
            vocabulary,
            pace: Pace::new(options.requests_per_minute, options.tokens_per_minute),
            requests: AtomicU64::new(0),
            retries: AtomicU64::new(0),
            busy_micros: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            options,
        })
    }

    /// Whether the servers may give each token the row of another.
    #[must_use]
    pub fn may_be_shifted(&self) -> bool {
        self.protocol.may_be_shifted()
    }

    /// Which rows belong to a token.
    pub fn set_rows(&mut self, rows: Rows) {
        self.protocol.set_rows(rows);
    }

    /// Tokens that exist.
    #[must_use]
    pub fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    /// The addresses.
    pub fn addresses(&self) -> impl Iterator<Item = &str> {
        self.endpoints.iter().map(Endpoint::address)
    }

    /// What the first endpoint says of one text.
    ///
    /// # Errors
    /// Those of the way and the answer.
    pub fn ask(&self, query: &Query, spec: &Spec, seed: u64) -> Result<Scored, TeacherError> {
        self.ask_at(0, query, spec, seed)
    }

    /// What an endpoint says of one text, by its number. An answer about something else is an error at
    /// once.
    ///
    /// # Errors
    /// As [`Client::ask`].
    ///
    /// # Panics
    /// If there is no such endpoint.
    pub fn ask_at(
        &self,
        endpoint: usize,
        query: &Query,
        spec: &Spec,
        seed: u64,
    ) -> Result<Scored, TeacherError> {
        self.ask_again(endpoint, query, spec, seed, 0)
    }

    /// [`Client::ask_at`], where an answer about something else is asked for again a few times.
    fn ask_again(
        &self,
        endpoint: usize,
        query: &Query,
        spec: &Spec,
        seed: u64,
        allowed: u32,
    ) -> Result<Scored, TeacherError> {
        let endpoint = &self.endpoints[endpoint];
        let requests = self.protocol.requests(query, spec, seed);
        let mut misread = 0;
        loop {
            let mut replies = Vec::with_capacity(requests.len());
            for request in &requests {
                replies.push(self.send(endpoint, request, query.tokens.len())?);
            }
            let scored = self.protocol.read(query, spec, &replies).and_then(|scored| {
                let complete = self.protocol.is_complete();
                check(&scored, query, spec, self.vocabulary, complete)?;
                Ok(scored)
            });
            match scored {
                Ok(scored) => return Ok(scored),
                Err(_) if misread < allowed => misread += 1,
                Err(problem) => {
                    let endpoint = endpoint.address().to_owned();
                    return Err(TeacherError::Misread { endpoint, problem: problem.0 });
                }
            }
            self.retries.fetch_add(1, Ordering::Relaxed);
            self.wait(endpoint.pause_after(misread));
        }
    }

    /// The body of an answer, after as many attempts as it may take.
    fn send(
        &self,
        endpoint: &Endpoint,
        request: &crate::protocol::Request,
        tokens: usize,
    ) -> Result<Vec<u8>, TeacherError> {
        let mut attempt = 0;
        loop {
            self.wait(endpoint.held_back());
            self.wait(self.pace.reserve(tokens as f64));
            if self.stop.load(Ordering::Relaxed) {
                return Err(TeacherError::Stopped);
            }
            self.requests.fetch_add(1, Ordering::Relaxed);
            let started = std::time::Instant::now();
            let answer = endpoint.send(request);
            let micros = started.elapsed().as_micros() as u64;
            self.busy_micros.fetch_add(micros, Ordering::Relaxed);
            let (reason, after) = match answer {
                Ok(body) => return Ok(body),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Passing { reason, after }) => (reason, after),
            };
            attempt += 1;
            if attempt >= self.options.attempts {
                return Err(TeacherError::Unreachable {
                    endpoint: endpoint.address().to_owned(),
                    attempts: attempt,
                    reason,
                });
            }
            self.retries.fetch_add(1, Ordering::Relaxed);
            match after {
                Some(after) => endpoint.hold_back(after),
                None => self.wait(endpoint.pause_after(attempt)),
            }
        }
    }

    /// Sleeps, but not on when all is over.
    fn wait(&self, mut pause: Duration) {
        const SLICE: Duration = Duration::from_millis(50);
        while !pause.is_zero() && !self.stop.load(Ordering::Relaxed) {
            let slice = pause.min(SLICE);
            std::thread::sleep(slice);
            pause -= slice;
        }
    }

    /// Asks about every text that `writer` lacks, with what `spec` says of it, and keeps the answers.
    /// `budget` is the most tokens to send, of which `spent` have been sent by earlier runs.
    /// `progress` is told after every text, and ends the asking by returning false.
    ///
    /// Texts on their way when the budget ends are still kept. So they are when an error ends the asking.
    ///
    /// # Errors
    /// The first that ends the asking.
    pub fn fetch(
        &self,
        writer: &mut Writer,
        texts: impl Iterator<Item = (Key, Sequence)> + Send,
        spec: &(impl Fn(Key) -> Spec + Sync),
        budget: Option<u64>,
        spent: u64,
        progress: &mut dyn FnMut(Asked) -> bool,
    ) -> Result<Asked, TeacherError> {
        self.stop.store(false, Ordering::Relaxed);
        for counter in [&self.requests, &self.retries, &self.busy_micros] {
            counter.store(0, Ordering::Relaxed);
        }
        let of = writer.missing();
        let mut asked = Asked { of, tokens: spent, ..Asked::default() };
        let work = Mutex::new(Work {
            next: Box::new(texts),
            again: VecDeque::new(),
            out: 0,
            tokens: spent,
            budget,
            budget_spent: false,
        });
        // One for each thread: more would only wait in memory.
        let threads = self.options.concurrency.max(1) * self.endpoints.len();
        let (sender, receiver) = sync_channel(threads);
        let result = std::thread::scope(|scope| {
            for endpoint in 0..self.endpoints.len() {
                for _ in 0..self.options.concurrency.max(1) {
                    let (sender, work) = (sender.clone(), &work);
                    scope.spawn(move || self.ask_on(endpoint, work, spec, &sender));
                }
            }
            drop(sender);
            let result = self.collect(writer, &receiver, &work, &mut asked, progress);
            self.stop.store(true, Ordering::Relaxed);
            // Threads may wait to hand something over; what has been paid for is kept.
            for came in receiver {
                if let Came::Signal { key, block, .. } = came {
                    writer.put_block(key, block)?;
                }
            }
            result
        });
        let work = work.into_inner().unwrap_or_else(PoisonError::into_inner);
        asked.budget_spent = work.budget_spent;
        self.count(&mut asked);
        result.map(|()| asked)
    }

    fn count(&self, asked: &mut Asked) {
        asked.requests = self.requests.load(Ordering::Relaxed);
        asked.retries = self.retries.load(Ordering::Relaxed);
        asked.busy_seconds = self.busy_micros.load(Ordering::Relaxed) as f64 / 1e6;
    }

    fn collect(
        &self,
        writer: &mut Writer,
        receiver: &Receiver<Came>,
        work: &Mutex<Work<'_>>,
        asked: &mut Asked,
        progress: &mut dyn FnMut(Asked) -> bool,
    ) -> Result<(), TeacherError> {
        let mut working = self.endpoints.len() * self.options.concurrency.max(1);
        let give_back = || work.lock().unwrap_or_else(PoisonError::into_inner);
        for came in receiver {
            match came {
                Came::Signal { key, block, tokens, positions, silent } => {
                    writer.put_block(key, block)?;
                    give_back().out -= 1;
                    asked.texts += 1;
                    asked.tokens += tokens;
                    asked.positions += positions;
                    asked.silent += silent;
                    self.count(asked);
                    if !progress(*asked) {
                        return Err(TeacherError::Stopped);
                    }
                }
                Came::Lost { job, error } => {
                    working -= 1;
                    if working == 0 {
                        return Err(error);
                    }
                    let mut work = give_back();
                    work.out -= 1;
                    work.tokens -= tokens_of(&job.sequence);
                    work.again.push_back(job);
                }
                Came::Error(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// What a thread does: a text after the other, on one endpoint.
    fn ask_on(
        &self,
        endpoint: usize,
        work: &Mutex<Work<'_>>,
        spec: &(impl Fn(Key) -> Spec + Sync),
        sender: &SyncSender<Came>,
    ) {
        while let Some(job) = self.next(work) {
            let came = match self.signal(endpoint, &job, &spec(job.key)) {
                Ok(came) => came,
                // Other endpoints may do better.
                Err(error @ TeacherError::Unreachable { .. }) => {
                    let _ = sender.send(Came::Lost { job, error });
                    return;
                }
                Err(error) => Came::Error(error),
            };
            // Nobody listens any more once all is over.
            if sender.send(came).is_err() {
                return;
            }
        }
    }

    /// A text that nobody has, once there is one; `None` when there will be none.
    fn next(&self, work: &Mutex<Work<'_>>) -> Option<Job> {
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return None;
            }
            {
                let mut work = work.lock().unwrap_or_else(PoisonError::into_inner);
                let job = work.again.pop_front().or_else(|| {
                    let (key, sequence) = work.next.next()?;
                    Some(Job { key, sequence })
                });
                match job {
                    Some(job) => {
                        let tokens = tokens_of(&job.sequence);
                        if work.budget.is_some_and(|budget| work.tokens + tokens > budget) {
                            work.budget_spent = true;
                            work.next = Box::new(std::iter::empty());
                            return None;
                        }
                        work.tokens += tokens;
                        work.out += 1;
                        return Some(job);
                    }
                    // An endpoint may still be given up, and its text come back.
                    None if work.out == 0 => return None,
                    None => {}
                }
            }
            self.wait(Duration::from_millis(20));
        }
    }

    fn signal(&self, endpoint: usize, job: &Job, spec: &Spec) -> Result<Came, TeacherError> {
        let mut signal = Signal::new(spec.choice.kind());
        let (mut tokens, mut positions, mut silent) = (0, 0, 0);
        for query in queries(&job.sequence) {
            let seed = query.seed(job.key);
            let scored = self.ask_again(endpoint, &query, spec, seed, MISREAD)?;
            while signal.positions() < query.start {
                signal.push([]);
            }
            for (entries, &wanted) in scored.positions.into_iter().zip(&query.wanted) {
                positions += u64::from(wanted);
                silent += u64::from(wanted && entries.is_empty());
                signal.push(if wanted { entries } else { Vec::new() });
            }
            tokens += query.tokens.len() as u64;
        }
        while signal.positions() < job.sequence.input_ids.len() {
            signal.push([]);
        }
        let block = encode_signal(&signal, spec.choice.draws());
        Ok(Came::Signal { key: job.key, block, tokens, positions, silent })
    }
}

/// Tokens that are sent for a text.
#[must_use]
pub fn tokens_of(sequence: &Sequence) -> u64 {
    queries(sequence).map(|query| query.tokens.len() as u64).sum()
}
