//! The thread that computes: one request after the other, from a queue of bounded length.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use distill_edge::{EdgeError, KvType, Model, Session, SessionOptions};
use tokio::sync::{mpsc, oneshot};

use super::error::ApiError;

/// What a request does with the session. Its result goes its own way.
type Job = Box<dyn FnOnce(&mut Session) + Send>;

/// The way to the thread.
pub(super) struct Engine {
    queue: mpsc::Sender<Job>,
    context: usize,
}

/// Whether somebody still waits; they no longer do once it is dropped.
pub(super) struct Waiting(Arc<AtomicBool>);

/// The same for the thread that computes.
#[derive(Clone)]
pub(super) struct Wanted(Arc<AtomicBool>);

impl Waiting {
    pub(super) fn new() -> (Self, Wanted) {
        let waits = Arc::new(AtomicBool::new(true));
        (Self(waits.clone()), Wanted(waits))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

impl Wanted {
    pub(super) fn is(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl Engine {
    /// Opens the session and starts the thread, which ends when this is dropped.
    pub(super) fn start(model: &Model, context: usize, queue: usize) -> Result<Self, EdgeError> {
        // A float model is to say what it says, to the last bit that a cache keeps.
        let kv = match model.activations() {
            distill_edge::Activations::Float => KvType::F32,
            distill_edge::Activations::Q8_0 => KvType::F16,
        };
        let options = SessionOptions { context, kv, threads: 0 };
        let mut session = Session::new(model, options)?;
        let context = session.context();
        let (sender, mut jobs) = mpsc::channel::<Job>(queue.max(1));
        std::thread::spawn(move || {
            while let Some(job) = jobs.blocking_recv() {
                session.reset();
                job(&mut session);
            }
        });
        Ok(Self { queue: sender, context })
    }

    /// The most tokens of a text.
    pub(super) fn context(&self) -> usize {
        self.context
    }

    /// Puts a job into the queue.
    pub(super) fn submit(
        &self,
        wanted: Wanted,
        job: impl FnOnce(&mut Session) + Send + 'static,
    ) -> Result<(), ApiError> {
        let job: Job = Box::new(move |session| {
            // Who went away while waiting needs no answer.
            if wanted.is() {
                job(session);
            }
        });
        self.queue.try_send(job).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => ApiError::Busy,
            mpsc::error::TrySendError::Closed(_) => {
                ApiError::Failed { message: "the thread that computes has ended".to_owned() }
            }
        })
    }

    /// What a job returns, if it is done in time.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        timeout: Duration,
        job: impl FnOnce(&mut Session, &Wanted) -> Result<T, EdgeError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let (_waiting, wanted) = Waiting::new();
        let (sender, receiver) = oneshot::channel();
        let asked = wanted.clone();
        self.submit(wanted, move |session| {
            // If nobody listens any more, the result is for nobody.
            let _ = sender.send(job(session, &asked));
        })?;
        match tokio::time::timeout(timeout, receiver).await {
            Err(_) => Err(ApiError::Late),
            Ok(Err(_)) => {
                Err(ApiError::Failed { message: "the request was not computed".to_owned() })
            }
            Ok(Ok(Err(error))) => Err(ApiError::Failed { message: error.to_string() }),
            Ok(Ok(Ok(done))) => Ok(done),
        }
    }
}
