//! The report as one page: no script, no font, no picture from elsewhere.
//!
//! Prompts, model output, paths and recipes are text that somebody else wrote. All of it goes
//! through the template's escaping; only the charts, drawn from numbers, are taken as markup.
//! The page's own content policy forbids scripts besides.

use minijinja::{AutoEscape, Environment, UndefinedBehavior, Value};
use serde::Serialize;

use super::benchmarks::{HEADS, LEAD, Table, tables};
use super::chart::Chart;
use super::figures::{
    grouped, nats, or_dash, percent, perplexity, recovered, short, size, speed, threads,
};
use super::markdown::cost;
use super::verdict::{Check, checks, partings, worst};
use super::{Curve, Hardware, RowKind, RunReport, Sample};
use crate::EvalError;
use crate::parity::Comparison;

/// The report as a self-contained HTML page, light or dark as the reader's system is.
///
/// # Errors
/// [`EvalError::Chart`] and [`EvalError::Template`]; neither depends on what was measured.
pub fn html(report: &RunReport) -> Result<String, EvalError> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.set_auto_escape_callback(|name| {
        if name.ends_with(".css") { AutoEscape::None } else { AutoEscape::Html }
    });
    environment.add_template("report.css", include_str!("report.css"))?;
    environment.add_template("report.html", include_str!("report.html.jinja"))?;
    Ok(environment.get_template("report.html")?.render(Page::of(report)?)?)
}

/// What the template shows: figures already written out.
#[derive(Serialize)]
struct Page<'a> {
    name: &'a str,
    run: &'a str,
    version: &'a str,
    finished: &'a str,
    positions: String,
    verdict: Verdict,
    tiles: Vec<Tile>,
    rows: Vec<Model<'a>>,
    recovery: String,
    benchmarks: Vec<Table>,
    benchmarks_lead: &'static str,
    benchmark_heads: [&'static str; 4],
    cost: String,
    command: &'a str,
    charts: Vec<Drawn>,
    configurations: Vec<Configuration<'a>>,
    samples: &'a [Sample],
    recipe: Vec<Setting<'a>>,
    hardware: Vec<Fact>,
    files: Vec<File<'a>>,
}

#[derive(Serialize)]
struct Verdict {
    class: &'static str,
    title: &'static str,
    text: &'static str,
}

#[derive(Serialize)]
struct Tile {
    label: &'static str,
    value: String,
    note: String,
}

#[derive(Serialize)]
struct Model<'a> {
    ships: bool,
    model: &'a str,
    through: &'a str,
    records: &'a str,
    cells: [Cell; 5],
}

#[derive(Serialize)]
struct Cell {
    measured: bool,
    text: String,
}

#[derive(Serialize)]
struct Drawn {
    title: &'static str,
    /// First and last value.
    change: String,
    svg: Option<Value>,
    /// Steps of the moving mean.
    window: Option<usize>,
    full_precision: Option<String>,
    post_training_quantized: Option<String>,
}

#[derive(Serialize)]
struct Configuration<'a> {
    title: &'static str,
    configuration: &'a str,
    kernels: &'a str,
    positions: String,
    passed: bool,
    checks: Vec<Check>,
    worst: String,
    partings: Vec<Parting>,
}

#[derive(Serialize)]
struct Parting {
    beyond: bool,
    text: String,
}

/// A line of the recipe, told apart for the eye only.
#[derive(Serialize)]
struct Setting<'a> {
    class: &'static str,
    key: &'a str,
    rest: &'a str,
}

#[derive(Serialize)]
struct Fact {
    label: &'static str,
    value: String,
}

#[derive(Serialize)]
struct File<'a> {
    path: &'a str,
    size: String,
    bytes: String,
    sha256: &'a str,
}

impl<'a> Page<'a> {
    fn of(report: &'a RunReport) -> Result<Self, EvalError> {
        Ok(Self {
            name: &report.name,
            run: &report.run,
            version: &report.version,
            finished: &report.finished,
            positions: grouped(report.positions as u64),
            verdict: verdict(report),
            tiles: tiles(report),
            rows: models(report),
            recovery: recovery(report),
            benchmarks: tables(&report.benchmarks),
            benchmarks_lead: LEAD,
            benchmark_heads: HEADS,
            cost: cost(&report.cost),
            command: &report.command,
            charts: charts(&report.curves)?,
            configurations: configurations(report),
            samples: &report.samples,
            recipe: report.recipe.lines().map(setting).collect(),
            hardware: hardware(&report.hardware),
            files: files(report),
        })
    }
}

