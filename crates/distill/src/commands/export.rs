//! `distill export`: the checkpoint that the recipe chooses → `export/`.

use std::path::{Path, PathBuf};

use distill_export::{Activations, FloatType, GgufOptions, Grid, HuggingFaceOptions};
use distill_recipe::{ActivationGrid, Recipe, WeightGrid};
use distill_train::checkpoint;
use serde::{Deserialize, Serialize};

use crate::failure::Failure;
use crate::output::put_line;
use crate::{cli, run_directory};

/// Says which checkpoint an export was made from.
const SOURCE: &str = "export/source.json";

/// What an export was made from.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Source {
    /// The checkpoint's directory in the run, e.g. `step-50`.
    pub checkpoint: String,
    /// SHA-256 of `export/model.gguf`, if it was written.
    pub gguf_sha256: Option<String>,
}

/// What an export wrote.
#[derive(Clone, Debug, Default)]
pub struct Exported {
    /// `export/model.gguf`.
    pub gguf: Option<PathBuf>,
    /// `export/model.edge`: the same, in the order in which the runtime computes.
    pub edge: Option<PathBuf>,
    /// `export/huggingface/`.
    pub huggingface: Option<PathBuf>,
}

/// The verb.
pub fn command(args: &cli::RunDirectory) -> Result<(), Failure> {
    let recipe = run_directory::recipe(&args.run)?;
    let checkpoint = chosen(&args.run, &recipe)?;
    let files = export(&recipe, &args.run, &checkpoint)?;
    for path in [files.gguf, files.edge, files.huggingface].into_iter().flatten() {
        put_line!("{}", path.display())?;
    }
    Ok(())
}

/// The checkpoint of a run that is exported, which must exist.
pub fn chosen(run: &Path, recipe: &Recipe) -> Result<PathBuf, Failure> {
    checkpoint::chosen(run, recipe.export.checkpoint)?.ok_or_else(|| Failure::NotARun {
        path: run.to_path_buf(),
        problem: "has no checkpoint yet; continue it with `distill run … --resume`".into(),
    })
}

/// The checkpoint that `export/` was made from, which must still be there.
pub fn source(run: &Path) -> Result<(PathBuf, Source), Failure> {
    let again = "export the run again with `distill export`";
    let not = |path: PathBuf, problem: String| Failure::NotARun { path, problem };
    let path = run.join(SOURCE);
    let text = std::fs::read_to_string(&path)
        .map_err(|error| not(path.clone(), format!("{error}; {again}")))?;
    let source: Source = serde_json::from_str(&text)
        .map_err(|error| not(path.clone(), format!("{error}; {again}")))?;
    let checkpoint = run.join(&source.checkpoint);
    match checkpoint.is_dir() {
        true => Ok((checkpoint, source)),
        false => Err(not(checkpoint, format!("is gone, and `export/` was made from it; {again}"))),
    }
}

/// Writes what the recipe asks for, from the masters of a checkpoint.
pub fn export(recipe: &Recipe, run: &Path, checkpoint: &Path) -> Result<Exported, Failure> {
    let directory = run.join("export");
    std::fs::create_dir_all(&directory).map_err(Failure::io("creating", &directory))?;
    // What was said of an earlier export is not true of this one.
    for stale in [SOURCE, super::verify::PARITY] {
        let path = run.join(stale);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Failure::io("removing", &path)(error));
            }
            _ => {}
        }
    }
    let name = checkpoint.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut source = Source { checkpoint: name, gguf_sha256: None };
    let mut exported = Exported::default();
    if recipe.export.gguf {
        let path = directory.join("model.gguf");
        let summary = distill_export::export_gguf(checkpoint, &path, &options(recipe))?;
        source.gguf_sha256 = Some(summary.sha256);
        let edge = directory.join("model.edge");
        distill_export::export_edge(&path, &edge)?;
        (exported.gguf, exported.edge) = (Some(path), Some(edge));
    }
    if recipe.export.huggingface {
        let path = directory.join("huggingface");
        let GgufOptions { linears, embeddings, .. } = options(recipe);
        let options = HuggingFaceOptions { ty: FloatType::F32, linears, embeddings };
        distill_export::export_huggingface(checkpoint, &path, &options)?;
        exported.huggingface = Some(path);
    }
    run_directory::write_json(&run.join(SOURCE), &source)?;
    Ok(exported)
}

/// How the weights of a recipe's student are written.
pub fn options(recipe: &Recipe) -> GgufOptions {
    let grid = |grid| match grid {
        WeightGrid::Q4_0 => Grid::Q4_0,
        WeightGrid::Q8_0 => Grid::Q8_0,
        WeightGrid::None => Grid::F32,
    };
    let quantize = recipe.quantize.as_ref();
    GgufOptions {
        linears: quantize.map_or(Grid::F32, |q| grid(q.linears)),
        embeddings: quantize.map_or(Grid::F32, |q| grid(q.embeddings)),
        activations: match quantize.map(|q| q.activations) {
            Some(ActivationGrid::Q8_0) => Activations::Q8_0,
            Some(ActivationGrid::Float) | None => Activations::Float,
        },
        name: recipe.name.clone(),
    }
}
