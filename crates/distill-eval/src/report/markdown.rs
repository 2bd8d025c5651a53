//! The report as Markdown: by itself, and as the card of a model directory.
//!
//! Names, prompts and paths are text that somebody else wrote. Markdown's own characters in them are
//! escaped, and code blocks have fences longer than any that they hold.

use std::fmt::Write as _;

use super::benchmarks::{HEADS, Table, tables};
use super::figures::{self, grouped, nats, or_dash, percent, perplexity, size, speed};
use super::verdict::checks;
use super::{Cost, RunReport};
use crate::benchmark::Role;
use crate::evaluation::Task;
use crate::parity::Comparison;

/// The report, its headings one level below the first.
pub fn markdown(report: &RunReport) -> String {
    let mut text = format!("# {}\n\n", plain(&report.name));
    text.push_str(&body(report));
    text
}

/// The card of the Hugging Face export: the hub's table of facts, what the directory holds, and the
/// report. `base` is the model that the student began as, where it has a name on the hub; `on_grid` is
/// whether weights were rounded.
pub fn model_card(report: &RunReport, base: Option<&str>, on_grid: bool) -> String {
    let mut text = String::from("---\n");
    text.push_str("library_name: transformers\npipeline_tag: text-generation\n");
    if let Some(base) = base {
        let relation = if on_grid { "quantized" } else { "finetune" };
        let _ = writeln!(text, "base_model: {}\nbase_model_relation: {relation}", quoted(base));
    }
    text.push_str("tags:\n  - distill\n");
    if on_grid {
        text.push_str("  - quantization-aware-training\n");
    }
    text.push_str(&index(report));
    let _ = writeln!(text, "---\n\n# {}\n", plain(&report.name));
    if on_grid {
        text.push_str(
            "The weights here are floats that lie on the grid they were trained for, so that \
             rounding them to it again changes nothing. ",
        );
    }
    text.push_str(
        "The licence is that of the model it was made from. Benchmarks were measured on the GGUF \
         file of these weights, in distill's runtime.\n\n",
    );
    text.push_str(&body(report));
    text
}

/// What ships, in the hub's form for results.
fn index(report: &RunReport) -> String {
    let mut results = String::new();
    for benchmark in &report.benchmarks {
        let Some(row) = benchmark.rows.iter().find(|row| row.role == Role::Exported) else {
            continue;
        };
        let _ = writeln!(results, "      - task:\n          type: text-generation");
        let file = quoted(&benchmark.file);
        let _ =
            writeln!(results, "        dataset:\n          name: {file}\n          type: {file}");
        let _ = writeln!(results, "        metrics:");
        let task = match benchmark.task {
            Task::Perplexity | Task::Choice => "",
            Task::LastWord => "last word, ",
        };
        for figure in &row.figures {
            let (name, value) = (&figure.estimate.figure, figure.estimate.value);
            let _ = writeln!(results, "          - type: {name}\n            value: {value}");
            let _ = writeln!(results, "            name: {}", quoted(&format!("{task}{name}")));
        }
    }
    if results.is_empty() {
        return results;
    }
    let name = quoted(&report.name);
    format!("model-index:\n  - name: {name}\n    results:\n{results}")
}

