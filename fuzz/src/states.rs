//! The sessions that states are restored into.

use distill_edge::{KvType, LoadOptions, Model, Session, SessionOptions};

use crate::container::{self, BLOCKS, F32, Q4_0, SMALLEST, Shape};
use crate::run;

/// One session a way of storing keys and values, on a model of floats and on one of codes; that of
/// cached codes, which needs larger heads, on a model of its own.
pub fn sessions() -> Vec<Session> {
    let floats = Shape { layers: 2, kv_heads: 2, ..SMALLEST };
    let mut sessions = Vec::new();
    let large = Shape { head_dim: 32, ..BLOCKS };
    let numbers = &[KvType::F16, KvType::F32][..];
    for (shape, ty, kvs) in
        [(floats, F32, numbers), (BLOCKS, Q4_0, numbers), (large, Q4_0, &[KvType::Q8_0])]
    {
        let mut file = container::model(shape, &container::tokens(), ty, |count| vec![0x3C; count]);
        container::set_tokenizer(&mut file, "gpt2");
        let options = LoadOptions { threads: 1, ..LoadOptions::default() };
        let model = Model::from_bytes(file.bytes(), run::name(), &options).expect("a valid model");
        for &kv in kvs {
            let options = SessionOptions { context: 20, kv, threads: 1 };
            sessions.push(Session::new(&model, options).expect("memory for a small session"));
        }
    }
    sessions
}
