//! The grids of `distill-quant` as tensor operations.
//!
//! The rule itself is written once, scalar, in `distill-quant`; what stands here is its tensor
//! form, for training on any device. A property test pins it to the scalar bit for bit on the
//! CPU backends. Only additions, multiplications, comparisons, `floor`, `round` and one
//! reciprocal a block are used, each correctly rounded on a CPU; a GPU's reciprocal may be off
//! by an ulp, which moves a weight only if it lies within 2 ulp of a rounding boundary.

use burn::tensor::Tensor;
use distill_ops::cpu::rounding::Grid;

/// Elements that share a scale.
const BLOCK: usize = distill_quant::BLOCK;
/// Largest finite f16.
const F16_MAX: f32 = 65_504.0;

/// Rounds a flat tensor to Q4_0 and back. `[elements]`, a multiple of 32; blocks follow each
/// other, so a matrix must be `[out, in]` with `in` a multiple of 32. `room` is a tensor of that
/// size that is no longer needed, if there is one.
pub fn q4_0(weights: Tensor<1>, room: Option<Tensor<1>>) -> Tensor<1> {
    if let Some(rounded) = distill_ops::round(Grid::Q4_0, &weights, room) {
        return rounded;
    }
    let (steps, scale) = q4_0_steps(weights);
    let codes = steps.floor().clamp(0.0, 15.0);
    flat(codes.sub_scalar(8.0) * scale)
}

/// The same with given scales `[blocks]`.
pub fn q4_0_scaled(weights: Tensor<1>, scales: &Tensor<1>, room: Option<Tensor<1>>) -> Tensor<1> {
    if let Some(rounded) = distill_ops::round_scaled(&weights, scales, room) {
        return rounded;
    }
    let (steps, scale) = scaled_steps(weights, scales);
    flat((steps.floor().clamp(0.0, 15.0).sub_scalar(8.0)) * scale)
}

/// The gradient of [`q4_0_scaled`]'s values as those of the weights `[elements]`, 0 where the code is
/// clamped, and of the scales `[blocks]` (LSQ, Esser et al. 2020, equation 3).
pub fn q4_0_scaled_straight_through(
    weights: Tensor<1>,
    scales: &Tensor<1>,
    gradient: Tensor<1>,
) -> (Tensor<1>, Tensor<1>) {
    if distill_ops::is_fused(&weights.device()) {
        return distill_ops::straight_through_scaled(&weights, scales, gradient);
    }
    let (steps, _) = scaled_steps(weights, scales);
    let gradient = blocks(gradient);
    let inside =
        steps.clone().greater_equal_scalar(0.0).float() * steps.clone().lower_scalar(16.0).float();
    let codes = steps.clone().floor().clamp(0.0, 15.0).sub_scalar(8.0);
    let slope = codes - steps.sub_scalar(8.5) * inside.clone();
    let of_scales = (gradient.clone() * slope).sum_dim(1);
    let [count, _] = of_scales.dims();
    (flat(gradient * inside), of_scales.reshape([count]))
}

/// `x / d + 8.5` `[blocks, 32]` and the stored scale `[blocks, 1]`, both by given scales.
fn scaled_steps(weights: Tensor<1>, scales: &Tensor<1>) -> (Tensor<2>, Tensor<2>) {
    let x = blocks(weights);
    let [count] = scales.dims();
    let scale = scales.clone().reshape([count, 1]).clamp(-F16_MAX, F16_MAX);
    let stored = round_to_f16(scale);
    let zero = stored.clone().equal_scalar(0.0);
    let inverse = stored.clone().recip().mask_fill(zero.clone(), 0.0);
    ((x * inverse).add_scalar(8.5), stored.mask_fill(zero, 0.0))
}

/// The gradient of Q4_0's values as that of the weights: 0 where the code is clamped.
/// `[elements]` each.
pub fn q4_0_straight_through(weights: Tensor<1>, gradient: Tensor<1>) -> Tensor<1> {
    if distill_ops::is_fused(&weights.device()) {
        return distill_ops::straight_through_q4_0(&weights, gradient);
    }
    gradient * flat(q4_0_steps(weights).0.lower_scalar(16.0).float())
}

