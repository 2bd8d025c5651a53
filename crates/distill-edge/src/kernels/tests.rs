//! Every kernel of every table this CPU runs against the specification, bit for bit.

use distill_quant::{f16, q4_0, q8_0};

use super::{
    BLOCK, Block, CHUNK, Cached, Codes, Kernels, POSITIONS, Queries, SIDE_BY_SIDE, Total, scalar,
    tables,
};
use distill_quant::packed::{Packed, ROWS};

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

/// Nothing is skipped silently: what the other tests compare is printed, and must be what
/// `DISTILL_KERNELS` names, the fastest first, where it is set.
#[test]
fn this_cpu_runs_the_tables_that_are_expected() {
    let names: Vec<_> = tables().map(|table| table.name).collect();
    let names = names.join(" ");
    println!("kernel tables tested: {names}");
    match std::env::var("DISTILL_KERNELS") {
        Ok(expected) => assert_eq!(names, expected),
        Err(_) => assert!(!names.is_empty(), "a CPU with AVX2, FMA and F16C, or NEON"),
    }
}

/// What a function of a table gives, the same as the specification's for every table.
fn check<R: PartialEq + std::fmt::Debug>(what: &str, run: impl Fn(&Kernels) -> R) {
    let want = run(&scalar::KERNELS);
    for table in tables() {
        assert!(run(table) == want, "{what} on {}", table.name);
    }
}

const LENGTHS: [usize; 12] = [1, 2, 7, 8, 9, 31, 32, 33, 64, 65, 128, 200];

#[test]
fn float_products_equal_the_specification_at_every_shape() {
    for columns in LENGTHS {
        for (rows, tokens) in [(1, 1), (2, 4), (3, 5), (4, 1), (5, 3), (7, 9), (8, 8)] {
            let (w, x) = (values(rows * columns, 1), values(tokens * columns, 2));
            let stride = rows + 3;
            check(&format!("{rows} × {tokens} × {columns}"), |kernels| {
                let mut y = vec![7.0; tokens * stride];
                (kernels.matmul_f32)(&w, &x, columns, &mut y, stride);
                bits(&y)
            });
        }
    }
}

/// Some tokens' activations as [`Codes`] has them; what stands for no token would spoil any sum.
fn quantized(kernels: &Kernels, x: &[f32], tokens: usize) -> Vec<Block> {
    let (columns, width) = (x.len() / tokens, Codes::width(tokens));
    let none = Block { scale: f32::NAN, offset: i32::MAX, codes: [127; BLOCK] };
    let mut blocks = vec![none; Codes::len(tokens, columns)];
    let tiles = blocks.chunks_exact_mut(columns / BLOCK * width);
    for (tile, x) in tiles.zip(x.chunks(width * columns)) {
        for (t, x) in x.chunks_exact(columns).enumerate() {
            (kernels.quantize_activations)(x, &mut tile[t..], width);
        }
    }
    blocks
}

fn pack(grid: Packed, rows: &[u8], columns: usize) -> Vec<u8> {
    let row_bytes = columns / BLOCK * grid.block_bytes();
    rows.chunks(ROWS * row_bytes)
        .flat_map(|rows| {
            let mut group = vec![0; grid.group_bytes(columns)];
            grid.pack(rows, columns, &mut group);
            group
        })
        .collect()
}

#[test]
fn integer_products_equal_the_specification_at_every_shape() {
    for blocks in [1, 2, 3, 7, 18, 48] {
        let columns = blocks * BLOCK;
        for (rows, tokens) in [(16, 1), (16, 4), (32, 5), (48, 3), (17, 9), (5, 17)] {
            let mut x = values(tokens * columns, 3);
            x[..BLOCK].fill(0.0);
            let x = Codes { tokens, blocks: &quantized(&scalar::KERNELS, &x, tokens) };
            let w = values(rows * columns, 4);
            let mut q4 = vec![0; w.len() / BLOCK * q4_0::BYTES];
            let mut q8 = vec![0; w.len() / BLOCK * q8_0::BYTES];
            q4_0::quantize_row(&w, &mut q4);
            q8_0::quantize_row(&w, &mut q8);
            let (q4, q8) = (pack(Packed::Q4_0, &q4, columns), pack(Packed::Q8_0, &q8, columns));
            let stride = rows.next_multiple_of(ROWS) + 1;
            check(&format!("{rows} × {tokens} × {columns}"), |kernels| {
                let mut y = [vec![7.0; tokens * stride], vec![7.0; tokens * stride]];
                (kernels.product_q4_0)(&q4, x, columns, &mut y[0], stride);
                (kernels.product_q8_0)(&q8, x, columns, &mut y[1], stride);
                y.map(|y| bits(&y))
            });
        }
    }
}

