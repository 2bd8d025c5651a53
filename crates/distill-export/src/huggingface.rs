//! A checkpoint into a Hugging Face directory.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::checkpoint::Checkpoint;
use crate::config::LlamaConfig;
use crate::weights::{Weight, weights};
use crate::{ExportError, Grid, Summary, sha256};

/// Files that travel with the weights, where they exist.
const COMPANIONS: [&str; 8] = [
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
];

/// The float type of the weights in a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FloatType {
    /// binary32.
    F32,
    /// binary16; values beyond its range become the largest of it.
    F16,
    /// bfloat16.
    BF16,
}

impl FloatType {
    /// The name in a safetensors header.
    const fn dtype(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
        }
    }

    /// The name in `config.json`.
    const fn torch(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::F16 => "float16",
            Self::BF16 => "bfloat16",
        }
    }
}

/// What [`export_huggingface`] shall write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HuggingFaceOptions {
    /// The type in the file. A smaller one than F32 rounds what a grid has rounded once more.
    pub ty: FloatType,
    /// The grid whose values the linear layers have.
    pub linears: Grid,
    /// That of the token embedding and of the head, tied or not.
    pub embeddings: Grid,
}

impl HuggingFaceOptions {
    /// The weights as they were trained.
    #[must_use]
    pub const fn unrounded(ty: FloatType) -> Self {
        Self { ty, linears: Grid::F32, embeddings: Grid::F32 }
    }
}

/// Writes the checkpoint as the directory `out`: one `model.safetensors`, `config.json` that says
/// its type, and the tokenizer's files as they are. Weights have the values that they ship with, so
/// that whatever reads the directory runs the model of the GGUF file.
///
/// # Errors
/// If the checkpoint is incomplete, damaged or not finite, or the disk refuses. Each file is
/// replaced only when its successor is complete.
pub fn export_huggingface(
    checkpoint: &Path,
    out: &Path,
    options: &HuggingFaceOptions,
) -> Result<Summary, ExportError> {
    let ty = options.ty;
    let config = LlamaConfig::read(checkpoint)?;
    let tensors = Checkpoint::open(checkpoint)?;
    let weights = weights(checkpoint, &config, &tensors)?;
    fs::create_dir_all(out).map_err(|source| ExportError::Write {
        file: out.to_owned(),
        action: "create the directory",
        source,
    })?;

    let weights_file = out.join("model.safetensors");
    let bytes = write_weights(&weights, &weights_file, options)?;
    for name in COMPANIONS {
        let from = checkpoint.join(name);
        match fs::read(&from) {
            Ok(content) => {
                let mut file = Replacement::create(&out.join(name), content.len() as u64)?;
                file.write(&content)?;
                file.finish()?;
            }
            Err(source) if source.kind() == ErrorKind::NotFound => {}
            Err(source) => return Err(ExportError::Read { file: from, source }),
        }
    }
    let mut json = config.json;
    // Transformers 5 says `dtype`, older ones read `torch_dtype`.
    for key in ["torch_dtype", "dtype"] {
        if key == "torch_dtype" || json.get(key).is_some() {
            json[key] = ty.torch().into();
        }
    }
    let text = format!("{json:#}\n");
    let mut file = Replacement::create(&out.join("config.json"), text.len() as u64)?;
    file.write(text.as_bytes())?;
    file.finish()?;
    Ok(Summary { tensors: weights.len(), bytes, sha256: sha256(&weights_file)? })
}

fn write_weights(
    weights: &[Weight<'_>],
    path: &Path,
    options: &HuggingFaceOptions,
) -> Result<u64, ExportError> {
    let ty = options.ty;
    let mut header: BTreeMap<&str, Value> = BTreeMap::new();
    header.insert("__metadata__", json!({ "format": "pt" }));
    let mut offset = 0;
    for tensor in weights.iter().map(|weight| weight.tensor) {
        let end = offset + (tensor.elements() * ty.bytes()) as u64;
        let record = json!({
            "dtype": ty.dtype(),
            "shape": tensor.shape,
            "data_offsets": [offset, end],
        });
        header.insert(&tensor.name, record);
        offset = end;
    }
    let mut header = serde_json::to_vec(&header)
        .map_err(|source| ExportError::Json { file: path.to_owned(), source })?;
    header.resize(header.len().next_multiple_of(8), b' ');

    let total = 8 + header.len() as u64 + offset;
    let mut file = Replacement::create(path, total)?;
    file.write(&(header.len() as u64).to_le_bytes())?;
    file.write(&header)?;
    let mut bytes = Vec::new();
    for weight in weights {
        let grid = weight.grid(options.linears, options.embeddings)?;
        weight.for_each_rounded_piece(grid, |values| {
            bytes.clear();
            ty.narrow(values, &mut bytes);
            file.write(&bytes)
        })?;
    }
    file.finish()?;
    Ok(total)
}

/// A file that takes its name when it is complete, and leaves nothing behind before.
struct Replacement {
    path: PathBuf,
    temporary: PathBuf,
    file: Option<BufWriter<File>>,
    needed: u64,
}

impl Replacement {
    fn create(path: &Path, needed: u64) -> Result<Self, ExportError> {
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}.tmp", std::process::id()));
        let temporary = path.with_file_name(name);
        let file = File::create(&temporary).map_err(|source| ExportError::Write {
            file: path.to_owned(),
            action: "create",
            source,
        })?;
        let file = Some(BufWriter::with_capacity(1 << 20, file));
        Ok(Self { path: path.to_owned(), temporary, file, needed })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), ExportError> {
        match self.file.as_mut().map(|file| file.write_all(bytes)) {
            Some(Err(source)) => Err(self.failed("write", source)),
            _ => Ok(()),
        }
    }

    fn finish(mut self) -> Result<(), ExportError> {
        let Some(file) = self.file.take() else { return Ok(()) };
        let outcome = file
            .into_inner()
            .map_err(std::io::IntoInnerError::into_error)
            .and_then(|file| file.sync_all())
            .and_then(|()| fs::rename(&self.temporary, &self.path));
        outcome.map_err(|source| {
            // Already beyond saving; the error that led here matters more.
            let _ = fs::remove_file(&self.temporary);
            self.failed("complete", source)
        })
    }

    fn failed(&self, action: &'static str, source: std::io::Error) -> ExportError {
        let file = self.path.clone();
        match source.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
                ExportError::DiskFull { file, needed: self.needed }
            }
            _ => ExportError::Write { file, action, source },
        }
    }
}

impl Drop for Replacement {
    fn drop(&mut self) {
        if self.file.take().is_some() {
            // Nothing can be done about a failure here.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}
