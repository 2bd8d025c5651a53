//! Every kernel against the specification, bit for bit.

use super::*;
use distill_quant::{q4_0, q8_0};

/// Values of very different sizes, with zeros, the same for the same seed.
fn values(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..n)
        .map(|i| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let unit = (state >> 40) as f32 / (1 << 23) as f32 - 1.0;
            if i % 97 == 13 { 0.0 } else { unit * [1.0, 3.0, 0.1][i / 32 % 3] }
        })
        .collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

fn avx2() -> &'static Kernels {
    table().expect("this test needs a CPU with AVX2, FMA and F16C")
}

const LENGTHS: [usize; 12] = [1, 2, 7, 8, 9, 31, 32, 33, 64, 65, 128, 200];

#[test]
fn float_products_equal_the_specification_bit_for_bit_at_every_shape() {
    for columns in LENGTHS {
        for (rows, tokens) in [(1, 1), (2, 4), (3, 5), (4, 1), (5, 3), (7, 9), (8, 8)] {
            let (w, x) = (values(rows * columns, 1), values(tokens * columns, 2));
            let stride = rows + 3;
            let (mut want, mut got) = (vec![7.0; tokens * stride], vec![7.0; tokens * stride]);
            (scalar::KERNELS.matmul_f32)(&w, &x, columns, &mut want, stride);
            (avx2().matmul_f32)(&w, &x, columns, &mut got, stride);
            assert_eq!(bits(&got), bits(&want), "{rows} × {tokens} × {columns}");
        }
    }
}

#[test]
fn integer_products_equal_the_specification_bit_for_bit_at_every_shape() {
    for blocks in [1, 2, 3, 7, 18, 48] {
        let columns = blocks * BLOCK;
        for (rows, tokens) in [(1, 1), (2, 4), (3, 5), (4, 1), (5, 3), (7, 9)] {
            let mut x = values(tokens * columns, 3);
            x[..BLOCK].fill(0.0);
            let (mut codes, mut scales) = (vec![0; x.len()], vec![0.0; x.len() / BLOCK]);
            scalar::quantize_activations(&x, &mut codes, &mut scales);
            let x = Codes { codes: &codes, scales: &scales };
            let w = values(rows * columns, 4);
            let mut q4 = vec![0; w.len() / BLOCK * Q4_0_BYTES];
            let mut q8 = vec![0; w.len() / BLOCK * Q8_0_BYTES];
            q4_0::quantize_row(&w, &mut q4);
            q8_0::quantize_row(&w, &mut q8);
            let stride = rows + 1;
            let (mut want, mut got) = (vec![7.0; tokens * stride], vec![7.0; tokens * stride]);
            (scalar::KERNELS.matmul_q4_0_q8_0)(&q4, x, columns, &mut want, stride);
            (avx2().matmul_q4_0_q8_0)(&q4, x, columns, &mut got, stride);
            assert_eq!(bits(&got), bits(&want), "q4_0 {rows} × {tokens} × {columns}");
            (scalar::KERNELS.matmul_q8_0_q8_0)(&q8, x, columns, &mut want, stride);
            (avx2().matmul_q8_0_q8_0)(&q8, x, columns, &mut got, stride);
            assert_eq!(bits(&got), bits(&want), "q8_0 {rows} × {tokens} × {columns}");
        }
    }
}

#[test]
fn the_largest_codes_do_not_overflow() {
    // −128 never comes from our quantiser, but a file may hold it.
    for weight in [-128_i8, 127] {
        for activation in [-127_i8, 127] {
            let mut block = vec![0, 0x3C];
            block.extend([weight as u8; BLOCK]);
            let x = Codes { codes: &[activation; BLOCK], scales: &[1.0] };
            let mut y = [0.0];
            (avx2().matmul_q8_0_q8_0)(&block, x, BLOCK, &mut y, 1);
            assert_eq!(y[0], 32.0 * f32::from(weight) * f32::from(activation));
        }
    }
}

