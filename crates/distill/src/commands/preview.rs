//! `distill preview`.

use distill_recipe::Recipe;
use distill_train::prepare;

use crate::cli;
use crate::failure::Failure;
use crate::hub;
use crate::output::put_line;
use crate::progress::spinner;
use crate::writer;

/// Prints tokens and loss mask of the first training samples, in training order.
pub fn preview(args: &cli::Preview) -> Result<(), Failure> {
    let (_, recipe) = Recipe::from_path(&args.recipe.recipe, &args.recipe.set)?;
    let mut paths = hub::local_paths(&recipe)?;
    if let Some(generation) = writer::open(&recipe, &mut paths)? {
        // What is there is enough for a look.
        writer::write(&recipe, &generation, 1)?;
    }
    let scratch = tempfile::tempdir()
        .map_err(Failure::io("creating a directory in", &std::env::temp_dir()))?;
    let bar = spinner("reading the data");
    let prepared = prepare::text(&recipe, &paths, scratch.path(), &mut |_| bar.tick());
    bar.finish_and_clear();
    let (tokenizer, dataset) = prepared?;
    let mut cursor = dataset.train.cursor(recipe.seed);
    let batch = dataset.train.next_batch(&mut cursor, args.samples.max(1));
    for row in 0..batch.batch {
        put_line!("{}", distill_data::preview(&tokenizer, &batch.row(row)))?;
    }
    let (train, held_out) = (&dataset.train, &dataset.held_out);
    put_line!(
        "{} training sequences ({} tokens in the loss), {} held out ({} tokens)",
        train.len(),
        train.valid_tokens(),
        held_out.len(),
        held_out.valid_tokens()
    )
}
