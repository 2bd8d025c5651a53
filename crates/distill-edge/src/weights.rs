//! The tensors of a model, checked against the config before anything runs.

use std::collections::HashSet;
use std::ops::Range;
use std::path::Path;

use distill_gguf::{GgmlType, GgufFile};

use crate::EdgeError;
use crate::config::Config;

/// A storage type with kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WeightType {
    F32,
    F16,
    Q4_0,
    Q8_0,
}

impl WeightType {
    const EXPECTED: &'static str = "F32, F16, Q4_0 or Q8_0";

    fn from_ggml(ty: GgmlType) -> Option<Self> {
        match ty {
            GgmlType::F32 => Some(Self::F32),
            GgmlType::F16 => Some(Self::F16),
            GgmlType::Q4_0 => Some(Self::Q4_0),
            GgmlType::Q8_0 => Some(Self::Q8_0),
            _ => None,
        }
    }

    /// Whether rows are blocks of integer codes.
    pub fn is_quantized(self) -> bool {
        matches!(self, Self::Q4_0 | Self::Q8_0)
    }
}

/// A weight matrix in the file's own layout: row after row.
#[derive(Clone, Debug)]
pub(crate) struct Matrix {
    pub ty: WeightType,
    /// The input dimension.
    pub columns: usize,
    /// The output dimension.
    pub rows: usize,
    /// Where it lies in the file.
    range: Range<usize>,
}

impl Matrix {
    /// The bytes of some rows.
    pub fn rows<'f>(&self, file: &'f GgufFile, rows: Range<usize>) -> &'f [u8] {
        let row_bytes = self.range.len() / self.rows;
        let start = self.range.start;
        &file.bytes()[start + rows.start * row_bytes..start + rows.end * row_bytes]
    }
}

/// One transformer layer.
#[derive(Debug)]
pub(crate) struct Layer {
    pub attention_norm: Vec<f32>,
    pub query: Matrix,
    pub key: Matrix,
    pub value: Matrix,
    pub attention_output: Matrix,
    pub feed_forward_norm: Vec<f32>,
    pub gate: Matrix,
    pub up: Matrix,
    pub down: Matrix,
}

/// All tensors of a model. Matrices stay in the mapped file; norms are copied.
#[derive(Debug)]
pub(crate) struct Weights {
    pub embedding: Matrix,
    pub layers: Vec<Layer>,
    pub output_norm: Vec<f32>,
    /// The embedding itself where the head is tied.
    pub head: Matrix,
    /// Llama 3's RoPE scaling: pair i's frequency is divided by factor i.
    pub rope_factors: Option<Vec<f32>>,
}

impl Weights {
    /// Finds every tensor of the architecture and refuses any other.
    pub fn load(file: &GgufFile, path: &Path, config: &Config) -> Result<Self, EdgeError> {
        let mut loader = Loader { file, path, known: HashSet::new() };
        let Config { hidden_size: hidden, feed_forward, vocab_size, .. } = *config;
        let query = config.heads * config.head_dim;
        let kv = config.kv_heads * config.head_dim;
        let embedding = loader.matrix("token_embd.weight".to_owned(), hidden, vocab_size)?;
        // Not with the announced capacity: a hostile file may announce 2³² layers and hold none.
        let mut layers = Vec::new();
        for i in 0..config.layers {
            let name = |part: &str| format!("blk.{i}.{part}.weight");
            layers.push(Layer {
                attention_norm: loader.vector(name("attn_norm"), hidden)?,
                query: loader.matrix(name("attn_q"), hidden, query)?,
                key: loader.matrix(name("attn_k"), hidden, kv)?,
                value: loader.matrix(name("attn_v"), hidden, kv)?,
                attention_output: loader.matrix(name("attn_output"), query, hidden)?,
                feed_forward_norm: loader.vector(name("ffn_norm"), hidden)?,
                gate: loader.matrix(name("ffn_gate"), hidden, feed_forward)?,
                up: loader.matrix(name("ffn_up"), hidden, feed_forward)?,
                down: loader.matrix(name("ffn_down"), feed_forward, hidden)?,
            });
        }
        let output_norm = loader.vector("output_norm.weight".to_owned(), hidden)?;
        let head = match loader.has("output.weight") {
            true => loader.matrix("output.weight".to_owned(), hidden, vocab_size)?,
            false => embedding.clone(),
        };
        let rope_factors = match loader.has("rope_freqs.weight") {
            true => Some(loader.vector("rope_freqs.weight".to_owned(), config.head_dim / 2)?),
            false => None,
        };
        loader.refuse_others()?;
        Ok(Self { embedding, layers, output_norm, head, rope_factors })
    }

