//! `distill check` and `distill schema`.

use distill_recipe::Recipe;
use distill_train::{TrainError, prepare};

use crate::cli;
use crate::failure::Failure;
use crate::output::{put, put_line};
use crate::run_directory;

/// Prints the recipe with every default, or points at what is wrong.
pub fn check(args: &cli::Recipe) -> Result<(), Failure> {
    let (_, recipe) = Recipe::from_path(&args.recipe, &args.set)?;
    prepare::device(recipe.backend).map_err(TrainError::from)?;
    put!("{}", run_directory::resolved(&recipe)?)
}

/// Prints the JSON schema.
pub fn schema() -> Result<(), Failure> {
    put_line!("{:#}", distill_recipe::schema())
}
