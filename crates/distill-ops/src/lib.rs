//! Operators of training that a general tensor library has not, or has in many passes over memory.
//!
//! Each function here runs fused on Burn's CPU backend ([`cpu`], with its gradient written out) and
//! as plain tensor operations ([`plain`]) on every other, with the same meaning.

pub mod cpu;
pub mod memory;
pub mod plain;
pub mod profile;

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
pub use head::{HeadInput, HeadLoss, Sparse, Teacher};
pub use in_place::{
    adamw, add_rows, round, round_scaled, straight_through_q4_0, straight_through_scaled,
    sum_of_squares,
};
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

/// σ(gate) ∘ up, which lie side by side: `[batch, tokens, 2 · inner]` → `[batch, tokens, inner]`.
pub fn gated(kind: Gate, gate_and_up: Tensor<3>) -> Tensor<3> {
    if !is_fused(&gate_and_up.device()) {
        return plain::gated(kind, gate_and_up);
    }
    Tensor::from_dispatch(Dispatch::fused_gate(gate_and_up.into_dispatch(), kind))
}

/// `x` `[batch, tokens, in]` times `weight` `[out, in]` transposed: `[batch, tokens, out]`.
pub fn linear(x: Tensor<3>, weight: Tensor<2>) -> Tensor<3> {
    if !is_fused(&x.device()) {
        return plain::linear(x, weight);
    }
    Tensor::from_dispatch(Dispatch::fused_linear(x.into_dispatch(), weight.into_dispatch()))
}

/// `x` `[batch, tokens, in]` times each of some matrices `[out, in]` transposed, the results side by
/// side: `[batch, tokens, Σ out]`. Fused for one to three matrices.
pub fn linears<const N: usize>(x: Tensor<3>, weights: [Tensor<2>; N]) -> Tensor<3> {
    if !is_fused(&x.device()) {
        return plain::linears(x, weights);
    }
    let of = |weight: &Tensor<2>| weight.clone().into_dispatch();
    Tensor::from_dispatch(match &weights[..] {
        [a] => Dispatch::fused_linear(x.into_dispatch(), of(a)),
        [a, b] => Dispatch::fused_linear_pair(x.into_dispatch(), of(a), of(b)),
        [a, b, c] => Dispatch::fused_linear_triple(x.into_dispatch(), of(a), of(b), of(c)),
        _ => return plain::linears(x, weights),
    })
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
/// `qkv`: queries, keys and values side by side, `[batch, tokens, (heads + 2 · kv_heads) · head_dim]`;
/// result: `[batch, tokens, heads · head_dim]`.
pub fn attention(qkv: Tensor<3>, positions: &Positions) -> Tensor<3> {
    if !is_fused(&qkv.device()) {
        return plain::attention(qkv, positions);
    }
    let layout = positions.layout.clone();
    Tensor::from_dispatch(Dispatch::fused_attention(qkv.into_dispatch(), layout))
}