#[test]
fn the_largest_codes_do_not_overflow() {
    // −128 never comes from our quantiser, but a file may hold it.
    for (grid, code, weight) in [
        (Packed::Q8_0, 0x80, -128.0),
        (Packed::Q8_0, 0x7F, 127.0),
        (Packed::Q4_0, 0xFF, 7.0),
        (Packed::Q4_0, 0x00, -8.0),
    ] {
        for activation in [-127_i8, 127] {
            let mut block = vec![0, 0x3C];
            block.resize(grid.block_bytes(), code);
            let group = pack(grid, &block.repeat(ROWS), BLOCK);
            // A tile of tokens, and one more.
            const TOKENS: usize = 9;
            let offset = -8 * 32 * i32::from(activation);
            let block = Block { scale: 1.0, offset, codes: [activation; BLOCK] };
            let x = Codes { tokens: TOKENS, blocks: &[block; 2 * SIDE_BY_SIDE] };
            let want = 32.0 * weight * f32::from(activation);
            for table in tables() {
                let product = match grid {
                    Packed::Q4_0 => table.product_q4_0,
                    Packed::Q8_0 => table.product_q8_0,
                };
                let mut y = [0.0; TOKENS * ROWS];
                product(&group, x, BLOCK, &mut y, ROWS);
                assert_eq!(y, [want; TOKENS * ROWS], "{}", table.name);
            }
        }
    }
}

#[test]
fn widening_equals_the_specification_for_every_binary16() {
    let halves: Vec<u8> =
        (0..=u16::MAX).filter(|b| b & 0x7C00 != 0x7C00).flat_map(u16::to_le_bytes).collect();
    check("dequantize_f16", |kernels| {
        let mut values = vec![0.0; halves.len() / 2 - 1];
        (kernels.dequantize_f16)(&halves[2..], &mut values);
        bits(&values)
    });
    assert_eq!(f16::to_f32(0x3C00), 1.0);
}

#[test]
fn narrowing_to_binary16_equals_the_specification() {
    let mut x = values(1003, 5);
    x.extend([65504.0, 65519.9, 65520.0, -1e30, 1e-8, 5.97e-8, -0.0, 6.1e-5]);
    check("to_f16", |kernels| {
        let mut bits = vec![0; x.len()];
        (kernels.to_f16)(&x, &mut bits);
        bits
    });
}

#[test]
fn activation_quantising_equals_the_specification() {
    let mut x = values(32 * 50, 6);
    x[..32].fill(0.0);
    x[32..64].fill(1e-39);
    x[64..96].fill(-3.0e38);
    // Ties: with an absmax of 127 the scale is 1, and halves round to even.
    for (i, x) in x[96..128].iter_mut().enumerate() {
        *x = if i == 5 { -127.0 } else { i as f32 - 15.5 };
    }
    check("quantize_activations", |kernels| {
        let blocks = quantized(kernels, &x, 1);
        for Block { codes, offset, .. } in &blocks {
            assert_eq!(-8 * codes.iter().map(|&c| i32::from(c)).sum::<i32>(), *offset);
        }
        blocks.iter().map(|b| (b.codes, b.scale.to_bits(), b.offset)).collect::<Vec<_>>()
    });
}

#[test]
fn attention_equals_the_specification_for_any_queries_and_positions() {
    for head_dim in [4, 8, 20, 64, 72, 128, 136] {
        let blocks = CHUNK / POSITIONS;
        let (k, v) = (values(blocks * head_dim * POSITIONS, 8), values(CHUNK * head_dim, 9));
        for seen in [
            &[1_u32][..],
            &[3, 3],
            &[16, 17, 18],
            &[256, 256, 256],
            &[31, 31, 32, 32, 33, 33, 34],
            &[250, 251, 252, 253, 254, 255, 256, 256],
        ] {
            let q = values(seen.len() * head_dim, 7);
            // What lies beyond the furthest position is never looked at.
            let furthest = *seen.last().unwrap() as usize;
            let k = &k[..furthest.div_ceil(POSITIONS) * head_dim * POSITIONS];
            let v = &v[..furthest * head_dim];
            check(&format!("{head_dim} × {seen:?}"), |kernels| {
                let run = |attend: &dyn Fn(Queries<'_>)| {
                    let mut weights = vec![7.0; seen.len() * CHUNK];
                    let mut totals = vec![Total::default(); seen.len()];
                    let mut mixed = vec![7.0; q.len()];
                    attend(Queries {
                        queries: &q,
                        seen,
                        scale: 0.5,
                        weights: &mut weights,
                        totals: &mut totals,
                        mixed: &mut mixed,
                    });
                    (totals, bits(&mixed))
                };
                let half = |x: &[f32]| {
                    let mut bits = vec![0; x.len()];
                    (kernels.to_f16)(x, &mut bits);
                    bits
                };
                let (k16, v16) = (half(k), half(v));
                [
                    run(&|queries| (kernels.attend_f32)(queries, Cached { keys: k, values: v })),
                    run(&|queries| {
                        (kernels.attend_f16)(queries, Cached { keys: &k16, values: &v16 });
                    }),
                ]
            });
        }
    }
}

