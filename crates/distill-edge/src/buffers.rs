//! Every buffer of an engine with its shape, allocated when it is created and never after.
//!
//! T stands for [`TILE`], the tokens computed together.

use crate::config::Config;
use crate::kernels::{BLOCK, Block, CHUNK, Codes, SIDE_BY_SIDE, Total};
use crate::shared::Shared;
use distill_quant::packed::ROWS;

/// Tokens computed together in prefill: a weight is read from memory once for all of them.
pub(crate) const TILE: usize = 128;
/// Tokens of one sequence whose logits are computed together; a row of logits is long.
pub(crate) const HEAD_TILE: usize = 16;
/// Groups of weight rows computed together, before their results are used.
pub(crate) const PANEL: usize = 4;
/// Tokens whose queries attend together.
pub(crate) const QUERY_TILE: usize = 16;

/// The input of linear layers.
#[derive(Debug)]
pub(crate) struct Inputs {
    /// `[tokens, columns]`.
    pub values: Shared<f32>,
    /// The same quantised, laid out as [`Codes`] are; empty in the float path.
    pub blocks: Shared<Block>,
}

impl Inputs {
    pub fn new(config: &Config, tokens: usize, integer: bool) -> Self {
        let queries = config.heads * config.head_dim;
        let elements = tokens * config.hidden_size.max(queries).max(config.feed_forward);
        let blocks = if integer { Codes::len(tokens, elements / tokens) } else { 0 };
        Self {
            values: Shared::new(vec![0.0; elements]),
            blocks: Shared::new(vec![Block::default(); blocks]),
        }
    }

    fn bytes(config: &Config, tokens: usize, integer: bool) -> u128 {
        let queries = config.heads * config.head_dim;
        let widest = config.hidden_size.max(queries).max(config.feed_forward);
        let elements = tokens as u128 * widest as u128;
        let blocks = if integer { elements / BLOCK as u128 } else { 0 };
        4 * elements + size_of::<Block>() as u128 * blocks
    }

    /// All tokens' quantised activations.
    ///
    /// # Safety
    /// As [`Shared::read`].
    #[allow(unsafe_code)]
    pub unsafe fn codes(&self, tokens: usize, columns: usize) -> Codes<'_> {
        // SAFETY: the caller's.
        Codes { tokens, blocks: unsafe { self.blocks.read(0..Codes::len(tokens, columns)) } }
    }
}

/// What the threads of an engine write for each other.
#[derive(Debug)]
pub(crate) struct Board {
    /// Residual stream, `[T, hidden]`.
    pub residual: Shared<f32>,
    /// RoPE of each token: cos and sin, `[T, head_dim / 2]`.
    pub rotation: Shared<[f32; 2]>,
    /// Inputs of a tile of several tokens; for a single one each thread makes its own.
    pub inputs: Inputs,
    /// Queries after RoPE, `[T, heads, head_dim]`.
    pub query: Shared<f32>,
    /// Results of attention for several tokens, `[T, heads, head_dim]`.
    pub attention: Shared<f32>,
    /// Results of attention for a single token, chunk by chunk: `[chunks, heads]`, and
    /// `[…, head_dim]`.
    pub totals: Shared<Total>,
    pub mixed: Shared<f32>,
    /// silu(gate) · up, `[T, feed_forward]`.
    pub feed_forward: Shared<f32>,
    /// Of tokens whose logits are computed together, `[head_tile, vocab]`.
    pub logits: Shared<f32>,
}

impl Board {
    pub fn new(config: &Config, context: usize, integer: bool, head_tile: usize) -> Self {
        let queries = config.heads * config.head_dim;
        let chunks = context.div_ceil(CHUNK);
        Self {
            residual: Shared::new(vec![0.0; TILE * config.hidden_size]),
            rotation: Shared::new(vec![[1.0, 0.0]; TILE * config.head_dim / 2]),
            inputs: Inputs::new(config, TILE, integer),
            query: Shared::new(vec![0.0; TILE * queries]),
            attention: Shared::new(vec![0.0; TILE * queries]),
            totals: Shared::new(vec![Total::default(); chunks * config.heads]),
            mixed: Shared::new(vec![0.0; chunks * queries]),
            feed_forward: Shared::new(vec![0.0; TILE * config.feed_forward]),
            logits: Shared::new(vec![0.0; head_tile * config.vocab_size]),
        }
    }

