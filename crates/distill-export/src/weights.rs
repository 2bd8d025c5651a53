//! Which tensors a Llama has, and how each becomes bytes of a GGUF file.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;

use distill_gguf::GgmlType;
use distill_gguf::names::{self, Heads, RowLayout};
use distill_quant::{BLOCK, f16, q4_0, q8_0};

use crate::checkpoint::{Checkpoint, Tensor};
use crate::config::LlamaConfig;
use crate::{ExportError, FloatType, Grid, Mismatch};

/// Elements that are in memory at once: about a MiB of f32.
const PIECE: usize = 1 << 18;

/// A tensor of the checkpoint with its place in the GGUF.
pub(crate) struct Weight<'a> {
    pub tensor: &'a Tensor,
    /// The scale of each block of a quantised student, where it does not follow from the weights.
    scales: Option<&'a Tensor>,
    pub gguf_name: String,
    /// Rows of a rotary head that must change places, or `None`.
    head_dim: Option<usize>,
    pub role: Role,
}

/// What decides the grid of a tensor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Role {
    /// Token embedding and head.
    Embedding,
    /// A linear layer.
    Linear,
    /// A norm: always f32.
    Norm,
}

/// The weights in the order of the forward pass, checked against `config`.
pub(crate) fn weights<'a>(
    directory: &Path,
    config: &LlamaConfig,
    checkpoint: &'a Checkpoint,
) -> Result<Vec<Weight<'a>>, ExportError> {
    let expected = expected(config);
    let missing: Vec<String> = expected
        .iter()
        .filter(|(name, _)| checkpoint.get(name).is_none())
        .map(|(name, _)| name.clone())
        .collect();
    let known: BTreeSet<&str> = expected.iter().map(|(name, _)| name.as_str()).collect();
    let unexpected: Vec<String> = checkpoint
        .tensors()
        .map(|tensor| tensor.name.as_str())
        .filter(|name| !known.contains(name) && !redundant(name, config))
        .filter(|name| !matrix_of_scales(name).is_some_and(|matrix| known.contains(&*matrix)))
        .map(str::to_owned)
        .collect();
    if !missing.is_empty() || !unexpected.is_empty() {
        let mismatch = Mismatch { missing, unexpected };
        return Err(ExportError::Tensors { directory: directory.to_owned(), mismatch });
    }
    expected
        .into_iter()
        .filter_map(|(name, shape)| Some((checkpoint.get(&name)?, shape)))
        .map(|(tensor, shape)| {
            let scales = checkpoint.get(&scales_of(&tensor.name));
            weight(tensor, scales, shape, config)
        })
        .collect()
}

/// The name of a matrix's scales: `….weight_scale` for `….weight`.
fn scales_of(matrix: &str) -> String {
    format!("{matrix}_scale")
}

/// The name of the matrix whose scales a tensor is.
fn matrix_of_scales(name: &str) -> Option<String> {
    name.strip_suffix("_scale").filter(|name| name.ends_with(".weight")).map(str::to_owned)
}

fn weight<'a>(
    tensor: &'a Tensor,
    scales: Option<&'a Tensor>,
    expected: Vec<usize>,
    config: &LlamaConfig,
) -> Result<Weight<'a>, ExportError> {
    let shaped = |tensor: &Tensor, expected: Vec<usize>| match tensor.shape == expected {
        true => Ok(()),
        false => Err(ExportError::Shape {
            file: tensor.file.clone(),
            tensor: tensor.name.clone(),
            found: tensor.shape.clone(),
            expected,
        }),
    };
    if let Some(scales) = scales {
        let mut blocks = expected.clone();
        if let Some(columns) = blocks.last_mut() {
            *columns /= BLOCK;
        }
        shaped(scales, blocks)?;
    }
    shaped(tensor, expected)?;
    let (gguf_name, rows) = names::to_gguf(&tensor.name)
        .expect("every tensor that is expected comes from the table of names");
    let head_dim = match rows {
        RowLayout::Plain => None,
        RowLayout::RopeHalves { heads: Heads::Query | Heads::Key } => Some(config.head_dim),
    };
    let role = match (gguf_name.as_str(), tensor.shape.len()) {
        ("token_embd.weight" | "output.weight", _) => Role::Embedding,
        (_, 1) => Role::Norm,
        _ => Role::Linear,
    };
    Ok(Weight { tensor, scales, gguf_name, head_dim, role })
}

