//! Against the `gguf` Python package: fixtures and their generator stand in `tests/fixtures`.

use std::path::Path;

use distill_quant::{bf16, f16, q4_0, q4_1, q4_k, q5_0, q5_1, q5_k, q6_k, q8_0};

fn fixture(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn floats(name: &str) -> Vec<f32> {
    fixture(name).as_chunks::<4>().0.iter().map(|x| f32::from_le_bytes(*x)).collect()
}

fn check(name: &str, dequantize: fn(&[u8], &mut [f32])) {
    let bytes = fixture(&format!("{name}.bytes"));
    let expected = floats(&format!("{name}.f32"));
    let mut values = vec![f32::NAN; expected.len()];
    dequantize(&bytes, &mut values);
    for (i, (got, want)) in values.iter().zip(&expected).enumerate() {
        assert!(got == want, "{name}, element {i}: {got:e}, expected {want:e}");
    }
}

#[test]
fn every_type_dequantizes_as_the_gguf_package_does() {
    check("f16", f16::dequantize);
    check("bf16", bf16::dequantize);
    check("q4_0", q4_0::dequantize);
    check("q4_1", q4_1::dequantize);
    check("q5_0", q5_0::dequantize);
    check("q5_1", q5_1::dequantize);
    check("q8_0", q8_0::dequantize);
    check("q4_k", q4_k::dequantize);
    check("q5_k", q5_k::dequantize);
    check("q6_k", q6_k::dequantize);
}

#[test]
fn blocks_without_ties_quantize_as_the_gguf_package_does() {
    let mut bytes = vec![0; 8 * q4_0::BYTES];
    q4_0::quantize_row(&floats("q4_0_weights.f32"), &mut bytes);
    assert_eq!(bytes, fixture("q4_0_quantized.bytes"));

    let mut bytes = vec![0; 8 * q8_0::BYTES];
    q8_0::quantize_row(&floats("q8_0_weights.f32"), &mut bytes);
    assert_eq!(bytes, fixture("q8_0_quantized.bytes"));
}

#[test]
#[should_panic(expected = "do not describe")]
fn a_row_of_the_wrong_length_is_a_programmer_error() {
    q4_k::dequantize(&[0; 144], &mut [0.0; 255]);
}
