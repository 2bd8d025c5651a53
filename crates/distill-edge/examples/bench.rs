//! Speed of a model on this machine: `cargo run --release -p distill-edge --example bench --
//! model.gguf [threads] [prompt] [generate] [depth] [kernels] [kv]`.

use distill_edge::bench::{BenchOptions, bench, limits};
use distill_edge::{KernelChoice, KvType, LoadOptions, Model};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let path = arguments.first().ok_or("which model?")?;
    let number = |i: usize, default| arguments.get(i).map_or(Ok(default), |text| text.parse());
    let kernels = arguments.get(5).map_or(Ok(KernelChoice::Best), |name| name.parse())?;
    let model = Model::load(path.as_ref(), &LoadOptions { kernels, ..LoadOptions::default() })?;
    let options = BenchOptions {
        threads: number(1, 2)?,
        prompt: number(2, 512)?,
        generate: number(3, 128)?,
        depth: number(4, 0)?,
        kv: arguments.get(6).map_or(Ok(KvType::F16), |name| name.parse())?,
        ..BenchOptions::default()
    };
    let report = bench(&model, &options)?;
    let bandwidth = limits::bandwidth_gbps(report.threads, report.decode_bytes, &model);
    let int8 = limits::int8_gops(report.threads, &model);
    println!(
        "{} kernels, {} threads, {} cache; limits: {bandwidth:.1} GB/s, {int8:.0} GOP/s",
        report.kernels, report.threads, options.kv
    );
    for (name, samples, share) in [
        ("prefill", &report.prefill, report.prefill_gops() / int8),
        ("decode", &report.decode, report.decode_bandwidth_gbps() / bandwidth),
    ] {
        println!(
            "{name:8} {:8.1} tokens/s ± {:.0} %, {:.0} % of the limit",
            samples.median(),
            100.0 * samples.spread(),
            100.0 * share
        );
    }
    Ok(())
}