/// Records of codes of 16 positions and their scales, of which some are the smallest, the largest
/// and zero.
fn records(count: usize, head_dim: usize, seed: u64) -> Vec<i8> {
    let (codes, scales) = (POSITIONS * head_dim, head_dim / BLOCK * POSITIONS);
    let unit = values(count * (codes + scales), seed);
    let records = unit.chunks(codes + scales).flat_map(|unit| {
        let (unit, scales) = unit.split_at(codes);
        let code = |x: &f32| (x * 127.0 / 3.0) as i8;
        let scale = |(i, x): (usize, &f32)| match i % 31 {
            3 => 1,
            7 => f16::MAX_BITS,
            11 => 0,
            _ => f16::from_f32(x.abs()),
        };
        let scales = scales.iter().enumerate().map(scale).flat_map(u16::to_le_bytes);
        unit.iter().map(code).chain(scales.map(u8::cast_signed)).collect::<Vec<_>>()
    });
    records.collect()
}

#[test]
fn attention_over_codes_equals_the_specification_for_any_queries_and_positions() {
    for head_dim in [32, 64, 96, 128, 160, 256] {
        let count = CHUNK / POSITIONS;
        let (mut k, v) = (records(count, head_dim, 12), records(count, head_dim, 13));
        // −128 never comes from our quantiser, but a saved state may hold it.
        k[5] = -128;
        for seen in [
            &[1_u32][..],
            &[3, 3],
            &[16, 17, 18],
            &[256, 256, 256],
            &[31, 31, 32, 32, 33, 33, 34],
            &[250, 251, 252, 253, 254, 255, 256, 256],
        ] {
            let q = values(seen.len() * head_dim, 14);
            let furthest = *seen.last().unwrap() as usize;
            let filled = furthest.div_ceil(POSITIONS) * (k.len() / count);
            // What lies beyond the furthest position is never looked at, or comes to nothing.
            let mut v = v[..filled].to_vec();
            if !furthest.is_multiple_of(POSITIONS) {
                let last = &mut v[filled - k.len() / count..];
                last[furthest % POSITIONS * head_dim..POSITIONS * head_dim].fill(99);
                let infinite = 0x7C00_u16.to_le_bytes().map(u8::cast_signed);
                for scales in last[POSITIONS * head_dim..].chunks_mut(2 * POSITIONS) {
                    let beyond = &mut scales[2 * (furthest % POSITIONS)..];
                    beyond.copy_from_slice(&infinite.repeat(beyond.len() / 2));
                }
            }
            check(&format!("{head_dim} × {seen:?}"), |kernels| {
                let mut weights = vec![7.0; seen.len() * CHUNK];
                let mut totals = vec![Total::default(); seen.len()];
                let mut mixed = vec![7.0; q.len()];
                let queries = Queries {
                    queries: &q,
                    seen,
                    scale: 1e-4,
                    weights: &mut weights,
                    totals: &mut totals,
                    mixed: &mut mixed,
                };
                (kernels.attend_q8_0)(queries, Cached { keys: &k[..filled], values: &v });
                assert!(mixed.iter().all(|x| x.is_finite()), "{}", kernels.name);
                (totals, bits(&mixed))
            });
        }
    }
}

#[test]
fn norm_and_silu_equal_the_specification() {
    for n in LENGTHS {
        let (x, w) = (values(n, 10), values(n, 11));
        check(&format!("{n}"), |kernels| {
            let mut out = vec![0.0; n];
            (kernels.rms_norm)(&x, &w, 1e-5, &mut out);
            let mut gate: Vec<f32> = x.iter().map(|x| x * 40.0).collect();
            (kernels.silu_mul)(&mut gate, &w);
            (bits(&out), bits(&gate))
        });
    }
}
