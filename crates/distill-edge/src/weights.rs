//! The tensors of a model, checked against the config before anything runs.

use std::collections::HashSet;
use std::ops::Range;
use std::path::Path;

use distill_gguf::{GgmlType, GgufFile};

use crate::EdgeError;
use crate::arena::{Arena, Pages};
use crate::config::Config;
use crate::tokenizer::stored;
use distill_quant::packed::{Packed, ROWS};

/// How the rows of a matrix are stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Storage {
    /// Rows of floats, where they lie in the file.
    F32(Range<usize>),
    /// Rows of binary16, where they lie in the file.
    F16(Range<usize>),
    /// Groups of [`distill_quant::packed`] rows.
    Packed(Packed, Place),
}

/// Where packed groups lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// In the mapped file, which holds them so.
    File(Range<usize>),
    /// In the arena, where they were packed at load.
    Arena(Range<usize>),
}

/// A weight matrix.
#[derive(Clone, Debug)]
pub(crate) struct Matrix {
    /// Its name in the file.
    pub tensor: String,
    pub storage: Storage,
    /// The input dimension.
    pub columns: usize,
    /// The output dimension.
    pub rows: usize,
}

impl Matrix {
    /// Groups of 16 rows; the last may have fewer.
    pub fn groups(&self) -> usize {
        self.rows.div_ceil(ROWS)
    }

    /// The rows of some groups.
    pub fn rows_of(&self, groups: &Range<usize>) -> Range<usize> {
        groups.start * ROWS..(groups.end * ROWS).min(self.rows)
    }

    /// Whether rows are blocks of integer codes.
    pub fn is_quantized(&self) -> bool {
        matches!(self.storage, Storage::Packed(..))
    }

    fn bytes(&self) -> usize {
        match &self.storage {
            Storage::F32(range)
            | Storage::F16(range)
            | Storage::Packed(_, Place::File(range) | Place::Arena(range)) => range.len(),
        }
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

/// All tensors of a model. Quantised matrices that the file does not hold packed are packed into
/// the arena; all others stay in the mapped file; norms are copied.
#[derive(Debug)]
pub(crate) struct Weights {
    pub arena: Arena,
    pub embedding: Matrix,
    pub layers: Vec<Layer>,
    pub output_norm: Vec<f32>,
    /// The embedding itself where the head is tied.
    pub head: Matrix,
    /// Llama 3's RoPE scaling: pair i's frequency is divided by factor i.
    pub rope_factors: Option<Vec<f32>>,
}

impl Weights {
    /// Finds every tensor of the architecture and refuses any other. Packs on `threads` threads.
    pub fn load(
        file: &GgufFile,
        path: &Path,
        config: &Config,
        threads: usize,
    ) -> Result<Self, EdgeError> {
        let mut loader =
            Loader { file, path, known: HashSet::new(), packings: Vec::new(), packed: 0 };
        if stored::are_in(file)? {
            loader.known.extend(stored::NAMES.map(str::to_owned));
        }
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
        let arena = loader.pack(threads)?;
        Ok(Self { arena, embedding, layers, output_norm, head, rope_factors })
    }

    /// Every matrix that is a linear layer, the head included.
    pub fn linears(&self) -> impl Iterator<Item = &Matrix> {
        let of_layers = self.layers.iter().flat_map(|l| {
            [&l.query, &l.key, &l.value, &l.attention_output, &l.gate, &l.up, &l.down]
        });
        of_layers.chain([&self.head])
    }

    /// Bytes of weights read to compute one token: all but the embedding's other rows.
    pub fn bytes_per_token(&self) -> usize {
        let norms: usize =
            self.layers.iter().map(|l| l.attention_norm.len() + l.feed_forward_norm.len()).sum();
        let norms = 4 * (norms + self.output_norm.len());
        norms + self.linears().map(Matrix::bytes).sum::<usize>()
    }
}

/// Dims without trailing ones, which some writers add.
fn significant(dims: &[u64]) -> &[u64] {
    &dims[..dims.iter().rposition(|&d| d != 1).map_or(0, |last| last + 1)]
}

/// Bytes of the file that are taken out of memory at a time.
const RELEASE: usize = 1 << 20;

struct Loader<'f> {
    file: &'f GgufFile,
    path: &'f Path,
    /// Names asked for so far.
    known: HashSet<String>,
    /// What goes into the arena, in order.
    packings: Vec<Packing>,
    /// Bytes of the arena so far.
    packed: usize,
}

/// A matrix to be packed.
struct Packing {
    grid: Packed,
    columns: usize,
    /// Where its rows lie in the file.
    from: Range<usize>,
    /// Bytes of all its groups.
    bytes: usize,
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
        let mut expected: Vec<u64> = dims.iter().map(|&d| d as u64).collect();
        let Some(view) = self.file.tensor(tensor) else {
            return Err(EdgeError::MissingTensor {
                file: self.path.to_owned(),
                tensor: tensor.to_owned(),
                expected,
            });
        };
        let packed = matches!(view.info.ty, GgmlType::Q4_0X16 | GgmlType::Q8_0X16);
        if packed && let [_, rows] = expected.as_mut_slice() {
            *rows = rows.next_multiple_of(ROWS as u64);
        }
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
        let storage = match found {
            GgmlType::F32 => Storage::F32(range),
            GgmlType::F16 => Storage::F16(range),
            GgmlType::Q4_0 => self.packing(Packed::Q4_0, columns, rows, range),
            GgmlType::Q8_0 => self.packing(Packed::Q8_0, columns, rows, range),
            GgmlType::Q4_0X16 => Storage::Packed(Packed::Q4_0, Place::File(range)),
            GgmlType::Q8_0X16 => Storage::Packed(Packed::Q8_0, Place::File(range)),
            _ => return Err(self.wrong_type(tensor, "F32, F16, Q4_0 or Q8_0", found)),
        };
        Ok(Matrix { tensor, storage, columns, rows })
    }

