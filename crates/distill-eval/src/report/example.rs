//! A made-up run for the tests. Its texts are as hostile as a prompt or a model can be.

use super::{Cost, Curve, ExportedFile, Hardware, Row, RowKind, RunReport, Sample};
use crate::Estimate;
use crate::benchmark::{Benchmark, BenchmarkRow, Figure, Role};
use crate::evaluation::Task;
use crate::parity::{Comparison, EXACT, Greedy, Limits, Parity, SHIPPED, Worst};

/// Markup that must never reach the page as such.
pub(crate) const HOSTILE: &str = "</pre><script>alert('1')</script><img src=x onerror=\"a&b\">";

pub(crate) fn report() -> RunReport {
    RunReport {
        name: "quickstart".into(),
        run: "20261122-221500".into(),
        version: "0.1.0".into(),
        finished: "2026-11-22T22:18:41Z".into(),
        hardware: Hardware {
            cpu: "Example CPU 9000".into(),
            threads: 2,
            memory_bytes: 8_000_000_000,
            backend: "flex".into(),
            kernels: "avx2".into(),
        },
        recipe: "name = \"quickstart\"\nseed = 42\n\n# the loop\n[train]\nsteps = 300\n".into(),
        command: "distill run recipes/quickstart.toml".into(),
        cost: Cost {
            steps: 300,
            tokens: 1_228_800,
            seconds: 45.2,
            method_seconds: 21.0,
            evaluation_seconds: 8.0,
            joules: None,
        },
        positions: 4096,
        began_finished: true,
        rows: rows(),
        benchmarks: vec![benchmark()],
        curves: curves(),
        parity: Some(Parity {
            passed: true,
            exact: comparison("float activations, f32 KV cache", EXACT, 3.1e-9, 1.2e-5),
            shipped: comparison("Q8_0 activations, f16 KV cache", SHIPPED, 4.2e-6, 0.031),
            packed_is_equal: Some(true),
        }),
        samples: vec![
            Sample {
                prompt: "Once upon a time".into(),
                continuation: ", there was a weaver\nwho counted in fours.".into(),
            },
            Sample { prompt: HOSTILE.into(), continuation: HOSTILE.into() },
            Sample { prompt: "The end".into(), continuation: String::new() },
        ],
        files: vec![
            ExportedFile {
                path: "export/model.gguf".into(),
                bytes: 1_234_567,
                sha256: "0123456789abcdef".repeat(4),
            },
            ExportedFile {
                path: "export/huggingface/model.safetensors".into(),
                bytes: 8_765_432,
                sha256: "fedcba9876543210".repeat(4),
            },
        ],
    }
}

fn rows() -> Vec<Row> {
    use RowKind::*;
    let row = |kind, model: &str, through: &str| Row {
        kind,
        model: model.into(),
        through: through.into(),
        ..Row::default()
    };
    vec![
        Row {
            perplexity: Some(17.412),
            bytes: Some(21_233_664),
            ..row(Teacher, "teacher", "graph, f32")
        },
        Row {
            perplexity: Some(20.75),
            kl: Some(0.2113),
            same_top: Some(0.7312),
            bytes: Some(8_650_752),
            ..row(FullPrecision, "student, full precision", "graph, step 0")
        },
        Row {
            perplexity: Some(24.1),
            kl: Some(0.3571),
            same_top: Some(0.6604),
            bytes: Some(1_216_512),
            ..row(PostTrainingQuantized, "student, post-training quantised", "graph, step 0")
        },
        Row {
            perplexity: Some(21.3),
            kl: Some(0.2386),
            same_top: Some(0.7198),
            bytes: Some(1_216_512),
            ..row(QuantizationAware, "student, quantisation-aware", "graph, step 300")
        },
        Row {
            perplexity: Some(21.3),
            kl: Some(0.2387),
            same_top: Some(0.7197),
            bytes: Some(1_234_567),
            tokens_per_second: Some(1412.7),
            ..row(ExportedRuntime, "exported file", "runtime, Q8_0 activations, f16 KV cache")
        },
    ]
}

