//! A model of any small shape, with any bytes for weights, and possibly something wrong. With
//! weights of moderate size all kernels give the same bits.
#![no_main]

use arbitrary::{Arbitrary, Result, Unstructured};
use distill_edge::{Activations, KernelChoice, KvType, LoadOptions};
use distill_fuzz::container::{
    self, Container, F16, F32, Q4_0, Q4_0X16, Q8_0, Q8_0X16, Shape, Tensor, Value,
};
use distill_fuzz::{meter, run};
use libfuzzer_sys::fuzz_target;

#[derive(Debug)]
struct Input {
    file: Vec<u8>,
    options: LoadOptions,
    kv: KvType,
    /// Tokens of the prompt.
    prompt: usize,
    /// Whether no number overflows on the way to the logits: kernels agree on numbers only.
    moderate: bool,
}

impl<'a> Arbitrary<'a> for Input {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        let moderate = u.arbitrary()?;
        let mut container = model(u)?;
        if moderate {
            container.tensors.iter_mut().for_each(moderate_weights);
        } else {
            for _ in 0..u.int_in_range(0..=2)? {
                damage(&mut container, u)?;
            }
        }
        let activations = *u.choose(&[None, Some(Activations::Float), Some(Activations::Q8_0)])?;
        let kernels = *u.choose(&[KernelChoice::Best, KernelChoice::Avx2])?;
        // Keys of binary16 overflow from 65504 on.
        let kvs = [KvType::F32, KvType::Q8_0, KvType::F16];
        let kv = *u.choose(if moderate { &kvs[..2] } else { &kvs })?;
        let options = LoadOptions { activations, threads: 1, kernels };
        // Kernels take tokens in small tiles; long prompts are as good, and slow.
        let prompt = if u.ratio(1, 8)? { run::LONGEST_PROMPT } else { u.int_in_range(1..=5)? };
        Ok(Self { file: container.bytes(), options, kv, prompt, moderate })
    }
}

/// Makes weights and scales numbers below 2: with the highest bit of the exponent cleared.
///
/// Rows have at most 512 elements, of at most 2 · 127 each. Normalised inputs are below 2 · √96, so
/// products and keys are below 1e6, the feed-forward's below 1e12, and the residual stream below
/// 1e17, whose squares are far from overflowing.
fn moderate_weights(tensor: &mut Tensor) {
    if tensor.name == "rope_freqs.weight" {
        tensor.bytes.as_chunks_mut::<4>().0.fill(2.0_f32.to_le_bytes());
        return;
    }
    let (record, scales) = match tensor.ty {
        F32 => (4, 4),
        F16 => (2, 2),
        Q4_0 => (18, 2),
        Q8_0 => (34, 2),
        Q4_0X16 => (18 * 16, 32),
        _ => (34 * 16, 32),
    };
    let step = if tensor.ty == F32 { 4 } else { 2 };
    for record in tensor.bytes.chunks_exact_mut(record) {
        for scale in record[..scales].chunks_exact_mut(step) {
            scale[step - 1] &= 0xBF;
        }
    }
}

fn model(u: &mut Unstructured<'_>) -> Result<Container> {
    let ty = *u.choose(&[F32, F16, Q4_0, Q8_0, Q4_0X16, Q8_0X16])?;
    let kv_heads = u.int_in_range(1..=2)?;
    let mut size =
        || Ok(if ty < 2 { u.int_in_range(1..=70)? } else { 32 * u.int_in_range(1..=3)? });
    let (hidden, feed_forward) = (size()?, size()?);
    let head_dim = *u.choose(if ty < 2 { &[2, 4, 6, 34] } else { &[32, 16, 64] })?;
    // The integer path needs whole blocks of queries too.
    let a_kv_head =
        if head_dim == 16 { 2 * u.int_in_range(1..=2)? } else { u.int_in_range(1..=4)? };
    let shape = Shape {
        hidden,
        feed_forward,
        head_dim,
        kv_heads,
        heads: kv_heads * a_kv_head,
        layers: u.int_in_range(1..=2)?,
        tied: u.arbitrary()?,
        rope_factors: u.ratio(1, 4)?,
    };
    let mut tokens = container::tokens();
    for i in 0..u.int_in_range(0..=12)? {
        tokens.push(format!("f{i}"));
    }
    // The weights of a file repeat the bytes of the input, the norms' too.
    let pattern: Vec<u8> = u.bytes(u.len().min(97))?.to_vec();
    let mut at = 0;
    let mut container = container::model(shape, &tokens, ty, |count| {
        let bytes =
            (at..at + count).map(|i| pattern.get(i % (pattern.len() + 1)).map_or(0x3C, |b| *b));
        at += count;
        bytes.collect()
    });
    for tensor in container.tensors.iter_mut().filter(|t| t.dims[1] == 1 && t.ty == F32) {
        for value in tensor.bytes.as_chunks_mut::<4>().0 {
            if !f32::from_le_bytes(*value).is_finite() {
                *value = 1.0_f32.to_le_bytes();
            }
        }
    }
    container::set_tokenizer(&mut container, "gpt2");
    let types = tokens.iter().map(|_| 1).collect();
    container.set("tokenizer.ggml.token_type", Value::I32s(types));
    Ok(container)
}

/// One thing that is not as it should be.
fn damage(container: &mut Container, u: &mut Unstructured<'_>) -> Result<()> {
    match u.int_in_range(0..=4)? {
        0 => {
            let (_, value) = u.choose_iter(container.keys.iter_mut().collect::<Vec<_>>())?;
            if let Value::U32(x) = value {
                *x = *u.choose(&[0, 1, 2, 3, 32, 1 << 16, 1 << 31, u32::MAX])?;
            }
        }
        1 => {
            let at = u.choose_index(container.tensors.len())?;
            container.tensors.remove(at);
        }
        2 => {
            let at = u.choose_index(container.tensors.len())?;
            let tensor = &mut container.tensors[at];
            tensor.ty = *u.choose(&[F32, F16, Q4_0, Q8_0, Q4_0X16, Q8_0X16, 12, 24, 30])?;
        }
        3 => {
            let at = u.choose_index(container.tensors.len())?;
            let dims = &mut container.tensors[at].dims;
            match u.int_in_range(0..=3)? {
                0 => dims.reverse(),
                1 => dims.push(1),
                2 => dims[0] = u.arbitrary()?,
                _ => dims[1] = 1 << u.int_in_range(0..=63)?,
            }
        }
        _ => {
            let keys = ["llama.rope.freq_base", "llama.attention.layer_norm_rms_epsilon"];
            container.set(u.choose(&keys)?, Value::F32(f32::from_bits(u.arbitrary()?)));
        }
    }
    Ok(())
}

fuzz_target!(|input: Input| {
    let Input { file, options, kv, prompt, moderate } = input;
    meter::without_leaks(|| {
        let fast = run::model(&file, &options, kv, prompt);
        if moderate {
            let scalar = LoadOptions { kernels: KernelChoice::Scalar, ..options };
            assert_eq!(fast, run::model(&file, &scalar, kv, prompt));
        }
    });
});
