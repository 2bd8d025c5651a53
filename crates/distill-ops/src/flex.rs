//! The operators on Burn's CPU backend, and their gradients as autodiff extensions.

#![allow(unsafe_code)]

use std::mem::MaybeUninit;
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
use crate::cpu::product::{Destination, Matrix, Threads, multiply, product};
use crate::cpu::rounding::{self, Grid};
use crate::cpu::scratch::filled;
use crate::lora::{Factors, LoraRule};
use crate::positions::Layout as Positions;
use crate::profile::{Work, operator};

/// Operators with gradients of their own. The shapes are those of the functions in the crate's root.
#[backend_extension(Flex, Autodiff)]
pub trait FusedOps: Backend {
    /// RMSNorm.
    fn fused_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, norm: Norm)
    -> FloatTensor<Self>;
    /// σ(gate) ∘ up.
    fn fused_gate(gate_and_up: FloatTensor<Self>, kind: Gate) -> FloatTensor<Self>;
    /// Attention with rotary positions.
    fn fused_attention(qkv: FloatTensor<Self>, positions: Arc<Positions>) -> FloatTensor<Self>;
    /// x·wᵀ.
    fn fused_linear(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self>;
    /// x·wᵀ of two matrices, side by side.
    fn fused_linear_pair(
        x: FloatTensor<Self>,
        first: FloatTensor<Self>,
        second: FloatTensor<Self>,
    ) -> FloatTensor<Self>;
    /// x·wᵀ of three matrices, side by side.
    fn fused_linear_triple(
        x: FloatTensor<Self>,
        first: FloatTensor<Self>,
        second: FloatTensor<Self>,
        third: FloatTensor<Self>,
    ) -> FloatTensor<Self>;
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

fn elements(tensor: &FlexTensor) -> usize {
    tensor.shape().num_elements()
}

/// The shape with another last dimension.
fn with_last(mut shape: Shape, size: usize) -> Shape {
    let last = shape.num_dims() - 1;
    shape[last] = size;
    shape
}

/// Matrices `[out, in]` that are multiplied with one input `[…, in]`; the results lie side by side.
#[derive(Clone, Debug)]
struct Linears {
    x: FlexTensor,
    weights: Vec<FlexTensor>,
}

impl Linears {
    fn new(x: FlexTensor, weights: impl IntoIterator<Item = FlexTensor>) -> Self {
        Self { x: contiguous(x), weights: weights.into_iter().map(contiguous).collect() }
    }

    fn inputs(&self) -> usize {
        self.weights[0].shape()[1]
    }

    fn rows(&self) -> usize {
        elements(&self.x) / self.inputs()
    }

    fn outputs(&self) -> usize {
        self.weights.iter().map(|weight| weight.shape()[0]).sum()
    }

    fn work(&self) -> Work {
        Work::product(self.rows(), self.outputs(), self.inputs())
    }

    fn x(&self) -> Matrix<'_> {
        Matrix::new(values(&self.x), self.rows(), self.inputs())
    }

    /// The matrices, and the first of the columns that their results have.
    fn weights(&self) -> impl Iterator<Item = (usize, Matrix<'_>)> {
        let mut column = 0;
        self.weights.iter().map(move |weight| {
            let [outputs, inputs] = [weight.shape()[0], weight.shape()[1]];
            column += outputs;
            (column - outputs, Matrix::new(values(weight), outputs, inputs))
        })
    }

    fn forward(&self) -> FlexTensor {
        let (rows, columns) = (self.rows(), self.outputs());
        let fill = |y: &mut [MaybeUninit<f32>]| {
            for (column, weight) in self.weights() {
                let out = Destination::fill(&mut y[column.min(rows * columns)..], columns);
                multiply(self.x(), weight.transposed(), 1.0, out, Threads::All);
            }
        };
        let y = operator("linear", self.work(), || {
            // SAFETY: every matrix writes its columns of every row.
            unsafe { filled(rows * columns, fill) }
        });
        tensor(y, with_last(self.x.shape(), columns))
    }

    /// The columns of a gradient that are a matrix's.
    fn gradient<'a>(&self, g: &'a FlexTensor, column: usize, weight: Matrix<'_>) -> Matrix<'a> {
        let g = values(g);
        Matrix::strided(&g[column.min(g.len())..], self.rows(), weight.height(), self.outputs())
    }

    fn input_gradient(&self, g: &FlexTensor) -> FlexTensor {
        let inputs = self.inputs();
        let fill = |dx: &mut [MaybeUninit<f32>]| {
            for (column, weight) in self.weights() {
                let g = self.gradient(g, column, weight);
                // SAFETY: the first matrix wrote every element.
                let out = match column {
                    0 => Destination::fill(dx, inputs),
                    _ => Destination::add(unsafe { dx.assume_init_mut() }, inputs),
                };
                multiply(g, weight, 1.0, out, Threads::All);
            }
        };
        let dx = operator("linear, to the input", self.work(), || {
            // SAFETY: the first matrix writes every element.
            unsafe { filled(elements(&self.x), fill) }
        });
        tensor(dx, self.x.shape())
    }

    fn weight_gradient(&self, g: &FlexTensor, which: usize) -> FlexTensor {
        let (column, weight) = self.weights().nth(which).expect("as many as there are parents");
        let g = self.gradient(g, column, weight).transposed();
        let work = Work::product(weight.height(), self.inputs(), self.rows());
        let dw = operator("linear, to the weight", work, || product(g, self.x()));
        tensor(dw, self.weights[which].shape())
    }
}