fn verdict(report: &RunReport) -> Verdict {
    match &report.parity {
        Some(parity) if parity.passed => Verdict {
            class: "passed",
            title: "Parity passed",
            text: "The exported file, run by the edge runtime, computes what was trained.",
        },
        Some(_) => Verdict {
            class: "failed",
            title: "Parity failed",
            text: "The exported file does not compute what was trained. Do not ship it.",
        },
        None => Verdict {
            class: "open",
            title: "Not verified",
            text: "The parity gate has not run: nothing shows that the exported file computes \
                   what was trained.",
        },
    }
}

fn tiles(report: &RunReport) -> Vec<Tile> {
    let ships = report.row(RowKind::ExportedRuntime);
    let full = report.row(RowKind::FullPrecision);
    let note = |figure: Option<String>| figure.unwrap_or_default();
    let shrunk = full.and_then(|row| row.bytes).zip(ships.and_then(|row| row.bytes));
    let shrunk = shrunk.filter(|(_, ships)| *ships > 0).map(|(full, ships)| {
        format!("{:.1} × smaller than full precision", full as f64 / ships as f64)
    });
    let share = report.recovery().and_then(|recovery| recovery.share());
    vec![
        Tile {
            label: "Perplexity as shipped",
            value: or_dash(ships.and_then(|row| row.perplexity), perplexity),
            note: note(
                full.and_then(|row| row.perplexity)
                    .map(|value| format!("{} in full precision", perplexity(value))),
            ),
        },
        Tile {
            label: "KL to the teacher",
            value: or_dash(ships.and_then(|row| row.kl), nats),
            note: note(
                ships
                    .and_then(|row| row.same_top)
                    .map(|share| format!("nats; same top token {} %", percent(share, 1))),
            ),
        },
        Tile {
            label: "Loss recovered",
            value: or_dash(share, recovered),
            note: note(share.map(|_| "of the perplexity that rounding cost".to_string())),
        },
        Tile {
            label: "Size",
            value: or_dash(ships.and_then(|row| row.bytes), size),
            note: note(shrunk),
        },
        Tile {
            label: "Decode speed",
            value: or_dash(ships.and_then(|row| row.tokens_per_second), speed),
            note: note(
                ships
                    .and_then(|row| row.tokens_per_second)
                    .map(|_| format!("tokens/s, {}", threads(report.hardware.threads))),
            ),
        },
    ]
}

fn models(report: &RunReport) -> Vec<Model<'_>> {
    let cell =
        |text: Option<String>| Cell { measured: text.is_some(), text: or_dash(text, |text| text) };
    let rows = report.rows.iter();
    rows.map(|row| Model {
        ships: row.kind == RowKind::ExportedRuntime,
        model: &row.model,
        through: &row.through,
        records: &row.records,
        cells: [
            cell(row.perplexity.map(perplexity)),
            cell(row.kl.map(nats)),
            cell(row.same_top.map(|share| percent(share, 2))),
            cell(row.bytes.map(size)),
            cell(row.tokens_per_second.map(speed)),
        ],
    })
    .collect()
}

fn recovery(report: &RunReport) -> String {
    let Some(recovery) = report.recovery() else {
        return match report.began_finished {
            true => {
                "What quantisation cost and what training with it won back was not measured: \
                     that takes the student in full precision, post-training quantised and \
                     quantisation-aware."
            }
            false => {
                "The student was still learning when quantisation began, so the rows before \
                      it are of an earlier step: they do not tell what training with \
                      quantisation won back."
            }
        }
        .to_string();
    };
    let figures = format!(
        "perplexity {} after rounding, {} trained with it, {} in full precision",
        perplexity(recovery.post_training_quantized),
        perplexity(recovery.quantization_aware),
        perplexity(recovery.full_precision),
    );
    match recovery.share() {
        Some(share) => format!(
            "Training with quantisation recovered {} of what rounding cost: {figures}.",
            recovered(share)
        ),
        None => format!("Rounding cost nothing here: {figures}."),
    }
}

