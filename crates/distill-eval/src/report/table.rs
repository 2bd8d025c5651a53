//! The report for a terminal: plain text whose meaning needs no colour.

use super::benchmarks::{self, tables};
use super::figures::{self, grouped, nats, or_dash, percent, perplexity, size, speed};
use super::verdict::{checks, partings, worst};
use super::{ExportedFile, Hardware, Row, RunReport};
use crate::benchmark::Benchmark;
use crate::parity::{Comparison, Parity};

/// Heads of the columns: name and unit.
const HEADS: [[&str; 2]; 6] = [
    ["", ""],
    ["perplexity", ""],
    ["KL to teacher", "nats"],
    ["same top", "%"],
    ["weights", ""],
    ["decode", "tokens/s"],
];

/// The report as text: the models, the share of the quantisation loss recovered, the parity
/// gate's verdict and the exported files. Ends with a newline.
pub fn table(report: &RunReport) -> String {
    let mut lines = header(report);
    lines.push(String::new());
    lines.extend(models(&report.rows));
    lines.push(String::new());
    lines.push(recovered(report));
    lines.extend(tasks(&report.benchmarks));
    lines.extend(parity(report.parity.as_ref()));
    if !report.files.is_empty() {
        lines.push(String::new());
        lines.extend(files(&report.files));
    }
    let mut text = String::new();
    for line in lines {
        text.push_str(printable(&line).trim_end());
        text.push('\n');
    }
    text
}

fn header(report: &RunReport) -> Vec<String> {
    let Hardware { cpu, threads, backend, kernels, .. } = &report.hardware;
    let threads = (*threads > 0).then(|| figures::threads(*threads));
    let named = |what: &str, name: &str| (!name.is_empty()).then(|| format!("{what} {name}"));
    let parts = [
        Some(format!("{} held-out positions", grouped(report.positions as u64))),
        Some(cpu.clone()).filter(|cpu| !cpu.is_empty()),
        threads,
        named("backend", backend),
        named("kernels", kernels),
    ];
    vec![
        format!("{} · {} · distill {}", report.name, report.run, report.version),
        parts.into_iter().flatten().collect::<Vec<_>>().join(" · "),
    ]
}

fn models(rows: &[Row]) -> Vec<String> {
    let cells: Vec<[String; 6]> = rows.iter().map(cells).collect();
    let width = |column: usize| {
        let heads = HEADS[column].iter().map(|head| head.chars().count());
        let cells = cells.iter().map(|row| row[column].chars().count());
        heads.chain(cells).max().unwrap_or(0)
    };
    let widths: [usize; 6] = std::array::from_fn(width);
    let line = |cells: [&str; 6]| {
        let mut line = format!("{:<width$}", cells[0], width = widths[0]);
        for (cell, width) in cells.iter().zip(widths).skip(1) {
            line.push_str(&format!("  {cell:>width$}"));
        }
        line
    };
    let rule = "─".repeat(widths.iter().sum::<usize>() + 2 * (widths.len() - 1));

    let mut lines = vec![line(HEADS.map(|[name, _]| name)), line(HEADS.map(|[_, unit]| unit))];
    lines.push(rule.clone());
    for (row, cells) in rows.iter().zip(&cells) {
        lines.push(line(cells.each_ref().map(String::as_str)));
        if !row.through.is_empty() {
            lines.push(format!("  {}", row.through));
        }
    }
    lines.push(rule);
    lines
}

fn cells(row: &Row) -> [String; 6] {
    [
        row.model.clone(),
        or_dash(row.perplexity, perplexity),
        or_dash(row.kl, nats),
        or_dash(row.same_top, |share| percent(share, 2)),
        or_dash(row.bytes, size),
        or_dash(row.tokens_per_second, speed),
    ]
}

