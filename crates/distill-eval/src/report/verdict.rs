//! The parity gate's verdict in words: each limit, what was found, and where the two part.

use serde::Serialize;

use super::figures::{grouped, nats, percent, short};
use crate::parity::{Comparison, Greedy};
use crate::replay::{ADOPTED_SHARE, REFUSED_SHARE};

/// One limit of a configuration.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Check {
    /// What is limited.
    pub what: &'static str,
    /// What was measured.
    pub found: String,
    /// What was allowed.
    pub limit: String,
    /// Whether it was kept.
    pub passed: bool,
}

/// Every limit of a configuration, kept or not.
pub(super) fn checks(comparison: &Comparison) -> Vec<Check> {
    let Comparison { limits, same_top, mean_kl, max_logit_difference, greedy, .. } = comparison;
    let alike = greedy.iter().filter(|greedy| greedy.gap.is_none()).count();
    let near_ties = greedy.iter().all(|greedy| within(greedy, limits.near_tie));
    let mut checks = vec![
        Check {
            what: "same top token",
            found: format!("{} %", percent(*same_top, 3)),
            limit: format!("≥ {} %", percent(limits.same_top, 1)),
            passed: *same_top >= limits.same_top,
        },
        Check {
            what: "mean KL",
            found: format!("{} nats", nats(*mean_kl)),
            limit: format!("≤ {} nats", short(limits.mean_kl)),
            passed: *mean_kl <= limits.mean_kl,
        },
        Check {
            what: "max |Δlogit|",
            found: short(*max_logit_difference),
            limit: limits
                .max_logit_difference
                .map_or_else(|| "not limited".to_string(), |limit| format!("≤ {}", short(limit))),
            passed: limits.max_logit_difference.is_none_or(|limit| *max_logit_difference <= limit),
        },
        Check {
            what: "greedy",
            found: format!("{alike} of {} alike", greedy.len()),
            limit: format!("gaps ≤ {}", short(limits.near_tie)),
            passed: near_ties,
        },
    ];
    checks.extend(comparison.codes.map(|codes| {
        let share = |count: u64| count as f64 / codes.compared.max(1) as f64;
        Check {
            what: "codes on a boundary, elsewhere",
            found: format!("{}, {}", short(share(codes.adopted)), short(share(codes.refused))),
            limit: format!("≤ {}, ≤ {}", short(ADOPTED_SHARE), short(REFUSED_SHARE)),
            passed: codes.agree(),
        }
    }));
    checks
}

/// Whether a continuation is the same, or parts where two logits are nearly equal.
fn within(greedy: &Greedy, near_tie: f64) -> bool {
    greedy.gap.is_none_or(|gap| gap <= near_tie)
}

/// The position at which graph and runtime are furthest apart.
pub(super) fn worst(comparison: &Comparison) -> String {
    let worst = &comparison.worst;
    let tops = if worst.graph_top == worst.runtime_top {
        format!("both prefer token {}", worst.graph_top)
    } else {
        format!("the graph prefers token {}, the runtime {}", worst.graph_top, worst.runtime_top)
    };
    format!(
        "text {}, position {}: KL {} nats; {tops}",
        worst.sequence,
        grouped(worst.position as u64),
        nats(worst.kl)
    )
}

/// The continuations that part, one line each; `true` marks those beyond the limit.
pub(super) fn partings(comparison: &Comparison) -> Vec<(bool, String)> {
    let near_tie = comparison.limits.near_tie;
    let parting = |(index, greedy): (usize, &Greedy)| {
        let gap = greedy.gap?;
        let (beyond, tie) = if within(greedy, near_tie) {
            (false, "a near tie")
        } else {
            (true, "too far apart for a near tie")
        };
        let text = format!(
            "prompt {index} parts after {} of {} tokens, the logits {} apart: {tie}",
            greedy.same,
            greedy.tokens,
            short(gap)
        );
        Some((beyond, text))
    };
    comparison.greedy.iter().enumerate().filter_map(parting).collect()
}
