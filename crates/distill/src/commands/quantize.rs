//! `distill quantize`: a finished model onto the grid, without training.

use std::path::Path;

use distill_data::{Batch, Dataset, PackingOptions, Source, SourceOptions};
use distill_export::{Activations, GgufOptions, Grid};
use distill_models::{ActivationGrid, Backend, WeightGrid, WeightGrids, load_pretrained, save};
use distill_recipe::Method;
use distill_train::{TrainError, post_training, prepare};
use indicatif::{ProgressBar, ProgressStyle};

use crate::failure::Failure;
use crate::output::put_line;
use crate::progress::spinner;
use crate::{cli, hub};

/// Quantises, and writes `model.gguf`, `model.edge` and the masters.
pub fn quantize(args: &cli::Quantize) -> Result<(), Failure> {
    distill_ops::memory::keep_what_is_freed();
    let device = Backend::Flex.device().map_err(TrainError::from)?;
    let path = hub::local_model(&args.model)?;
    let bar = spinner("reading the model");
    let tokenizer = prepare::read_tokenizer(&path)?;
    let (model, _) = load_pretrained(&path, &device).map_err(TrainError::from)?;
    bar.finish_and_clear();
    let grids = WeightGrids {
        linears: WeightGrid::Q4_0,
        embeddings: match args.embeddings {
            cli::EmbeddingGrid::Q4_0 => WeightGrid::Q4_0,
            cli::EmbeddingGrid::Q8_0 => WeightGrid::Q8_0,
        },
        activations: match args.activations {
            cli::Activations::Float => ActivationGrid::Float,
            cli::Activations::Q8_0 => ActivationGrid::Q8_0,
        },
    };
    grids.check(&model.config).map_err(TrainError::from)?;
    let positions = model.config.max_position_embeddings;
    if args.sequence_length > positions {
        return Err(Failure::Usage(format!(
            "the model was made for {positions} positions; `--sequence-length` is {}",
            args.sequence_length
        )));
    }
    let method = Method::from(args.method);
    let text = match method {
        Method::Round => Vec::new(),
        _ => calibration(args, &tokenizer)?,
    };
    let layers = model.config.num_hidden_layers as u64;
    let bar = ProgressBar::new(layers);
    bar.set_style(
        ProgressStyle::with_template("quantising layers {bar:32} {pos}/{len} {eta} left")
            .expect("the template is a constant of this file"),
    );
    let model = post_training::quantize(model, &grids, method, &text, &device, &mut |done, _| {
        bar.set_position(done as u64);
    });
    bar.finish_and_clear();

    // Whole or not at all.
    let (directory, partial) = (args.out.join("checkpoint"), args.out.join(".checkpoint.tmp"));
    std::fs::create_dir_all(&partial).map_err(Failure::io("creating", &partial))?;
    save::save(&model, &partial).map_err(TrainError::from)?;
    tokenizer.save(&partial).map_err(TrainError::from)?;
    if directory.exists() {
        std::fs::remove_dir_all(&directory).map_err(Failure::io("replacing", &directory))?;
    }
    std::fs::rename(&partial, &directory).map_err(Failure::io("renaming", &partial))?;
    export(args, &directory, &grids)
}

/// The text that the method looks at.
fn calibration(
    args: &cli::Quantize,
    tokenizer: &distill_data::TextTokenizer,
) -> Result<Vec<Batch>, Failure> {
    if args.text.is_empty() {
        return Err(Failure::Usage(format!(
            "`--method {}` looks at some text: name it with `--text`, or take `--method round`",
            args.method.name()
        )));
    }
    let mut sources = Vec::new();
    for spec in &args.text {
        let found = Source::resolve(spec, &SourceOptions::default());
        sources.extend(found.map_err(TrainError::from)?);
    }
    let packing =
        PackingOptions { sequence_length: args.sequence_length, held_out_fraction: 0.01, seed: 0 };
    let dataset = Dataset::prepare(tokenizer, &sources, &packing).map_err(TrainError::from)?;
    Ok(post_training::calibration(&dataset.train, args.sequences))
}

fn export(args: &cli::Quantize, checkpoint: &Path, grids: &WeightGrids) -> Result<(), Failure> {
    let grid = |grid| match grid {
        WeightGrid::Q4_0 => Grid::Q4_0,
        WeightGrid::Q8_0 => Grid::Q8_0,
        WeightGrid::Float => Grid::F32,
    };
    let name = args.out.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let options = GgufOptions {
        linears: grid(grids.linears),
        embeddings: grid(grids.embeddings),
        activations: match grids.activations {
            ActivationGrid::Float => Activations::Float,
            ActivationGrid::Q8_0 => Activations::Q8_0,
        },
        name,
    };
    let (gguf, edge) = (args.out.join("model.gguf"), args.out.join("model.edge"));
    let summary = distill_export::export_gguf(checkpoint, &gguf, &options)?;
    distill_export::export_edge(&gguf, &edge)?;
    put_line!("{} ({:.1} MB)", gguf.display(), summary.bytes as f64 / 1e6)?;
    put_line!("{}", edge.display())
}
