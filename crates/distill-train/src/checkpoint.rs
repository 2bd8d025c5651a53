//! Checkpoints: `step-N/` is a Hugging Face directory with `train_state/` inside.
//!
//! A checkpoint is written under a temporary name, flushed and renamed, so `step-N` exists
//! whole or not at all.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::Device;
use distill_data::{Cursor, TextTokenizer};
use distill_models::{LlamaForCausalLM, load_pretrained, parameters, save};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde::{Deserialize, Serialize};

use crate::TrainError;
use crate::optimizer::AdamW;

const STATE: &str = "train_state/state.json";
const OPTIMIZER: &str = "train_state/optimizer.safetensors";

/// What continues a run, besides weights and optimiser.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainState {
    /// Optimiser steps done.
    pub step: usize,
    /// Next position in the data.
    pub cursor: Cursor,
    /// Length of `metrics.jsonl` at this moment.
    pub metrics_bytes: u64,
}

/// Writes `run/step-N` and removes all but the newest `keep` checkpoints.
///
/// # Errors
/// [`TrainError::Io`], [`distill_models::ModelError::NonFinite`].
pub fn write(
    run: &Path,
    model: &LlamaForCausalLM,
    tokenizer: &TextTokenizer,
    optimizer: &AdamW,
    state: &TrainState,
    keep: usize,
) -> Result<PathBuf, TrainError> {
    let target = run.join(format!("step-{}", state.step));
    let partial = run.join(format!(".step-{}.tmp", state.step));
    let io = TrainError::io;
    if partial.exists() {
        fs::remove_dir_all(&partial).map_err(io("clearing", &partial))?;
    }
    if let Err(error) = fill(&partial, model, tokenizer, optimizer, state) {
        // Half a checkpoint helps nobody, and on a full disk it is in the way.
        let _ = fs::remove_dir_all(&partial);
        return Err(error.while_writing());
    }
    if target.exists() {
        fs::remove_dir_all(&target).map_err(io("replacing", &target))?;
    }
    fs::rename(&partial, &target).map_err(io("renaming", &partial))?;
    sync(run)?;
    for (_, old) in list(run)?.into_iter().rev().skip(keep) {
        fs::remove_dir_all(&old).map_err(io("removing", &old))?;
    }
    Ok(target)
}

fn fill(
    directory: &Path,
    model: &LlamaForCausalLM,
    tokenizer: &TextTokenizer,
    optimizer: &AdamW,
    state: &TrainState,
) -> Result<(), TrainError> {
    let inner = directory.join("train_state");
    fs::create_dir_all(&inner).map_err(TrainError::io("creating", &inner))?;
    save::save(model, directory)?;
    tokenizer.save(directory)?;
    write_optimizer(&directory.join(OPTIMIZER), optimizer)?;
    let path = directory.join(STATE);
    let json = serde_json::to_string_pretty(state).map_err(|error| TrainError::Checkpoint {
        path: path.clone(),
        problem: error.to_string(),
    })?;
    fs::write(&path, json).map_err(TrainError::io("writing", &path))?;
    sync_tree(directory)
}

/// Saves a tokenizer in a directory of its own, whole or not at all.
///
/// # Errors
/// [`TrainError::Io`].
pub fn write_tokenizer(directory: &Path, tokenizer: &TextTokenizer) -> Result<(), TrainError> {
    let partial = directory.with_extension("tmp");
    let write = || {
        fs::create_dir_all(&partial).map_err(TrainError::io("creating", &partial))?;
        tokenizer.save(&partial)?;
        sync_tree(&partial)?;
        fs::rename(&partial, directory).map_err(TrainError::io("renaming", &partial))
    };
    write().map_err(TrainError::while_writing)
}

/// The newest checkpoint of a run directory.
///
/// # Errors
/// [`TrainError::Io`].
pub fn newest(run: &Path) -> Result<Option<PathBuf>, TrainError> {
    Ok(list(run)?.pop().map(|(_, path)| path))
}