/// Names and shapes by `config`, in the order of the forward pass.
fn expected(config: &LlamaConfig) -> Vec<(String, Vec<usize>)> {
    let LlamaConfig { vocab_size, hidden_size, intermediate_size, head_dim, .. } = *config;
    let queries = config.num_attention_heads * head_dim;
    let keys = config.num_key_value_heads * head_dim;
    let shape = |gguf: &str| match gguf.trim_start_matches("blk.{}.") {
        "token_embd.weight" | "output.weight" => vec![vocab_size, hidden_size],
        "attn_q.weight" => vec![queries, hidden_size],
        "attn_k.weight" | "attn_v.weight" => vec![keys, hidden_size],
        "attn_output.weight" => vec![hidden_size, queries],
        "ffn_gate.weight" | "ffn_up.weight" => vec![intermediate_size, hidden_size],
        "ffn_down.weight" => vec![hidden_size, intermediate_size],
        _ => vec![hidden_size],
    };
    let table = || names::LLAMA.iter();
    let before = table().take_while(|name| !name.hf.contains("{}"));
    let layered = || table().filter(|name| name.hf.contains("{}"));
    let behind = table().skip_while(|name| !name.hf.contains("{}"));
    let mut all: Vec<_> = before.map(|name| (name.hf.to_owned(), shape(name.gguf))).collect();
    for layer in 0..config.num_hidden_layers {
        let layer = layer.to_string();
        let named = |hf: &str| hf.replacen("{}", &layer, 1);
        all.extend(layered().map(|name| (named(name.hf), shape(name.gguf))));
    }
    let untied = |gguf: &str| gguf != "output.weight" || !config.tie_word_embeddings;
    let behind = behind.filter(|name| !name.hf.contains("{}") && untied(name.gguf));
    all.extend(behind.map(|name| (name.hf.to_owned(), shape(name.gguf))));
    all
}

/// Tensors that some checkpoints repeat and nothing reads.
fn redundant(name: &str, config: &LlamaConfig) -> bool {
    name.ends_with(".rotary_emb.inv_freq")
        || (name == "lm_head.weight" && config.tie_word_embeddings)
}

