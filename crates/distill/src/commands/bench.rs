//! `distill bench`.

use distill_edge::bench::{BenchOptions, bench as measure};
use distill_edge::{LoadOptions, Model};

use crate::cli;
use crate::failure::Failure;
use crate::output::put_line;

/// Measures prefill and decode; medians of the repetitions.
pub fn bench(args: &cli::Bench) -> Result<(), Failure> {
    let load = LoadOptions { threads: args.threads, ..LoadOptions::default() };
    let model = Model::load(&args.model, &load)?;
    let options = BenchOptions {
        prompt: args.prompt,
        generate: args.generate,
        threads: args.threads,
        repetitions: args.repeat.max(1),
        ..BenchOptions::default()
    };
    let speed = measure(&model, &options)?;
    if args.json {
        let json = serde_json::json!({
            "model": args.model,
            "kernels": model.kernel_name(),
            "threads": args.threads,
            "prompt": args.prompt,
            "generate": args.generate,
            "repeat": args.repeat,
            "weight_bytes": model.weight_bytes(),
            "prefill_tokens_per_second": speed.prefill_tokens_per_second,
            "decode_tokens_per_second": speed.decode_tokens_per_second,
            "prefill_samples": speed.prefill_samples,
            "decode_samples": speed.decode_samples,
            "first_token_ms": speed.first_token_ms,
            "decode_bandwidth_gbps": speed.decode_bandwidth_gbps,
        });
        put_line!("{json}")?;
    } else {
        put_line!(
            "{} · {} kernels · {} threads · {:.1} MB of weights",
            args.model.display(),
            model.kernel_name(),
            args.threads,
            model.weight_bytes() as f64 / 1e6
        )?;
        put_line!(
            "prefill {:>5} tokens  {:>8.1} tok/s",
            args.prompt,
            speed.prefill_tokens_per_second
        )?;
        put_line!(
            "decode  {:>5} tokens  {:>8.1} tok/s",
            args.generate,
            speed.decode_tokens_per_second
        )?;
    }
    Ok(())
}