/// (split, figure, title, vertical axis, smoothed), in the order of the page.
const CHARTS: [(&str, &str, &str, &str, bool); 7] = [
    ("train", "loss", "Training loss", "nats per token", true),
    ("eval", "loss", "Held-out loss", "nats per token", false),
    ("eval", "kl", "Held-out KL(teacher ‖ student)", "nats per token", false),
    ("eval", "perplexity", "Held-out perplexity", "perplexity", false),
    ("eval", "same_top", "Held-out: teacher's top token", "share of positions", false),
    ("train", "gradient_norm", "Gradient norm", "L2 norm before clipping", true),
    ("train", "learning_rate", "Learning rate", "learning rate", false),
];

fn charts(curves: &[Curve]) -> Result<Vec<Drawn>, EvalError> {
    let find = |split: &str, name: &str| {
        curves.iter().find(|curve| curve.split == split && curve.name == name)
    };
    let mut drawn = Vec::new();
    for (split, name, title, axis, smooth) in CHARTS {
        let Some(curve) = find(split, name) else { continue };
        let level = |reference: &str| {
            let curve = find(reference, name).filter(|_| split == "eval")?;
            curve.points.last().map(|(_, value)| *value)
        };
        let chart = Chart {
            title,
            axis,
            points: &curve.points,
            smooth,
            full_precision: level("full_precision"),
            post_training_quantized: level("post_training_quantized"),
        };
        let ends = curve.points.first().zip(curve.points.last());
        drawn.push(Drawn {
            title,
            change: ends.map_or_else(String::new, |((_, first), (_, last))| {
                format!("{} → {}", short(*first), short(*last))
            }),
            svg: chart.svg()?.map(Value::from_safe_string),
            window: chart.window(),
            full_precision: chart.full_precision.map(short),
            post_training_quantized: chart.post_training_quantized.map(short),
        });
    }
    Ok(drawn)
}

fn configurations(report: &RunReport) -> Vec<Configuration<'_>> {
    let Some(parity) = &report.parity else { return Vec::new() };
    vec![configuration("Exact", &parity.exact), configuration("As shipped", &parity.shipped)]
}

fn configuration<'a>(title: &'static str, comparison: &'a Comparison) -> Configuration<'a> {
    let partings = partings(comparison).into_iter();
    Configuration {
        title,
        configuration: &comparison.configuration,
        kernels: &comparison.kernels,
        positions: grouped(comparison.positions as u64),
        passed: comparison.passed,
        checks: checks(comparison),
        worst: worst(comparison),
        partings: partings.map(|(beyond, text)| Parting { beyond, text }).collect(),
    }
}

fn setting(line: &str) -> Setting<'_> {
    let start = line.trim_start();
    if start.starts_with('[') {
        return Setting { class: "section", key: line, rest: "" };
    }
    match line.find(" = ") {
        Some(end) if !start.starts_with(['#', '"', '\'']) => {
            Setting { class: "key", key: &line[..end], rest: &line[end..] }
        }
        _ if start.starts_with('#') => Setting { class: "comment", key: line, rest: "" },
        _ => Setting { class: "value", key: "", rest: line },
    }
}

fn hardware(hardware: &Hardware) -> Vec<Fact> {
    let named = |name: &str| or_dash((!name.is_empty()).then_some(name), str::to_string);
    let counted =
        |count: u64, write: fn(u64) -> String| or_dash((count > 0).then_some(count), write);
    vec![
        Fact { label: "CPU", value: named(&hardware.cpu) },
        Fact { label: "Threads", value: counted(hardware.threads as u64, grouped) },
        Fact { label: "Memory", value: counted(hardware.memory_bytes, size) },
        Fact { label: "Training backend", value: named(&hardware.backend) },
        Fact { label: "Runtime kernels", value: named(&hardware.kernels) },
    ]
}