    /// Reserves room in the arena.
    fn packing(
        &mut self,
        grid: Packed,
        columns: usize,
        rows: usize,
        from: Range<usize>,
    ) -> Storage {
        let bytes = rows.div_ceil(ROWS) * grid.group_bytes(columns);
        let to = self.packed..self.packed + bytes;
        self.packed = to.end;
        self.packings.push(Packing { grid, columns, from, bytes });
        Storage::Packed(grid, Place::Arena(to))
    }

    /// Packs all quantised matrices, on the caller's thread and `threads` − 1 others.
    ///
    /// The arena has at most 16 times the bytes of the file: tensors do not overlap, and the last
    /// group of a matrix, possibly its only one, is filled up to 16 rows.
    fn pack(&self, threads: usize) -> Result<Arena, EdgeError> {
        let mut arena = Arena::new(self.packed, Pages::Large).map_err(|_| {
            EdgeError::WeightMemory { file: self.path.to_owned(), bytes: self.packed }
        })?;
        let threads = threads.clamp(1, self.packings.len().max(1));
        let mut shares: Vec<Vec<(&Packing, &mut [u8])>> =
            (0..threads).map(|_| Vec::new()).collect();
        let mut rest = arena.bytes_mut();
        for (i, packing) in self.packings.iter().enumerate() {
            let (groups, after) = rest.split_at_mut(packing.bytes);
            shares[i % threads].push((packing, groups));
            rest = after;
        }
        let run = |share: Vec<(&Packing, &mut [u8])>| {
            for (packing, groups) in share {
                packing.run(self.file, groups);
            }
        };
        let mine = shares.pop();
        std::thread::scope(|scope| {
            for share in shares {
                scope.spawn(move || run(share));
            }
            mine.map(run);
        });
        Ok(arena)
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

impl Packing {
    fn run(&self, file: &GgufFile, groups: &mut [u8]) {
        let group_bytes = self.grid.group_bytes(self.columns);
        let rows = file.bytes()[self.from.clone()].chunks(group_bytes);
        let (mut packed, mut released) = (self.from.start, self.from.start);
        for (rows, group) in rows.zip(groups.chunks_exact_mut(group_bytes)) {
            self.grid.pack(rows, self.columns, group);
            packed += rows.len();
            // What was packed is not read again: without this, both copies would be in memory.
            if packed - released >= RELEASE || packed == self.from.end {
                file.release(released..packed);
                released = packed;
            }
        }
    }
}
