//! What is rounded inside the forward pass: the inputs of the linears, keys and values.

use std::fmt::Debug;
use std::sync::Arc;

use burn::tensor::Tensor;

use crate::fake_quant;

/// Which linears read an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LinearInput {
    /// Query, key and value of a layer: `[batch, tokens, hidden]`.
    Attention(usize),
    /// Attention's output projection: `[batch, tokens, heads · head_dim]`.
    AttentionOutput(usize),
    /// Gate and up: `[batch, tokens, hidden]`.
    FeedForward(usize),
    /// Down: `[batch, tokens, intermediate]`.
    Down(usize),
    /// The head: `[batch, tokens, hidden]`.
    Head,
}

/// Grid on which the inputs of the linears are rounded, in training as in the runtime.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum ActivationGrid {
    /// Not at all.
    #[default]
    Float,
    /// Q8_0 in blocks of 32 along the input dimension, scale in f32.
    Q8_0,
}

/// Rounds inside the forward pass. Training rounds by an [`ActivationGrid`]; the parity gate
/// brings its own, which follows the runtime's choices at rounding boundaries.
pub trait Rounding: Debug + Send + Sync {
    /// The input of some linears, `[batch, tokens, width]`.
    fn linear_input(&self, input: LinearInput, x: Tensor<3>) -> Tensor<3>;

    /// What a cache does to keys (rotated) and values, `[batch, kv_heads, tokens, head_dim]`;
    /// `None` if they stay as they are.
    fn cached(&self) -> Option<fn(Tensor<4>) -> Tensor<4>> {
        None
    }
}

impl Rounding for ActivationGrid {
    fn linear_input(&self, _: LinearInput, x: Tensor<3>) -> Tensor<3> {
        match self {
            Self::Float => x,
            Self::Q8_0 => fake_quant::activations_q8_0(x),
        }
    }
}

impl From<ActivationGrid> for Arc<dyn Rounding> {
    fn from(grid: ActivationGrid) -> Self {
        Arc::new(grid)
    }
}
