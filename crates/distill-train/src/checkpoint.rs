//! Checkpoints: `step-N/` is a Hugging Face directory with `train_state/` inside.
//!
//! Where low-rank factors are trained, its weights are merged, and `adapter/` holds the factors as PEFT
//! writes them. A checkpoint is written under a temporary name, flushed and renamed, so `step-N` exists
//! whole or not at all.

use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::Device;
use distill_data::{Cursor, TextTokenizer};
use distill_models::quantized::is_block_scale;
use distill_models::{LlamaForCausalLM, Lora, load_pretrained, parameters, save};
use distill_recipe::{Choice, Train};
use serde::{Deserialize, Serialize};

use crate::TrainError;
use crate::optimizer::AdamW;
use crate::optimizer_state;
use crate::student::Student;

const STATE: &str = "train_state/state.json";
const OPTIMIZER: &str = "train_state/optimizer.safetensors";
const ADAPTER: &str = "adapter";

/// What continues a run, besides weights and optimiser.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainState {
    /// Optimiser steps done.
    pub step: usize,
    /// Next position in the data.
    pub cursor: Cursor,
    /// Length of `metrics.jsonl` at this moment.
    pub metrics_bytes: u64,
    /// Whether this is what training on the grid begins with: `[quantize]`'s method has done its work, and
    /// scales of blocks have no moments yet.
    #[serde(default)]
    pub begins: bool,
    /// The best evaluation so far, if the run asks for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub best: Option<Best>,
    /// [`fingerprint`] of the frozen weights, where factors are trained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<u64>,
}

/// The best evaluation of a run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// Optimiser steps done at the time; the checkpoint of that step is kept.
    pub step: usize,
    /// What is best when least: KL to the teacher, or the loss.
    pub value: f64,
    /// Evaluations since.
    pub since: usize,
}

/// What a checkpoint holds besides [`TrainState`].
#[derive(Clone, Copy)]
pub struct Contents<'a> {
    /// Weights, or factors and the weights that they stand beside.
    pub student: &'a Student,
    /// Where the student came from, for those who load the adapter: a path or a hub id.
    pub from: &'a str,
    /// The student's tokenizer.
    pub tokenizer: &'a TextTokenizer,
    /// The moments.
    pub optimizer: &'a AdamW,
}

/// Writes `run/step-N` and removes all but the newest `keep` checkpoints and the best.
///
/// # Errors
/// [`TrainError::Io`], [`distill_models::ModelError::NonFinite`].
pub fn write(
    run: &Path,
    contents: Contents<'_>,
    state: &TrainState,
    keep: usize,
) -> Result<PathBuf, TrainError> {
    let target = run.join(format!("step-{}", state.step));
    let partial = run.join(format!(".step-{}.tmp", state.step));
    let io = TrainError::io;
    if partial.exists() {
        fs::remove_dir_all(&partial).map_err(io("clearing", &partial))?;
    }
    if let Err(error) = fill(&partial, contents, state) {
        // Half a checkpoint helps nobody, and on a full disk it is in the way.
        let _ = fs::remove_dir_all(&partial);
        return Err(error.while_writing());
    }
    // At no moment is there neither the old one nor the new: `list` knows the old one by this name too.
    let old = run.join(format!(".step-{}.old", state.step));
    if target.exists() {
        if old.exists() {
            // Of a run that was killed while it cleared up.
            fs::remove_dir_all(&old).map_err(io("removing", &old))?;
        }
        fs::rename(&target, &old).map_err(io("renaming", &target))?;
    }
    fs::rename(&partial, &target).map_err(io("renaming", &partial))?;
    sync(run)?;
    if old.exists() {
        fs::remove_dir_all(&old).map_err(io("removing", &old))?;
    }
    let best = state.best.map(|best| best.step);
    for (_, old) in list(run)?.into_iter().rev().skip(keep).filter(|(step, _)| Some(*step) != best)
    {
        fs::remove_dir_all(&old).map_err(io("removing", &old))?;
    }
    Ok(target)
}