/// The input of the graph's linear and its matrices.
#[derive(Debug)]
struct LinearStep;

impl<const N: usize> Backward<Flex, N> for LinearStep {
    type State = Linears;
    fn backward(self, ops: Ops<Self::State, N>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let g = contiguous(gradients.consume::<Flex>(&ops.node));
        for (i, node) in ops.parents.into_iter().enumerate() {
            if let Some(node) = node {
                let gradient = match i {
                    0 => ops.state.input_gradient(&g),
                    _ => ops.state.weight_gradient(&g, i - 1),
                };
                gradients.register::<Flex>(node.id, gradient);
            }
        }
    }
}

/// The first of `parts` is the input, the others are matrices.
fn tracked_linears<C: CheckpointStrategy, const N: usize>(
    parts: [FloatTensor<Autodiff<Flex, C>>; N],
) -> FloatTensor<Autodiff<Flex, C>> {
    let mut tensors = Vec::with_capacity(N);
    let nodes = parts.map(|part| {
        let (tensor, node) = part.into_parts();
        tensors.push(tensor);
        node
    });
    let mut tensors = tensors.into_iter();
    let x = tensors.next().expect("an input");
    let linears = Linears::new(x, tensors);
    let y = linears.forward();
    match LinearStep.prepare::<C>(nodes).compute_bound().stateful() {
        OpsKind::Tracked(step) => step.finish(linears, y),
        OpsKind::UnTracked(step) => step.finish(y),
    }
}

fn attend(qkv: &FlexTensor, positions: &Positions) -> (FlexTensor, Saved) {
    let shape = positions.shape;
    let (y, saved) = operator("attention", Work::floats(3 * elements(qkv)), || {
        attention::forward(values(qkv), positions.view(), shape)
    });
    (tensor(y, with_last(qkv.shape(), shape.heads * shape.head_dim)), saved)
}

impl FusedOps for Flex {
    fn fused_norm(x: FlexTensor, weight: FlexTensor, norm: Norm) -> FlexTensor {
        let (x, weight) = (contiguous(x), contiguous(weight));
        operator("norm", Work::floats(2 * elements(&x)), || {
            tensor(norm::forward(values(&x), values(&weight), norm), x.shape())
        })
    }

    fn fused_gate(gate_and_up: FlexTensor, kind: Gate) -> FlexTensor {
        let x = contiguous(gate_and_up);
        let inner = x.shape()[x.shape().num_dims() - 1] / 2;
        operator("gate", Work::floats(3 * elements(&x) / 2), || {
            tensor(gate::forward(kind, values(&x), inner), with_last(x.shape(), inner))
        })
    }

    fn fused_attention(qkv: FlexTensor, positions: Arc<Positions>) -> FlexTensor {
        attend(&contiguous(qkv), &positions).0
    }

    fn fused_linear(x: FlexTensor, weight: FlexTensor) -> FlexTensor {
        Linears::new(x, [weight]).forward()
    }

    fn fused_linear_pair(x: FlexTensor, first: FlexTensor, second: FlexTensor) -> FlexTensor {
        Linears::new(x, [first, second]).forward()
    }

    fn fused_linear_triple(
        x: FlexTensor,
        first: FlexTensor,
        second: FlexTensor,
        third: FlexTensor,
    ) -> FlexTensor {
        Linears::new(x, [first, second, third]).forward()
    }

    fn fused_rounding(x: FlexTensor) -> FlexTensor {
        let x = contiguous(x);
        operator("activation rounding", Work::floats(2 * elements(&x)), || {
            tensor(rounding::rounded(Grid::Q8_0Activations, values(&x)), x.shape())
        })
    }