fn body(report: &RunReport) -> String {
    let mut text = String::new();
    let _ = writeln!(text, "{}\n", verdict(report));
    let _ = writeln!(text, "## Models\n");
    let positions = grouped(report.positions as u64);
    let _ = writeln!(text, "Measured on {positions} held-out positions.\n");
    text.push_str(&rows(
        &["", "perplexity", "KL to teacher", "same top, %", "weights", "tokens/s", "from"],
        report.rows.iter().map(|row| {
            vec![
                format!("{} ({})", plain(&row.model), plain(&row.through)),
                or_dash(row.perplexity, perplexity),
                or_dash(row.kl, nats),
                or_dash(row.same_top, |share| percent(share, 2)),
                or_dash(row.bytes, size),
                or_dash(row.tokens_per_second, speed),
                code(&row.records),
            ]
        }),
    ));
    if let Some(share) = report.recovery().and_then(|recovery| recovery.share()) {
        let share = figures::recovered(share);
        let _ = writeln!(text, "\nOf the perplexity that rounding cost, {share} was recovered.");
    }
    let tables = tables(&report.benchmarks);
    if !tables.is_empty() {
        let _ = writeln!(text, "\n## Benchmarks\n\n{}", super::benchmarks::LEAD);
    }
    for table in &tables {
        text.push_str(&benchmark(table));
    }
    let _ = writeln!(text, "\n## Cost\n\n{}.", cost(&report.cost));
    let _ = writeln!(text, "\n{}", machine(report));
    if let Some(parity) = &report.parity {
        let _ = writeln!(text, "\n## Parity\n");
        text.push_str(&rows(
            &["", "verdict", "found"],
            [&parity.exact, &parity.shipped].into_iter().map(comparison),
        ));
    }
    if !report.samples.is_empty() {
        let _ = writeln!(text, "\n## Samples");
        for sample in &report.samples {
            let said = format!("{}{}", sample.prompt, sample.continuation);
            let _ = write!(text, "\n{}", fenced(&said, "text"));
        }
    }
    if !report.files.is_empty() {
        let _ = writeln!(text, "\n## Files\n");
        let file = |file: &super::ExportedFile| {
            vec![code(&file.path), size(file.bytes), code(&file.sha256)]
        };
        text.push_str(&rows(&["", "size", "SHA-256"], report.files.iter().map(file)));
    }
    let _ = writeln!(text, "\n## To make it again\n\n{}", fenced(&report.command, "sh"));
    let _ = write!(text, "with this recipe:\n\n{}", fenced(&report.recipe, "toml"));
    text
}

fn verdict(report: &RunReport) -> &'static str {
    match &report.parity {
        Some(parity) if parity.passed => {
            "Parity passed: the exported file, run by the edge runtime, computes what was trained."
        }
        Some(_) => {
            "**Parity failed**: the exported file does not compute what was trained. Do not ship it."
        }
        None => "Not verified: the parity gate has not run.",
    }
}

fn comparison(comparison: &Comparison) -> Vec<String> {
    let checks = checks(comparison);
    let found: Vec<String> =
        checks.iter().map(|check| format!("{} {}", check.what, check.found)).collect();
    let verdict = if comparison.passed { "passed" } else { "**failed**" };
    vec![plain(&comparison.configuration), verdict.into(), plain(&found.join(" · "))]
}

fn benchmark(table: &Table) -> String {
    let mut text = format!("\n### {}\n\n{}.\n\n", plain(&table.title), plain(&table.extent));
    let heads = [HEADS[0], HEADS[1], HEADS[2], HEADS[3], "from"];
    let groups = table.groups.iter().flat_map(|group| {
        let head = vec![format!("*{}*", plain(group.figure))];
        let lines = group.lines.iter().map(|line| {
            let model = if line.ships { format!("**{}**", line.model) } else { line.model.into() };
            let figures = [&line.value, &line.difference, &line.recovered].map(|text| plain(text));
            [vec![model], figures.to_vec(), vec![code(&line.records)]].concat()
        });
        std::iter::once(head).chain(lines)
    });
    text.push_str(&rows(&heads, groups));
    text
}

/// What training took, in words.
pub(super) fn cost(cost: &Cost) -> String {
    let energy = cost.joules.map_or_else(
        || "the machine does not tell its energy".to_owned(),
        |joules| format!("{:.1} Wh of the processor", joules / 3600.0),
    );
    let mut text = format!(
        "{} steps, {} tokens, {}, {energy}",
        grouped(cost.steps as u64),
        grouped(cost.tokens),
        duration(cost.seconds),
    );
    // Of runs from before these were kept there are none.
    for (seconds, of) in [
        (cost.method_seconds, "the way to the grid"),
        (cost.evaluation_seconds, "evaluations on held-out text"),
    ] {
        if seconds > 0.0 {
            let _ = write!(text, "; {} for {of}", duration(seconds));
        }
    }
    text
}

/// `12 s`, `3 min 5 s`, `1 h 24 min`.
fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match (whole / 3600, whole / 60 % 60, whole % 60) {
        (0, 0, seconds) => format!("{seconds} s"),
        (0, minutes, seconds) => format!("{minutes} min {seconds} s"),
        (hours, minutes, _) => format!("{hours} h {minutes} min"),
    }
}

fn machine(report: &RunReport) -> String {
    let hardware = &report.hardware;
    let (cpu, threads) = (plain(&hardware.cpu), figures::threads(hardware.threads));
    let version = plain(&report.version);
    let finished = plain(&report.finished);
    format!("{cpu}, {threads}; distill {version}, finished {finished}.")
}