fn fill(directory: &Path, contents: Contents<'_>, state: &TrainState) -> Result<(), TrainError> {
    let inner = directory.join("train_state");
    fs::create_dir_all(&inner).map_err(TrainError::io("creating", &inner))?;
    save::save(&contents.student.merged(), directory)?;
    contents.tokenizer.save(directory)?;
    if let Some(lora) = contents.student.lora() {
        // In a directory of its own: transformers would apply what lies beside merged weights again.
        let adapter = directory.join(ADAPTER);
        fs::create_dir(&adapter).map_err(TrainError::io("creating", &adapter))?;
        lora.save(contents.from, &adapter)?;
    }
    optimizer_state::write(&directory.join(OPTIMIZER), contents.optimizer)?;
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

/// The checkpoint of a run that is exported, if there is one.
///
/// # Errors
/// [`TrainError::Io`], [`TrainError::Checkpoint`].
pub fn chosen(run: &Path, choice: Choice) -> Result<Option<PathBuf>, TrainError> {
    let Some(newest) = newest(run)? else { return Ok(None) };
    Ok(Some(match (choice, read_state(&newest)?.best) {
        (Choice::Best, Some(best)) => run.join(format!("step-{}", best.step)),
        _ => newest,
    }))
}

fn read_state(checkpoint: &Path) -> Result<TrainState, TrainError> {
    let path = checkpoint.join(STATE);
    let text = fs::read_to_string(&path).map_err(TrainError::io("reading", &path))?;
    serde_json::from_str(&text)
        .map_err(|error| TrainError::Checkpoint { path, problem: error.to_string() })
}

/// Reads student, optimiser and state of a checkpoint. Where factors are trained, `first` gives the
/// frozen weights that they stand beside: those that the run began with.
///
/// # Errors
/// [`TrainError::Checkpoint`], [`TrainError::OptimizerState`], [`TrainError::OtherBase`],
/// [`TrainError::Model`], [`TrainError::Io`]; what `first` fails with.
pub fn read(
    checkpoint: &Path,
    mut optimizer: AdamW,
    train: &Train,
    first: impl FnOnce() -> Result<LlamaForCausalLM, TrainError>,
    device: &Device,
) -> Result<(Student, AdamW, TrainState), TrainError> {
    let damaged =
        |path: &Path, problem: String| TrainError::Checkpoint { path: path.to_path_buf(), problem };
    let state = read_state(checkpoint)?;
    let student = match &train.lora {
        None => {
            let (model, _) = load_pretrained(checkpoint, device)
                .map_err(|error| damaged(checkpoint, error.to_string()))?;
            Student::whole(model)
        }
        Some(lora) => {
            let base = first()?;
            if state.base != Some(fingerprint(&base)) {
                return Err(TrainError::OtherBase { path: checkpoint.to_path_buf() });
            }
            let directory = checkpoint.join(ADAPTER);
            let lora = Lora::load(&base, &crate::prepare::lora(lora), &directory)
                .map_err(|error| damaged(&directory, error.to_string()))?;
            Student::adapted(base, lora)
        }
    };
    let path = checkpoint.join(OPTIMIZER);
    let mut trained = student.shapes();
    let is_new = |name: &str| state.begins && (state.step == 0 || is_block_scale(name));
    trained.retain(|(name, _)| optimizer.trains(name) && !is_new(name));
    let moments = optimizer_state::read(&path, &optimizer, &trained, device)?;
    optimizer.restore(state.step, moments);
    Ok((student, optimizer, state))
}

/// A hash of all weights: FNV-1a over the bits of each in turn.
pub fn fingerprint(model: &LlamaForCausalLM) -> u64 {
    let mut hash = 0xCBF2_9CE4_8422_2325_u64;
    parameters::for_each(model, |_, _, values| {
        for value in values {
            hash = (hash ^ u64::from(value.to_bits())).wrapping_mul(0x0000_0100_0000_01B3);
        }
    });
    hash
}

/// Checkpoints by step, oldest first.
fn list(run: &Path) -> Result<Vec<(usize, PathBuf)>, TrainError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(run).map_err(TrainError::io("listing", run))? {
        let entry = entry.map_err(TrainError::io("listing", run))?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        let replaced = name.strip_prefix('.').and_then(|name| name.strip_suffix(".old"));
        let step = replaced.unwrap_or(name).strip_prefix("step-").and_then(|n| n.parse().ok());
        if let Some(step) = step {
            found.push((step, replaced.is_some(), entry.path()));
        }
    }
    found.sort();
    // One that was being replaced counts where its successor is not there.
    found.dedup_by_key(|(step, ..)| *step);
    Ok(found.into_iter().map(|(step, _, path)| (step, path)).collect())
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
