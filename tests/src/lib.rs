//! What the whole-system specifications in `tests/tests/` share.

use std::path::{Path, PathBuf};

use serde_json::Value;

/// The real SmolLM2-135M-Instruct as a GGUF, which is too large for this repository:
/// `$DISTILL_SMOLLM2_GGUF`, or where `python3 datasets/fetch.py smollm2` puts it.
///
/// Without it the caller checks nothing, and says so; `DISTILL_REQUIRE_MODELS=1` makes that a
/// failure.
///
/// # Panics
/// If the model is required and not there.
pub fn smollm2() -> Option<PathBuf> {
    let named = std::env::var_os("DISTILL_SMOLLM2_GGUF").map(PathBuf::from);
    let fetched = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../datasets/downloads/SmolLM2-135M-Instruct.Q4_1.gguf");
    let path = named.unwrap_or(fetched);
    if path.is_file() {
        return Some(path);
    }
    eprintln!("NOT RUN: {} is not there; fetch it with datasets/fetch.py", path.display());
    assert!(std::env::var_os("DISTILL_REQUIRE_MODELS").is_none(), "the model is required");
    None
}

/// A JSON fixture of `tests/fixtures/`; each says which script made it.
///
/// # Panics
/// If it is not there or not JSON.
pub fn fixture(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name);
    serde_json::from_slice(&std::fs::read(path).expect("the fixture")).expect("JSON")
}
