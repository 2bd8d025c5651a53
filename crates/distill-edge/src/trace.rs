//! Looking at the codes that a linear layer reads: what a parity check needs of the integer path.
//!
//! Rounding activations to codes is discontinuous. Two correct implementations whose values differ
//! in the last bit fall on two sides of a boundary now and then, and a few layers later their
//! logits differ by the whole quantisation noise. A check that compares through the integer path
//! therefore takes the runtime's codes, and judges them one by one.

use crate::config::Config;
use crate::kernels::{BLOCK, Codes};

/// Which linear layers read an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LinearInput {
    /// Query, key and value: the normalised residual stream, `[hidden]`.
    Attention {
        /// The layer, from 0.
        layer: usize,
    },
    /// The attention's output projection: `[heads · head_dim]`.
    AttentionOutput {
        /// The layer, from 0.
        layer: usize,
    },
    /// Gate and up: the normalised residual stream, `[hidden]`.
    FeedForward {
        /// The layer, from 0.
        layer: usize,
    },
    /// Down: silu(gate) · up, `[feed_forward]`.
    Down {
        /// The layer, from 0.
        layer: usize,
    },
    /// The head: the normalised residual stream, `[hidden]`.
    Head,
}

impl LinearInput {
    /// Elements of a token's input.
    pub(crate) fn columns(self, config: &Config) -> usize {
        match self {
            Self::Attention { .. } | Self::FeedForward { .. } | Self::Head => config.hidden_size,
            Self::AttentionOutput { .. } => config.heads * config.head_dim,
            Self::Down { .. } => config.feed_forward,
        }
    }
}

/// A quantised input of some consecutive tokens.
#[derive(Clone, Copy, Debug)]
pub struct QuantizedInput<'a> {
    /// Which linear layers read it.
    pub input: LinearInput,
    /// The position of the first token.
    pub position: usize,
    /// Elements of a token's input.
    pub columns: usize,
    /// Q8_0 codes, `[tokens, columns]`.
    pub codes: &'a [i8],
    /// Scales, `[tokens, columns / 32]`.
    pub scales: &'a [f32],
}

/// Who wants to see the inputs, if anyone.
#[derive(Default)]
pub(crate) struct Trace<'a> {
    pub observer: Option<&'a mut dyn FnMut(QuantizedInput<'_>)>,
}

impl Trace<'_> {
    pub fn show(&mut self, input: LinearInput, position: usize, columns: usize, codes: Codes<'_>) {
        let Some(observer) = &mut self.observer else { return };
        let blocks: Vec<_> = (0..codes.tokens)
            .flat_map(|t| (0..columns / BLOCK).map(move |b| codes.block(t, b)))
            .collect();
        observer(QuantizedInput {
            input,
            position,
            columns,
            codes: &blocks.iter().flat_map(|block| block.codes).collect::<Vec<_>>(),
            scales: &blocks.iter().map(|block| block.scale).collect::<Vec<_>>(),
        });
    }
}
