//! Fused operators against the same ones in plain tensor operations, values and gradients, on the
//! CPU backends.

use burn::tensor::{DType, Device, FloatDType, Tensor, TensorData};
use distill_ops::{
    Gate, Norm, Positions, Shape, attention, gated, linear, linears, plain, rms_norm,
};

fn values(n: usize, seed: f32) -> Vec<f32> {
    (0..n).map(|i| 1.2 * (i as f32 * 0.73 + seed).sin()).collect()
}

/// Inputs of these shapes, each a leaf of an autodiff graph.
fn leaves<const N: usize>(shapes: [&[usize]; N], device: &Device) -> [Tensor<3>; N] {
    let device = device.clone().autodiff();
    let mut seed = 0.0;
    shapes.map(|shape| {
        seed += 1.7;
        let three = match *shape {
            [a] => [1, 1, a],
            [a, b] => [1, a, b],
            [a, b, c] => [a, b, c],
            _ => unreachable!(),
        };
        let n = shape.iter().product();
        Tensor::from_data(TensorData::new(values(n, seed), three), &device).require_grad()
    })
}

/// The value and the gradients of Σ weight · f(inputs).
fn run<const N: usize>(
    shapes: [&[usize]; N],
    device: &Device,
    f: &dyn Fn([Tensor<3>; N]) -> Tensor<3>,
) -> Vec<Vec<f32>> {
    let inputs = leaves(shapes, device);
    let y = f(inputs.clone());
    let dims = y.dims();
    let weight = TensorData::new(values(dims.iter().product(), 0.3), dims);
    let weight = Tensor::<3>::from_data(weight, &y.device());
    let gradients = (y.clone() * weight).sum().backward();
    let read = |x: Tensor<3>| x.into_data().try_into_vec::<f32>().unwrap();
    let mut all = vec![read(y.inner())];
    all.extend(inputs.map(|input| read(input.grad(&gradients).unwrap())));
    all
}

#[allow(deprecated)]
fn devices() -> [Device; 2] {
    [Device::flex(), Device::ndarray()]
}

/// Fused on flex, plain on every device: all the same up to rounding.
fn check<const N: usize>(
    shapes: [&[usize]; N],
    fused: &dyn Fn([Tensor<3>; N]) -> Tensor<3>,
    plain: &dyn Fn([Tensor<3>; N]) -> Tensor<3>,
) {
    let found = run(shapes, &Device::flex(), fused);
    let by_default = run(shapes, &devices()[1], fused);
    for other in devices().map(|device| run(shapes, &device, plain)).into_iter().chain([by_default])
    {
        for (found, other) in found.iter().zip(&other) {
            assert_eq!(found.len(), other.len());
            let norm = |x: &mut dyn Iterator<Item = f32>| x.map(|x| x * x).sum::<f32>().sqrt();
            let error = norm(&mut found.iter().zip(other).map(|(a, b)| a - b));
            assert!(error <= 1e-5 * norm(&mut other.iter().copied()) + 1e-6, "{shapes:?}: {error}");
        }
    }
}

fn vector(x: Tensor<3>) -> Tensor<1> {
    let n = x.dims()[2];
    x.reshape([n])
}

fn matrix(x: Tensor<3>) -> Tensor<2> {
    let [_, a, b] = x.dims();
    x.reshape([a, b])
}

#[test]
fn norms() {
    for offset in [0.0, 1.0] {
        let norm = Norm { epsilon: 1e-5, offset };
        check([&[2, 3, 24], &[24]], &|[x, w]| rms_norm(x, vector(w), norm), &|[x, w]| {
            plain::rms_norm(x, vector(w), norm)
        });
    }
}

#[test]
fn gates() {
    for kind in [Gate::Silu, Gate::GeluTanh] {
        check([&[2, 3, 20]], &|[x]| gated(kind, x), &|[x]| plain::gated(kind, x));
    }
}

#[test]
fn products() {
    check([&[2, 5, 12], &[7, 12]], &|[x, w]| linear(x, matrix(w)), &|[x, w]| {
        plain::linear(x, matrix(w))
    });
    let two = |[a, b]: [Tensor<3>; 2]| [matrix(a), matrix(b)];
    let three = |[a, b, c]: [Tensor<3>; 3]| [matrix(a), matrix(b), matrix(c)];
    check([&[2, 5, 12], &[7, 12], &[33, 12]], &|[x, a, b]| linears(x, two([a, b])), &|[
        x,
        a,
        b,
    ]| {
        plain::linears(x, two([a, b]))
    });
    check(
        [&[1, 300, 12], &[7, 12], &[3, 12], &[40, 12]],
        &|[x, a, b, c]| linears(x, three([a, b, c])),
        &|[x, a, b, c]| plain::linears(x, three([a, b, c])),
    );
}

/// On flex, which converts to f32 and back: what is rounded is the same as on a GPU.
#[test]
fn a_weight_in_bf16_is_multiplied_in_bf16_with_its_gradients() {
    let device = Device::flex();
    let leaf = |dims: [usize; 2], seed: usize| {
        let value = |i: usize| ((i * 7919 + seed) % 1013) as f32 / 506.0 - 1.0;
        let data: Vec<f32> = (0..dims[0] * dims[1]).map(value).collect();
        Tensor::<2>::from_data(TensorData::new(data, dims), &device)
    };
    let (x, w, g) = (leaf([6, 64], 3), leaf([40, 64], 5), leaf([6, 40], 8));
    let run = |w: Tensor<2>| {
        let (x, w) = (x.clone().autodiff().require_grad(), w.autodiff().require_grad());
        let y = plain::linear(x.clone().reshape([1, 6, 64]), w.clone()).reshape([6, 40]);
        assert_eq!(y.dtype(), DType::F32);
        let mut found = (y.clone() * Tensor::from_inner(g.clone())).sum().backward();
        let of_x = x.grad_remove(&mut found).expect("asked for");
        let of_w = w.grad_remove(&mut found).expect("asked for");
        let f32 = |x: Tensor<2>| x.cast(FloatDType::F32).into_data().try_into_vec::<f32>();
        [y.inner(), of_x, of_w].map(|x| f32(x).expect("floats"))
    };
    let (exact, rounded) = (run(w.clone()), run(w.cast(FloatDType::BF16)));
    for (exact, rounded) in exact.iter().zip(&rounded) {
        let norm = |x: &mut dyn Iterator<Item = f32>| x.map(|x| x * x).sum::<f32>().sqrt();
        let error = norm(&mut exact.iter().zip(rounded).map(|(a, b)| a - b));
        let share = error / norm(&mut exact.iter().copied());
        // Eight bits of a significand; not exact, or nothing was rounded.
        assert!(share > 1e-5 && share < 8e-3, "{share}");
    }
}

#[test]
fn attention_within_documents() {
    let shape = Shape { batch: 2, tokens: 70, heads: 4, kv_heads: 2, head_dim: 8 };
    let documents: Vec<u32> = (0..140).map(|i| [0, 1, 2][i % 70 / 30]).collect();
    let ids: Vec<u32> = (0..140).map(|i| i % 70 % 30).collect();
    let positions = || Positions::packed(shape, &[1.0, 0.5, 0.1, 0.01], &ids, &documents);
    check([&[2, 70, 64]], &|[qkv]| attention(qkv, &positions()), &|[qkv]| {
        plain::attention(qkv, &positions())
    });
}
