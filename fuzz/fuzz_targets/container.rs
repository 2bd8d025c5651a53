//! Bytes as a model file: loads it, and runs what loads.
#![no_main]

use distill_edge::{KvType, LoadOptions};
use distill_fuzz::{meter, run};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let kv = [KvType::F16, KvType::F32, KvType::Q8_0][bytes.len() % 3];
    let options = LoadOptions { threads: 1, ..LoadOptions::default() };
    meter::without_leaks(|| drop(run::model(bytes, &options, kv, 3)));
});
