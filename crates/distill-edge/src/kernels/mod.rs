//! The arithmetic, behind one table of functions chosen once when a model loads.
//!
//! [`scalar`] is the specification: it fixes every order of accumulation, so that each instruction
//! set's table gives **the same bits**. The orders never depend on how many rows, tokens or
//! threads compute together; so prefill equals decode, and one thread equals many, bit for bit.
//!
//! Quantised matrices are in the layout of [`distill_quant::packed`]: sixteen rows side by side, one row a lane.

mod attention;
mod codes;
mod scalar;

#[cfg(target_arch = "aarch64")]
mod aarch64;
#[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
mod cover;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod x86_64;

pub(crate) use attention::{Attend, CHUNK, Cached, Element, POSITIONS, Queries, Total};
pub(crate) use codes::{Block, Codes, SIDE_BY_SIDE};
pub(crate) use scalar::{exponential, merge};

use crate::model::KernelChoice;

/// Lanes of a float accumulation along a row.
const LANES: usize = 8;
/// Elements of a block of 4-bit or 8-bit values.
pub(crate) const BLOCK: usize = distill_quant::BLOCK;

/// Values of whole blocks → quantised ones: block b becomes `blocks[b * step]`.
pub(crate) type Quantize = fn(values: &[f32], blocks: &mut [Block], step: usize);

/// `y[t * stride + r] = Σ_c w[r, c] · x[t, c]`.
///
/// # Shapes
/// - `w`: [rows, columns], `x`: [tokens, columns]
/// - `y`: at least (tokens − 1) · stride + rows
pub(crate) type MatmulF32 = fn(w: &[f32], x: &[f32], columns: usize, y: &mut [f32], stride: usize);

/// As [`MatmulF32`] on whole groups of [`distill_quant::packed`] rows and quantised activations; the padding
/// rows of a last group are written too.
pub(crate) type Product = fn(w: &[u8], x: Codes<'_>, columns: usize, y: &mut [f32], stride: usize);

/// One instruction set's functions. All tables compute the same bits for finite input.
#[derive(Debug)]
pub(crate) struct Kernels {
    /// The instruction set, for people.
    pub name: &'static str,
    /// Little-endian binary16 → values.
    pub dequantize_f16: fn(&[u8], &mut [f32]),
    /// Values → binary16 bits, round to nearest even (the KV cache).
    pub to_f16: fn(&[f32], &mut [u16]),
    pub quantize_activations: Quantize,
    pub matmul_f32: MatmulF32,
    pub product_q4_0: Product,
    pub product_q8_0: Product,
    pub attend_f32: Attend<f32>,
    pub attend_f16: Attend<u16>,
    /// On codes of Q8_0.
    pub attend_q8_0: Attend<i8>,
    /// `out = x / sqrt(mean(x²) + eps) * weight`.
    pub rms_norm: fn(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]),
    /// `gate = gate / (1 + exp(−gate)) * up`.
    pub silu_mul: fn(gate: &mut [f32], up: &[f32]),
    /// Does so many rounds of the integer products' instructions on registers, and returns the
    /// multiplications and additions of one round: the measure of what the kernels could reach.
    pub int8_peak: fn(rounds: usize) -> usize,
    /// Reads all bytes as fast as memory gives them.
    pub read_all: fn(&[u8]),
}

/// The tables that this CPU runs beside the specification, the fastest first.
fn tables() -> impl Iterator<Item = &'static Kernels> {
    #[cfg(target_arch = "x86_64")]
    let tables = x86_64::tables();
    #[cfg(target_arch = "aarch64")]
    let tables = aarch64::tables();
    #[cfg(not(any(target_arch = "aarch64", target_arch = "x86_64")))]
    let tables = [None];
    tables.into_iter().flatten()
}

/// The table to run; one that this CPU lacks gives way to the specification.
pub(crate) fn choose(choice: KernelChoice) -> &'static Kernels {
    let table = match choice {
        KernelChoice::Best => tables().next(),
        KernelChoice::Avx2 => tables().find(|table| table.name == "avx2"),
        KernelChoice::Neon => tables().find(|table| table.name == "neon"),
        KernelChoice::Dotprod => tables().find(|table| table.name == "dotprod"),
        KernelChoice::Scalar => None,
    };
    table.unwrap_or(&scalar::KERNELS)
}
