//! A checkpoint into one GGUF file.

use std::path::Path;

use distill_gguf::names::ROPE_FREQS;
use distill_gguf::{GgmlType, GgufError, GgufWriter, TensorSource};

use crate::checkpoint::Checkpoint;
use crate::config::LlamaConfig;
use crate::tokenizer::Vocabulary;
use crate::weights::{Weight, WriteFailure, weights};
use crate::{ExportError, Summary, sha256};

/// How weights are stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Grid {
    /// binary32.
    F32,
    /// binary16, saturating.
    F16,
    /// `distill_quant::q4_0`.
    Q4_0,
    /// `distill_quant::q8_0`.
    Q8_0,
}

/// How the runtime shall treat activations of this file unless it is told otherwise; stored as
/// `distill.activations`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Activations {
    /// f32.
    Float,
    /// Q8_0 blocks along the input dimension, in integer kernels.
    Q8_0,
}

impl Activations {
    /// The word in the file.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Float => "float",
            Self::Q8_0 => "q8_0",
        }
    }
}

/// What [`export_gguf`] shall write.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GgufOptions {
    /// The grid of every linear layer.
    pub linears: Grid,
    /// The grid of the token embedding and of the head, tied or not.
    pub embeddings: Grid,
    /// The runtime's default for activations.
    pub activations: Activations,
    /// The model's name, `general.name`.
    pub name: String,
}

/// Writes the checkpoint in the directory `checkpoint` as the GGUF file `out`.
///
/// Codes come from the scalar rule on the checkpoint's weights as f32. Norms stay f32. Query and
/// key rows are reordered for GGUF's rotary layout.
///
/// # Errors
/// If a file of the checkpoint is missing, damaged or contradicts another, a weight is not finite,
/// the tokenizer is of a kind the runtimes lack, or the disk refuses. `out` is then as it was.
pub fn export_gguf(
    checkpoint: &Path,
    out: &Path,
    options: &GgufOptions,
) -> Result<Summary, ExportError> {
    let config = LlamaConfig::read(checkpoint)?;
    let tensors = Checkpoint::open(checkpoint)?;
    let weights = weights(checkpoint, &config, &tensors)?;
    // After the weights: now `vocab_size` is known to be the rows of a tensor that is there.
    let vocabulary = Vocabulary::read(checkpoint, config.vocab_size, &config.json)?;

    let mut writer = GgufWriter::create(out)?;
    describe_model(&mut writer, &config, options);
    vocabulary.describe(&mut writer);
    let mut count = weights.len();
    for weight in weights {
        declare(&mut writer, weight, options)?;
    }
    if let Some(divisors) = &config.rope_divisors {
        let bytes: Vec<u8> = divisors.iter().flat_map(|x| x.to_le_bytes()).collect();
        writer.tensor(ROPE_FREQS, &[divisors.len() as u64], GgmlType::F32, bytes)?;
        count += 1;
    }
    let bytes = writer.finish().map_err(unwrap_source)?;
    Ok(Summary { tensors: count, bytes, sha256: sha256(out)? })
}

fn declare<'a>(
    writer: &mut GgufWriter<'a>,
    weight: Weight<'a>,
    options: &GgufOptions,
) -> Result<(), ExportError> {
    let grid = weight.grid(options.linears, options.embeddings)?;
    let (name, dims) = (weight.gguf_name.clone(), weight.dims());
    let source = TensorSource::stream(move |out| {
        weight.write(grid, out).map_err(|failure| match failure {
            WriteFailure::Export(error) => error.into(),
            WriteFailure::Io(error) => error.into(),
        })
    });
    writer.tensor(name, &dims, grid.ggml_type(), source)?;
    Ok(())
}

/// An error of ours that went through the writer comes out as itself.
fn unwrap_source(error: GgufError) -> ExportError {
    match error {
        GgufError::Source { file, tensor, source } => match source.downcast::<ExportError>() {
            Ok(error) => *error,
            Err(source) => GgufError::Source { file, tensor, source }.into(),
        },
        other => other.into(),
    }
}

fn describe_model(writer: &mut GgufWriter<'_>, config: &LlamaConfig, options: &GgufOptions) {
    writer
        .set("general.architecture", "llama")
        .set("general.type", "model")
        .set("general.name", options.name.as_str())
        .set("general.file_type", file_type(options.linears))
        .set("general.quantization_version", 2u32)
        .set("llama.block_count", config.num_hidden_layers as u32)
        .set("llama.context_length", config.max_position_embeddings as u32)
        .set("llama.embedding_length", config.hidden_size as u32)
        .set("llama.feed_forward_length", config.intermediate_size as u32)
        .set("llama.attention.head_count", config.num_attention_heads as u32)
        .set("llama.attention.head_count_kv", config.num_key_value_heads as u32)
        .set("llama.attention.layer_norm_rms_epsilon", config.rms_norm_eps as f32)
        .set("llama.rope.dimension_count", config.head_dim as u32)
        .set("llama.rope.freq_base", config.rope_theta as f32)
        .set("llama.vocab_size", config.vocab_size as u32);
    if config.head_dim * config.num_attention_heads != config.hidden_size {
        writer
            .set("llama.attention.key_length", config.head_dim as u32)
            .set("llama.attention.value_length", config.head_dim as u32);
    }
    writer
        .set("distill.version", env!("CARGO_PKG_VERSION"))
        .set("distill.activations", options.activations.name());
}

/// llama.cpp's number for "mostly this type".
const fn file_type(linears: Grid) -> u32 {
    match linears {
        Grid::F32 => 0,
        Grid::F16 => 1,
        Grid::Q4_0 => 2,
        Grid::Q8_0 => 7,
    }
}