    /// What [`Board::new`] allocates.
    pub fn bytes(config: &Config, context: usize, integer: bool, head_tile: usize) -> u128 {
        let Config { hidden_size, feed_forward, heads, head_dim, vocab_size, .. } = *config;
        let queries = (heads * head_dim) as u128;
        let chunks = context.div_ceil(CHUNK) as u128;
        let tile =
            TILE as u128 * (4 * (hidden_size + head_dim + feed_forward) as u128 + 8 * queries);
        let attention = chunks * (size_of::<Total>() as u128 * heads as u128 + 4 * queries);
        let logits = 4 * head_tile as u128 * vocab_size as u128;
        tile + Inputs::bytes(config, TILE, integer) + attention + logits
    }
}

/// What one thread alone uses.
#[derive(Debug)]
pub(crate) struct Scratch {
    /// Input of linear layers for a single token.
    pub inputs: Inputs,
    /// Results of some weight rows, `[T, PANEL · ROWS]`; two, for gate and up.
    pub panels: [Vec<f32>; 2],
    /// Dequantised weight rows of one group, `[ROWS, longest row]`.
    pub weights: Vec<f32>,
    pub attention: AttentionScratch,
}

/// For the queries of one kv head and [`QUERY_TILE`] tokens, Q in all.
#[derive(Debug)]
pub(crate) struct AttentionScratch {
    /// `[Q, head_dim]`.
    pub queries: Vec<f32>,
    /// `[Q]`.
    pub seen: Vec<u32>,
    /// `[Q, CHUNK]`.
    pub weights: Vec<f32>,
    /// Of one chunk: `[Q]`, `[Q, head_dim]`.
    pub totals: Vec<Total>,
    pub mixed: Vec<f32>,
    /// Of all chunks so far: `[Q]`, `[Q, head_dim]`.
    pub all_totals: Vec<Total>,
    pub all_mixed: Vec<f32>,
}

impl Scratch {
    pub fn new(config: &Config, integer: bool) -> Self {
        let longest =
            config.hidden_size.max(config.heads * config.head_dim).max(config.feed_forward);
        let queries = QUERY_TILE * config.heads / config.kv_heads;
        let elements = queries * config.head_dim;
        Self {
            inputs: Inputs::new(config, 1, integer),
            panels: [(); 2].map(|()| vec![0.0; TILE * PANEL * ROWS]),
            weights: vec![0.0; ROWS * longest],
            attention: AttentionScratch {
                queries: vec![0.0; elements],
                seen: vec![0; queries],
                weights: vec![0.0; queries * CHUNK],
                totals: vec![Total::default(); queries],
                mixed: vec![0.0; elements],
                all_totals: vec![Total::default(); queries],
                all_mixed: vec![0.0; elements],
            },
        }
    }

    /// What [`Scratch::new`] allocates.
    pub fn bytes(config: &Config, integer: bool) -> u128 {
        let longest =
            config.hidden_size.max(config.heads * config.head_dim).max(config.feed_forward);
        let queries = (QUERY_TILE * config.heads / config.kv_heads) as u128;
        let a_query = 12 * config.head_dim + 4 * CHUNK + 4 + 2 * size_of::<Total>();
        let panels = 2 * 4 * TILE * PANEL * ROWS;
        Inputs::bytes(config, 1, integer)
            + panels as u128
            + 4 * ROWS as u128 * longest as u128
            + queries * a_query as u128
    }
}

const _: () = assert!(TILE.is_multiple_of(SIDE_BY_SIDE) && HEAD_TILE.is_multiple_of(SIDE_BY_SIDE));
