//! What a device will do with a model, from the model's sizes alone: before there is a file.
//!
//! Decoding a token reads every weight and the whole cache once, and does little with each, so that
//! it takes `bytes ÷ bandwidth`. Reading a prompt multiplies every weight by every token of it and
//! reads the weights once for a tile of 128, so that it takes the longer of
//! `operations ÷ arithmetic` and `bytes ÷ bandwidth`. Both are what the device does at best: the
//! measured shares of it are in `docs/RECORDS.md`.
//!
//! Bytes are those that this runtime allocates and reads, by the same functions.

use distill_gguf::GgmlType;
use distill_quant::packed::ROWS;

use crate::KvType;
use crate::buffers::{Board, HEAD_TILE, Scratch, TILE};
use crate::cache::Cache;
use crate::config::Config;

/// What a program with the runtime in it takes besides the model: code, standard library, stacks.
const PROGRAM_BYTES: u64 = 3 << 20;
/// What the tokenizer takes for a token: its text, its place in the merge table.
const VOCABULARY_BYTES: u64 = 100;

/// A device's speed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Speed {
    /// Bytes read from memory, 10⁹ a second.
    pub bandwidth_gbps: f64,
    /// Multiplications and additions in matrix products, 10¹² a second.
    pub tops: f64,
}

/// The sizes of a model that may not exist yet.
#[derive(Clone, Debug, PartialEq)]
pub struct Sizes {
    /// Shape.
    pub config: Config,
    /// How the layers' matrices are stored: F32, F16, Q4_0 or Q8_0.
    pub linears: GgmlType,
    /// How embedding and head are stored.
    pub embeddings: GgmlType,
    /// Whether the head is the embedding.
    pub tied: bool,
    /// Whether linears read Q8_0 activations.
    pub integer: bool,
}

impl Sizes {
    /// Elements of the matrices of all layers.
    fn linear_elements(&self) -> u64 {
        let config = &self.config;
        config.layers as u64
            * self.matrices().iter().map(|[columns, rows]| columns * rows).sum::<u64>()
    }

    /// `[columns, rows]` of each matrix of a layer.
    fn matrices(&self) -> [[u64; 2]; 7] {
        let Config { hidden_size, feed_forward, heads, kv_heads, head_dim, .. } = self.config;
        let [hidden, inner] = [hidden_size as u64, feed_forward as u64];
        let [query, kv] = [(heads * head_dim) as u64, (kv_heads * head_dim) as u64];
        [
            [hidden, query],
            [hidden, kv],
            [hidden, kv],
            [query, hidden],
            [hidden, inner],
            [hidden, inner],
            [inner, hidden],
        ]
    }

    /// Bytes of all layers' matrices and norms.
    pub fn layer_bytes(&self) -> u64 {
        let matrices = self.matrices().map(|dims| stored_bytes(self.linears, dims));
        let norms = 2 * 4 * self.config.hidden_size as u64;
        self.config.layers as u64 * (matrices.iter().sum::<u64>() + norms)
    }

    /// Bytes of the head with its norm.
    pub fn head_bytes(&self) -> u64 {
        4 * self.config.hidden_size as u64 + self.table_bytes()
    }

    /// Bytes of the embedding, or of the head.
    fn table_bytes(&self) -> u64 {
        let dims = [self.config.hidden_size as u64, self.config.vocab_size as u64];
        stored_bytes(self.embeddings, dims)
    }

    /// Bytes of all weights in memory, mapped as `model.edge` has them.
    pub fn weight_bytes(&self) -> u64 {
        let embedding = if self.tied { 0 } else { self.table_bytes() };
        self.layer_bytes() + self.head_bytes() + embedding
    }

    /// Bytes of weights that decoding one token reads: all but the embedding's other rows.
    pub fn bytes_per_token(&self) -> u64 {
        self.layer_bytes() + self.head_bytes()
    }

    /// Bytes of keys and values of one position.
    pub fn position_bytes(&self, kv: KvType) -> u64 {
        clamped(kv.position_bytes(&self.config))
    }

    /// Whether heads are whole blocks of the type of the cache.
    pub fn can_cache(&self, kv: KvType) -> bool {
        self.config.head_dim.is_multiple_of(kv.block())
    }

    /// Bytes that decoding one token reads with `depth` tokens in the cache.
    pub fn decode_bytes(&self, depth: usize, kv: KvType) -> u64 {
        self.bytes_per_token() + depth as u64 * self.position_bytes(kv)
    }

    /// Bytes of the cache of a session with room for `context` tokens.
    pub fn cache_bytes(&self, context: usize, kv: KvType) -> u64 {
        clamped(Cache::bytes(&self.config, context, kv))
    }

    /// Bytes of everything besides weights and cache: the buffers of a session on `threads`
    /// threads, the tokenizer, the program.
    pub fn other_bytes(&self, context: usize, threads: usize) -> u64 {
        let buffers = Board::bytes(&self.config, context, self.integer, HEAD_TILE)
            + Scratch::bytes(&self.config, self.integer) * threads as u128;
        let vocabulary = VOCABULARY_BYTES * self.config.vocab_size as u64;
        clamped(buffers) + vocabulary + PROGRAM_BYTES
    }