fn recovered(report: &RunReport) -> String {
    let title = "quantisation loss recovered";
    let Some(recovery) = report.recovery() else {
        return match report.began_finished {
            true => format!("{title}: — (needs full precision, post-training and aware)"),
            false => format!("{title}: — (the student was still learning when rounding began)"),
        };
    };
    let share = recovery
        .share()
        .map_or_else(|| "— (rounding cost nothing)".to_string(), figures::recovered);
    format!(
        "{title}: {share} · perplexity {} → {}, full precision {}",
        perplexity(recovery.post_training_quantized),
        perplexity(recovery.quantization_aware),
        perplexity(recovery.full_precision),
    )
}

fn tasks(benchmarks: &[Benchmark]) -> Vec<String> {
    let mut lines = Vec::new();
    let line = |cells: [&str; 4]| {
        let [model, value, difference, recovered] = cells;
        format!("  {model:<22}{value:<26}{difference:<26}{recovered}")
    };
    for table in tables(benchmarks) {
        lines.push(String::new());
        lines.push(format!("{} · {}", table.title, table.extent));
        lines.push(line(benchmarks::HEADS));
        for group in &table.groups {
            lines.push(group.figure.to_owned());
            for row in &group.lines {
                lines.push(line([row.model, &row.value, &row.difference, &row.recovered]));
            }
        }
    }
    if !lines.is_empty() {
        lines.push(String::new());
    }
    lines
}

fn parity(parity: Option<&Parity>) -> Vec<String> {
    let Some(parity) = parity else {
        return vec!["parity: — (the gate has not run)".to_string()];
    };
    let named = [("exact", &parity.exact), ("shipped", &parity.shipped)];
    named.into_iter().flat_map(|(name, comparison)| configuration(name, comparison)).collect()
}

/// One line if it passed; below it, if not, what went beyond its limit and where.
fn configuration(name: &str, comparison: &Comparison) -> Vec<String> {
    let checks = checks(comparison);
    let verdict = if comparison.passed { "passed" } else { "FAILED" };
    let found: Vec<String> =
        checks.iter().map(|check| format!("{} {}", check.what, check.found)).collect();
    let mut lines = vec![format!("parity {name:<7} {verdict} · {}", found.join(" · "))];
    if comparison.passed {
        return lines;
    }
    lines.push(format!(
        "  {}, {} kernels, {} positions",
        comparison.configuration,
        comparison.kernels,
        grouped(comparison.positions as u64)
    ));
    for check in checks.iter().filter(|check| !check.passed) {
        lines.push(format!("  {}: {}, limit {}", check.what, check.found, check.limit));
    }
    lines.push(format!("  furthest apart at {}", worst(comparison)));
    let beyond = partings(comparison).into_iter().filter(|(beyond, _)| *beyond);
    lines.extend(beyond.map(|(_, text)| format!("  {text}")));
    lines
}

fn files(files: &[ExportedFile]) -> Vec<String> {
    let width = files.iter().map(|file| file.path.chars().count()).max().unwrap_or(0);
    let sizes: Vec<String> = files.iter().map(|file| size(file.bytes)).collect();
    let size_width = sizes.iter().map(String::len).max().unwrap_or(0);
    files
        .iter()
        .zip(sizes)
        .map(|(file, size)| {
            let sum: String = file.sha256.chars().take(12).collect();
            format!("{:<width$}  {size:>size_width$}  sha256 {sum}…", file.path)
        })
        .collect()
}