fn files(report: &RunReport) -> Vec<File<'_>> {
    let files = report.files.iter();
    files
        .map(|file| File {
            path: &file.path,
            size: size(file.bytes),
            bytes: grouped(file.bytes),
            sha256: &file.sha256,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::example::{self, HOSTILE};
    use super::super::{RunReport, figures::NOT_MEASURED};
    use super::html;

    /// Every text field of a report, made hostile.
    fn hostile() -> RunReport {
        let text = HOSTILE.to_string();
        let mut report = example::failed();
        report.name = text.clone();
        report.run = text.clone();
        report.version = text.clone();
        report.finished = text.clone();
        report.hardware.cpu = text.clone();
        report.hardware.backend = text.clone();
        report.hardware.kernels = text.clone();
        report.command = text.clone();
        for benchmark in &mut report.benchmarks {
            benchmark.file = text.clone();
            benchmark.extent = text.clone();
            benchmark.rows.iter_mut().for_each(|row| row.records = text.clone());
        }
        report.recipe = format!("[{text}]\n{text} = {text}\n# {text}\n\"{text}\"");
        for row in &mut report.rows {
            row.model = text.clone();
            row.through = text.clone();
            row.records = text.clone();
        }
        for curve in &mut report.curves {
            curve.name = if curve.name == "kl" { text.clone() } else { curve.name.clone() };
        }
        for file in &mut report.files {
            file.path = text.clone();
            file.sha256 = text.clone();
        }
        let parity = report.parity.as_mut().unwrap();
        for comparison in [&mut parity.exact, &mut parity.shipped] {
            comparison.configuration = text.clone();
            comparison.kernels = text.clone();
        }
        report
    }

    #[test]
    fn nothing_written_by_others_becomes_markup() {
        for report in [example::report(), hostile()] {
            let page = html(&report).unwrap();
            assert!(page.contains("&lt;script&gt;"));
            assert!(page.contains("onerror=&quot;a&amp;b&quot;"));
            for markup in ["<script", "<img", "</pre><", "onerror=\"", "alert('"] {
                assert!(!page.contains(markup), "{markup}");
            }
        }
    }

    #[test]
    fn the_page_asks_for_nothing_from_elsewhere() {
        for report in [example::report(), example::failed(), example::unmeasured()] {
            let page = html(&report).unwrap();
            for address in ["http:", "https:", "//", "url(", "@import", "<link", "src=\"", "xmlns"]
            {
                assert!(!page.contains(address), "{address}");
            }
            assert!(page.contains("default-src 'none'"));
        }
    }

    #[test]
    fn every_measured_figure_stands_on_the_page() {
        let page = html(&example::report()).unwrap();
        let figures = [
            "quickstart",
            "Parity passed",
            "24.10",
            "0.2387",
            "71.97",
            "1.23 MB",
            "1,413",
            "7.0 ×",
            "83.5 %",
            "3.1e-9",
            "99.975 %",
            "KL 8.4e-5 nats",
            "1 of 2 alike",
            "4,096",
            "1,234,567",
            "8.00 GB",
            "who counted in fours.",
            "weaver",
        ];
        for figure in figures {
            assert!(page.contains(figure), "{figure}");
        }
        for checksum in example::report().files.iter().map(|file| &file.sha256) {
            assert!(page.contains(checksum.as_str()));
        }
        assert_eq!(page.matches("<svg").count(), 4);
        assert_eq!(page.matches("</svg>").count(), 4);
    }

    #[test]
    fn a_failed_gate_heads_the_page_and_says_where() {
        let page = html(&example::failed()).unwrap();
        assert!(page.contains("Parity failed") && !page.contains("Parity passed"));
        assert!(page.contains("text 1, position 1,017"));
        assert!(page.contains("the graph prefers token 42, the runtime 7"));
        assert!(page.contains("too far apart for a near tie"));
    }

    #[test]
    fn a_run_of_which_nothing_is_known_still_has_a_page() {
        let page = html(&example::unmeasured()).unwrap();
        assert!(page.contains("Not verified"));
        assert!(page.matches(NOT_MEASURED).count() >= 10, "{page}");
        for invented in ["NaN", ">0<", ">0.00", "0.0 %", "none<", "None", "undefined"] {
            assert!(!page.contains(invented), "{invented}");
        }
    }

    #[test]
    fn figures_that_are_not_numbers_are_shown_as_such() {
        let mut report = example::failed();
        report.rows[4].perplexity = Some(f64::INFINITY);
        report.parity.as_mut().unwrap().shipped.max_logit_difference = f64::INFINITY;
        report.curves[0].points.push((301, f64::NAN));
        let page = html(&report).unwrap();
        assert!(page.contains("∞"));
        let text = super::super::table(&report);
        assert!(text.contains("∞"));
    }
}