/// Reads weights, optimiser and state of a checkpoint.
///
/// # Errors
/// [`TrainError::Checkpoint`], [`TrainError::Model`], [`TrainError::Io`].
pub fn read(
    checkpoint: &Path,
    mut optimizer: AdamW,
    device: &Device,
) -> Result<(LlamaForCausalLM, AdamW, TrainState), TrainError> {
    let path = checkpoint.join(STATE);
    let damaged =
        |path: &Path, problem: String| TrainError::Checkpoint { path: path.to_path_buf(), problem };
    let text = fs::read_to_string(&path).map_err(TrainError::io("reading", &path))?;
    let state: TrainState =
        serde_json::from_str(&text).map_err(|e| damaged(&path, e.to_string()))?;
    let (model, _) = load_pretrained(checkpoint, device)
        .map_err(|error| damaged(checkpoint, error.to_string()))?;
    let path = checkpoint.join(OPTIMIZER);
    let bytes = fs::read(&path).map_err(TrainError::io("reading", &path))?;
    let tensors = SafeTensors::deserialize(&bytes).map_err(|e| damaged(&path, e.to_string()))?;
    for (name, dims) in parameters::shapes(&model) {
        let elements = dims.iter().product::<usize>();
        for moment in ["exp_avg", "exp_avg_sq"] {
            let found = tensors.tensor(&format!("{moment}.{name}"));
            if !found.is_ok_and(|view| view.data().len() == 4 * elements) {
                let problem = format!("`{moment}.{name}` is not {elements} f32 values");
                return Err(damaged(&path, problem));
            }
        }
    }
    let values = tensors
        .tensors()
        .into_iter()
        .map(|(name, view)| {
            let f32s =
                view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
            (name, f32s.collect())
        })
        .collect();
    if let Some(name) = optimizer.restore(state.step, values, device) {
        return Err(damaged(&path, format!("unknown tensor `{name}`")));
    }
    Ok((model, optimizer, state))
}

fn write_optimizer(path: &Path, optimizer: &AdamW) -> Result<(), TrainError> {
    let state: BTreeMap<String, Vec<u8>> = optimizer
        .state()
        .into_iter()
        .map(|(name, values)| (name, values.iter().flat_map(|v| v.to_le_bytes()).collect()))
        .collect();
    let views = state.iter().map(|(name, bytes)| {
        let view = TensorView::new(Dtype::F32, vec![bytes.len() / 4], bytes);
        (name.as_str(), view.expect("the bytes were made from f32"))
    });
    safetensors::serialize_to_file(views, None, path).map_err(|error| match error {
        safetensors::SafeTensorError::IoError(source) => TrainError::io("writing", path)(source),
        other => TrainError::Checkpoint { path: path.to_path_buf(), problem: other.to_string() },
    })
}

/// Checkpoints by step, oldest first.
fn list(run: &Path) -> Result<Vec<(usize, PathBuf)>, TrainError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(run).map_err(TrainError::io("listing", run))? {
        let entry = entry.map_err(TrainError::io("listing", run))?;
        let name = entry.file_name();
        let step = name.to_str().and_then(|n| n.strip_prefix("step-")).and_then(|n| n.parse().ok());
        if let Some(step) = step {
            found.push((step, entry.path()));
        }
    }
    found.sort();
    Ok(found)
}

fn sync(path: &Path) -> Result<(), TrainError> {
    fs::File::open(path).and_then(|file| file.sync_all()).map_err(TrainError::io("flushing", path))
}

fn sync_tree(directory: &Path) -> Result<(), TrainError> {
    for entry in fs::read_dir(directory).map_err(TrainError::io("listing", directory))? {
        let path = entry.map_err(TrainError::io("listing", directory))?.path();
        if path.is_dir() { sync_tree(&path)? } else { sync(&path)? }
    }
    sync(directory)
}
