//! The machine, for the report.

use distill_eval::report::Hardware;

/// Threads to use when none are asked for: the cores there are.
pub fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// What the report says of the machine.
pub fn describe(backend: distill_recipe::Backend, kernels: &str) -> Hardware {
    let field = |path: &str, key: &str| {
        let text = std::fs::read_to_string(path).ok()?;
        let line = text.lines().find(|line| line.starts_with(key))?;
        Some(line.split_once(':')?.1.trim().to_string())
    };
    let kib = field("/proc/meminfo", "MemTotal")
        .and_then(|value| value.split_whitespace().next()?.parse::<u64>().ok());
    Hardware {
        cpu: field("/proc/cpuinfo", "model name").unwrap_or_else(|| std::env::consts::ARCH.into()),
        threads: threads(),
        memory_bytes: kib.unwrap_or(0) * 1024,
        backend: format!("{backend:?}").to_lowercase(),
        kernels: kernels.to_string(),
    }
}
