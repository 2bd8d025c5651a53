//! Small GGUF files in memory, with anything in them.

use std::path::Path;

use distill_edge::{EdgeError, StoredVocabulary};
use distill_gguf::GgufFile;

/// A metadata value of the types that the runtime reads.
#[derive(Clone, Debug)]
pub enum Value {
    U32(u32),
    U64(u64),
    F32(f32),
    Bool(bool),
    Text(String),
    Texts(Vec<String>),
    I32s(Vec<i32>),
    F32s(Vec<f32>),
}

/// A tensor's record and data.
#[derive(Clone, Debug)]
pub struct Tensor {
    pub name: String,
    pub dims: Vec<u64>,
    /// The number of its type.
    pub ty: u32,
    pub bytes: Vec<u8>,
}

/// A file: keys and tensors in order.
#[derive(Clone, Debug, Default)]
pub struct Container {
    pub keys: Vec<(String, Value)>,
    pub tensors: Vec<Tensor>,
}

const ALIGNMENT: usize = 32;

impl Container {
    /// Sets a key, or gives it another value.
    pub fn set(&mut self, key: &str, value: Value) {
        self.keys.retain(|(existing, _)| existing != key);
        self.keys.push((key.to_owned(), value));
    }

    /// The file.
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(3_u32.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.keys.len() as u64).to_le_bytes());
        for (key, value) in &self.keys {
            text(&mut out, key);
            put(&mut out, value);
        }
        let mut offset = 0;
        for tensor in &self.tensors {
            text(&mut out, &tensor.name);
            out.extend((tensor.dims.len() as u32).to_le_bytes());
            out.extend(tensor.dims.iter().flat_map(|dim| dim.to_le_bytes()));
            out.extend(tensor.ty.to_le_bytes());
            out.extend((offset as u64).to_le_bytes());
            offset += tensor.bytes.len().next_multiple_of(ALIGNMENT);
        }
        for tensor in &self.tensors {
            out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
            out.extend(&tensor.bytes);
        }
        out
    }
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn put(out: &mut Vec<u8>, value: &Value) {
    let array = |out: &mut Vec<u8>, element: u32, len: usize| {
        out.extend(9_u32.to_le_bytes());
        out.extend(element.to_le_bytes());
        out.extend((len as u64).to_le_bytes());
    };
    match value {
        Value::U32(x) => {
            out.extend(4_u32.to_le_bytes());
            out.extend(x.to_le_bytes());
        }
        Value::U64(x) => {
            out.extend(10_u32.to_le_bytes());
            out.extend(x.to_le_bytes());
        }
        Value::F32(x) => {
            out.extend(6_u32.to_le_bytes());
            out.extend(x.to_le_bytes());
        }
        Value::Bool(x) => {
            out.extend(7_u32.to_le_bytes());
            out.push(u8::from(*x));
        }
        Value::Text(x) => {
            out.extend(8_u32.to_le_bytes());
            text(out, x);
        }
        Value::Texts(x) => {
            array(out, 8, x.len());
            x.iter().for_each(|x| text(out, x));
        }
        Value::I32s(x) => {
            array(out, 5, x.len());
            out.extend(x.iter().flat_map(|x| x.to_le_bytes()));
        }
        Value::F32s(x) => {
            array(out, 6, x.len());
            out.extend(x.iter().flat_map(|x| x.to_le_bytes()));
        }
    }
}

/// Sizes of a model.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub hidden: usize,
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub feed_forward: usize,
    pub tied: bool,
    pub rope_factors: bool,
}

/// The smallest model whose parts all have more than one element.
pub const SMALLEST: Shape = Shape {
    hidden: 2,
    layers: 1,
    heads: 2,
    kv_heads: 1,
    head_dim: 2,
    feed_forward: 3,
    tied: true,
    rope_factors: false,
};

/// The smallest model of whole blocks.
pub const BLOCKS: Shape = Shape {
    hidden: 32,
    layers: 1,
    heads: 2,
    kv_heads: 1,
    head_dim: 16,
    feed_forward: 32,
    tied: false,
    rope_factors: true,
};

/// The number of a type.
pub const F32: u32 = 0;
pub const F16: u32 = 1;
pub const Q4_0: u32 = 2;
pub const Q8_0: u32 = 8;
pub const Q4_0X16: u32 = 16_002;
pub const Q8_0X16: u32 = 16_008;

