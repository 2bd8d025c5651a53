//! The grid that trains is the grid that ships: the tensor form of a quantisation rule equals
//! the scalar form, bit for bit, on every CPU backend.
//!
//! A GPU may divide less exactly (Vulkan allows 2.5 ulp). There a value may be another one only
//! if the scalar rule gives that one to weights at most 2 ulp away; `--features wgpu` runs the
//! same specifications so, on whatever adapter there is.

use burn::tensor::{Device, Tensor, TensorData};
use distill_models::{Backend, fake_quant, parameters};
use distill_quant::{BLOCK, q4_0, q8_0};
use proptest::prelude::*;

struct Target {
    name: &'static str,
    device: Device,
    /// Whether every operation is correctly rounded.
    exact: bool,
}

fn targets() -> Vec<Target> {
    let backends = [
        ("flex", Backend::Flex, true),
        ("ndarray", Backend::Ndarray, true),
        #[cfg(feature = "wgpu")]
        ("wgpu", Backend::Wgpu, false),
        #[cfg(feature = "cuda")]
        ("cuda", Backend::Cuda, false),
    ];
    backends
        .into_iter()
        .map(|(name, backend, exact)| {
            let device = backend.device().expect("this build has it");
            Target { name, device, exact }
        })
        .collect()
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

/// Scales that do not follow from the weights: of both signs, some zero, some that clamp.
fn scales(values: &[f32]) -> Vec<f32> {
    let largest = |block: &[f32]| block.iter().fold(0f32, |largest, x| largest.max(x.abs()));
    let factor = [0.11, -0.13, 0.05, 0.0, -0.125];
    values
        .chunks(BLOCK)
        .enumerate()
        .map(|(i, block)| (largest(block) * factor[i % factor.len()]).clamp(-1e5, 1e5))
        .collect()
}

fn exported_q4_0_scaled(values: &[f32], scales: &[f32]) -> Vec<f32> {
    let mut bytes = vec![0; values.len() / BLOCK * 18];
    q4_0::quantize_row_scaled(values, scales, &mut bytes);
    scalar(values, |_, out| q4_0::dequantize(&bytes, out))
}

/// What passes of gradients of one, and what comes to the scales.
fn straight_through_scaled(values: &[f32], scales: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let mut gradient = vec![1.0; values.len()];
    let blocks = values.as_chunks::<BLOCK>().0.iter().zip(gradient.as_chunks_mut::<BLOCK>().0);
    let of_scales = blocks
        .zip(scales)
        .map(|((block, gradient), &scale)| q4_0::straight_through_scaled(block, scale, gradient))
        .collect();
    (gradient, of_scales)
}

fn exported_q8_0(values: &[f32]) -> Vec<f32> {
    let mut bytes = vec![0; values.len() / BLOCK * 34];
    q8_0::quantize_row(values, &mut bytes);
    scalar(values, |_, out| q8_0::dequantize(&bytes, out))
}

fn assert_every_rule_is_the_scalar_one(values: &[f32]) {
    for target in targets() {
        let device = &target.device;
        let check = |name, found: Vec<f32>, rule: &dyn Fn(&[f32]) -> Vec<f32>| {
            target.check(name, values, &found, rule);
        };
        check("q4_0", on(device, values, |w| fake_quant::q4_0(w, None)), &exported_q4_0);
        check("q8_0", on(device, values, |w| fake_quant::q8_0(w, None)), &exported_q8_0);
        check(
            "q4_0 straight-through mask",
            on(device, values, |w| fake_quant::q4_0_straight_through(w.clone(), w.ones_like())),
            &|values| scalar(values, q4_0::straight_through_mask),
        );
        let scales = scales(values);
        let scaled = |device: &Device, values: &[f32]| {
            let scales = Tensor::from_data(TensorData::new(scales.clone(), [scales.len()]), device);
            on(device, values, |w| fake_quant::q4_0_scaled(w, &scales, None))
        };
        check("q4_0 with given scales", scaled(device, values), &|values| {
            exported_q4_0_scaled(values, &scales)
        });
        let passed = |device: &Device, values: &[f32]| {
            let scales = Tensor::from_data(TensorData::new(scales.clone(), [scales.len()]), device);
            on(device, values, |w| {
                let ones = w.ones_like();
                fake_quant::q4_0_scaled_straight_through(w, &scales, ones).0
            })
        };
        check("q4_0 mask with given scales", passed(device, values), &|values| {
            straight_through_scaled(values, &scales).0
        });
        check("q8_0 activations", activations(device, values), &|values| {
            scalar(values, q8_0::fake_quantize_activation)
        });
    }
}

impl Target {
    /// Holds what a device made of `values` against the scalar `rule`.
    fn check(&self, name: &str, values: &[f32], found: &[f32], rule: &dyn Fn(&[f32]) -> Vec<f32>) {
        let expected = rule(values);
        if self.exact {
            assert_eq!(bits(found), bits(&expected), "{name} on {} of {values:?}", self.name);
            return;
        }
        let mut moved = 0;
        for (index, (&found, &expected)) in found.iter().zip(&expected).enumerate() {
            if found == expected {
                continue;
            }
            let (block, place) = (&values[index / BLOCK * BLOCK..][..BLOCK], index % BLOCK);
            let near = moved_by_two_ulp(block, place)
                .map(|block| rule(&block)[place])
                .any(|value| (found - value).abs() <= 2.0 * f32::EPSILON * value.abs());
            assert!(near, "{name} on {} at {index}: {found}, not {expected}: {block:?}", self.name);
            moved += usize::from((found - expected).abs() > 4.0 * f32::EPSILON * expected.abs());
        }
        assert!(
            values.len() < 1 << 16 || moved * 1000 < values.len(),
            "{name} on {}: {moved} of {} values moved",
            self.name,
            values.len()
        );
    }
}

/// The block with the weight at `place`, and the largest weights, which set the scale, each
/// moved by at most 2 ulp.
fn moved_by_two_ulp(block: &[f32], place: usize) -> impl Iterator<Item = Vec<f32>> {
    let largest = block.iter().fold(0f32, |largest, x| largest.max(x.abs()));
    let shifts = (-2..=2).flat_map(|a| (-2..=2).map(move |b| (a, b)));
    shifts.map(move |(scale, weight)| {
        let mut moved: Vec<f32> = block
            .iter()
            .map(|&x| if x.abs() == largest { ulps_away(x, scale) } else { x })
            .collect();
        moved[place] = ulps_away(moved[place], weight);
        moved
    })
}

fn ulps_away(x: f32, ulps: i32) -> f32 {
    let step = if ulps < 0 { f32::next_down } else { f32::next_up };
    (0..ulps.abs()).fold(x, |x, _| step(x))
}

fn block(fill: impl Fn(usize) -> f32) -> Vec<f32> {
    (0..BLOCK).map(fill).collect()
}

#[test]
fn all_zero_blocks_stay_positive_zero() {
    assert_every_rule_is_the_scalar_one(&[0.0; BLOCK]);
    assert_every_rule_is_the_scalar_one(&[-0.0; BLOCK]);
    let zeros = on(&Device::flex(), &[-0.0; BLOCK], |w| fake_quant::q4_0(w, None));
    assert!(zeros.iter().all(|z| z.to_bits() == 0));
}

#[test]
fn a_tie_of_plus_and_minus_absmax_takes_the_positive() {
    assert_every_rule_is_the_scalar_one(&block(|i| if i % 2 == 0 { 1.5 } else { -1.5 }));
    let values = block(|i| if i == 0 { -1.5 } else { 1.5 });
    assert_every_rule_is_the_scalar_one(&values);
    assert_eq!(on(&Device::flex(), &values, |w| fake_quant::q4_0(w, None))[1], 1.5);
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

#[test]
fn many_uniform_weights_are_rounded_alike() {
    let mut state = 1u64;
    let mut next = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    let values: Vec<f32> = (0..4096 * BLOCK).map(|_| next()).collect();
    assert_every_rule_is_the_scalar_one(&values);
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

#[test]
fn the_gradient_of_given_scales_is_that_of_the_scalar_rule() {
    let values: Vec<f32> =
        (0..64 * BLOCK).map(|i| ((i * 7919 % 1009) as f32 / 504.5 - 1.0) * 0.3).collect();
    let scales = scales(&values);
    let (_, expected) = straight_through_scaled(&values, &scales);
    for target in targets() {
        let tensor = |x: &[f32]| {
            Tensor::<1>::from_data(TensorData::new(x.to_vec(), [x.len()]), &target.device)
        };
        let weights = tensor(&values);
        let ones = weights.ones_like();
        let (_, found) = fake_quant::q4_0_scaled_straight_through(weights, &tensor(&scales), ones);
        for (found, expected) in parameters::values(found).into_iter().zip(&expected) {
            // 32 sums of numbers below 8, each rounded a few times.
            assert!((found - expected).abs() < 1e-4, "{}: {found} {expected}", target.name);
        }
    }
}