impl Weight<'_> {
    /// GGUF's dims: the row length first.
    pub fn dims(&self) -> Vec<u64> {
        self.tensor.shape.iter().rev().map(|&dim| dim as u64).collect()
    }

    /// The grid for this tensor, if its rows are whole blocks of it.
    pub fn grid(&self, linears: Grid, embeddings: Grid) -> Result<Grid, ExportError> {
        let grid = match self.role {
            Role::Embedding => embeddings,
            Role::Linear => linears,
            Role::Norm => Grid::F32,
        };
        let (row, block) = (self.row(), grid.ggml_type().block_elements());
        if row.is_multiple_of(block) {
            return Ok(grid);
        }
        Err(ExportError::RowNotBlocks {
            file: self.tensor.file.clone(),
            tensor: self.tensor.name.clone(),
            row,
            grid: grid.ggml_type().name(),
            block,
        })
    }

    /// Writes all rows in GGUF's order, on `grid`.
    pub fn write(&self, grid: Grid, out: &mut dyn Write) -> Result<(), WriteFailure> {
        let row = self.row();
        // A rotary head is contiguous in both orders, so pieces are whole heads.
        let head_dim = self.head_dim.unwrap_or(1);
        let mut bytes = Vec::new();
        self.for_each_piece(row * head_dim, |values, scales| {
            bytes.clear();
            match self.head_dim {
                None => grid.encode(values, scales, &mut bytes),
                Some(head_dim) => {
                    let rows = values.len() / row;
                    let ordered = |values| names::permute_rows(values, rows, rows / head_dim);
                    grid.encode(&ordered(values), scales.map(ordered).as_deref(), &mut bytes);
                }
            }
            Ok(out.write_all(&bytes)?)
        })
    }

    /// All rows in their own order, each with the values that it has on `grid`.
    pub fn for_each_rounded_piece(
        &self,
        grid: Grid,
        mut each: impl FnMut(&[f32]) -> Result<(), ExportError>,
    ) -> Result<(), ExportError> {
        let mut bytes = Vec::new();
        let mut rounded = Vec::new();
        self.for_each_piece(self.row(), |values, scales| {
            bytes.clear();
            grid.encode(values, scales, &mut bytes);
            rounded.resize(values.len(), 0.0);
            grid.decode(&bytes, &mut rounded);
            each(&rounded)
        })
    }

    /// Some of the weights at a time, whole units, with the scales of their blocks if they have any.
    fn for_each_piece<E: From<ExportError>>(
        &self,
        unit: usize,
        mut each: impl FnMut(&[f32], Option<&[f32]>) -> Result<(), E>,
    ) -> Result<(), E> {
        let scales = self.scales.filter(|_| self.row().is_multiple_of(BLOCK));
        let scales = scales.map(Tensor::values).transpose()?;
        let mut done = 0;
        self.tensor.for_each_piece(unit * (PIECE / unit).max(1), |values| {
            let blocks = done / BLOCK..(done + values.len()) / BLOCK;
            done += values.len();
            each(values, scales.as_ref().map(|scales| &scales[blocks]))
        })
    }

    fn row(&self) -> usize {
        self.tensor.shape.last().copied().unwrap_or(1)
    }
}

/// Why a tensor could not be written: its source, or the disk.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WriteFailure {
    #[error(transparent)]
    Export(#[from] ExportError),
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

impl Grid {
    /// The type in a GGUF file.
    #[must_use]
    pub const fn ggml_type(self) -> GgmlType {
        match self {
            Self::F32 => GgmlType::F32,
            Self::F16 => GgmlType::F16,
            Self::Q4_0 => GgmlType::Q4_0,
            Self::Q8_0 => GgmlType::Q8_0,
        }
    }

    /// Appends the bytes of whole rows. Scales are those of their blocks, for Q4_0.
    fn encode(self, values: &[f32], scales: Option<&[f32]>, bytes: &mut Vec<u8>) {
        let start = bytes.len();
        match self {
            Self::F32 => bytes.extend(values.iter().flat_map(|x| x.to_le_bytes())),
            Self::F16 => {
                bytes.extend(values.iter().flat_map(|&x| f16::from_f32_saturating(x).to_le_bytes()))
            }
            Self::Q4_0 => {
                bytes.resize(start + values.len() / BLOCK * q4_0::BYTES, 0);
                match scales {
                    None => q4_0::quantize_row(values, &mut bytes[start..]),
                    Some(scales) => q4_0::quantize_row_scaled(values, scales, &mut bytes[start..]),
                }
            }
            Self::Q8_0 => {
                bytes.resize(start + values.len() / BLOCK * q8_0::BYTES, 0);
                q8_0::quantize_row(values, &mut bytes[start..]);
            }
        }
    }

    /// The values that [`Grid::encode`]d bytes stand for.
    fn decode(self, bytes: &[u8], values: &mut [f32]) {
        match self {
            Self::F32 => FloatType::F32.widen(bytes, values),
            Self::F16 => FloatType::F16.widen(bytes, values),
            Self::Q4_0 => q4_0::dequantize(bytes, values),
            Self::Q8_0 => q8_0::dequantize(bytes, values),
        }
    }
}
