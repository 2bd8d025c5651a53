//! The arithmetic, behind one table of functions chosen once when a model loads.
//!
//! [`scalar`] is the specification: it fixes every order of accumulation, with eight lanes and
//! fused multiply-adds, so that each instruction set's table gives **the same bits**. A sum over a
//! row keeps lane `i % 8` for float products (for 4-bit and 8-bit rows: lane `i / 4 % 8` of each
//! block, whose four products are summed exactly as integers), and ends with
//! `((l0+l4)+(l2+l6)) + ((l1+l5)+(l3+l7))`. The order never depends on how many rows or tokens are
//! computed together; so prefill equals decode, and one thread equals many, bit for bit.
//!
//! Weights are in the file's own layout: rows of ggml blocks, row after row.

mod scalar;
#[cfg(target_arch = "x86_64")]
mod x86_64;

/// Lanes of every float accumulation.
const LANES: usize = 8;
/// Elements of a block of 4-bit or 8-bit values.
pub(crate) const BLOCK: usize = distill_quant::BLOCK;
const Q4_0_BYTES: usize = distill_quant::q4_0::BYTES;
const Q8_0_BYTES: usize = distill_quant::q8_0::BYTES;

/// Q8_0 activations of some tokens: the input of an integer product.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Codes<'a> {
    /// [tokens, columns], each in −127..=127.
    pub codes: &'a [i8],
    /// [tokens, columns / 32].
    pub scales: &'a [f32],
}

/// `y[t * stride + r] = Σ_c w[r, c] · x[t, c]`.
///
/// # Shapes
/// - `w`: [rows, columns], `x`: [tokens, columns]
/// - `y`: at least (tokens − 1) · stride + rows
pub(crate) type MatmulF32 = fn(w: &[f32], x: &[f32], columns: usize, y: &mut [f32], stride: usize);

/// As [`MatmulF32`] on quantised rows (bytes of ggml blocks) and quantised activations.
pub(crate) type MatmulQ8 = fn(w: &[u8], x: Codes<'_>, columns: usize, y: &mut [f32], stride: usize);

/// Attention of one query over one head's cache: softmax(q·kᵀ · scale) · v.
///
/// # Shapes
/// - `q`, `out`: [head_dim]; `k`, `v`: [positions, head_dim]; `scores`: [positions] scratch
pub(crate) type Attend<T> =
    fn(q: &[f32], k: &[T], v: &[T], scale: f32, scores: &mut [f32], out: &mut [f32]);

/// One instruction set's functions. All tables compute the same bits for finite input.
#[derive(Debug)]
pub(crate) struct Kernels {
    /// The instruction set, for people.
    pub name: &'static str,
    /// Bytes of whole Q4_0 blocks → values.
    pub dequantize_q4_0: fn(&[u8], &mut [f32]),
    /// Bytes of whole Q8_0 blocks → values.
    pub dequantize_q8_0: fn(&[u8], &mut [f32]),
    /// Little-endian binary16 → values.
    pub dequantize_f16: fn(&[u8], &mut [f32]),
    /// Values → binary16 bits, round to nearest even (the KV cache).
    pub to_f16: fn(&[f32], &mut [u16]),
    /// Values (whole blocks) → Q8_0 activation codes and f32 scales.
    pub quantize_activations: fn(&[f32], &mut [i8], &mut [f32]),
    pub matmul_f32: MatmulF32,
    pub matmul_q4_0_q8_0: MatmulQ8,
    pub matmul_q8_0_q8_0: MatmulQ8,
    pub attend_f32: Attend<f32>,
    pub attend_f16: Attend<u16>,
    /// `out = x / sqrt(mean(x²) + eps) * weight`.
    pub rms_norm: fn(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]),
    /// `gate = gate / (1 + exp(−gate)) * up`.
    pub silu_mul: fn(gate: &mut [f32], up: &[f32]),
}

/// The specification's own table.
pub(crate) fn scalar() -> &'static Kernels {
    &scalar::KERNELS
}

/// The fastest table this CPU can run.
pub(crate) fn best() -> &'static Kernels {
    #[cfg(target_arch = "x86_64")]
    if let Some(kernels) = x86_64::avx2() {
        return kernels;
    }
    scalar()
}
