//! A model: a file, checked, with its tokenizer and the kernels this CPU runs.

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, OnceLock};

use distill_gguf::GgufFile;

use crate::EdgeError;
use crate::cache::KvType;
use crate::config::Config;
use crate::forward::row_of;
use crate::kernels::{self, BLOCK, Kernels};
use crate::tokenizer::Tokenizer;
use crate::weights::{Matrix, Weights};

/// The input of every linear layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activations {
    /// f32: the exact path.
    Float,
    /// Q8_0 blocks with f32 scales, for all linear layers and the head: the integer path.
    Q8_0,
}

/// Which kernels to run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KernelChoice {
    /// The fastest this CPU has.
    #[default]
    Best,
    /// Those for AVX2, FMA and F16C, or the specification where the CPU lacks them.
    Avx2,
    /// Those for any 64-bit Arm CPU, or the specification elsewhere.
    Neon,
    /// Those for Arm's dot products of bytes, or the specification where the CPU lacks them.
    Dotprod,
    /// The scalar specification: the same bits, slowly.
    Scalar,
}

impl FromStr for KernelChoice {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "best" => Ok(Self::Best),
            "avx2" => Ok(Self::Avx2),
            "neon" => Ok(Self::Neon),
            "dotprod" => Ok(Self::Dotprod),
            "scalar" => Ok(Self::Scalar),
            _ => Err("expected best, avx2, neon, dotprod or scalar".into()),
        }
    }
}

/// How to load a model.
#[derive(Clone, Debug, Default)]
pub struct LoadOptions {
    /// The input of linear layers; by default what `distill.activations` in the file says
    /// (`q8_0` or `float`), else Q8_0 if any linear layer is quantised.
    pub activations: Option<Activations>,
    /// Threads that load, and those of sessions that do not say; 0 is one per CPU.
    pub threads: usize,
    /// Which kernels to run.
    pub kernels: KernelChoice,
}

/// A loaded model. Clones share it; any number of sessions may run on it.
#[derive(Clone, Debug)]
pub struct Model {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub file: GgufFile,
    pub path: PathBuf,
    pub config: Config,
    pub weights: Weights,
    pub tokenizer: Tokenizer,
    pub kernels: &'static Kernels,
    pub activations: Activations,
    /// Whether any linear layer is F32 or F16, and so takes floats in the integer path too.
    pub has_float_linears: bool,
    pub threads: usize,
    /// See [`Model::hash`].
    hash: OnceLock<u64>,
}

impl Model {
    /// Maps and checks `path`: metadata, vocabulary, and every tensor's presence, shape and type.
    ///
    /// Whatever is in it, loading allocates at most 96 bytes for each byte of the file
    /// and 64 KiB.
    ///
    /// # Errors
    /// If the file is no GGUF file, damaged, of another architecture, or incomplete.
    pub fn load(path: &Path, options: &LoadOptions) -> Result<Self, EdgeError> {
        Self::from_file(GgufFile::open(path)?, options)
    }

    /// Takes a whole file from memory, and checks it as [`Model::load`] does: for a model that is
    /// embedded in a program (`include_bytes!`), downloaded, or run where there are no files.
    /// `name` stands for the file in errors. Borrowed bytes are not copied.
    ///
    /// # Errors
    /// As [`Model::load`].
    pub fn from_bytes(
        bytes: impl Into<Cow<'static, [u8]>>,
        name: &Path,
        options: &LoadOptions,
    ) -> Result<Self, EdgeError> {
        Self::from_file(GgufFile::from_bytes(bytes, name)?, options)
    }