/// `x / d + 8.5` `[blocks, 32]` and the stored scale `[blocks, 1]`.
fn q4_0_steps(weights: Tensor<1>) -> (Tensor<2>, Tensor<2>) {
    let x = blocks(weights);
    let (highest, lowest) = (x.clone().max_dim(1), x.clone().min_dim(1));
    let positive_wins = highest.clone().greater_equal(lowest.clone().neg());
    let extreme = lowest.mask_where(positive_wins, highest);
    let exact = extreme.mul_scalar(-0.125).clamp(-F16_MAX, F16_MAX);
    let (scale, inverse) = scale_and_inverse(exact);
    ((x * inverse).add_scalar(8.5), scale)
}

/// Rounds a flat tensor to Q8_0 and back. `[elements]`, a multiple of 32; `room` as there.
pub fn q8_0(weights: Tensor<1>, room: Option<Tensor<1>>) -> Tensor<1> {
    if let Some(rounded) = distill_ops::round(Grid::Q8_0, &weights, room) {
        return rounded;
    }
    let x = blocks(weights);
    let exact = x.clone().abs().max_dim(1).div_scalar(127.0).clamp_max(F16_MAX);
    let (scale, inverse) = scale_and_inverse(exact);
    flat(codes_q8_0(x, inverse) * scale)
}

/// Rounds a linear's input to Q8_0 along its last dimension, with the scale in f32, as the
/// runtime's integer kernels do. The gradient passes straight through.
///
/// `x` is `[batch, tokens, width]`, `width` a multiple of 32.
pub fn activations_q8_0(x: Tensor<3>) -> Tensor<3> {
    if let Some(rounded) = distill_ops::round_activations(&x) {
        return rounded;
    }
    let dims = x.dims();
    let elements: usize = dims.iter().product();
    let blocked = blocks(x.clone().inner().reshape([elements]));
    let scale = blocked.clone().abs().max_dim(1).div_scalar(127.0);
    let zero = scale.clone().lower_scalar(f32::MIN_POSITIVE);
    let inverse = scale.clone().recip().mask_fill(zero.clone(), 0.0);
    let scale = scale.mask_fill(zero, 0.0);
    let rounded = (codes_q8_0(blocked, inverse) * scale).reshape(dims);
    if !x.is_autodiff() {
        return rounded;
    }
    // x − x is exactly zero, so the value is the rounded one bit for bit.
    rounded.autodiff() + (x.clone() - x.detach())
}

/// Rounds to the nearest f16, as a half-precision KV cache does. Any shape.
pub fn f16<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    let dims = x.dims();
    let elements: usize = dims.iter().product();
    round_to_f16(x.reshape([elements, 1])).reshape(dims)
}

/// Codes of Q8_0, `[blocks, 32]`. Adding zero turns −0 into the 0 that an integer code is.
fn codes_q8_0(x: Tensor<2>, inverse: Tensor<2>) -> Tensor<2> {
    (x * inverse).round().clamp(-127.0, 127.0).add_scalar(0.0)
}

/// The scale as f16 stores it and the reciprocal of the exact one; both 0 for a zero block.
/// `[blocks, 1]` each.
fn scale_and_inverse(exact: Tensor<2>) -> (Tensor<2>, Tensor<2>) {
    let stored = round_to_f16(exact.clone());
    let zero = stored.clone().equal_scalar(0.0);
    let inverse = exact.recip().mask_fill(zero.clone(), 0.0);
    (stored.mask_fill(zero, 0.0), inverse)
}

/// Rounds to the nearest f16, ties to even, without an f16 type: not every backend has one.
///
/// Finds p = 2^⌊log₂|x|⌋ (at least 2⁻¹⁴, where f16 turns denormal) by comparisons; adding and
/// taking away 1.5 · 2¹³ · p then leaves a multiple of 2⁻¹⁰ · p.
fn round_to_f16(x: Tensor<2>) -> Tensor<2> {
    let size = x.clone().abs();
    let mut power = size.full_like(2f32.powi(-14));
    for step in [16, 8, 4, 2, 1] {
        let larger = power.clone().mul_scalar(2f32.powi(step));
        let reached = size.clone().greater_equal(larger.clone());
        power = power.mask_where(reached, larger);
    }
    let shift = power.mul_scalar(1.5 * 8192.0);
    (x + shift.clone()) - shift
}

fn blocks(flat: Tensor<1>) -> Tensor<2> {
    let elements = flat.dims()[0];
    assert!(elements.is_multiple_of(BLOCK), "{elements} elements are no whole blocks of {BLOCK}");
    flat.reshape([elements / BLOCK, BLOCK])
}

fn flat(blocks: Tensor<2>) -> Tensor<1> {
    let [count, width] = blocks.dims();
    blocks.reshape([count * width])
}
