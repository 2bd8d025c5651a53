//! The operators as plain tensor operations: what backends without fused ones run, and what the
//! fused ones are tested against.

use burn::tensor::{DType, FloatDType, IndexingUpdateOp, Tensor, TensorData, activation};

use crate::Positions;
use crate::cpu::adamw::Update;
use crate::cpu::attention::Shape;
use crate::cpu::gate::Gate;
use crate::cpu::norm::Norm;

/// See [`crate::rms_norm`].
pub fn rms_norm(x: Tensor<3>, weight: Tensor<1>, norm: Norm) -> Tensor<3> {
    let mean_square = x.clone().square().mean_dim(2);
    let scale = mean_square.add_scalar(norm.epsilon).sqrt().recip();
    let weight = if norm.offset == 0.0 { weight } else { weight.add_scalar(norm.offset) };
    x * scale * weight.unsqueeze::<3>()
}

/// See [`crate::gated`].
pub fn gated(kind: Gate, gate_and_up: Tensor<3>) -> Tensor<3> {
    let inner = gate_and_up.dims()[2] / 2;
    let gate = gate_and_up.clone().narrow(2, 0, inner);
    let up = gate_and_up.narrow(2, inner, inner);
    let gate = match kind {
        Gate::Silu => activation::silu(gate),
        Gate::GeluTanh => activation::gelu_approximate(gate),
    };
    gate * up
}

/// See [`crate::linears`].
pub fn linears<const N: usize>(x: Tensor<3>, weights: [Tensor<2>; N]) -> Tensor<3> {
    Tensor::cat(weights.map(|weight| linear(x.clone(), weight)).to_vec(), 2)
}

/// See [`crate::linear`]. A weight in bf16 is multiplied in bf16; the result is as x is.
pub fn linear(x: Tensor<3>, weight: Tensor<2>) -> Tensor<3> {
    let [batch, tokens, input] = x.dims();
    let out = weight.dims()[0];
    let x = x.reshape([batch * tokens, input]);
    let y = match (x.dtype(), weight.dtype()) {
        (DType::F32, DType::BF16) => {
            x.cast(FloatDType::BF16).matmul(weight.transpose()).cast(FloatDType::F32)
        }
        _ => x.matmul(weight.transpose()),
    };
    y.reshape([batch, tokens, out])
}

/// See [`crate::attention`].
pub fn attention(qkv: Tensor<3>, positions: &Positions) -> Tensor<3> {
    attention_rounding(qkv, positions, |x| x)
}

/// The same with keys (rotated) and values `[batch, kv_heads, tokens, head_dim]` rounded as a cache
/// stores them.
pub fn attention_rounding(
    qkv: Tensor<3>,
    positions: &Positions,
    round: fn(Tensor<4>) -> Tensor<4>,
) -> Tensor<3> {
    let Shape { batch, tokens, heads, kv_heads, head_dim } = positions.layout.shape;
    let (weights, v) = attention_weights(qkv, positions, round);
    weights
        .reshape([batch, kv_heads, heads / kv_heads * tokens, tokens])
        .matmul(v)
        .reshape([batch, heads, tokens, head_dim])
        .swap_dims(1, 2)
        .reshape([batch, tokens, heads * head_dim])
}

/// What each token is to the queries: the attention that it gets from all of them, mean over heads,
/// `[batch, tokens, 1]`. Its mean over tokens is one.
pub fn attention_received(qkv: Tensor<3>, positions: &Positions) -> Tensor<3> {
    let Shape { batch, tokens, heads, .. } = positions.layout.shape;
    let (weights, _) = attention_weights(qkv, positions, |x| x);
    let received = weights.sum_dim(3).reshape([batch, heads, tokens]).mean_dim(1);
    received.reshape([batch, tokens, 1])
}

/// Softmax of the scores, `[batch, kv_heads, group, tokens, tokens]`, and the values
/// `[batch, kv_heads, tokens, head_dim]`.
fn attention_weights(
    qkv: Tensor<3>,
    positions: &Positions,
    round: fn(Tensor<4>) -> Tensor<4>,
) -> (Tensor<5>, Tensor<4>) {
    let Shape { batch, tokens, heads, kv_heads, head_dim } = positions.layout.shape;
    let tensors = positions.tensors(&qkv.device());
    let tracked = qkv.is_autodiff();
    let own = |x: &Tensor<4>| if tracked { x.clone().autodiff() } else { x.clone() };
    let (cos, sin) = (own(&tensors.cos), own(&tensors.sin));
    let bias = if tracked { tensors.bias.clone().autodiff() } else { tensors.bias.clone() };
    // [batch, tokens, n · head_dim] → [batch, n, tokens, head_dim]
    let split = |first: usize, n: usize| {
        let x = qkv.clone().narrow(2, first * head_dim, n * head_dim);
        x.reshape([batch, tokens, n, head_dim]).swap_dims(1, 2)
    };
    let q = rotate(split(0, heads), &cos, &sin);
    let k = round(rotate(split(heads, kv_heads), &cos, &sin));
    let v = round(split(heads + kv_heads, kv_heads));
    // The query heads of a group share its keys: fold them into the token dimension.
    let group = heads / kv_heads;
    let q = q.reshape([batch, kv_heads, group * tokens, head_dim]);
    let scores = q.matmul(k.transpose()).mul_scalar((head_dim as f64).powf(-0.5));
    let scores = scores.reshape([batch, kv_heads, group, tokens, tokens]);
    (activation::softmax(scores + bias, 4), v)
}

/// Rotates the halves of `x` `[batch, heads, tokens, head_dim]` by `cos` and `sin`
/// `[batch, 1, tokens, head_dim / 2]`.
pub fn rotate(x: Tensor<4>, cos: &Tensor<4>, sin: &Tensor<4>) -> Tensor<4> {
    let half = x.dims()[3] / 2;
    let first = x.clone().narrow(3, 0, half);
    let second = x.narrow(3, half, half);
    Tensor::cat(
        vec![
            first.clone() * cos.clone() - second.clone() * sin.clone(),
            second * cos.clone() + first * sin.clone(),
        ],
        3,
    )
}

/// See [`crate::add_rows`].
pub fn add_rows(table: Tensor<1>, ids: &[u32], rows: Tensor<1>, width: usize) -> Tensor<1> {
    let elements = table.dims()[0];
    let indices: Vec<i32> = ids.iter().map(|&id| id as i32).collect();
    let indices = Tensor::from_data(TensorData::new(indices, [ids.len()]), &table.device());
    let rows = rows.reshape([ids.len(), width]);
    table
        .reshape([elements / width, width])
        .select_assign(0, indices, rows, IndexingUpdateOp::Add)
        .reshape([elements])
}

/// See [`crate::sum_of_squares`].
pub fn sum_of_squares(x: Tensor<1>) -> f64 {
    f64::from(x.square().sum().into_scalar::<f32>())
}

/// See [`crate::adamw`].
pub fn adamw([weights, m, v]: [Tensor<1>; 3], gradient: Tensor<1>, by: Update) -> [Tensor<1>; 3] {
    let gradient = if by.clip == 1.0 { gradient } else { gradient.mul_scalar(by.clip) };
    let square = gradient.clone().square();
    let m = m.mul_scalar(by.beta1) + gradient.mul_scalar(1.0 - by.beta1);
    let v = v.mul_scalar(by.beta2) + square.mul_scalar(1.0 - by.beta2);
    let root = v.clone().mul_scalar(by.correction2).sqrt().add_scalar(by.epsilon);
    let weights = weights.mul_scalar(by.keep) - m.clone().mul_scalar(by.rate) / root;
    [weights, m, v]
}