fn benchmark() -> Benchmark {
    let estimate = |figure: &str, value: f64, half: f64| Estimate {
        figure: figure.into(),
        value,
        low: value - half,
        high: value + half,
        n: 60,
    };
    let row = |role: Role, figures| BenchmarkRow {
        role,
        records: format!("evaluation/{}.json", role.name()),
        figures,
    };
    let figure = |estimate, difference, recovered| Figure { estimate, difference, recovered };
    let perplexity = |value| estimate("perplexity", value, 1.0);
    Benchmark {
        task: Task::Perplexity,
        file: "held <b>out.txt".into(),
        sha256: "0123456789abcdef".repeat(4),
        extent: "60 chunks of 512, 15300 tokens scored".into(),
        rows: vec![
            row(Role::FullPrecision, vec![figure(perplexity(16.0), None, None)]),
            row(
                Role::Round,
                vec![
                    figure(perplexity(20.0), Some(estimate("perplexity", 4.0, 0.5)), None),
                    figure(estimate("kl", 0.25, 0.01), None, None),
                ],
            ),
            row(
                Role::Exported,
                vec![
                    figure(
                        perplexity(17.0),
                        Some(estimate("perplexity", 1.0, 0.5)),
                        Some(estimate("perplexity", 0.75, 0.05)),
                    ),
                    figure(estimate("kl", 0.05, 0.005), None, Some(estimate("kl", 0.8, 0.02))),
                ],
            ),
        ],
    }
}

fn curves() -> Vec<Curve> {
    let steps = |every: usize, value: fn(f64) -> f64| -> Vec<(usize, f64)> {
        (0..=300 / every).map(|i| (i * every, value((i * every) as f64))).collect()
    };
    let curve =
        |split: &str, name: &str, points| Curve { split: split.into(), name: name.into(), points };
    vec![
        curve("train", "loss", steps(1, |s| 0.4 + 4.0 / (1.0 + s / 25.0) + 0.12 * (s * 1.7).sin())),
        curve("train", "learning_rate", steps(1, |s| 1e-3 * (s / 30.0).min(1.0 - s / 330.0))),
        curve("eval", "kl", steps(50, |s| 0.22 + 3.0 / (1.0 + s / 10.0))),
        curve("eval", "perplexity", steps(50, |s| 20.0 + 900.0 / (1.0 + s / 5.0))),
        curve("full_precision", "perplexity", vec![(0, 20.75)]),
        curve("post_training_quantized", "perplexity", vec![(0, 24.1)]),
    ]
}

fn comparison(configuration: &str, limits: Limits, mean_kl: f64, difference: f64) -> Comparison {
    let same = Greedy { prompt: vec![1, 2, 3], same: 64, tokens: 64, gap: None };
    Comparison {
        configuration: configuration.into(),
        kernels: "avx2".into(),
        passed: true,
        limits,
        positions: 4096,
        same_top: 4095.0 / 4096.0,
        mean_kl,
        max_logit_difference: difference,
        codes: None,
        worst: Worst {
            sequence: 3,
            position: 217,
            kl: 20.0 * mean_kl,
            graph_top: 42,
            runtime_top: 42,
            context: String::new(),
        },
        greedy: vec![same.clone(), Greedy { same: 12, gap: Some(0.0031), ..same }],
    }
}

/// The same run with a runtime that does not compute what was trained.
pub(crate) fn failed() -> RunReport {
    let mut report = report();
    if let Some(parity) = &mut report.parity {
        parity.passed = false;
        parity.shipped.passed = false;
        parity.shipped.same_top = 0.9112;
        parity.shipped.mean_kl = 0.0317;
        parity.shipped.worst = Worst {
            sequence: 1,
            position: 1017,
            kl: 2.5,
            graph_top: 42,
            runtime_top: 7,
            context: String::new(),
        };
        parity.shipped.greedy[1].gap = Some(0.71);
    }
    report
}

/// A run of which next to nothing is known.
pub(crate) fn unmeasured() -> RunReport {
    RunReport {
        rows: vec![Row { model: "student".into(), ..Row::default() }],
        benchmarks: vec![],
        cost: Cost::default(),
        command: String::new(),
        curves: vec![Curve { split: "eval".into(), name: "kl".into(), points: vec![] }],
        parity: None,
        samples: vec![],
        files: vec![],
        recipe: String::new(),
        hardware: Hardware::default(),
        positions: 0,
        ..report()
    }
}
