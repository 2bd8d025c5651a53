//! What the system says of memory; `None` where it says nothing.

use std::fs;

/// Bytes of memory that this process has now.
pub fn resident_bytes() -> Option<u64> {
    kib("/proc/self/status", "VmRSS:")
}

/// Bytes that a new process could have: what is free or can be freed, within the limit of the
/// control group.
pub fn available_bytes() -> Option<u64> {
    let free = kib("/proc/meminfo", "MemAvailable:");
    let limit = || {
        let read = |name: &str| fs::read_to_string(format!("/sys/fs/cgroup/{name}")).ok();
        let limit: u64 = read("memory.max")?.trim().parse().ok()?;
        let used: u64 = read("memory.current")?.trim().parse().ok()?;
        Some(limit.saturating_sub(used))
    };
    match (free, limit()) {
        (Some(free), Some(limit)) => Some(free.min(limit)),
        (free, limit) => free.or(limit),
    }
}

fn kib(path: &str, key: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(1024 * kib)
}