    /// Every matrix that is a linear layer, the head included, with its name in the file.
    pub fn linears(&self) -> impl Iterator<Item = (String, &Matrix)> {
        let of_layers = self.layers.iter().enumerate().flat_map(|(i, l)| {
            [
                ("attn_q", &l.query),
                ("attn_k", &l.key),
                ("attn_v", &l.value),
                ("attn_output", &l.attention_output),
                ("ffn_gate", &l.gate),
                ("ffn_up", &l.up),
                ("ffn_down", &l.down),
            ]
            .map(|(part, matrix)| (format!("blk.{i}.{part}.weight"), matrix))
        });
        of_layers.chain([("output.weight".to_owned(), &self.head)])
    }

    /// Bytes of weights read to compute one token: all but the embedding's other rows.
    pub fn bytes_per_token(&self) -> usize {
        let norms: usize =
            self.layers.iter().map(|l| l.attention_norm.len() + l.feed_forward_norm.len()).sum();
        let norms = 4 * (norms + self.output_norm.len());
        norms + self.linears().map(|(_, matrix)| matrix.range.len()).sum::<usize>()
    }
}

/// Dims without trailing ones, which some writers add.
fn significant(dims: &[u64]) -> &[u64] {
    &dims[..dims.iter().rposition(|&d| d != 1).map_or(0, |last| last + 1)]
}

struct Loader<'f> {
    file: &'f GgufFile,
    path: &'f Path,
    /// Names asked for so far.
    known: HashSet<String>,
}

impl Loader<'_> {
    fn has(&self, name: &str) -> bool {
        self.file.tensor(name).is_some()
    }

    /// The type and place of a tensor of exactly these dims.
    fn find(
        &mut self,
        tensor: &str,
        dims: &[usize],
    ) -> Result<(GgmlType, Range<usize>), EdgeError> {
        let expected: Vec<u64> = dims.iter().map(|&d| d as u64).collect();
        let Some(view) = self.file.tensor(tensor) else {
            return Err(EdgeError::MissingTensor {
                file: self.path.to_owned(),
                tensor: tensor.to_owned(),
                expected,
            });
        };
        if significant(&view.info.dims) != significant(&expected) {
            return Err(EdgeError::Shape {
                file: self.path.to_owned(),
                tensor: tensor.to_owned(),
                expected,
                found: view.info.dims.clone(),
            });
        }
        self.known.insert(tensor.to_owned());
        Ok((view.info.ty, view.info.range.clone()))
    }

    fn matrix(&mut self, tensor: String, columns: usize, rows: usize) -> Result<Matrix, EdgeError> {
        let (found, range) = self.find(&tensor, &[columns, rows])?;
        let Some(ty) = WeightType::from_ggml(found) else {
            return Err(self.wrong_type(tensor, WeightType::EXPECTED, found));
        };
        Ok(Matrix { ty, columns, rows, range })
    }

    fn vector(&mut self, tensor: String, length: usize) -> Result<Vec<f32>, EdgeError> {
        let (found, range) = self.find(&tensor, &[length])?;
        if found != GgmlType::F32 {
            return Err(self.wrong_type(tensor, "F32", found));
        }
        let bytes = self.file.bytes()[range].as_chunks::<4>().0;
        let values: Vec<f32> = bytes.iter().map(|b| f32::from_le_bytes(*b)).collect();
        match values.iter().position(|v| !v.is_finite()) {
            Some(index) => Err(EdgeError::NotFinite {
                file: self.path.to_owned(),
                tensor,
                index,
                found: values[index],
            }),
            None => Ok(values),
        }
    }

    fn wrong_type(&self, tensor: String, expected: &'static str, found: GgmlType) -> EdgeError {
        EdgeError::Type { file: self.path.to_owned(), tensor, expected, found: found.name() }
    }

    fn refuse_others(&self) -> Result<(), EdgeError> {
        match self.file.tensors().iter().find(|t| !self.known.contains(&t.name)) {
            Some(other) => Err(EdgeError::UnexpectedTensor {
                file: self.path.to_owned(),
                tensor: other.name.clone(),
            }),
            None => Ok(()),
        }
    }
}
