//! Where a step's time goes. While a profile is on, every operator notes its calls, its time on the
//! clock and on the processors, the bytes it reads and writes, and its arithmetic.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// What operators did since [`start`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Profile {
    /// From the start to the end, operators or not.
    pub all: Times,
    /// By name.
    pub operators: BTreeMap<&'static str, Operator>,
}

/// Seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Times {
    /// On the clock.
    pub wall: f64,
    /// Of all threads together; 0 where the platform does not say.
    pub processor: f64,
}

/// What one operator did.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Operator {
    /// How often it ran.
    pub calls: u64,
    /// How long.
    pub times: Times,
    /// Bytes of its operands and results: the least that it must read and write.
    pub bytes: u64,
    /// Multiplications and additions of its matrix products.
    pub flops: u64,
}

/// What a call works on.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Work {
    pub bytes: usize,
    pub flops: usize,
}

impl Work {
    /// That many f32 read and written.
    pub fn floats(count: usize) -> Self {
        Self { bytes: 4 * count, flops: 0 }
    }

    /// Products of `[m, k]` and `[k, n]`.
    pub fn product(m: usize, n: usize, k: usize) -> Self {
        Self { bytes: 4 * (m * k + k * n + m * n), flops: 2 * m * n * k }
    }

    pub fn times(self, count: usize) -> Self {
        Self { bytes: count * self.bytes, flops: count * self.flops }
    }
}

static ON: AtomicBool = AtomicBool::new(false);
static PROFILE: Mutex<Option<(Clock, Profile)>> = Mutex::new(None);

/// Begins a profile of the whole process; what an earlier one held is lost.
pub fn start() {
    if let Ok(mut profile) = PROFILE.lock() {
        *profile = Some((Clock::now(), Profile::default()));
        ON.store(true, Ordering::Relaxed);
    }
}

/// Ends the profile; `None` if none was begun.
pub fn stop() -> Option<Profile> {
    ON.store(false, Ordering::Relaxed);
    let (begin, mut profile) = PROFILE.lock().ok()?.take()?;
    profile.all = begin.elapsed();
    Some(profile)
}

/// Runs an operator, which no other one surrounds.
pub(crate) fn operator<T>(name: &'static str, work: Work, run: impl FnOnce() -> T) -> T {
    if !ON.load(Ordering::Relaxed) {
        return run();
    }
    let begin = Clock::now();
    let result = run();
    let times = begin.elapsed();
    if let Ok(mut profile) = PROFILE.lock()
        && let Some((_, profile)) = &mut *profile
    {
        let operator = profile.operators.entry(name).or_default();
        operator.calls += 1;
        operator.times.wall += times.wall;
        operator.times.processor += times.processor;
        operator.bytes += work.bytes as u64;
        operator.flops += work.flops as u64;
    }
    result
}

#[derive(Clone, Copy, Debug)]
struct Clock {
    wall: Instant,
    processor: f64,
}

impl Clock {
    fn now() -> Self {
        Self { wall: Instant::now(), processor: processor_seconds() }
    }

    fn elapsed(self) -> Times {
        Times {
            wall: self.wall.elapsed().as_secs_f64(),
            processor: processor_seconds() - self.processor,
        }
    }
}

/// Seconds that all threads of the process have computed.
#[cfg(unix)]
#[allow(unsafe_code)]
fn processor_seconds() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: it writes one `timespec`.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) } != 0;
    if failed { 0.0 } else { time.tv_sec as f64 + 1e-9 * time.tv_nsec as f64 }
}

#[cfg(not(unix))]
fn processor_seconds() -> f64 {
    0.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_counts_what_ran_while_it_was_on() {
        let work = Work::product(2, 3, 4);
        operator("before", work, || ());
        start();
        assert_eq!(operator("product", work, || 7), 7);
        operator("product", work.times(2), || {
            let begin = Instant::now();
            while begin.elapsed().as_secs_f64() < 0.02 {}
        });
        let profile = stop().unwrap();
        operator("after", work, || ());
        assert_eq!(profile.operators.keys().copied().collect::<Vec<_>>(), ["product"]);
        let product = profile.operators["product"];
        let one = (4 * (8 + 12 + 6), 48);
        assert_eq!((product.calls, product.flops), (2, 3 * one.1));
        assert_eq!(product.bytes, 3 * one.0 as u64);
        assert!(product.times.wall >= 0.02 && profile.all.wall >= product.times.wall);
        assert!(product.times.processor > 0.01, "{product:?}");
        assert_eq!(stop(), None);
    }
}
