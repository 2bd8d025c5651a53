//! No more requests and tokens in a minute than a service allows.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Seconds of what is allowed that may be used at once.
const BURST: f64 = 1.0;

/// Seconds that one request may be put off by, however little is allowed.
const LONGEST: f64 = 86_400.0;

/// Spreads requests over time.
pub(super) struct Pace {
    /// Of requests, then of tokens.
    limits: [Option<Mutex<Limit>>; 2],
}

struct Limit {
    /// What a second allows.
    rate: f64,
    /// When everything that was reserved will have been allowed.
    paid: Instant,
}

impl Limit {
    fn reserve(&mut self, amount: f64, now: Instant) -> Duration {
        let earliest = now.checked_sub(Duration::from_secs_f64(BURST)).unwrap_or(now);
        let seconds = (amount / self.rate).min(LONGEST);
        self.paid = self.paid.max(earliest) + Duration::from_secs_f64(seconds);
        self.paid.saturating_duration_since(now)
    }
}

impl Pace {
    pub(super) fn new(requests_per_minute: Option<f64>, tokens_per_minute: Option<f64>) -> Self {
        let limit = |per_minute: Option<f64>| {
            per_minute.map(|n| Mutex::new(Limit { rate: n / 60.0, paid: Instant::now() }))
        };
        Self { limits: [limit(requests_per_minute), limit(tokens_per_minute)] }
    }

    /// Counts a request of so many tokens, and says how long it has to wait.
    pub(super) fn reserve(&self, tokens: f64) -> Duration {
        let now = Instant::now();
        let both = self.limits.iter().zip([1.0, tokens]);
        let waits = both.filter_map(|(limit, amount)| {
            let mut limit = limit.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner);
            Some(limit.reserve(amount, now))
        });
        waits.max().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minute_holds_what_it_may_and_no_more() {
        let start = Instant::now();
        let mut limit = Limit { rate: 10.0, paid: start };
        let mut now = start + Duration::from_secs(100);
        let mut sent = 0;
        let mut last = now;
        while now < start + Duration::from_secs(160) {
            let wait = limit.reserve(1.0, now);
            now += wait;
            last = now;
            sent += 1;
        }
        assert!((600..=612).contains(&sent), "{sent} in {:?}", last - start);
    }

    #[test]
    fn the_tighter_limit_decides() {
        let pace = Pace::new(Some(6000.0), Some(600.0));
        pace.reserve(10.0);
        assert!(pace.reserve(50.0) > Duration::from_secs(4));
        assert!(Pace::new(Some(1e-300), None).reserve(1.0) > Duration::from_secs(1000));
        assert_eq!(Pace::new(None, None).reserve(1e9), Duration::ZERO);
    }
}
