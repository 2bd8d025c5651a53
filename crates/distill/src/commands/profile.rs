//! What `distill run --profile` says.

use std::fmt::Write;
use std::path::Path;

use distill_ops::profile::{Operator, Profile, Times};
use serde::Serialize;

use crate::failure::Failure;

/// File of a run that holds its profile.
const FILE: &str = "profile.json";

/// A row of the profile.
#[derive(Debug, Serialize)]
struct Row {
    operator: &'static str,
    calls: u64,
    /// On the clock.
    seconds: f64,
    /// Of all threads.
    processor_seconds: f64,
    /// Share of the time on the clock.
    share: f64,
    bytes: u64,
    flops: u64,
}

impl Row {
    fn new(operator: &'static str, found: Operator, all: Times) -> Self {
        Self {
            operator,
            calls: found.calls,
            seconds: found.times.wall,
            processor_seconds: found.times.processor,
            share: found.times.wall / all.wall,
            bytes: found.bytes,
            flops: found.flops,
        }
    }
}

/// Writes the profile into the run's directory and shows it as a table.
pub fn report(profile: &Profile, run: &Path) -> Result<(), Failure> {
    let rows = rows(profile);
    let path = run.join(FILE);
    let json = serde_json::to_vec_pretty(&rows)
        .map_err(|error| Failure::Usage(format!("the profile has no JSON form: {error}")))?;
    std::fs::write(&path, json).map_err(Failure::io("writing", &path))?;
    eprint!("{}", table(&rows, profile.all));
    Ok(())
}

/// The operators, the longest first, and what is none.
fn rows(profile: &Profile) -> Vec<Row> {
    let mut rows: Vec<Row> = profile
        .operators
        .iter()
        .map(|(name, operator)| Row::new(name, *operator, profile.all))
        .collect();
    rows.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    let sum = |of: fn(&Row) -> f64| rows.iter().map(of).sum::<f64>();
    let rest = Times {
        wall: profile.all.wall - sum(|row| row.seconds),
        processor: profile.all.processor - sum(|row| row.processor_seconds),
    };
    rows.push(Row::new("all else", Operator { times: rest, ..Operator::default() }, profile.all));
    rows
}

/// `threads` is how many processors were busy on average.
fn table(rows: &[Row], all: Times) -> String {
    let mut text = format!(
        "{:28} {:>8} {:>9} {:>6} {:>8} {:>7} {:>9}\n",
        "operator", "calls", "seconds", "share", "threads", "GB/s", "GFLOP/s"
    );
    let rate = |amount: u64, seconds: f64| match amount {
        0 => String::new(),
        _ => format!("{:.1}", 1e-9 * amount as f64 / seconds),
    };
    for row in rows {
        let threads = row.processor_seconds / row.seconds;
        let (bytes, flops) = (rate(row.bytes, row.seconds), rate(row.flops, row.seconds));
        let _ = writeln!(
            text,
            "{:28} {:8} {:9.3} {:5.1}% {threads:8.2} {bytes:>7} {flops:>9}",
            row.operator,
            row.calls,
            row.seconds,
            100.0 * row.share
        );
    }
    let threads = all.processor / all.wall;
    let _ = writeln!(text, "{:28} {:8} {:9.3} {:>6} {threads:8.2}", "all", "", all.wall, "");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_sums_up_to_all() {
        let operator = |wall, flops| Operator {
            calls: 3,
            times: Times { wall, processor: 2.0 * wall },
            bytes: 4_000_000_000,
            flops,
        };
        let profile = Profile {
            all: Times { wall: 4.0, processor: 6.0 },
            operators: [("norm", operator(1.0, 0)), ("linear", operator(2.0, 500_000_000_000))]
                .into(),
        };
        let rows = rows(&profile);
        assert_eq!(rows.iter().map(|row| row.seconds).sum::<f64>(), 4.0);
        insta::assert_snapshot!(table(&rows, profile.all));
    }
}
