//! From the names in a recipe to paths on this machine: what is not here is downloaded from the
//! Hugging Face hub into its usual cache.
//!
//! `HF_HOME`, `HF_ENDPOINT`, `HF_HUB_OFFLINE` and `HF_TOKEN` mean what they do elsewhere. A
//! revision that the cache holds whole is taken from there without asking the hub, so that a run
//! that is resumed sees the same model. The name of a revision is written into the cache after
//! its last file, so that a download that breaks off never looks whole.

mod download;
mod error;
mod select;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use distill_recipe::{ModelRef, Recipe, StudentInit, TokenizerChoice};
use distill_train::LocalPaths;

use download::{Hub, Kind};
pub use error::HubError;
use select::Want;

/// The revision of data sets and tokenizers, for which a recipe has no key.
const MAIN: &str = "main";

/// Where everything that the recipe names lies; downloads what is not here.
///
/// # Errors
///
/// A name that is neither a path nor an id, an id that the hub does not know, a download that
/// fails; see [`HubError`].
pub fn local_paths(recipe: &Recipe) -> Result<LocalPaths, HubError> {
    let models = Models { hub: None };
    models.local_paths(recipe)
}

/// Where a model lies that is named by a path or a hub id; downloads what is not here.
///
/// # Errors
///
/// As [`local_paths`].
pub fn local_model(place: &str) -> Result<PathBuf, HubError> {
    let model = ModelRef { from: place.to_owned(), revision: MAIN.to_owned() };
    Models { hub: None }.model(&model, Want::Model)
}

/// Resolves names; the hub is looked up when the first name needs it.
struct Models {
    /// `None`: as the environment says.
    hub: Option<Hub>,
}

impl Models {
    fn local_paths(&self, recipe: &Recipe) -> Result<LocalPaths, HubError> {
        let student = match &recipe.student.init {
            StudentInit::From(model) => Some(self.model(model, Want::Model)?),
            StudentInit::Config(_) | StudentInit::KeepLayers(_) => None,
        };
        let teacher = recipe.teacher.as_ref().and_then(|teacher| teacher.local());
        let teacher = teacher.map(|local| self.model(&local.model, Want::Model)).transpose()?;
        let remote = recipe.teacher.as_ref().and_then(|teacher| teacher.remote());
        let teacher_tokenizer = match remote.and_then(|remote| remote.tokenizer.as_ref()) {
            Some(place) => Some(self.tokenizer(place)?),
            None => None,
        };
        let tokenizer = match &recipe.student.tokenizer {
            TokenizerChoice::From(place) => Some(self.tokenizer(place)?),
            _ => None,
        };
        let mut sources = Vec::new();
        for source in &recipe.data.sources {
            sources.push(self.text(source)?);
        }
        let (mut writer, mut prompts) = (None, Vec::new());
        if let Some(generate) = &recipe.data.generate {
            writer = Some(self.model(&generate.model, Want::Model)?);
            for source in &generate.prompts {
                prompts.extend(self.text(source)?);
            }
        }
        Ok(LocalPaths {
            student,
            teacher,
            teacher_tokenizer,
            tokenizer,
            sources,
            writer,
            prompts,
            samples: None,
        })
    }

    fn tokenizer(&self, place: &str) -> Result<PathBuf, HubError> {
        let model = ModelRef { from: place.to_owned(), revision: MAIN.to_owned() };
        self.model(&model, Want::Tokenizer)
    }

    /// The files of a source.
    fn text(&self, source: &str) -> Result<Vec<String>, HubError> {
        match source.strip_prefix("hf:") {
            Some(place) => self.dataset(source, place),
            None => Ok(vec![source.to_owned()]),
        }
    }

    /// A Hugging Face directory or a GGUF file.
    fn model(&self, model: &ModelRef, want: Want) -> Result<PathBuf, HubError> {
        let local = Path::new(&model.from);
        if local.exists() {
            return Ok(local.to_owned());
        }
        let Some((id, file)) = split_id(&model.from) else {
            return Err(HubError::NotFound { place: model.from.clone() });
        };
        let want = match file {
            Some(file) if file.ends_with(".gguf") => Want::File(file),
            None => want,
            // `a/b/c` is a path that is not there.
            Some(_) => {
                return Err(HubError::NotFound { place: model.from.clone() });
            }
        };
        self.hub(|hub| hub.model(id, &model.revision, want))
    }

    /// The files of a data set; `place` is `owner/name[/path]`, `source` as the recipe has it.
    fn dataset(&self, source: &str, place: &str) -> Result<Vec<String>, HubError> {
        let Some((id, path)) = split_id(place) else {
            return Err(HubError::NotADataset { place: source.to_owned() });
        };
        let files = self.hub(|hub| hub.dataset(id, MAIN, path))?;
        Ok(files.iter().map(|file| file.display().to_string()).collect())
    }

    fn hub<T>(&self, with: impl FnOnce(&Hub) -> Result<T, HubError>) -> Result<T, HubError> {
        match &self.hub {
            Some(hub) => with(hub),
            None => with(&Hub::from_env()?),
        }
    }
}

impl Hub {
    fn model(&self, id: &str, revision: &str, want: Want) -> Result<PathBuf, HubError> {
        let repo = self.repo(Kind::Model, id, revision)?;
        if let Some(path) = repo.cached(&want) {
            return Ok(path);
        }
        match repo.list() {
            Ok(listing) => repo.fetch_model(&listing, &want),
            // Better an older copy than none, where the hub cannot be asked.
            Err(error) => repo.cached_at_least(&want).ok_or(error),
        }
    }

    fn dataset(
        &self,
        id: &str,
        revision: &str,
        path: Option<&str>,
    ) -> Result<Vec<PathBuf>, HubError> {
        let repo = self.repo(Kind::Dataset, id, revision)?;
        match repo.list() {
            Ok(listing) => repo.fetch_files(&listing, &select::texts(id, path, &listing.files)?),
            Err(error) => {
                let cached = repo.cached_files();
                match select::texts(id, path, &cached) {
                    Ok(names) => repo.cached_paths(&names).ok_or(error),
                    Err(_) => Err(error),
                }
            }
        }
    }
}

/// `owner/name` and what follows it; `None` where that is no id.
fn split_id(place: &str) -> Option<(&str, Option<&str>)> {
    let is_name = |name: &str| {
        name.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
            && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
            && !name.contains("..")
            && name.len() <= 96
    };
    let (owner, rest) = place.split_once('/')?;
    let (name, file) = match rest.split_once('/') {
        Some((name, file)) => (name, Some(file)),
        None => (rest, None),
    };
    // `models/x.gguf` is a file that is not there, not a repository.
    let is_file = file.is_none() && name.ends_with(".gguf");
    let valid = is_name(owner) && is_name(name) && !is_file && file != Some("");
    valid.then(|| (&place[..owner.len() + 1 + name.len()], file))
}
