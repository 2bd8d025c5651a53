//! The operators on Burn's CPU backend, and their gradients as autodiff extensions.

use std::sync::Arc;

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::flex::{FlexTensor, Layout};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Flex, TensorMetadata, backend_extension};
use burn::tensor::{Bytes, DType, Shape};

use crate::cpu::attention::{self, Saved};
use crate::cpu::gate::{self, Gate};
use crate::cpu::norm::{self, Norm};
use crate::cpu::product::{Matrix, Output, Threads, multiply};
use crate::cpu::rounding::{self, Grid};
use crate::lora::{Factors, LoraRule};
use crate::positions::Layout as Positions;

/// Operators with gradients of their own. The shapes are those of the functions in the crate's root.
#[backend_extension(Flex, Autodiff)]
pub trait FusedOps: Backend {
    /// RMSNorm.
    fn fused_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, norm: Norm)
    -> FloatTensor<Self>;
    /// σ(gate) ∘ up.
    fn fused_gate(gate: FloatTensor<Self>, up: FloatTensor<Self>, kind: Gate) -> FloatTensor<Self>;
    /// Attention with rotary positions.
    fn fused_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        positions: Arc<Positions>,
    ) -> FloatTensor<Self>;
    /// x·wᵀ.
    fn fused_linear(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self>;
    /// x on the grid of activations, straight-through.
    fn fused_rounding(x: FloatTensor<Self>) -> FloatTensor<Self>;
    /// A linear and its thin factors, see [`crate::LoraInput`].
    fn fused_lora(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        base: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        by: (f32, LoraRule),
    ) -> FloatTensor<Self>;
}

/// A new tensor of these values.
pub fn tensor(values: Vec<f32>, shape: Shape) -> FlexTensor {
    FlexTensor::new(Bytes::from_elems(values), Layout::contiguous(shape), DType::F32)
}

/// The same tensor with its elements in row-major order.
pub fn contiguous(tensor: FlexTensor) -> FlexTensor {
    if tensor.as_slice::<f32>().is_some() { tensor } else { tensor.to_contiguous() }
}

/// The elements of a [`contiguous`] tensor.
pub fn values(tensor: &FlexTensor) -> &[f32] {
    tensor.as_slice::<f32>().expect("a contiguous f32 tensor: the models here hold no other")
}

fn zeros_like(tensor: &FlexTensor) -> Vec<f32> {
    vec![0.0; tensor.shape().num_elements()]
}

/// x `[…, in]` · wᵀ `[in, out]`.
fn linear(x: &FlexTensor, weight: &FlexTensor) -> FlexTensor {
    let [out, input] = [weight.shape()[0], weight.shape()[1]];
    let rows = x.shape().num_elements() / input;
    let mut y = vec![0.0; rows * out];
    let (left, right) =
        (Matrix::new(values(x), rows, input), Matrix::new(values(weight), out, input));
    multiply(left, right.transposed(), 1.0, Output::Replace, &mut y, Threads::All);
    let mut shape = x.shape();
    let last = shape.num_dims() - 1;
    shape[last] = out;
    tensor(y, shape)
}

fn attend(
    q: &FlexTensor,
    k: &FlexTensor,
    v: &FlexTensor,
    positions: &Positions,
) -> (FlexTensor, Saved) {
    let shape = positions.shape;
    let (y, saved) = attention::forward(values(q), values(k), values(v), positions.view(), shape);
    (tensor(y, q.shape()), saved)
}

impl FusedOps for Flex {
    fn fused_norm(x: FlexTensor, weight: FlexTensor, norm: Norm) -> FlexTensor {
        let (x, weight) = (contiguous(x), contiguous(weight));
        let mut y = zeros_like(&x);
        norm::forward(values(&x), values(&weight), norm, &mut y);
        tensor(y, x.shape())
    }