/// A table; rows may be shorter than its head.
fn rows(heads: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut text = format!("| {} |\n|{}\n", heads.join(" | "), "---|".repeat(heads.len()));
    for mut row in rows {
        row.resize(heads.len(), String::new());
        let _ = writeln!(text, "| {} |", row.join(" | "));
    }
    text
}

/// Text without markup, on one line.
fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            c if c.is_control() => out.push(' '),
            '\\' | '`' | '*' | '_' | '{' | '}' | '[' | ']' | '<' | '>' | '|' | '#' | '~' | '&'
            | '!' => {
                out.push('\\');
                out.push(c);
            }
            c => out.push(c),
        }
    }
    out
}

/// Code within a table.
fn code(text: &str) -> String {
    match text {
        "" => String::new(),
        text => format!("`{}`", text.replace(['`', '|'], "'").replace(char::is_control, " ")),
    }
}

/// A code block; its fence is longer than any run of backticks inside.
fn fenced(text: &str, language: &str) -> String {
    let runs = text.split(|c| c != '`').map(str::len);
    let fence = "`".repeat(runs.max().unwrap_or(0).max(2) + 1);
    format!("{fence}{language}\n{}\n{fence}\n", text.trim_end())
}

/// A string of YAML, which takes those of JSON.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::super::example::{self, HOSTILE};
    use super::{duration, markdown, model_card};

    #[test]
    fn the_report_is_told_in_tables() {
        let text = markdown(&example::report());
        for line in [
            "| **trained and exported** | 17.00 \\[16.00, 18.00\\] | +1.00 \\[+0.50, +1.50\\] | 75 % \\[70, 80\\] | `evaluation/exported.json` |",
            "300 steps, 1,228,800 tokens, 45 s, the machine does not tell its energy; 21 s for the way to \
             the grid; 8 s for evaluations on held-out text.",
            "### Perplexity · held \\<b\\>out.txt",
            "Of the perplexity that rounding cost, 83.5 % was recovered.",
            "distill run recipes/quickstart.toml",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
    }

    #[test]
    fn the_card_begins_with_what_the_hub_reads() {
        let card = model_card(&example::report(), Some("owner/model"), true);
        let [_, front, _] = card.splitn(3, "---\n").collect::<Vec<_>>()[..] else {
            panic!("{card}")
        };
        insta::assert_snapshot!(front, @r#"
        library_name: transformers
        pipeline_tag: text-generation
        base_model: "owner/model"
        base_model_relation: quantized
        tags:
          - distill
          - quantization-aware-training
        model-index:
          - name: "quickstart"
            results:
              - task:
                  type: text-generation
                dataset:
                  name: "held <b>out.txt"
                  type: "held <b>out.txt"
                metrics:
                  - type: perplexity
                    value: 17
                    name: "perplexity"
                  - type: kl
                    value: 0.05
                    name: "kl"
        "#);
    }

    #[test]
    fn nothing_written_by_others_becomes_markup() {
        let mut report = example::report();
        report.name = HOSTILE.into();
        report.recipe = format!("```\n{HOSTILE}\n````");
        let text = markdown(&report);
        assert!(text.starts_with("# \\</pre\\>\\<script\\>"), "{text}");
        assert!(text.contains("`````toml\n```\n"), "the fence is longer than those inside");
        let mut fence: Option<&str> = None;
        for line in text.lines() {
            match fence {
                Some(end) if line == end => fence = None,
                Some(_) => {}
                None if line.starts_with("```") => {
                    fence = Some(line.trim_end_matches(char::is_alphabetic))
                }
                None => assert!(!line.replace("\\<", "").contains("<script"), "{line}"),
            }
        }
        assert_eq!(fence, None, "every block ends");
    }

    #[test]
    fn what_is_not_known_is_left_out_or_a_dash() {
        let text = markdown(&example::unmeasured());
        assert!(text.contains("| student () | — | — | — | — | — |  |"), "{text}");
        assert!(!text.contains("## Parity") && !text.contains("## Samples"));
    }

    #[test]
    fn durations_are_written_for_people() {
        assert_eq!([12.4, 185.0, 5040.0].map(duration), ["12 s", "3 min 5 s", "1 h 24 min"]);
    }
}
