//! The threads of a session: they run one function together, meeting at barriers.
//!
//! Waiting spins first, since the work between two barriers takes tens of microseconds and waking
//! a sleeping thread as long again; a wait that lasts parks, so that an idle session costs nothing.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

/// Spins before parking: about 0.1 to 0.2 ms. An interpreter has nothing to gain from them.
const SPINS: u32 = if cfg!(miri) { 1 } else { 4_000 };

/// A counter that threads can wait on.
#[derive(Debug, Default)]
struct Signal {
    value: AtomicU32,
    sleepers: AtomicUsize,
    lock: Mutex<()>,
    changed: Condvar,
}

impl Signal {
    fn value(&self) -> u32 {
        self.value.load(Ordering::SeqCst)
    }

    fn advance(&self) {
        self.value.fetch_add(1, Ordering::SeqCst);
        // Both this pair and the waiter's (count itself, look at the value) are sequentially
        // consistent, so either the waiter sees the new value or this sees the waiter.
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            drop(self.lock.lock().unwrap_or_else(PoisonError::into_inner));
            self.changed.notify_all();
        }
    }

    /// Returns once the value is no longer `seen`.
    fn wait_past(&self, seen: u32) {
        for _ in 0..SPINS {
            if self.value() != seen {
                return;
            }
            std::hint::spin_loop();
        }
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        let mut guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        while self.value() == seen {
            guard = self.changed.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        drop(guard);
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A fixed number of threads that work in step. Member 0 is the caller's thread.
#[derive(Debug)]
pub(crate) struct Team {
    size: usize,
    jobs: Signal,
    arrived: AtomicUsize,
    phase: Signal,
    broken: AtomicBool,
}

impl Team {
    pub fn new(size: usize) -> Self {
        Self {
            size,
            jobs: Signal::default(),
            arrived: AtomicUsize::new(0),
            phase: Signal::default(),
            broken: AtomicBool::new(false),
        }
    }

    pub fn size(&self) -> usize {
        self.size
    }

    /// Member 0: lets the others start the job that was just set down.
    pub fn start_job(&self) {
        self.jobs.advance();
    }

    /// Other members: waits for the job after the `seen`-th and returns its number.
    pub fn wait_for_job(&self, seen: u32) -> u32 {
        self.jobs.wait_past(seen);
        self.jobs.value()
    }

    /// Returns when every member has called it.
    ///
    /// # Panics
    /// If a member has panicked: its part of the work is missing.
    pub fn barrier(&self) {
        let phase = self.phase.value();
        // A member that panicked before this one came has advanced the phase already, and nobody
        // will again.
        self.refuse_broken();
        if self.arrived.fetch_add(1, Ordering::SeqCst) + 1 == self.size {
            self.arrived.store(0, Ordering::SeqCst);
            self.phase.advance();
        } else {
            self.phase.wait_past(phase);
        }
        self.refuse_broken();
    }

    fn refuse_broken(&self) {
        assert!(!self.broken.load(Ordering::SeqCst), "a thread of this session panicked");
    }

    /// Runs `work`; if it panics, the members that wait for this one panic too instead of waiting
    /// for ever.
    pub fn guarded<R>(&self, work: impl FnOnce() -> R) -> R {
        struct Guard<'t>(&'t Team);
        impl Drop for Guard<'_> {
            fn drop(&mut self) {
                if std::thread::panicking() {
                    self.0.broken.store(true, Ordering::SeqCst);
                    self.0.phase.advance();
                }
            }
        }
        let _guard = Guard(self);
        work()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_passes_a_barrier_before_everybody_arrived() {
        let team = Team::new(3);
        let done = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for member in 0..3 {
                let (team, done) = (&team, &done);
                scope.spawn(move || {
                    for round in 0..300 {
                        if (round + member) % 100 == 0 {
                            // Longer than the spinning: the others park.
                            std::thread::sleep(std::time::Duration::from_millis(2));
                        }
                        done.fetch_add(1, Ordering::SeqCst);
                        team.barrier();
                        assert!(done.load(Ordering::SeqCst) >= 3 * (round + 1));
                        team.barrier();
                    }
                });
            }
        });
        assert_eq!(done.into_inner(), 900);
    }

    #[test]
    fn a_member_that_comes_after_the_panic_ends_too() {
        let team = Team::new(2);
        let results = std::thread::scope(|scope| {
            let bad = scope.spawn(|| team.guarded(|| panic!("broken on purpose"))).join();
            let late = scope.spawn(|| team.guarded(|| team.barrier())).join();
            [bad.is_err(), late.is_err()]
        });
        assert_eq!(results, [true, true]);
    }

    #[test]
    fn a_panic_in_one_member_ends_the_others_instead_of_hanging() {
        let team = Team::new(2);
        let results = std::thread::scope(|scope| {
            let bad = scope.spawn(|| team.guarded(|| panic!("broken on purpose")));
            let waiting = scope.spawn(|| team.guarded(|| team.barrier()));
            [bad.join().is_err(), waiting.join().is_err()]
        });
        assert_eq!(results, [true, true]);
    }
}
