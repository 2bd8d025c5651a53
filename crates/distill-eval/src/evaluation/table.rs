//! Outcomes for a terminal: plain text whose meaning needs no colour.

use super::{Measured, Outcome, Task};
use crate::Estimate;

/// A line for every figure: its value with its interval for the model, the reference, and the
/// difference of the two. Ends with a newline.
pub fn table(outcomes: &[Outcome]) -> String {
    outcomes.iter().map(section).collect::<Vec<String>>().join("\n")
}

fn section(outcome: &Outcome) -> String {
    let task = match outcome.task.task {
        Task::Perplexity => "perplexity",
        Task::Choice => "choice",
        Task::LastWord => "last word",
    };
    let mut lines = vec![format!("{task} · {} · {}", outcome.task.name(), outcome.extent)];
    let compared = outcome.reference.is_some();
    let heads = ["", "model", "reference", "model − reference"];
    if compared {
        lines.push(row(heads.map(String::from)));
    }
    for (index, figure) in outcome.model.figures.iter().enumerate() {
        let of = |figures: Option<&Vec<Estimate>>, signed| {
            figures.and_then(|all| all.get(index)).map_or(String::new(), |e| cell(e, signed))
        };
        lines.push(row([
            name(figure),
            cell(figure, false),
            of(outcome.reference.as_ref().map(|reference| &reference.figures), false),
            of(outcome.difference.as_ref(), true),
        ]));
    }
    let error = |measured: &Measured| {
        measured.further.standard_error.map_or(String::new(), |error| format!("± {error:.3}"))
    };
    if outcome.model.further.standard_error.is_some() {
        let theirs = outcome.reference.as_ref().map_or(String::new(), error);
        lines.push(row(["std. error".into(), error(&outcome.model), theirs, String::new()]));
    }
    if let Some(divergence) = &outcome.divergence {
        for figure in &divergence.figures {
            lines.push(row([name(figure), cell(figure, false), String::new(), String::new()]));
        }
        let told = [(0.5, "median"), (0.9, "90 %"), (0.99, "99 %"), (1.0, "largest")];
        let percentiles: Vec<String> = told
            .iter()
            .filter_map(|&(share, name)| {
                let found = divergence.further.percentiles.iter().find(|(s, _)| *s == share)?;
                Some(format!("{name} {:.5}", found.1))
            })
            .collect();
        lines.push(row(["".into(), percentiles.join(", "), String::new(), String::new()]));
    }
    lines.iter().map(|line| format!("{}\n", line.trim_end())).collect()
}

fn row([name, model, reference, difference]: [String; 4]) -> String {
    format!("  {name:<14}{model:<28}{reference:<28}{difference}")
}

fn name(estimate: &Estimate) -> String {
    match estimate.figure.as_str() {
        "kl" => "KL, nats",
        "same_top" => "same top, %",
        "acc" => "acc, %",
        "acc_norm" => "acc_norm, %",
        "acc_bytes" => "acc_bytes, %",
        other => other,
    }
    .into()
}

/// `19.977 [18.210, 21.904]`
fn cell(estimate: &Estimate, signed: bool) -> String {
    let (scale, decimals) = match estimate.figure.as_str() {
        "kl" => (1.0, 5),
        "perplexity" => (1.0, 3),
        _ => (100.0, 2),
    };
    let number = |value: f64| match signed {
        true => format!("{:+.decimals$}", scale * value),
        false => format!("{:.decimals$}", scale * value),
    };
    let Estimate { value, low, high, .. } = estimate;
    format!("{} [{}, {}]", number(*value), number(*low), number(*high))
}
