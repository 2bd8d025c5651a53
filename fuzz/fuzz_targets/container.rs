//! Bytes as a model file: loads it, and runs what loads.
#![no_main]

use distill_edge::{KvType, LoadOptions};
use distill_fuzz::{meter, run};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let kv = if bytes.len().is_multiple_of(2) { KvType::F16 } else { KvType::F32 };
    let options = LoadOptions { threads: 1, ..LoadOptions::default() };
    meter::without_leaks(|| drop(run::model(bytes, &options, kv, 3)));
});
