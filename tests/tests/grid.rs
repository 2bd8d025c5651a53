//! The grid that trains is the grid that ships: the tensor form of a quantisation rule equals
//! the scalar form, bit for bit, on every CPU backend.

use burn::tensor::{Device, Tensor, TensorData};
use distill_models::{Backend, fake_quant, parameters};
use distill_quant::{BLOCK, q4_0, q8_0};
use proptest::prelude::*;

fn cpu_devices() -> Vec<(&'static str, Device)> {
    [("flex", Backend::Flex), ("ndarray", Backend::Ndarray)]
        .map(|(name, backend)| (name, backend.device().expect("both are always built")))
        .into()
}

fn on(device: &Device, values: &[f32], rule: impl Fn(Tensor<1>) -> Tensor<1>) -> Vec<f32> {
    let tensor = Tensor::<1>::from_data(TensorData::new(values.to_vec(), [values.len()]), device);
    parameters::values(rule(tensor))
}

fn scalar(values: &[f32], rule: impl Fn(&[f32], &mut [f32])) -> Vec<f32> {
    let mut out = vec![0.0; values.len()];
    rule(values, &mut out);
    out
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

fn activations(device: &Device, values: &[f32]) -> Vec<f32> {
    let shape = [1, values.len() / BLOCK, BLOCK];
    let tensor = Tensor::<3>::from_data(TensorData::new(values.to_vec(), shape), device);
    parameters::values(fake_quant::activations_q8_0(tensor))
}

/// Exported codes, read back as the runtime reads them.
fn exported_q4_0(values: &[f32]) -> Vec<f32> {
    let mut bytes = vec![0; values.len() / BLOCK * 18];
    q4_0::quantize_row(values, &mut bytes);
    scalar(values, |_, out| q4_0::dequantize(&bytes, out))
}

fn exported_q8_0(values: &[f32]) -> Vec<f32> {
    let mut bytes = vec![0; values.len() / BLOCK * 34];
    q8_0::quantize_row(values, &mut bytes);
    scalar(values, |_, out| q8_0::dequantize(&bytes, out))
}

fn assert_every_rule_is_the_scalar_one(values: &[f32]) {
    for (name, device) in cpu_devices() {
        let check = |rule: &str, found: Vec<f32>, expected: Vec<f32>| {
            assert_eq!(bits(&found), bits(&expected), "{rule} on {name} of {values:?}");
        };
        check("q4_0", on(&device, values, fake_quant::q4_0), exported_q4_0(values));
        check("q8_0", on(&device, values, fake_quant::q8_0), exported_q8_0(values));
        check(
            "q4_0 straight-through mask",
            on(&device, values, fake_quant::q4_0_straight_through),
            scalar(values, q4_0::straight_through_mask),
        );
        check(
            "q8_0 activations",
            activations(&device, values),
            scalar(values, q8_0::fake_quantize_activation),
        );
    }
}

fn block(fill: impl Fn(usize) -> f32) -> Vec<f32> {
    (0..BLOCK).map(fill).collect()
}

#[test]
fn all_zero_blocks_stay_positive_zero() {
    assert_every_rule_is_the_scalar_one(&[0.0; BLOCK]);
    assert_every_rule_is_the_scalar_one(&[-0.0; BLOCK]);
    let zeros = on(&Device::flex(), &[-0.0; BLOCK], fake_quant::q4_0);
    assert!(zeros.iter().all(|z| z.to_bits() == 0));
}

#[test]
fn a_tie_of_plus_and_minus_absmax_takes_the_positive() {
    assert_every_rule_is_the_scalar_one(&block(|i| if i % 2 == 0 { 1.5 } else { -1.5 }));
    let values = block(|i| if i == 0 { -1.5 } else { 1.5 });
    assert_every_rule_is_the_scalar_one(&values);
    assert_eq!(on(&Device::flex(), &values, fake_quant::q4_0)[1], 1.5);
}

#[test]
fn values_on_rounding_boundaries_fall_to_the_same_side() {
    // Scale −1: codes change at the halves, and 7.5 is where the clamp begins.
    assert_every_rule_is_the_scalar_one(&block(
        |i| if i == 0 { 8.0 } else { i as f32 / 2.0 - 8.0 },
    ));
    assert_every_rule_is_the_scalar_one(&block(|i| 127.0 - i as f32 * 0.5));
}

#[test]
fn denormal_and_overflowing_scales_are_stored_alike() {
    for exponent in
        [-149, -140, -130, -126, -30, -27, -25, -24, -22, -20, -17, -14, 10, 18, 19, 20, 40, 120]
    {
        let size = 2f32.powi(exponent);
        assert_every_rule_is_the_scalar_one(&block(|i| size * (i as f32 - 13.3) / 16.0));
        assert_every_rule_is_the_scalar_one(&block(|i| if i == 5 { -size } else { 0.0 }));
    }
}

/// Weights of every size that a model can have, and many that it cannot.
fn weights() -> impl Strategy<Value = Vec<f32>> {
    let value = prop_oneof![
        6 => -1.0f32..1.0,
        1 => Just(0.0f32),
        1 => Just(-0.0f32),
        1 => (-8i32..=8).prop_map(|k| k as f32 / 2.0),
        1 => any::<f32>().prop_filter("finite", |v| v.is_finite()),
    ];
    let block = (prop::collection::vec(value, BLOCK), -60i32..40).prop_map(|(values, exponent)| {
        values
            .into_iter()
            .map(|v| v * 2f32.powi(exponent))
            .map(|v| if v.is_finite() { v } else { 0.0 })
            .collect::<Vec<f32>>()
    });
    prop::collection::vec(block, 1..4).prop_map(|blocks| blocks.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn dequantized_export_equals_fake_quant_bit_for_bit(values in weights()) {
        assert_every_rule_is_the_scalar_one(&values);
    }
}

#[test]
fn straight_through_gradient_reaches_activations_unchanged() {
    let device = Device::flex().autodiff();
    let values: Vec<f32> = (0..2 * BLOCK).map(|i| (i as f32 * 0.37).sin()).collect();
    let x = Tensor::<3>::from_data(TensorData::new(values.clone(), [1, 2, BLOCK]), &device)
        .require_grad();
    let weights = Tensor::<3>::from_data(TensorData::new(values.clone(), [1, 2, BLOCK]), &device);
    let loss = (fake_quant::activations_q8_0(x.clone()) * weights).sum();
    let gradient = x.grad(&loss.backward()).expect("tracked");
    assert_eq!(parameters::values(gradient), values);
}

/// On a GPU the reciprocal of a scale may be an ulp off: a code may differ by one step where
/// the weight lies within 2 ulp of a rounding boundary, and nowhere else.
#[cfg(feature = "wgpu")]
#[test]
fn wgpu_rounds_as_the_scalar_rule_up_to_two_ulp_at_boundaries() {
    let device = distill_models::Backend::Wgpu.device().expect("this build has wgpu");
    let mut state = 1u64;
    let mut next = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    let mut values: Vec<f32> = (0..4096 * BLOCK).map(|_| next()).collect();
    values.extend([0.0; BLOCK]);
    values.extend(block(|i| if i % 2 == 0 { 1.5 } else { -1.5 }));
    values.extend(block(|i| if i == 0 { 8.0 } else { i as f32 / 2.0 - 8.0 }));
    for (name, found, expected, step) in [
        (
            "q4_0",
            on(&device, &values, fake_quant::q4_0),
            exported_q4_0(&values),
            (|block: &[f32]| {
                let block: &[f32; BLOCK] = block.try_into().expect("a block");
                let d = q4_0::BlockQ4_0::quantize(block).d;
                (distill_quant::f16::to_f32(d), 0.5)
            }) as fn(&[f32]) -> (f32, f32),
        ),
        (
            "q8_0",
            on(&device, &values, fake_quant::q8_0),
            exported_q8_0(&values),
            |block: &[f32]| {
                let block: &[f32; BLOCK] = block.try_into().expect("a block");
                (distill_quant::f16::to_f32(q8_0::BlockQ8_0::quantize(block).d), 0.5)
            },
        ),
    ] {
        let mut moved = 0;
        for (index, (a, b)) in found.iter().zip(&expected).enumerate() {
            if a.to_bits() == b.to_bits() {
                continue;
            }
            moved += 1;
            let (scale, half) = step(&values[index / BLOCK * BLOCK..][..BLOCK]);
            assert!(
                ((a - b).abs() - scale.abs()).abs() <= 1e-3 * scale.abs(),
                "{name} {index}: {a} {b}"
            );
            let at = values[index] / scale;
            let distance = ((at.abs() + half).fract().min(1.0 - (at.abs() + half).fract())).abs();
            // The stored scale is the exact one rounded to f16: allow its half ulp as well.
            assert!(
                distance < 16.0 * 2f32.powi(-11) + 4.0 * f32::EPSILON * 128.0,
                "{name} {index}: {at}"
            );
        }
        eprintln!("{name}: {moved} of {} codes moved on wgpu", found.len());
        assert!(moved * 1000 < found.len(), "{name}: {moved} codes moved");
    }
}
