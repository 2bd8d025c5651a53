//! Operators of training that a general tensor library has not, or has in many passes over memory.
//!
//! Each function here runs fused on Burn's CPU backend ([`cpu`], with its gradient written out) and
//! as plain tensor operations ([`plain`]) on every other, with the same meaning.

pub mod cpu;
pub mod plain;

mod flex;
mod head;
mod in_place;
mod lora;
mod moments;
mod positions;

use burn::backend::Dispatch;
use burn::tensor::{Device, Tensor};

pub use cpu::attention::Shape;
pub use cpu::gate::Gate;
pub use cpu::norm::Norm;
pub use flex::FusedOps;
pub use head::{HeadInput, HeadLoss};
pub use in_place::{adamw, add_rows, round, straight_through_q4_0, sum_of_squares};
pub use lora::{LoraInput, LoraRule, lora, lora_merge};
pub use moments::{BLOCK as MOMENT_BLOCK, EightBit, MomentType, Moments};
pub use positions::{Layout, Positions};

/// Whether the fused operators run there.
pub fn is_fused(device: &Device) -> bool {
    device.clone().without_autodiff() == Device::flex()
}

/// RMSNorm over the last dimension. `x` is `[batch, tokens, width]`, `weight` `[width]`.
pub fn rms_norm(x: Tensor<3>, weight: Tensor<1>, norm: Norm) -> Tensor<3> {
    if !is_fused(&x.device()) {
        return plain::rms_norm(x, weight, norm);
    }
    Tensor::from_dispatch(Dispatch::fused_norm(x.into_dispatch(), weight.into_dispatch(), norm))
}

/// σ(gate) ∘ up, of one shape.
pub fn gated(kind: Gate, gate: Tensor<3>, up: Tensor<3>) -> Tensor<3> {
    if !is_fused(&gate.device()) {
        return plain::gated(kind, gate, up);
    }
    Tensor::from_dispatch(Dispatch::fused_gate(gate.into_dispatch(), up.into_dispatch(), kind))
}

/// `x` `[batch, tokens, in]` times `weight` `[out, in]` transposed: `[batch, tokens, out]`.
pub fn linear(x: Tensor<3>, weight: Tensor<2>) -> Tensor<3> {
    if !is_fused(&x.device()) {
        return plain::linear(x, weight);
    }
    Tensor::from_dispatch(Dispatch::fused_linear(x.into_dispatch(), weight.into_dispatch()))
}

/// x on the grid of activations (Q8_0 in blocks of 32 along the last dimension, scale in f32); the
/// gradient passes straight through. `None` where the device has no fused form of it.
pub fn round_activations(x: &Tensor<3>) -> Option<Tensor<3>> {
    is_fused(&x.device())
        .then(|| Tensor::from_dispatch(Dispatch::fused_rounding(x.clone().into_dispatch())))
}

/// Causal grouped-query attention with rotary positions, within documents.
///
/// # Shapes
/// `q`, result: `[batch, tokens, heads · head_dim]`; `k`, `v`: `[batch, tokens, kv_heads · head_dim]`.
pub fn attention(q: Tensor<3>, k: Tensor<3>, v: Tensor<3>, positions: &Positions) -> Tensor<3> {
    if !is_fused(&q.device()) {
        return plain::attention(q, k, v, positions);
    }
    Tensor::from_dispatch(Dispatch::fused_attention(
        q.into_dispatch(),
        k.into_dispatch(),
        v.into_dispatch(),
        positions.layout.clone(),
    ))
}
