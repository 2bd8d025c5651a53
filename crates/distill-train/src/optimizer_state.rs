//! `optimizer.safetensors`: the moments, bit for bit in the type that they are kept in.
//!
//! `exp_avg.<parameter>` and `exp_avg_sq.<parameter>` are F32, BF16, or U8 with
//! `exp_avg_scale.<parameter>` and `exp_avg_sq_scale.<parameter>` in F32, one for each 256 codes.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::{Device, Tensor, TensorData};
use distill_models::parameters;
use distill_ops::{EightBit, MOMENT_BLOCK, MomentType, Moments};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, View};

use crate::TrainError;
use crate::optimizer::AdamW;

/// First and second moment: the names of the values and of the scales.
const NAMES: [(&str, &str); 2] = [("exp_avg", "exp_avg_scale"), ("exp_avg_sq", "exp_avg_sq_scale")];

/// Writes the moments.
///
/// # Errors
/// [`TrainError::Io`].
pub(crate) fn write(path: &Path, optimizer: &AdamW) -> Result<(), TrainError> {
    let mut tensors: Vec<(String, Part<'_>)> = Vec::new();
    let mut add = |name: &str, parameter: &str, values| {
        tensors.push((format!("{name}.{parameter}"), Part::new(values)));
    };
    for (parameter, moments) in optimizer.moments() {
        for (index, (name, scale)) in NAMES.into_iter().enumerate() {
            match moments {
                Moments::F32(both) => add(name, parameter, Values::Tensor(&both[index])),
                Moments::Bf16(both) => add(name, parameter, Values::Bf16(&both[index])),
                Moments::EightBit(both) => {
                    add(name, parameter, Values::Codes(&both[index].codes));
                    add(scale, parameter, Values::F32(&both[index].scales));
                }
            }
        }
    }
    safetensors::serialize_to_file(tensors, None, path).map_err(|error| match error {
        safetensors::SafeTensorError::IoError(source) => TrainError::io("writing", path)(source),
        other => damaged(path, other.to_string()),
    })
}

/// Some of the moments, which become bytes when their turn comes to be written.
struct Part<'a> {
    shape: [usize; 1],
    values: Values<'a>,
}

enum Values<'a> {
    Tensor(&'a Tensor<1>),
    F32(&'a [f32]),
    Bf16(&'a [u16]),
    Codes(&'a [u8]),
}

impl<'a> Part<'a> {
    fn new(values: Values<'a>) -> Self {
        let elements = match values {
            Values::Tensor(tensor) => tensor.dims()[0],
            Values::F32(values) => values.len(),
            Values::Bf16(values) => values.len(),
            Values::Codes(values) => values.len(),
        };
        Self { shape: [elements], values }
    }
}

impl View for Part<'_> {
    fn dtype(&self) -> Dtype {
        match self.values {
            Values::Tensor(_) | Values::F32(_) => Dtype::F32,
            Values::Bf16(_) => Dtype::BF16,
            Values::Codes(_) => Dtype::U8,
        }
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        match self.values {
            Values::Tensor(tensor) => bytes(&parameters::values(tensor.clone())).into(),
            Values::F32(values) => bytes(values).into(),
            Values::Bf16(bits) => bits.iter().flat_map(|bits| bits.to_le_bytes()).collect(),
            Values::Codes(codes) => codes.into(),
        }
    }

    fn data_len(&self) -> usize {
        self.shape[0] * size_of(self.dtype())
    }
}

/// Reads the moments of parameters of these names and dimensions, in the type that `optimizer` keeps
/// them in.
///
/// # Errors
/// [`TrainError::OptimizerState`] if they are of another type, [`TrainError::Checkpoint`],
/// [`TrainError::Io`].
pub(crate) fn read(
    path: &Path,
    optimizer: &AdamW,
    shapes: &[(String, Vec<usize>)],
    device: &Device,
) -> Result<BTreeMap<String, Moments>, TrainError> {
    let file = std::fs::read(path).map_err(TrainError::io("reading", path))?;
    let file = SafeTensors::deserialize(&file).map_err(|e| damaged(path, e.to_string()))?;
    let ty = optimizer.state();
    let expected = dtype(ty);
    let mut left: std::collections::BTreeSet<String> =
        file.names().into_iter().map(str::to_owned).collect();
    let mut tensor = |name: &str, parameter: &str, dtype, elements: usize| {
        let name = format!("{name}.{parameter}");
        left.remove(&name);
        let view = file.tensor(&name).ok();
        if let Some(view) = &view
            && view.dtype() != dtype
            && let Some(found) = word(view.dtype())
        {
            let expected = word(dtype).unwrap_or("f32");
            return Err(TrainError::OptimizerState { path: path.to_path_buf(), found, expected });
        }
        match view.filter(|view| view.dtype() == dtype && view.shape() == [elements]) {
            Some(view) => Ok(view.data().to_vec()),
            None => Err(damaged(path, format!("`{name}` is not {elements} values of {dtype:?}"))),
        }
    };
    let mut all = BTreeMap::new();
    for (parameter, dims) in shapes {
        let elements: usize = dims.iter().product();
        let mut values = |name| tensor(name, parameter, expected, elements);
        let [m, v] = [values(NAMES[0].0)?, values(NAMES[1].0)?];
        let moments = match ty {
            MomentType::F32 => Moments::F32(Box::new([m, v].map(|bytes| {
                Tensor::from_data(TensorData::new(floats(&bytes), [elements]), device)
            }))),
            MomentType::Bf16 => Moments::Bf16([m, v].map(|bytes| {
                bytes.as_chunks::<2>().0.iter().map(|pair| u16::from_le_bytes(*pair)).collect()
            })),
            MomentType::EightBit => {
                let blocks = elements.div_ceil(MOMENT_BLOCK);
                let mut scales =
                    |name| tensor(name, parameter, Dtype::F32, blocks).map(|b| floats(&b));
                let [of_m, of_v] = [scales(NAMES[0].1)?, scales(NAMES[1].1)?];
                Moments::EightBit([
                    EightBit { codes: m, scales: of_m },
                    EightBit { codes: v, scales: of_v },
                ])
            }
        };
        all.insert(parameter.clone(), moments);
    }
    match left.first() {
        Some(name) => Err(damaged(path, format!("unknown tensor `{name}`"))),
        None => Ok(all),
    }
}

fn damaged(path: &Path, problem: String) -> TrainError {
    TrainError::Checkpoint { path: path.to_path_buf(), problem }
}

fn dtype(ty: MomentType) -> Dtype {
    match ty {
        MomentType::F32 => Dtype::F32,
        MomentType::Bf16 => Dtype::BF16,
        MomentType::EightBit => Dtype::U8,
    }
}

/// What a recipe calls moments of this type.
fn word(dtype: Dtype) -> Option<&'static str> {
    match dtype {
        Dtype::F32 => Some("f32"),
        Dtype::BF16 => Some("bf16"),
        Dtype::U8 => Some("8bit"),
        _ => None,
    }
}

fn size_of(dtype: Dtype) -> usize {
    match dtype {
        Dtype::U8 => 1,
        Dtype::BF16 => 2,
        _ => 4,
    }
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|four| f32::from_le_bytes(*four)).collect()
}