/// Without what could steer a terminal or turn a line around: names come from recipes and files.
fn printable(line: &str) -> String {
    let turns = |c| matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    line.chars().map(|c| if c.is_control() || turns(c) { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::super::example;
    use super::table;

    #[test]
    fn a_run_that_passed_is_told_in_one_table() {
        insta::assert_snapshot!(table(&example::report()), @"
        quickstart · 20261122-221500 · distill 0.1.0
        4,096 held-out positions · Example CPU 9000 · 2 threads · backend flex · kernels avx2

                                          perplexity  KL to teacher  same top   weights    decode
                                                               nats         %            tokens/s
        ─────────────────────────────────────────────────────────────────────────────────────────
        teacher                                17.41              —         —  21.23 MB         —
          graph, f32
        student, full precision                20.75         0.2113     73.12   8.65 MB         —
          graph, step 0
        student, post-training quantised       24.10         0.3571     66.04   1.22 MB         —
          graph, step 0
        student, quantisation-aware            21.30         0.2386     71.98   1.22 MB         —
          graph, step 300
        exported file                          21.30         0.2387     71.97   1.23 MB     1,413
          runtime, Q8_0 activations, f16 KV cache
        ─────────────────────────────────────────────────────────────────────────────────────────

        quantisation loss recovered: 83.5 % · perplexity 24.10 → 21.30, full precision 20.75

        Perplexity · held <b>out.txt · 60 chunks of 512, 15300 tokens scored
                                value                     less full precision       loss recovered
        perplexity
          full precision        16.00 [15.00, 17.00]      —                         —
          rounded to nearest    20.00 [19.00, 21.00]      +4.00 [+3.50, +4.50]      —
          trained and exported  17.00 [16.00, 18.00]      +1.00 [+0.50, +1.50]      75 % [70, 80]
        KL from full precision, nats
          rounded to nearest    0.2500 [0.2400, 0.2600]   —                         —
          trained and exported  0.0500 [0.0450, 0.0550]   —                         80 % [78, 82]

        parity exact   passed · same top token 99.975 % · mean KL 3.1e-9 nats · max |Δlogit| 1.2e-5 · greedy 1 of 2 alike
        parity shipped passed · same top token 99.975 % · mean KL 4.2e-6 nats · max |Δlogit| 0.031 · greedy 1 of 2 alike

        export/model.gguf                     1.23 MB  sha256 0123456789ab…
        export/huggingface/model.safetensors  8.77 MB  sha256 fedcba987654…
        ");
    }

    #[test]
    fn a_failed_gate_says_which_limit_and_where() {
        let text = table(&example::failed());
        let gate = text.lines().skip_while(|line| !line.starts_with("parity shipped"));
        let gate: Vec<&str> = gate.take_while(|line| !line.is_empty()).collect();
        insta::assert_snapshot!(gate.join("\n"), @"
        parity shipped FAILED · same top token 91.120 % · mean KL 0.0317 nats · max |Δlogit| 0.031 · greedy 1 of 2 alike
          Q8_0 activations, f16 KV cache, avx2 kernels, 4,096 positions
          same top token: 91.120 %, limit ≥ 99.5 %
          mean KL: 0.0317 nats, limit ≤ 1e-4 nats
          greedy: 1 of 2 alike, limit gaps ≤ 0.05
          furthest apart at text 1, position 1,017: KL 2.5000 nats; the graph prefers token 42, the runtime 7
          prompt 1 parts after 12 of 64 tokens, the logits 0.71 apart: too far apart for a near tie
        ");
    }

    #[test]
    fn what_was_not_measured_is_a_dash_and_never_a_zero() {
        insta::assert_snapshot!(table(&example::unmeasured()), @"
        quickstart · 20261122-221500 · distill 0.1.0
        0 held-out positions

                 perplexity  KL to teacher  same top  weights    decode
                                      nats         %           tokens/s
        ───────────────────────────────────────────────────────────────
        student           —              —         —        —         —
        ───────────────────────────────────────────────────────────────

        quantisation loss recovered: — (needs full precision, post-training and aware)
        parity: — (the gate has not run)
        ");
    }

    #[test]
    fn escape_sequences_in_names_do_not_reach_the_terminal() {
        let mut report = example::report();
        report.name = "\u{1b}[2Jquick\rstart\u{9b}31m".into();
        report.files[0].path = "export/\u{7}\n\u{202e}model.gguf".into();
        let text = table(&report);
        assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{text:?}");
        assert!(!text.contains('\u{202e}'), "{text:?}");
    }
}