    /// Multiplications and additions for a prompt and the logits after it.
    pub fn prompt_operations(&self, tokens: usize) -> u64 {
        let Config { hidden_size, heads, head_dim, layers, vocab_size, .. } = self.config;
        let tokens = tokens as u64;
        // A token looks at those before it and at itself: a product with its keys, one with values.
        let looks = tokens * (tokens + 1) / 2;
        let attention = 2 * 2 * looks * (layers * heads * head_dim) as u64;
        let head = 2 * (hidden_size * vocab_size) as u64;
        2 * self.linear_elements() * tokens + attention + head
    }

    /// Bytes of weights read for a prompt: the layers once a tile, the head once.
    pub fn prompt_bytes(&self, tokens: usize) -> u64 {
        tokens.div_ceil(TILE) as u64 * self.layer_bytes() + self.head_bytes()
    }

    /// Tokens a second with `depth` tokens in the cache.
    pub fn tokens_per_second(&self, depth: usize, kv: KvType, speed: Speed) -> f64 {
        speed.bandwidth_gbps * 1e9 / self.decode_bytes(depth, kv) as f64
    }

    /// Seconds until the first token after a prompt.
    pub fn first_token_seconds(&self, prompt: usize, speed: Speed) -> f64 {
        let arithmetic = self.prompt_operations(prompt) as f64 / (speed.tops * 1e12);
        let reading = self.prompt_bytes(prompt) as f64 / (speed.bandwidth_gbps * 1e9);
        arithmetic.max(reading)
    }
}

/// Bytes of a matrix as the runtime holds it: quantised rows in whole groups of 16.
fn stored_bytes(ty: GgmlType, [columns, rows]: [u64; 2]) -> u64 {
    let rows = match ty {
        GgmlType::Q4_0 | GgmlType::Q8_0 => rows.next_multiple_of(ROWS as u64),
        _ => rows,
    };
    let blocks = columns.div_ceil(ty.block_elements() as u64);
    rows * blocks * ty.block_bytes() as u64
}

fn clamped(bytes: u128) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes() -> Sizes {
        Sizes {
            config: Config {
                context_length: 4096,
                hidden_size: 64,
                layers: 2,
                feed_forward: 96,
                heads: 2,
                kv_heads: 1,
                head_dim: 32,
                vocab_size: 100,
                ..Config::default()
            },
            linears: GgmlType::Q4_0,
            embeddings: GgmlType::Q8_0,
            tied: true,
            integer: true,
        }
    }

    const SPEED: Speed = Speed { bandwidth_gbps: 1.0, tops: 0.1 };

    #[test]
    fn bytes_equal_those_counted_by_hand() {
        let sizes = sizes();
        // A layer: 64·64 + 2·32·64 + 64·64 + 3·64·96 = 30,720 elements, 18 bytes for 32 of them;
        // two norms of 64 floats.
        assert_eq!(sizes.layer_bytes(), 2 * (17_280 + 512));
        // 100 rows fill seven groups of 16; a row is two blocks of 34 bytes.
        assert_eq!(sizes.head_bytes(), 256 + 112 * 68);
        assert_eq!(sizes.bytes_per_token(), 43_456);
        assert_eq!(sizes.weight_bytes(), 43_456);
        assert_eq!(Sizes { tied: false, ..sizes.clone() }.weight_bytes(), 43_456 + 112 * 68);
        // Keys and values of one head of 32 in two layers; Q8_0 adds two bytes for 32 codes.
        assert_eq!(sizes.position_bytes(KvType::F16), 2 * 2 * 64);
        assert_eq!(sizes.position_bytes(KvType::Q8_0), 2 * 2 * 34);
        // Chunks of 256 positions.
        assert_eq!(sizes.cache_bytes(1000, KvType::F16), 1024 * 256);
    }

    #[test]
    fn decoding_takes_the_time_that_its_bytes_take() {
        let sizes = sizes();
        assert_eq!(sizes.decode_bytes(1000, KvType::F16), 43_456 + 256_000);
        let speed = sizes.tokens_per_second(1000, KvType::F16, SPEED);
        assert!((speed - 1e9 / 299_456.0).abs() < 1e-9, "{speed}");
        assert!(sizes.tokens_per_second(1000, KvType::Q8_0, SPEED) > speed);
    }

    #[test]
    fn a_prompt_takes_the_longer_of_arithmetic_and_reading() {
        let sizes = sizes();
        // 200 tokens: 2·61,440·200 in the layers, 4·20,100·2·64 in attention, 2·64·100 in the head.
        let operations = 24_576_000 + 10_291_200 + 12_800;
        assert_eq!(sizes.prompt_operations(200), operations);
        let seconds = sizes.first_token_seconds(200, SPEED);
        assert!((seconds - operations as f64 / 1e11).abs() < 1e-12, "{seconds}");
        // Two tiles read the layers twice.
        assert_eq!(sizes.prompt_bytes(200), 2 * 35_584 + 7_872);
        let fast = Speed { tops: 1e3, ..SPEED };
        let seconds = sizes.first_token_seconds(200, fast);
        assert!((seconds - 79_040e-9).abs() < 1e-12, "{seconds}");
    }
}
