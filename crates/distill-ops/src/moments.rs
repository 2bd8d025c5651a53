//! AdamW's two moments of a parameter, in one of three types.

use burn::backend::Flex;
use burn::tensor::{Tensor, TensorData};

use crate::cpu::adamw::{self, Update};
use crate::flex::{contiguous, values};
use crate::in_place;
use crate::is_fused;

/// Elements of 8 bits that share a scale.
pub const BLOCK: usize = adamw::BLOCK;

/// A type that moments lie in between two steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum MomentType {
    /// 4 bytes.
    #[default]
    F32,
    /// 2 bytes.
    Bf16,
    /// 1 byte, and 4 for each block of 256.
    EightBit,
}

/// First and second moment of a parameter.
///
/// Those in f32 lie on the parameter's device. The smaller types lie in the host's memory, and their
/// update runs on the CPU whatever the device is.
#[derive(Clone, Debug)]
pub enum Moments {
    /// `[elements]` each.
    F32(Box<[Tensor<1>; 2]>),
    /// Bits of bfloat16, `[elements]` each.
    Bf16([Vec<u16>; 2]),
    /// Codes and scales.
    EightBit([EightBit; 2]),
}

/// Codes `[elements]` and a scale for each [`BLOCK`] of them.
#[derive(Clone, Debug, PartialEq)]
pub struct EightBit {
    /// One byte an element.
    pub codes: Vec<u8>,
    /// `[elements / 256]`, rounded up.
    pub scales: Vec<f32>,
}

impl EightBit {
    fn zeros(elements: usize) -> Self {
        Self { codes: vec![0; elements], scales: vec![1.0; elements.div_ceil(BLOCK)] }
    }

    fn blocks(&mut self) -> adamw::Blocks<'_> {
        adamw::Blocks { codes: &mut self.codes, scales: &mut self.scales }
    }
}

impl Moments {
    /// Those of a parameter like this flat one before its first step.
    pub fn zeros(ty: MomentType, like: &Tensor<1>) -> Self {
        let elements = like.dims()[0];
        match ty {
            MomentType::F32 => Self::F32(Box::new([like.zeros_like(), like.zeros_like()])),
            MomentType::Bf16 => Self::Bf16([vec![0; elements], vec![0; elements]]),
            MomentType::EightBit => {
                Self::EightBit([EightBit::zeros(elements), EightBit::zeros(elements)])
            }
        }
    }

    /// Their type.
    pub fn ty(&self) -> MomentType {
        match self {
            Self::F32(_) => MomentType::F32,
            Self::Bf16(_) => MomentType::Bf16,
            Self::EightBit(_) => MomentType::EightBit,
        }
    }

    /// Bytes that they take.
    pub fn bytes(&self) -> usize {
        match self {
            Self::F32(both) => both.iter().map(|x| 4 * x.dims()[0]).sum(),
            Self::Bf16(both) => both.iter().map(|x| 2 * x.len()).sum(),
            Self::EightBit(both) => both.iter().map(|x| x.codes.len() + 4 * x.scales.len()).sum(),
        }
    }

    /// One AdamW step of flat weights, in place if nobody else holds them. `noise` is the key of what
    /// is drawn for rounding: another for each parameter and step.
    pub fn update(
        &mut self,
        weights: Tensor<1>,
        gradient: Tensor<1>,
        by: Update,
        noise: u32,
    ) -> Tensor<1> {
        match self {
            Self::F32(both) => {
                // Handed over whole, so that nobody else holds them.
                let empty = || Tensor::empty([0], &weights.device());
                let [m, v] = std::mem::replace(&mut **both, [empty(), empty()]);
                let [weights, m, v] = in_place::adamw([weights, m, v], gradient, by);
                **both = [m, v];
                weights
            }
            Self::Bf16([m, v]) => on_host(weights, gradient, &mut |weights, gradient| {
                adamw::update_bf16(weights, gradient, m, v, by, noise);
            }),
            Self::EightBit([m, v]) => on_host(weights, gradient, &mut |weights, gradient| {
                adamw::update_8bit(weights, gradient, m.blocks(), v.blocks(), by, noise);
            }),
        }
    }
}

/// Weights as `update` changes them, wherever they and the gradient lie.
fn on_host(
    weights: Tensor<1>,
    gradient: Tensor<1>,
    update: &mut dyn FnMut(&mut [f32], &[f32]),
) -> Tensor<1> {
    let device = weights.device();
    if !is_fused(&device) {
        let read = |x: Tensor<1>| -> Vec<f32> {
            x.into_data().try_into_vec().expect("the optimiser is given f32 tensors")
        };
        let (mut weights, gradient) = (read(weights), read(gradient));
        update(&mut weights, &gradient);
        let elements = weights.len();
        return Tensor::from_data(TensorData::new(weights, [elements]), &device);
    }
    let host = |x: Tensor<1>| contiguous(x.try_into_primitive::<Flex>().expect("asked before"));
    let (mut weights, gradient) = (host(weights), host(gradient));
    update(weights.storage_mut(), values(&gradient));
    Tensor::from_primitive::<Flex>(weights)
}
