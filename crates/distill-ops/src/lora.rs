//! A linear whose weight moves by a product of two thin matrices (LoRA, Hu et al. 2021): W + s·B·A.

use burn::backend::{Dispatch, Flex};
use burn::tensor::{Shape, Tensor};

use crate::cpu::product::{Destination, Matrix, Threads, multiply, product};
use crate::flex::{FusedOps, contiguous, tensor, values};
use crate::is_fused;
use crate::profile::Work;

/// How the weight of a linear and its thin factors make its output.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum LoraRule {
    /// y = x·Wᵀ + s·(x·Aᵀ)·Bᵀ. Nothing as large as W is made.
    Beside,
    /// y = x·Rᵀ, where R is W + s·B·A on a grid; gradients of R are those of W + s·B·A.
    Merged,
    /// The same on Q4_0: the gradient is 0 where the code is clamped.
    MergedQ4_0,
}

/// The tensors of such a linear. None but `a` and `b` get gradients.
#[derive(Clone, Debug)]
pub struct LoraInput {
    /// What x is multiplied by, `[out, in]`: W, or R where it is merged.
    pub weight: Tensor<2>,
    /// W, `[out, in]`.
    pub base: Tensor<2>,
    /// A, `[rank, in]`.
    pub a: Tensor<2>,
    /// B, `[out, rank]`.
    pub b: Tensor<2>,
    /// s = α / rank.
    pub scale: f32,
    /// What they make.
    pub rule: LoraRule,
}

/// `x` `[batch, tokens, in]` → `[batch, tokens, out]`; `None` where the device has no fused form.
pub fn lora(x: &Tensor<3>, input: LoraInput) -> Option<Tensor<3>> {
    is_fused(&x.device()).then(|| {
        Tensor::from_dispatch(Dispatch::fused_lora(
            x.clone().into_dispatch(),
            input.weight.into_dispatch(),
            input.base.into_dispatch(),
            input.a.into_dispatch(),
            input.b.into_dispatch(),
            (input.scale, input.rule),
        ))
    })
}

/// W + s·B·A, `[out, in]`. Tensors without autodiff.
pub fn lora_merge(base: Tensor<2>, a: Tensor<2>, b: Tensor<2>, scale: f32) -> Tensor<2> {
    if !is_fused(&base.device()) {
        return base + b.matmul(a).mul_scalar(scale);
    }
    let [out, input] = base.dims();
    let rank = a.dims()[0];
    let host = |x: Tensor<2>| contiguous(x.try_into_primitive::<Flex>().expect("asked before"));
    let (base, a, b) = (host(base), host(a), host(b));
    let mut merged = values(&base).to_vec();
    let factors = Factors { a: values(&a), b: values(&b), scale, rank };
    factors.add_to(&mut merged, out, input);
    Tensor::from_primitive::<Flex>(tensor(merged, Shape::new([out, input])))
}

/// A `[rank, in]`, B `[out, rank]`, s.
#[derive(Clone, Copy)]
pub(crate) struct Factors<'a> {
    pub a: &'a [f32],
    pub b: &'a [f32],
    pub scale: f32,
    pub rank: usize,
}

impl Factors<'_> {
    /// Two thin products.
    pub(crate) fn work(self, rows: usize, out: usize, input: usize) -> Work {
        Work::product(rows, out + input, self.rank)
    }

    /// W += s·B·A.
    pub(crate) fn add_to(self, weight: &mut [f32], out: usize, input: usize) {
        let (a, b) = (Matrix::new(self.a, self.rank, input), Matrix::new(self.b, out, self.rank));
        multiply(b, a, self.scale, Destination::add(weight, input), Threads::All);
    }

    /// y `[rows, out]` += s·(x·Aᵀ)·Bᵀ.
    pub(crate) fn forward(self, x: &[f32], y: &mut [f32], rows: usize, out: usize, input: usize) {
        let thin = self.thin_input(x, rows, input);
        let (thin, b) = (Matrix::new(&thin, rows, self.rank), Matrix::new(self.b, out, self.rank));
        multiply(thin, b.transposed(), self.scale, Destination::add(y, out), Threads::All);
    }

    /// ∂/∂x `[rows, in]` += s·(g·B)·A, of g `[rows, out]`.
    pub(crate) fn backward_input(
        self,
        g: &[f32],
        dx: &mut [f32],
        rows: usize,
        out: usize,
        input: usize,
    ) {
        let thin = self.thin_gradient(g, rows, out);
        let (thin, a) =
            (Matrix::new(&thin, rows, self.rank), Matrix::new(self.a, self.rank, input));
        multiply(thin, a, self.scale, Destination::add(dx, input), Threads::All);
    }

    /// ∂/∂A = s·(g·B)ᵀ·x and ∂/∂B = s·gᵀ·(x·Aᵀ): exact wherever the gradient of the whole matrix,
    /// gᵀ·x, would be passed on as it is, and it need not be made.
    pub(crate) fn backward(
        self,
        g: &[f32],
        x: &[f32],
        rows: usize,
        out: usize,
        input: usize,
    ) -> [Vec<f32>; 2] {
        let (mut da, mut db) = (vec![0.0; self.a.len()], vec![0.0; self.b.len()]);
        let (thin_g, thin_x) = (self.thin_gradient(g, rows, out), self.thin_input(x, rows, input));
        let thin_g = Matrix::new(&thin_g, rows, self.rank).transposed();
        let x = Matrix::new(x, rows, input);
        multiply(thin_g, x, self.scale, Destination::replace(&mut da, input), Threads::All);
        let g = Matrix::new(g, rows, out).transposed();
        let thin_x = Matrix::new(&thin_x, rows, self.rank);
        multiply(g, thin_x, self.scale, Destination::replace(&mut db, self.rank), Threads::All);
        [da, db]
    }

    /// ∂/∂A = s·Bᵀ·D and ∂/∂B = s·D·Aᵀ from the gradient D `[out, in]` of W + s·B·A.
    pub(crate) fn reduce(self, dense: &[f32], out: usize, input: usize) -> [Vec<f32>; 2] {
        let (mut da, mut db) = (vec![0.0; self.a.len()], vec![0.0; self.b.len()]);
        let dense = Matrix::new(dense, out, input);
        let (a, b) = (Matrix::new(self.a, self.rank, input), Matrix::new(self.b, out, self.rank));
        let to = Destination::replace(&mut da, input);
        multiply(b.transposed(), dense, self.scale, to, Threads::All);
        let to = Destination::replace(&mut db, self.rank);
        multiply(dense, a.transposed(), self.scale, to, Threads::All);
        [da, db]
    }

    /// x·Aᵀ, `[rows, rank]`.
    fn thin_input(self, x: &[f32], rows: usize, input: usize) -> Vec<f32> {
        product(Matrix::new(x, rows, input), Matrix::new(self.a, self.rank, input).transposed())
    }

    /// g·B, `[rows, rank]`.
    fn thin_gradient(self, g: &[f32], rows: usize, out: usize) -> Vec<f32> {
        product(Matrix::new(g, rows, out), Matrix::new(self.b, out, self.rank))
    }
}
