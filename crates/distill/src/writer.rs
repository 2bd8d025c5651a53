//! The model that writes a recipe's text, in a form that the edge runtime reads, and its texts.
//!
//! ```text
//! <output>/generated/models/<hash>.gguf   a model that the runtime does not read as it is
//! <output>/generated/<hash>/              texts, see `distill_data::SampleDirectory`
//! ```
//! Both are named by hashes of what they are made of, so that every recipe that asks for the same
//! finds them.

use std::path::{Path, PathBuf};

use distill_edge::{EdgeError, LoadOptions, Model};
use distill_export::{Activations, GgufOptions, Grid};
use distill_models::{Backend, LlamaConfig, load_pretrained, save};
use distill_recipe::Recipe;
use distill_train::{Generation, LocalPaths, TrainError, prepare};

use crate::failure::Failure;
use crate::progress::{GenerationBar, spinner};

/// The directory of generated text, in that of all runs.
const HOME: &str = "generated";

/// Opens the recipe's text, if a model writes any, and says in `paths` where it is.
///
/// # Errors
/// A model that is no Llama or has other tokens, prompts that cannot be read, a full disk.
pub fn open(recipe: &Recipe, paths: &mut LocalPaths) -> Result<Option<Generation>, Failure> {
    let Some(writer) = &paths.writer else { return Ok(None) };
    let home = recipe.output.join(HOME);
    let file = readable(writer, &home.join("models"))?;
    let generation = Generation::open(recipe, paths, &file, &home)?;
    paths.samples = generation.as_ref().map(|generation| generation.directory().clone());
    Ok(generation)
}

/// Writes what is missing of the recipe's text, or so many shards at most.
///
/// # Errors
/// As [`Generation::write`].
pub fn write(recipe: &Recipe, generation: &Generation, shards: u64) -> Result<(), Failure> {
    let Some(generate) = &recipe.data.generate else { return Ok(()) };
    let before = generation.counts()?;
    let directory = generation.directory();
    if before.tokens < generate.tokens && directory.shards() < shards {
        eprintln!("{} writes text into {}", generate.model.from, directory.path().display());
        let mut bar = GenerationBar::new(generate.tokens);
        generation.write(shards, &mut |written| bar.show(&written))?;
    }
    let counts = generation.counts()?;
    eprintln!(
        "{} generated texts of {} tokens; {} more are short, {} repeat themselves, {} are too likely \
         or unlikely",
        counts.kept, counts.tokens, counts.short, counts.repetitive, counts.likelihood
    );
    Ok(())
}

/// A file with the model that the runtime reads: the one named, or one that is made of it.
fn readable(path: &Path, home: &Path) -> Result<PathBuf, Failure> {
    let files = if path.is_dir() {
        weights(path)?
    } else {
        match Model::load(path, &LoadOptions::default()) {
            Ok(_) => return Ok(path.to_path_buf()),
            // Of a type that the runtime has no kernels for.
            Err(EdgeError::Type { .. }) => vec![path.to_path_buf()],
            Err(error) => return Err(TrainError::Writer(error).into()),
        }
    };
    let hash = distill_data::hash_files(&files).map_err(TrainError::from)?;
    let file = home.join(format!("{hash}.gguf"));
    if file.is_file() {
        return Ok(file);
    }
    std::fs::create_dir_all(home).map_err(Failure::io("creating", home))?;
    let bar = spinner(&format!("converting {}", path.display()));
    let config = distill_models::weights::read_config(path).map_err(TrainError::from)?;
    let converted = if path.is_dir() {
        distill_export::export_gguf(path, &file, &options(&config)).map_err(Failure::from)
    } else {
        convert(path, &file, &config)
    };
    bar.finish_and_clear();
    converted.map(|_| file)
}

/// The files that make up a model's directory.
fn weights(directory: &Path) -> Result<Vec<PathBuf>, Failure> {
    let entries = std::fs::read_dir(directory).map_err(Failure::io("reading", directory))?;
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    files.retain(|file| {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        name == "config.json" || name == "tokenizer.json" || name.ends_with(".safetensors")
    });
    files.sort();
    Ok(files)
}

/// By way of a checkpoint.
fn convert(
    path: &Path,
    file: &Path,
    config: &LlamaConfig,
) -> Result<distill_export::Summary, Failure> {
    let home = file.parent().unwrap_or(Path::new("."));
    let checkpoint =
        tempfile::tempdir_in(home).map_err(Failure::io("creating a directory in", home))?;
    let device = Backend::Flex.device().map_err(TrainError::from)?;
    let (model, _) = load_pretrained(path, &device).map_err(TrainError::from)?;
    save::save(&model, checkpoint.path()).map_err(TrainError::from)?;
    prepare::read_tokenizer(path)?.save(checkpoint.path()).map_err(TrainError::from)?;
    drop(model);
    Ok(distill_export::export_gguf(checkpoint.path(), file, &options(config))?)
}

/// Q8_0, which the runtime computes several times as fast as floats, where rows are whole blocks.
fn options(config: &LlamaConfig) -> GgufOptions {
    let rows = [
        config.hidden_size,
        config.intermediate_size,
        config.num_attention_heads * config.head_dim,
    ];
    let blocks = rows.iter().all(|row| row.is_multiple_of(distill_quant::BLOCK));
    let (grid, activations) = match blocks {
        true => (Grid::Q8_0, Activations::Q8_0),
        false => (Grid::F16, Activations::Float),
    };
    GgufOptions { linears: grid, embeddings: grid, activations, name: "writer".to_owned() }
}