/// A model whose matrices have a type and bytes from `data`, which gets how many there shall be.
/// Dims are those of `shape`, even where the type cannot have them.
pub fn model(
    shape: Shape,
    tokens: &[String],
    ty: u32,
    mut data: impl FnMut(usize) -> Vec<u8>,
) -> Container {
    let mut container = Container::default();
    let sizes = [
        ("llama.context_length", 64),
        ("llama.embedding_length", shape.hidden),
        ("llama.block_count", shape.layers),
        ("llama.feed_forward_length", shape.feed_forward),
        ("llama.attention.head_count", shape.heads),
        ("llama.attention.head_count_kv", shape.kv_heads),
        ("llama.attention.key_length", shape.head_dim),
    ];
    container.set("general.architecture", Value::Text("llama".into()));
    container.set("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5));
    container.set("tokenizer.ggml.tokens", Value::Texts(tokens.to_vec()));
    for (key, size) in sizes {
        container.set(key, Value::U32(size as u32));
    }
    let mut add = |name: String, columns: usize, rows: usize, ty: u32| {
        let rows = if ty >= Q4_0X16 { rows.next_multiple_of(16) } else { rows };
        let bytes = match ty {
            F32 => 4 * rows * columns,
            F16 => 2 * rows * columns,
            Q4_0 | Q4_0X16 => rows * (columns / 32) * 18,
            _ => rows * (columns / 32) * 34,
        };
        let dims = vec![columns as u64, rows as u64];
        container.tensors.push(Tensor { name, dims, ty, bytes: data(bytes) });
    };
    let (hidden, query, kv) =
        (shape.hidden, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
    add("token_embd.weight".into(), hidden, tokens.len(), ty);
    for l in 0..shape.layers {
        let name = |part: &str| format!("blk.{l}.{part}.weight");
        add(name("attn_norm"), hidden, 1, F32);
        add(name("attn_q"), hidden, query, ty);
        add(name("attn_k"), hidden, kv, ty);
        add(name("attn_v"), hidden, kv, ty);
        add(name("attn_output"), query, hidden, ty);
        add(name("ffn_norm"), hidden, 1, F32);
        add(name("ffn_gate"), hidden, shape.feed_forward, ty);
        add(name("ffn_up"), hidden, shape.feed_forward, ty);
        add(name("ffn_down"), shape.feed_forward, hidden, ty);
    }
    add("output_norm.weight".into(), hidden, 1, F32);
    if !shape.tied {
        add("output.weight".into(), hidden, tokens.len(), ty);
    }
    if shape.rope_factors {
        add("rope_freqs.weight".into(), shape.head_dim / 2, 1, F32);
    }
    container
}

/// Tokens that can spell "ab ba", and some that are special.
pub fn tokens() -> Vec<String> {
    ["a", "b", "Ġ", "▁", "ab", "<|end|>", "<0x41>", "▁a"].map(str::to_owned).to_vec()
}

/// Puts tables in place of the vocabulary's lists, as `model.edge` has them. Nothing if the runtime
/// does not read the lists.
pub fn store_vocabulary(container: &mut Container) {
    let file = GgufFile::from_bytes(container.bytes(), Path::new("fuzz"));
    let Ok(Some(stored)) = file.map_err(EdgeError::from).and_then(|f| StoredVocabulary::of(&f))
    else {
        return;
    };
    let instead_of = StoredVocabulary::INSTEAD_OF;
    container.keys.retain(|(key, _)| !instead_of.contains(&key.as_str()));
    for (key, value) in stored.keys {
        let value = match value {
            distill_gguf::Value::U32(x) => Value::U32(x),
            other => Value::U64(other.as_u64().expect("a number")),
        };
        container.set(key, value);
    }
    let tables = stored.tensors.into_iter().map(|table| Tensor {
        name: table.name.to_owned(),
        dims: table.dims,
        ty: table.ty.id(),
        bytes: table.bytes.to_vec(),
    });
    container.tensors.splice(..0, tables);
}

/// Adds a tokenizer of one of the three models to a file with [`tokens`].
pub fn set_tokenizer(container: &mut Container, model: &str) {
    container.set("tokenizer.ggml.model", Value::Text(model.into()));
    container.set("tokenizer.ggml.token_type", Value::I32s(vec![1, 1, 1, 1, 1, 3, 6, 1]));
    match model {
        "llama" => container.set(
            "tokenizer.ggml.scores",
            Value::F32s(vec![-1.0, -2.0, -3.0, -4.0, -0.5, 0.0, 0.0, -0.25]),
        ),
        _ => {
            let merges = ["a b", "▁ a"].map(str::to_owned).to_vec();
            container.set("tokenizer.ggml.merges", Value::Texts(merges));
            container.set("tokenizer.ggml.pre", Value::Text("gpt-2".into()));
        }
    }
    container.set("tokenizer.ggml.eos_token_id", Value::U32(5));
    container.set("tokenizer.ggml.bos_token_id", Value::U32(5));
}