#[test]
fn dequantising_equals_the_specification_for_every_byte() {
    let bytes: Vec<u8> = (0..18 * 34 * 4).map(|i| (i * 7 % 256) as u8).collect();
    let finite = |mut bytes: Vec<u8>, block: usize| {
        // A scale of exponent 31 would be infinite or NaN.
        bytes.iter_mut().skip(1).step_by(block).for_each(|high| *high &= 0xBB);
        bytes
    };
    let check =
        |fast: fn(&[u8], &mut [f32]), plain: fn(&[u8], &mut [f32]), bytes: &[u8], n: usize| {
            let (mut want, mut got) = (vec![0.0; n], vec![0.0; n]);
            plain(bytes, &mut want);
            fast(bytes, &mut got);
            assert_eq!(bits(&got), bits(&want));
        };
    let q4 = finite(bytes.clone(), 18);
    check(avx2().dequantize_q4_0, q4_0::dequantize, &q4, q4.len() / 18 * 32);
    let q8 = finite(bytes, 34);
    check(avx2().dequantize_q8_0, q8_0::dequantize, &q8, q8.len() / 34 * 32);
    let halves: Vec<u8> =
        (0..=u16::MAX).filter(|b| b & 0x7C00 != 0x7C00).flat_map(u16::to_le_bytes).collect();
    check(avx2().dequantize_f16, f16::dequantize, &halves[2..], halves.len() / 2 - 1);
}

#[test]
fn narrowing_to_binary16_equals_the_specification() {
    let mut x = values(1003, 5);
    x.extend([65504.0, 65519.9, 65520.0, -1e30, 1e-8, 5.97e-8, -0.0, 6.1e-5]);
    let (mut want, mut got) = (vec![0; x.len()], vec![0; x.len()]);
    (scalar::KERNELS.to_f16)(&x, &mut want);
    (avx2().to_f16)(&x, &mut got);
    assert_eq!(got, want);
}

#[test]
fn activation_quantising_equals_the_specification_bit_for_bit() {
    let mut x = values(32 * 50, 6);
    x[..32].fill(0.0);
    x[32..64].fill(1e-39);
    x[64..96].fill(-3.0e38);
    // Ties: with an absmax of 127 the scale is 1, and halves round to even.
    for (i, x) in x[96..128].iter_mut().enumerate() {
        *x = if i == 5 { -127.0 } else { i as f32 - 15.5 };
    }
    let (mut codes, mut scales) = (vec![1; x.len()], vec![1.0; x.len() / BLOCK]);
    let (mut want_codes, mut want_scales) = (codes.clone(), scales.clone());
    scalar::quantize_activations(&x, &mut want_codes, &mut want_scales);
    (avx2().quantize_activations)(&x, &mut codes, &mut scales);
    assert_eq!((codes, bits(&scales)), (want_codes, bits(&want_scales)));
}

#[test]
fn attention_equals_the_specification_bit_for_bit() {
    for head_dim in [4, 8, 20, 64, 72, 128, 136] {
        for positions in [1, 3, 8, 9, 40] {
            let q = values(head_dim, 7);
            let (k, v) = (values(positions * head_dim, 8), values(positions * head_dim, 9));
            let run = |kernels: &Kernels| {
                let (mut scores, mut out) = (vec![0.0; positions], vec![0.0; head_dim]);
                (kernels.attend_f32)(&q, &k, &v, 0.5, &mut scores, &mut out);
                let (mut k16, mut v16) = (vec![0; k.len()], vec![0; v.len()]);
                (kernels.to_f16)(&k, &mut k16);
                (kernels.to_f16)(&v, &mut v16);
                let mut out16 = vec![0.0; head_dim];
                (kernels.attend_f16)(&q, &k16, &v16, 0.5, &mut scores, &mut out16);
                (bits(&out), bits(&out16))
            };
            assert_eq!(run(avx2()), run(&scalar::KERNELS), "{head_dim} × {positions}");
        }
    }
}

#[test]
fn norm_and_silu_equal_the_specification_bit_for_bit() {
    for n in LENGTHS {
        let (x, w) = (values(n, 10), values(n, 11));
        let run = |kernels: &Kernels| {
            let mut out = vec![0.0; n];
            (kernels.rms_norm)(&x, &w, 1e-5, &mut out);
            let mut gate: Vec<f32> = x.iter().map(|x| x * 40.0).collect();
            (kernels.silu_mul)(&mut gate, &w);
            (bits(&out), bits(&gate))
        };
        assert_eq!(run(avx2()), run(&scalar::KERNELS), "{n}");
    }
}
