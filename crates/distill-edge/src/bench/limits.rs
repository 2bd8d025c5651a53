//! What this machine can do at best.

use std::hint::black_box;
use std::time::{Duration, Instant};

use crate::Model;
use crate::arena::{Arena, Pages, Refused};

/// Measured runs; the fastest counts, since a limit is what was reached once.
const RUNS: usize = 5;

/// Bytes a second that `threads` threads read together from memory of `bytes` bytes, in GB (10⁹
/// bytes), each its own part again and again, with the instructions of the model's kernels. Give
/// what decoding a token reads: what fits into a cache is faster here too. 0 if that much memory
/// cannot be had once more.
pub fn bandwidth_gbps(threads: usize, bytes: usize, model: &Model) -> f64 {
    let part = (bytes / threads).next_multiple_of(128);
    let arenas: Result<Vec<Arena>, _> = (0..threads)
        .map(|_| {
            let mut arena = Arena::new(part, Pages::Large)?;
            // Pages that were never written are all one page.
            arena.bytes_mut().fill(1);
            Ok::<Arena, Refused>(arena)
        })
        .collect();
    let Ok(arenas) = arenas else { return 0.0 };
    let read_all = model.inner.kernels.read_all;
    let fastest = fastest(threads, |thread| {
        let bytes = arenas[thread].bytes();
        move || read_all(black_box(bytes))
    });
    (part * threads) as f64 / fastest.as_secs_f64() / 1e9
}

/// Multiplications and additions of bytes a second on `threads` threads, in 10⁹, with the
/// instructions of the model's kernels on registers alone.
pub fn int8_gops(threads: usize, model: &Model) -> f64 {
    const ROUNDS: usize = 4_000_000;
    let peak = model.inner.kernels.int8_peak;
    let fastest = fastest(threads, |_| move || black_box(peak(black_box(ROUNDS))));
    // Every round is as many operations as it says itself.
    (peak(1) * ROUNDS * threads) as f64 / fastest.as_secs_f64() / 1e9
}

/// The shortest time in which every thread does its work once, all at the same time.
fn fastest<W: FnMut() -> R, R>(threads: usize, work: impl Fn(usize) -> W + Sync) -> Duration {
    let start = std::sync::Barrier::new(threads);
    let times: Vec<Vec<Duration>> = std::thread::scope(|scope| {
        let handles: Vec<_> = (0..threads)
            .map(|thread| {
                let (start, work) = (&start, &work);
                scope.spawn(move || {
                    let mut work = work(thread);
                    work();
                    let run = |_| {
                        start.wait();
                        let begin = Instant::now();
                        work();
                        begin.elapsed()
                    };
                    (0..RUNS).map(run).collect()
                })
            })
            .collect();
        handles.into_iter().map(|handle| handle.join().unwrap_or_default()).collect()
    });
    let slowest = |run: usize| times.iter().filter_map(|t| t.get(run)).max().copied();
    (0..RUNS).filter_map(slowest).min().unwrap_or(Duration::MAX)
}
