//! Benchmarks as tables of text, the same on a terminal, on the page and in a model card.

use serde::Serialize;

use super::figures::{NOT_MEASURED, or_dash};
use crate::Estimate;
use crate::benchmark::{Benchmark, Figure, Role};
use crate::evaluation::Task;

/// A task's table: groups of rows, one a figure.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Table {
    pub(super) title: String,
    pub(super) extent: String,
    pub(super) groups: Vec<Group>,
}

/// A figure of every model.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Group {
    pub(super) figure: &'static str,
    pub(super) lines: Vec<Line>,
}

/// A figure of one model.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Line {
    pub(super) model: &'static str,
    pub(super) ships: bool,
    pub(super) value: String,
    /// Less full precision.
    pub(super) difference: String,
    pub(super) recovered: String,
    /// The file that the figure is made of.
    pub(super) records: String,
}

/// What the columns mean.
pub(super) const LEAD: &str = "Through the edge runtime, in \
    its default configuration. Brackets hold 95 % of the draws of a bootstrap over windows or items; differences and shares \
    come from paired draws. The loss is what rounding to nearest costs; where that is not above the \
    noise, there is no share of it.";

/// What the columns are.
pub(super) const HEADS: [&str; 4] = ["", "value", "less full precision", "loss recovered"];

pub(super) fn tables(benchmarks: &[Benchmark]) -> Vec<Table> {
    benchmarks.iter().map(table).collect()
}

fn table(benchmark: &Benchmark) -> Table {
    let mut groups: Vec<Group> = Vec::new();
    for row in &benchmark.rows {
        for figure in &row.figures {
            let name = name(&figure.estimate.figure);
            let index = groups.iter().position(|group| group.figure == name).unwrap_or_else(|| {
                groups.push(Group { figure: name, lines: Vec::new() });
                groups.len() - 1
            });
            groups[index].lines.push(line(row.role, figure, &row.records));
        }
    }
    let task = match benchmark.task {
        Task::Perplexity => "Perplexity",
        Task::Choice => "Multiple choice",
        Task::LastWord => "Last word",
    };
    Table {
        title: format!("{task} · {}", benchmark.file),
        extent: benchmark.extent.clone(),
        groups,
    }
}

fn line(role: Role, figure: &Figure, records: &str) -> Line {
    Line {
        model: role.title(),
        ships: role == Role::Exported,
        value: interval(&figure.estimate, false),
        difference: or_dash(figure.difference.as_ref(), |difference| interval(difference, true)),
        recovered: or_dash(figure.recovered.as_ref(), share),
        records: records.to_owned(),
    }
}

/// As tables call a figure.
fn name(figure: &str) -> &'static str {
    match figure {
        "perplexity" => "perplexity",
        "kl" => "KL from full precision, nats",
        "same_top" => "full precision's top token, %",
        "acc" => "accuracy, %",
        "acc_norm" => "accuracy a character, %",
        "acc_bytes" => "accuracy a byte, %",
        _ => NOT_MEASURED,
    }
}

/// `19.977 [18.210, 21.904]`
fn interval(estimate: &Estimate, signed: bool) -> String {
    let (scale, decimals) = match estimate.figure.as_str() {
        "kl" => (1.0, 4),
        "perplexity" => (1.0, 2),
        _ => (100.0, 1),
    };
    let number = |value: f64| match signed {
        true => format!("{:+.decimals$}", scale * value).replace('-', "−"),
        false => format!("{:.decimals$}", scale * value),
    };
    let Estimate { value, low, high, .. } = estimate;
    format!("{} [{}, {}]", number(*value), number(*low), number(*high))
}

/// `79 % [74, 83]`
fn share(estimate: &Estimate) -> String {
    let number = |value: f64| format!("{:.0}", 100.0 * value).replace('-', "−");
    let Estimate { value, low, high, .. } = estimate;
    format!("{} % [{}, {}]", number(*value), number(*low), number(*high))
}

#[cfg(test)]
mod tests {
    use super::super::example;
    use super::tables;

    #[test]
    fn a_figure_stands_beside_its_difference_and_the_share_recovered() {
        let [table] = &tables(&example::report().benchmarks)[..] else { panic!("one task") };
        assert_eq!(table.title, "Perplexity · held <b>out.txt");
        let [perplexity, kl] = &table.groups[..] else { panic!("two figures") };
        let lines: Vec<[&str; 4]> = perplexity
            .lines
            .iter()
            .map(|line| [line.model, &line.value[..], &line.difference, &line.recovered])
            .collect();
        assert_eq!(
            lines,
            [
                ["full precision", "16.00 [15.00, 17.00]", "—", "—"],
                ["rounded to nearest", "20.00 [19.00, 21.00]", "+4.00 [+3.50, +4.50]", "—"],
                [
                    "trained and exported",
                    "17.00 [16.00, 18.00]",
                    "+1.00 [+0.50, +1.50]",
                    "75 % [70, 80]"
                ],
            ]
        );
        assert_eq!(kl.lines.len(), 2, "full precision has none from itself");
    }
}