    fn fused_lora(
        x: FlexTensor,
        weight: FlexTensor,
        _: FlexTensor,
        a: FlexTensor,
        b: FlexTensor,
        (scale, rule): (f32, LoraRule),
    ) -> FlexTensor {
        let linear = Linears::new(x, [weight]);
        let (a, b) = (contiguous(a), contiguous(b));
        let mut y = linear.forward();
        if rule == LoraRule::Beside {
            let (rows, out, input) = (linear.rows(), linear.outputs(), linear.inputs());
            let factors = Factors { a: values(&a), b: values(&b), scale, rank: a.shape()[0] };
            operator("low-rank factors", factors.work(rows, out, input), || {
                factors.forward(values(&linear.x), y.storage_mut(), rows, out, input);
            });
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
                let work = Work::floats(3 * elements(&x));
                let (dx, dw) = operator("norm, backward", work, || {
                    norm::backward(values(&x), values(&weight), norm, values(&g))
                });
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

    fn fused_gate(gate_and_up: FloatTensor<Self>, kind: Gate) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Step;
        impl Backward<Flex, 1> for Step {
            type State = (FlexTensor, Gate);
            fn backward(
                self,
                ops: Ops<Self::State, 1>,
                gradients: &mut Gradients,
                _: &mut Checkpointer,
            ) {
                let g = contiguous(gradients.consume::<Flex>(&ops.node));
                let ([Some(node)], (x, kind)) = (ops.parents, ops.state) else { return };
                let inner = x.shape()[x.shape().num_dims() - 1] / 2;
                let dx = operator("gate, backward", Work::floats(5 * elements(&g)), || {
                    gate::backward(kind, values(&x), inner, values(&g))
                });
                gradients.register::<Flex>(node.id, tensor(dx, x.shape()));
            }
        }
        let (x, node) = gate_and_up.into_parts();
        let x = contiguous(x);
        let y = Flex::fused_gate(x.clone(), kind);
        match Step.prepare::<C>([node]).compute_bound().stateful() {
            OpsKind::Tracked(step) => step.finish((x, kind), y),
            OpsKind::UnTracked(step) => step.finish(y),
        }
    }

    fn fused_attention(qkv: FloatTensor<Self>, positions: Arc<Positions>) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Step;
        impl Backward<Flex, 1> for Step {
            type State = (Saved, Arc<Positions>, Shape);
            fn backward(
                self,
                ops: Ops<Self::State, 1>,
                gradients: &mut Gradients,
                _: &mut Checkpointer,
            ) {
                let g = contiguous(gradients.consume::<Flex>(&ops.node));
                let ([Some(node)], (saved, positions, shape)) = (ops.parents, ops.state) else {
                    return;
                };
                let work = Work::floats(2 * elements(&g) + 2 * saved.rotated.len());
                let gradient = operator("attention, backward", work, || {
                    attention::backward(&saved, values(&g), positions.view(), positions.shape)
                });
                gradients.register::<Flex>(node.id, tensor(gradient, shape));
            }
        }
        let (qkv, node) = qkv.into_parts();
        let qkv = contiguous(qkv);
        let (y, saved) = attend(&qkv, &positions);
        match Step.prepare::<C>([node]).compute_bound().stateful() {
            OpsKind::Tracked(step) => step.finish((saved, positions, qkv.shape()), y),
            OpsKind::UnTracked(step) => step.finish(y),
        }
    }

    fn fused_linear(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        tracked_linears::<C, 2>([x, weight])
    }

    fn fused_linear_pair(
        x: FloatTensor<Self>,
        first: FloatTensor<Self>,
        second: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        tracked_linears::<C, 3>([x, first, second])
    }

    fn fused_linear_triple(
        x: FloatTensor<Self>,
        first: FloatTensor<Self>,
        second: FloatTensor<Self>,
        third: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        tracked_linears::<C, 4>([x, first, second, third])
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
            /// The linear; base, A, B.
            type State = (Linears, [FlexTensor; 3], (f32, LoraRule));
            fn backward(
                self,
                ops: Ops<Self::State, 3>,
                gradients: &mut Gradients,
                _: &mut Checkpointer,
            ) {
                let [x_node, a_node, b_node] = ops.parents;
                let g = contiguous(gradients.consume::<Flex>(&ops.node));
                let (linear, [base, a, b], (scale, rule)) = ops.state;
                let (rows, out, input) = (linear.rows(), linear.outputs(), linear.inputs());
                let factors = Factors { a: values(&a), b: values(&b), scale, rank: a.shape()[0] };
                let work = factors.work(rows, out, input);
                if let Some(node) = x_node {
                    let mut dx = linear.input_gradient(&g);
                    if rule == LoraRule::Beside {
                        operator("low-rank factors, backward", work, || {
                            let dx = dx.storage_mut();
                            factors.backward_input(values(&g), dx, rows, out, input);
                        });
                    }
                    gradients.register::<Flex>(node.id, dx);
                }
                let [da, db] = match rule {
                    LoraRule::Beside | LoraRule::Merged => {
                        operator("low-rank factors, backward", work.times(2), || {
                            factors.backward(values(&g), values(&linear.x), rows, out, input)
                        })
                    }
                    LoraRule::MergedQ4_0 => {
                        // The mask stands between the two products, so the whole gradient is needed:
                        // that of this one linear.
                        let mut dense = linear.weight_gradient(&g, 0);
                        let masked = Work::floats(5 * elements(&dense));
                        operator("low-rank factors, backward", masked, || {
                            let mut merged = values(&base).to_vec();
                            factors.add_to(&mut merged, out, input);
                            rounding::straight_through_q4_0(&merged, dense.storage_mut());
                            factors.reduce(values(&dense), out, input)
                        })
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
        let [x, weight, base, a, b] = [x, weight, base, a, b].map(contiguous);
        let y = Flex::fused_lora(x.clone(), weight.clone(), base.clone(), a.clone(), b.clone(), by);
        match Step.prepare::<C>([x_node, a_node, b_node]).compute_bound().stateful() {
            OpsKind::Tracked(step) => step.finish((Linears::new(x, [weight]), [base, a, b], by), y),
            OpsKind::UnTracked(step) => step.finish(y),
        }
    }
}
