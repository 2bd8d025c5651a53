//! Speed of a model on this machine: `cargo run --release -p distill-edge --example bench --
//! model.gguf [threads] [prompt] [generate]`.

use distill_edge::bench::{BenchOptions, bench};
use distill_edge::{LoadOptions, Model};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let path = arguments.first().ok_or("which model?")?;
    let number = |i: usize, default| arguments.get(i).map_or(Ok(default), |text| text.parse());
    let model = Model::load(path.as_ref(), &LoadOptions::default())?;
    let options = BenchOptions {
        threads: number(1, 2)?,
        prompt: number(2, 512)?,
        generate: number(3, 128)?,
        ..BenchOptions::default()
    };
    let report = bench(&model, &options)?;
    println!(
        "{}, {} threads: prefill {:.1} tokens/s, decode {:.1} tokens/s ({:.1} GB/s)",
        report.kernels,
        report.threads,
        report.prefill_tokens_per_second,
        report.decode_tokens_per_second,
        report.decode_bandwidth_gbps
    );
    Ok(())
}
