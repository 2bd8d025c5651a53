//! `distill bench`.

use distill_edge::bench::{BenchOptions, BenchReport, Samples, bench as measure, limits};
use distill_edge::{KvType, LoadOptions, Model};
use serde_json::{Value, json};

use crate::cli;
use crate::failure::Failure;
use crate::output::put_line;

/// Measures prefill and decode for every number of threads and every depth, against what this
/// machine can do.
pub fn bench(args: &cli::Bench) -> Result<(), Failure> {
    let options = LoadOptions { kernels: args.kernels, ..LoadOptions::default() };
    let model = Model::load(&args.model, &options)?;
    let runs = args
        .threads
        .iter()
        .map(|&threads| Run::new(&model, args, threads))
        .collect::<Result<Vec<Run>, Failure>>()?;
    let kv = KvType::from(args.kv);
    if args.json {
        let json = json!({
            "model": args.model,
            "kernels": model.kernel_name(),
            "weight_bytes": model.weight_bytes(),
            "kv": kv.to_string(),
            "runs": runs.iter().map(Run::to_json).collect::<Vec<Value>>(),
        });
        return put_line!("{json}");
    }
    put_line!(
        "{} · {} kernels · {:.1} MB of weights · {kv} KV cache",
        args.model.display(),
        model.kernel_name(),
        model.weight_bytes() as f64 / 1e6
    )?;
    runs.iter().try_for_each(|run| run.print())
}

/// What was measured with one number of threads.
struct Run {
    threads: usize,
    prompt: usize,
    generate: usize,
    /// Operations on bytes of this machine, 10⁹ a second.
    int8_gops: f64,
    prefill: BenchReport,
    decode: Vec<Decode>,
}

/// Decoding at one depth.
struct Decode {
    depth: usize,
    report: BenchReport,
    /// Bandwidth of this machine for as many bytes as a token reads here, GB (10⁹ bytes) a second.
    bandwidth_gbps: f64,
}

impl Decode {
    fn share(&self) -> f64 {
        self.report.decode_bandwidth_gbps() / self.bandwidth_gbps
    }
}

impl Run {
    fn new(model: &Model, args: &cli::Bench, threads: usize) -> Result<Self, Failure> {
        let options = BenchOptions {
            prompt: args.prompt,
            generate: 0,
            threads,
            kv: args.kv.into(),
            repetitions: args.repeat.max(1),
            ..BenchOptions::default()
        };
        let decode = |&depth: &usize| {
            let options =
                BenchOptions { prompt: 0, generate: args.generate, depth, ..options.clone() };
            let report = measure(model, &options)?;
            let bandwidth_gbps = limits::bandwidth_gbps(threads, report.decode_bytes, model);
            Ok(Decode { depth, report, bandwidth_gbps })
        };
        Ok(Self {
            threads,
            prompt: args.prompt,
            generate: args.generate,
            int8_gops: limits::int8_gops(threads, model),
            prefill: measure(model, &options)?,
            decode: args.depth.iter().map(decode).collect::<Result<_, Failure>>()?,
        })
    }

    fn prefill_share(&self) -> f64 {
        self.prefill.prefill_gops() / self.int8_gops
    }

    fn to_json(&self) -> Value {
        let samples = |samples: &Samples, share: f64| {
            json!({
                "tokens_per_second": samples.median(),
                "spread": samples.spread(),
                "samples": samples.0,
                "share_of_limit": share,
            })
        };
        let decode = self.decode.iter().map(|decode| {
            let mut json = samples(&decode.report.decode, decode.share());
            json["depth"] = decode.depth.into();
            json["bandwidth_gbps"] = decode.bandwidth_gbps.into();
            json["tokens"] = self.generate.into();
            json
        });
        let mut prefill = samples(&self.prefill.prefill, self.prefill_share());
        prefill["tokens"] = self.prompt.into();
        json!({
            "threads": self.threads,
            "int8_gops": self.int8_gops,
            "prefill": prefill,
            "decode": decode.collect::<Vec<Value>>(),
        })
    }

    fn print(&self) -> Result<(), Failure> {
        put_line!(
            "{} threads · this machine computes {:.0} GOP/s on bytes",
            self.threads,
            self.int8_gops
        )?;
        if self.prompt > 0 {
            put_line!(
                "  prefill {:>5}                {}  {:>3.0} % of the arithmetic",
                self.prompt,
                speed(&self.prefill.prefill),
                100.0 * self.prefill_share()
            )?;
        }
        for decode in self.decode.iter().filter(|_| self.generate > 0) {
            put_line!(
                "  decode  {:>5} at depth {:>5} {}  {:>3.0} % of the {:.1} GB/s it reads here",
                self.generate,
                decode.depth,
                speed(&decode.report.decode),
                100.0 * decode.share(),
                decode.bandwidth_gbps
            )?;
        }
        Ok(())
    }
}

fn speed(samples: &Samples) -> String {
    format!("{:>8.1} tok/s ± {:>2.0} %", samples.median(), 100.0 * samples.spread())
}