    fn fused_gate(gate: FlexTensor, up: FlexTensor, kind: Gate) -> FlexTensor {
        let (gate, up) = (contiguous(gate), contiguous(up));
        let mut y = zeros_like(&gate);
        gate::forward(kind, values(&gate), values(&up), &mut y);
        tensor(y, gate.shape())
    }

    fn fused_attention(
        q: FlexTensor,
        k: FlexTensor,
        v: FlexTensor,
        positions: Arc<Positions>,
    ) -> FlexTensor {
        attend(&contiguous(q), &contiguous(k), &contiguous(v), &positions).0
    }

    fn fused_linear(x: FlexTensor, weight: FlexTensor) -> FlexTensor {
        linear(&contiguous(x), &contiguous(weight))
    }

    fn fused_rounding(x: FlexTensor) -> FlexTensor {
        let x = contiguous(x);
        let mut y = zeros_like(&x);
        rounding::round(Grid::Q8_0Activations, values(&x), &mut y);
        tensor(y, x.shape())
    }

    fn fused_lora(
        x: FlexTensor,
        weight: FlexTensor,
        _: FlexTensor,
        a: FlexTensor,
        b: FlexTensor,
        (scale, rule): (f32, LoraRule),
    ) -> FlexTensor {
        let (x, a, b) = (contiguous(x), contiguous(a), contiguous(b));
        let mut y = linear(&x, &contiguous(weight));
        if rule == LoraRule::Beside {
            let [rank, input] = [a.shape()[0], a.shape()[1]];
            let (rows, out) = (x.shape().num_elements() / input, b.shape()[0]);
            let factors = Factors { a: values(&a), b: values(&b), scale, rank };
            factors.forward(values(&x), y.storage_mut(), rows, out, input);
        }
        y
    }
}

