//! The weights of a Hugging Face directory, read piece by piece.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use distill_quant::{bf16, f16};
use serde_json::Value;

use crate::error::shortened;
use crate::safetensors_header::{self, Entry};
use crate::{ExportError, FloatType};

/// All tensors of a checkpoint, wherever they stand.
#[derive(Debug)]
pub(crate) struct Checkpoint {
    tensors: BTreeMap<String, Tensor>,
}

/// A tensor of a float type in a safetensors file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Tensor {
    pub name: String,
    pub file: PathBuf,
    pub ty: FloatType,
    pub shape: Vec<usize>,
    start: u64,
}

impl Checkpoint {
    /// Reads the headers of `model.safetensors`, or of the shards that its index names.
    pub fn open(directory: &Path) -> Result<Self, ExportError> {
        let single = directory.join("model.safetensors");
        if single.is_file() {
            return Ok(Self { tensors: tensors_of(&single)? });
        }
        let index = directory.join("model.safetensors.index.json");
        if !index.is_file() {
            return Err(ExportError::Missing {
                file: single,
                expected: "model.safetensors, or model.safetensors.index.json with its shards",
            });
        }
        Ok(Self { tensors: sharded(directory, &index)? })
    }

    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(name)
    }

    pub fn tensors(&self) -> impl ExactSizeIterator<Item = &Tensor> {
        self.tensors.values()
    }
}

fn tensors_of(file: &Path) -> Result<BTreeMap<String, Tensor>, ExportError> {
    let entries = safetensors_header::read(file)?;
    entries
        .into_iter()
        .map(|(name, entry)| Ok((name.clone(), Tensor::new(name, file, entry)?)))
        .collect()
}

fn sharded(directory: &Path, index: &Path) -> Result<BTreeMap<String, Tensor>, ExportError> {
    let text = std::fs::read(index)
        .map_err(|source| ExportError::Read { file: index.to_owned(), source })?;
    let json: Value = serde_json::from_slice(&text)
        .map_err(|source| ExportError::Json { file: index.to_owned(), source })?;
    let damaged = |place: String, found: String, expected: &str| ExportError::Safetensors {
        file: index.to_owned(),
        place,
        found,
        expected: expected.to_owned(),
    };
    let Some(map) = json.get("weight_map").and_then(Value::as_object) else {
        let found = json.get("weight_map").map_or("missing".to_owned(), shortened);
        return Err(damaged("`weight_map`".into(), found, "an object of tensor and file names"));
    };
    let mut shards = BTreeSet::new();
    for (tensor, shard) in map {
        // A plain name: an index must not lead out of its directory.
        let plain = shard.as_str().filter(|shard| {
            let mut parts = Path::new(shard).components();
            matches!(parts.next(), Some(std::path::Component::Normal(_))) && parts.next().is_none()
        });
        let Some(shard) = plain else {
            let place = format!("the file of tensor `{tensor}`");
            return Err(damaged(place, shortened(shard), "the name of a file beside the index"));
        };
        shards.insert(shard);
    }
    let mut tensors = BTreeMap::new();
    for shard in shards {
        let file = directory.join(shard);
        if !file.is_file() {
            let expected = "every shard that model.safetensors.index.json names";
            return Err(ExportError::Missing { file, expected });
        }
        tensors.extend(tensors_of(&file)?);
    }
    match map.keys().find(|name| !tensors.contains_key(*name)) {
        None => Ok(tensors),
        Some(name) => {
            let place = format!("the file of tensor `{name}`");
            let found = shortened(&map[name]);
            Err(damaged(place, found, "a shard that holds this tensor"))
        }
    }
}

impl Tensor {
    fn new(name: String, file: &Path, entry: Entry) -> Result<Self, ExportError> {
        let ty = match entry.dtype.as_str() {
            "F32" => FloatType::F32,
            "F16" => FloatType::F16,
            "BF16" => FloatType::BF16,
            _ => {
                let (file, found) = (file.to_owned(), entry.dtype);
                return Err(ExportError::Dtype { file, tensor: name, found });
            }
        };
        Ok(Self { name, file: file.to_owned(), ty, shape: entry.shape, start: entry.start })
    }

    /// Elements of the tensor.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// All elements, checked to be finite.
    pub fn values(&self) -> Result<Vec<f32>, ExportError> {
        let mut all = Vec::with_capacity(self.elements());
        self.for_each_piece(1 << 18, |values| {
            all.extend_from_slice(values);
            Ok::<(), ExportError>(())
        })?;
        Ok(all)
    }

    /// Reads all elements in order, `piece` at a time (the last piece may be shorter), checked to
    /// be finite.
    pub fn for_each_piece<E: From<ExportError>>(
        &self,
        piece: usize,
        mut each: impl FnMut(&[f32]) -> Result<(), E>,
    ) -> Result<(), E> {
        let read_error = |source| ExportError::Read { file: self.file.clone(), source };
        let mut file = File::open(&self.file).map_err(read_error)?;
        file.seek(SeekFrom::Start(self.start)).map_err(read_error)?;
        let elements = self.elements();
        let size = self.ty.bytes();
        let piece = piece.clamp(1, elements.max(1));
        let (mut bytes, mut values) = (vec![0; piece * size], vec![0.0; piece]);
        let mut done = 0;
        while done < elements {
            let len = piece.min(elements - done);
            let (bytes, values) = (&mut bytes[..len * size], &mut values[..len]);
            file.read_exact(bytes).map_err(read_error)?;
            self.ty.widen(bytes, values);
            if let Some(at) = values.iter().position(|x| !x.is_finite()) {
                Err(ExportError::NonFinite {
                    file: self.file.clone(),
                    tensor: self.name.clone(),
                    index: done + at,
                    value: values[at],
                })?;
            }
            each(values)?;
            done += len;
        }
        Ok(())
    }
}

impl FloatType {
    /// Bytes of an element.
    pub(crate) fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
        }
    }

    pub(crate) fn widen(self, bytes: &[u8], values: &mut [f32]) {
        match self {
            Self::F32 => {
                for (value, bytes) in values.iter_mut().zip(bytes.as_chunks::<4>().0) {
                    *value = f32::from_le_bytes(*bytes);
                }
            }
            Self::F16 => f16::dequantize(bytes, values),
            Self::BF16 => bf16::dequantize(bytes, values),
        }
    }

    /// The elements in this type; f16 saturates.
    pub(crate) fn narrow(self, values: &[f32], bytes: &mut Vec<u8>) {
        match self {
            Self::F32 => bytes.extend(values.iter().flat_map(|x| x.to_le_bytes())),
            Self::F16 => {
                bytes.extend(values.iter().flat_map(|&x| f16::from_f32_saturating(x).to_le_bytes()))
            }
            Self::BF16 => {
                bytes.extend(values.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()));
            }
        }
    }
}