    fn from_file(file: GgufFile, options: &LoadOptions) -> Result<Self, EdgeError> {
        let path = file.path();
        let threads = match options.threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            threads => threads,
        };
        let config = Config::from_gguf(&file)?;
        let tokenizer = Tokenizer::from_gguf(&file)?;
        let weights = Weights::load(&file, path, &config, threads)?;
        let any_quantized = weights.linears().any(Matrix::is_quantized);
        let activations = match options.activations {
            Some(choice) => choice,
            None => preferred_activations(&file, path)?.unwrap_or(match any_quantized {
                true => Activations::Q8_0,
                false => Activations::Float,
            }),
        };
        if activations == Activations::Q8_0 {
            require_whole_blocks(&weights, path)?;
        }
        let has_float_linears = !weights.linears().all(Matrix::is_quantized);
        let kernels = kernels::choose(options.kernels);
        let path = path.to_owned();
        let inner = Inner {
            file,
            path,
            config,
            weights,
            tokenizer,
            kernels,
            activations,
            has_float_linears,
            threads,
            hash: OnceLock::new(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Sizes and constants.
    pub fn config(&self) -> &Config {
        &self.inner.config
    }

    /// The vocabulary.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.inner.tokenizer
    }

    /// The file the model was loaded from, or the name its bytes were given.
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// The input of linear layers that was chosen at load.
    pub fn activations(&self) -> Activations {
        self.inner.activations
    }

    /// The kernels that were chosen at load: `avx512vnni`, `avx2`, `i8mm`, `dotprod`, `neon` or
    /// `scalar`.
    pub fn kernel_name(&self) -> &'static str {
        self.inner.kernels.name
    }

    /// A hash of the whole file, computed at the first call: for telling models apart, not for
    /// security.
    pub(crate) fn hash(&self) -> u64 {
        *self.inner.hash.get_or_init(|| hash(self.inner.file.bytes()))
    }

    /// Weights of the layers' matrices: twice as many operations are done for every token.
    pub(crate) fn layer_weights(&self) -> usize {
        let weights = &self.inner.weights;
        let head = weights.head.rows * weights.head.columns;
        weights.linears().map(|matrix| matrix.rows * matrix.columns).sum::<usize>() - head
    }

    /// A row of the head, dequantised, into `[hidden]` values: the logit of that token is its product
    /// with [`hidden states`](crate::Session::hidden_states).
    ///
    /// # Panics
    /// If the vocabulary has no such token, or `values` is of another length.
    pub fn head_row(&self, token: usize, values: &mut [f32]) {
        let config = &self.inner.config;
        assert!(token < config.vocab_size && values.len() == config.hidden_size);
        row_of(&self.inner, &self.inner.weights.head, token, values);
    }

    /// Bytes of keys and values of one position.
    pub fn cache_bytes(&self, kv: KvType) -> usize {
        kv.position_bytes(&self.inner.config) as usize
    }

    /// Bytes of weights that decoding one token reads: times tokens per second, the bandwidth used.
    pub fn weight_bytes(&self) -> usize {
        self.inner.weights.bytes_per_token()
    }
}

/// Four lanes of multiply and rotate over words, as fast as memory.
fn hash(bytes: &[u8]) -> u64 {
    const ODD: u64 = 0x9E37_79B9_7F4A_7C15;
    let step = |lane: u64, word: u64| (lane ^ word).wrapping_mul(ODD).rotate_left(29);
    let (chunks, rest) = bytes.as_chunks::<32>();
    let mut lanes = [1, 2, 3, 4_u64];
    for chunk in chunks {
        for (lane, word) in lanes.iter_mut().zip(chunk.as_chunks::<8>().0) {
            *lane = step(*lane, u64::from_le_bytes(*word));
        }
    }
    let rest = rest.iter().fold(bytes.len() as u64, |hash, &byte| step(hash, u64::from(byte)));
    lanes.into_iter().fold(rest, step)
}

fn preferred_activations(file: &GgufFile, path: &Path) -> Result<Option<Activations>, EdgeError> {
    const KEY: &str = "distill.activations";
    match file.metadata().optional_string(KEY)? {
        None => Ok(None),
        Some("q8_0") => Ok(Some(Activations::Q8_0)),
        Some("float") => Ok(Some(Activations::Float)),
        Some(other) => Err(EdgeError::Config {
            file: path.to_owned(),
            key: KEY.to_owned(),
            found: format!("`{other}`"),
            expected: "`q8_0` or `float`".to_owned(),
        }),
    }
}

fn require_whole_blocks(weights: &Weights, path: &Path) -> Result<(), EdgeError> {
    match weights.linears().find(|matrix| !matrix.columns.is_multiple_of(BLOCK)) {
        Some(matrix) => Err(EdgeError::NotWholeBlocks {
            file: path.to_owned(),
            tensor: matrix.tensor.clone(),
            columns: matrix.columns,
        }),
        None => Ok(()),
    }
}