impl<C: CheckpointStrategy> FusedOps for Autodiff<Flex, C> {
    fn fused_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        norm: Norm,
    ) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Step;
        impl Backward<Flex, 2> for Step {
            type State = (FlexTensor, FlexTensor, Norm);
            fn backward(
                self,
                ops: Ops<Self::State, 2>,
                gradients: &mut Gradients,
                _: &mut Checkpointer,
            ) {
                let [x_node, weight_node] = ops.parents;
                let g = contiguous(gradients.consume::<Flex>(&ops.node));
                let (x, weight, norm) = ops.state;
                let (mut dx, mut dw) = (zeros_like(&x), zeros_like(&weight));
                norm::backward(values(&x), values(&weight), norm, values(&g), &mut dx, &mut dw);
                if let Some(node) = x_node {
                    gradients.register::<Flex>(node.id, tensor(dx, x.shape()));
                }
                if let Some(node) = weight_node {
                    gradients.register::<Flex>(node.id, tensor(dw, weight.shape()));
                }
            }
        }
        let ((x, x_node), (weight, weight_node)) = (x.into_parts(), weight.into_parts());
        let (x, weight) = (contiguous(x), contiguous(weight));
        let y = Flex::fused_norm(x.clone(), weight.clone(), norm);
        match Step.prepare::<C>([x_node, weight_node]).compute_bound().stateful() {
            OpsKind::Tracked(step) => step.finish((x, weight, norm), y),
            OpsKind::UnTracked(step) => step.finish(y),
        }
    }

    fn fused_gate(gate: FloatTensor<Self>, up: FloatTensor<Self>, kind: Gate) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Step;
        impl Backward<Flex, 2> for Step {
            type State = (FlexTensor, FlexTensor, Gate);
            fn backward(
                self,
                ops: Ops<Self::State, 2>,
                gradients: &mut Gradients,
                _: &mut Checkpointer,
            ) {
                let [gate_node, up_node] = ops.parents;
                let g = contiguous(gradients.consume::<Flex>(&ops.node));
                let (gate, up, kind) = ops.state;
                let (mut dgate, mut dup) = (zeros_like(&gate), zeros_like(&up));
                gate::backward(kind, values(&gate), values(&up), values(&g), &mut dgate, &mut dup);
                if let Some(node) = gate_node {
                    gradients.register::<Flex>(node.id, tensor(dgate, gate.shape()));
                }
                if let Some(node) = up_node {
                    gradients.register::<Flex>(node.id, tensor(dup, up.shape()));
                }
            }
        }
        let ((gate, gate_node), (up, up_node)) = (gate.into_parts(), up.into_parts());
        let (gate, up) = (contiguous(gate), contiguous(up));
        let y = Flex::fused_gate(gate.clone(), up.clone(), kind);
        match Step.prepare::<C>([gate_node, up_node]).compute_bound().stateful() {
            OpsKind::Tracked(step) => step.finish((gate, up, kind), y),
            OpsKind::UnTracked(step) => step.finish(y),
        }
    }

    fn fused_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        positions: Arc<Positions>,
    ) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Step;
        impl Backward<Flex, 3> for Step {
            type State = (Saved, FlexTensor, Arc<Positions>, [Shape; 2]);
            fn backward(
                self,
                ops: Ops<Self::State, 3>,
                gradients: &mut Gradients,
                _: &mut Checkpointer,
            ) {
                let g = contiguous(gradients.consume::<Flex>(&ops.node));
                let (saved, y, positions, [q_shape, k_shape]) = ops.state;
                let (view, shape) = (positions.view(), positions.shape);
                let all = attention::backward(&saved, values(&y), values(&g), view, shape);
                let shapes = [q_shape, k_shape.clone(), k_shape];
                for ((node, gradient), shape) in ops.parents.into_iter().zip(all).zip(shapes) {
                    if let Some(node) = node {
                        gradients.register::<Flex>(node.id, tensor(gradient, shape));
                    }
                }
            }
        }
        let ((q, q_node), (k, k_node), (v, v_node)) =
            (q.into_parts(), k.into_parts(), v.into_parts());
        let (q, k, v) = (contiguous(q), contiguous(k), contiguous(v));
        let (y, saved) = attend(&q, &k, &v, &positions);
        match Step.prepare::<C>([q_node, k_node, v_node]).compute_bound().stateful() {
            OpsKind::Tracked(step) => {
                step.finish((saved, y.clone(), positions, [q.shape(), k.shape()]), y)
            }
            OpsKind::UnTracked(step) => step.finish(y),
        }
    }

    fn fused_linear(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Step;
        impl Backward<Flex, 2> for Step {
            type State = (FlexTensor, FlexTensor);
            fn backward(
                self,
                ops: Ops<Self::State, 2>,
                gradients: &mut Gradients,
                _: &mut Checkpointer,
            ) {
                let [x_node, weight_node] = ops.parents;
                let g = contiguous(gradients.consume::<Flex>(&ops.node));
                let (x, weight) = ops.state;
                let [out, input] = [weight.shape()[0], weight.shape()[1]];
                let rows = x.shape().num_elements() / input;
                let g = Matrix::new(values(&g), rows, out);
                if let Some(node) = x_node {
                    let mut dx = zeros_like(&x);
                    let w = Matrix::new(values(&weight), out, input);
                    multiply(g, w, 1.0, Output::Replace, &mut dx, Threads::All);
                    gradients.register::<Flex>(node.id, tensor(dx, x.shape()));
                }
                if let Some(node) = weight_node {
                    let mut dw = zeros_like(&weight);
                    let x = Matrix::new(values(&x), rows, input);
                    multiply(g.transposed(), x, 1.0, Output::Replace, &mut dw, Threads::All);
                    gradients.register::<Flex>(node.id, tensor(dw, weight.shape()));
                }
            }
        }
        let ((x, x_node), (weight, weight_node)) = (x.into_parts(), weight.into_parts());
        let (x, weight) = (contiguous(x), contiguous(weight));
        let y = linear(&x, &weight);
        match Step.prepare::<C>([x_node, weight_node]).compute_bound().stateful() {
            OpsKind::Tracked(step) => step.finish((x, weight), y),
            OpsKind::UnTracked(step) => step.finish(y),
        }
    }

    fn fused_rounding(x: FloatTensor<Self>) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Step;
        impl Backward<Flex, 1> for Step {
            type State = ();
            fn backward(
                self,
                ops: Ops<Self::State, 1>,
                gradients: &mut Gradients,
                _: &mut Checkpointer,
            ) {
                let g = gradients.consume::<Flex>(&ops.node);
                if let [Some(node)] = ops.parents {
                    gradients.register::<Flex>(node.id, g);
                }
            }
        }
        let (x, node) = x.into_parts();
        let y = Flex::fused_rounding(x);
        match Step.prepare::<C>([node]).compute_bound().stateful() {
            OpsKind::Tracked(step) => step.finish((), y),
            OpsKind::UnTracked(step) => step.finish(y),
        }
    }

    fn fused_lora(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        base: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        by: (f32, LoraRule),
    ) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Step;
        impl Backward<Flex, 3> for Step {
            /// x, weight, base, A, B.
            type State = ([FlexTensor; 5], (f32, LoraRule));
            fn backward(
                self,
                ops: Ops<Self::State, 3>,
                gradients: &mut Gradients,
                _: &mut Checkpointer,
            ) {
                let [x_node, a_node, b_node] = ops.parents;
                let g = contiguous(gradients.consume::<Flex>(&ops.node));
                let ([x, weight, base, a, b], (scale, rule)) = ops.state;
                let [out, input] = [weight.shape()[0], weight.shape()[1]];
                let (rows, rank) = (x.shape().num_elements() / input, a.shape()[0]);
                let factors = Factors { a: values(&a), b: values(&b), scale, rank };
                let slopes = Matrix::new(values(&g), rows, out);
                if let Some(node) = x_node {
                    let mut dx = zeros_like(&x);
                    let w = Matrix::new(values(&weight), out, input);
                    multiply(slopes, w, 1.0, Output::Replace, &mut dx, Threads::All);
                    if rule == LoraRule::Beside {
                        factors.backward_input(values(&g), &mut dx, rows, out, input);
                    }
                    gradients.register::<Flex>(node.id, tensor(dx, x.shape()));
                }
                let [da, db] = match rule {
                    LoraRule::Beside | LoraRule::Merged => {
                        factors.backward(values(&g), values(&x), rows, out, input)
                    }
                    LoraRule::MergedQ4_0 => {
                        // The mask stands between the two products, so the whole gradient is needed:
                        // that of this one linear.
                        let mut dense = zeros_like(&weight);
                        let x = Matrix::new(values(&x), rows, input);
                        let (g, all) = (slopes.transposed(), Threads::All);
                        multiply(g, x, 1.0, Output::Replace, &mut dense, all);
                        let mut merged = values(&base).to_vec();
                        factors.add_to(&mut merged, out, input);
                        rounding::straight_through_q4_0(&merged, &mut dense);
                        factors.reduce(&dense, out, input)
                    }
                };
                for (node, gradient, of) in [(a_node, da, &a), (b_node, db, &b)] {
                    if let Some(node) = node {
                        gradients.register::<Flex>(node.id, tensor(gradient, of.shape()));
                    }
                }
            }
        }
        let ((x, x_node), (weight, _), (base, _)) =
            (x.into_parts(), weight.into_parts(), base.into_parts());
        let ((a, a_node), (b, b_node)) = (a.into_parts(), b.into_parts());
        let all = [x, weight, base, a, b].map(contiguous);
        let [x, weight, base, a, b] = all.clone();
        let y = Flex::fused_lora(x, weight, base, a, b, by);
        match Step.prepare::<C>([x_node, a_node, b_node]).compute_bound().stateful() {
            OpsKind::Tracked(step) => step.finish((all, by), y),
            OpsKind::UnTracked(step) => step.finish(y),
        }
    }
}
