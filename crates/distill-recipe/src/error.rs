//! What can be wrong with a recipe: every problem with its value, the expectation, the place in
//! the TOML and the way out.

use std::fmt::Display;
use std::path::PathBuf;
use std::sync::Arc;

use miette::{Diagnostic, LabeledSpan, NamedSource, SourceCode};

use crate::problem::ProblemKind;

/// Why a recipe cannot be run. Everything here is the user's to change (exit code 2).
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    /// There is nothing at the path.
    #[error("there is no recipe at {}", path.display())]
    NotFound {
        /// The path asked for.
        path: PathBuf,
        /// Recipes of nearly that name in the same directory.
        similar: Vec<PathBuf>,
    },
    /// The path is a directory.
    #[error("{} is a directory, not a recipe", path.display())]
    IsDirectory {
        /// The path asked for.
        path: PathBuf,
        /// The recipes inside.
        recipes: Vec<PathBuf>,
    },
    /// The file system refused.
    #[error("cannot read the recipe {}: {source}", path.display())]
    Unreadable {
        /// The path asked for.
        path: PathBuf,
        /// What the file system said.
        source: std::io::Error,
    },
    /// The file is far larger than any recipe.
    #[error(
        "{} is larger than {limit_bytes} bytes, the most that is read as a recipe",
        path.display()
    )]
    TooLarge {
        /// The path asked for.
        path: PathBuf,
        /// The limit.
        limit_bytes: u64,
    },
    /// The file is not text.
    #[error(
        "{} is not UTF-8: byte {offset} (line {line}) is 0x{byte:02x}",
        path.display()
    )]
    NotUtf8 {
        /// The path asked for.
        path: PathBuf,
        /// Offset of the first wrong byte.
        offset: usize,
        /// Its line, from 1.
        line: usize,
        /// Its value.
        byte: u8,
    },
    /// The recipe was read and is wrong in one or more places.
    #[error("{}", invalid_summary(path, problems))]
    Invalid {
        /// The recipe.
        path: PathBuf,
        /// All that is wrong, in the order of the file, then of the overrides.
        problems: Vec<Problem>,
    },
}

fn invalid_summary(path: &std::path::Path, problems: &[Problem]) -> String {
    match problems {
        [only] => only.to_string(),
        many => format!("{} has {} problems", path.display(), many.len()),
    }
}

impl Diagnostic for RecipeError {
    fn help<'a>(&'a self) -> Option<Box<dyn Display + 'a>> {
        let help = match self {
            Self::NotFound { similar, .. } if !similar.is_empty() => {
                format!("did you mean {}?", list(similar))
            }
            Self::NotFound { .. } => {
                "paths are relative to the directory that distill is started in; \
                 recipes/ holds recipes to start from"
                    .to_owned()
            }
            Self::IsDirectory { recipes, .. } if !recipes.is_empty() => {
                format!("name one of the recipes in it: {}", list(recipes))
            }
            Self::IsDirectory { .. } => "name a TOML file".to_owned(),
            Self::Unreadable { .. } => "check the owner and the permissions of the file".to_owned(),
            Self::TooLarge { .. } => "is this a recipe, or a model or data file?".to_owned(),
            Self::NotUtf8 { .. } => {
                "a recipe is a TOML file; save it with the encoding UTF-8".to_owned()
            }
            Self::Invalid { problems, .. } => match problems.as_slice() {
                [only] => return only.help(),
                _ => return None,
            },
        };
        Some(Box::new(help))
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        self.only_problem()?.source_code()
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        self.only_problem()?.labels()
    }

    fn related<'a>(&'a self) -> Option<Box<dyn Iterator<Item = &'a dyn Diagnostic> + 'a>> {
        match self {
            Self::Invalid { problems, .. } if problems.len() > 1 => {
                Some(Box::new(problems.iter().map(|problem| problem as &dyn Diagnostic)))
            }
            _ => None,
        }
    }
}

impl RecipeError {
    fn only_problem(&self) -> Option<&Problem> {
        match self {
            Self::Invalid { problems, .. } if problems.len() == 1 => problems.first(),
            _ => None,
        }
    }
}

fn list(paths: &[PathBuf]) -> String {
    let shown: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
    shown.join(", ")
}

/// One thing that is wrong, and where.
#[derive(Debug, thiserror::Error)]
#[error("{kind}")]
pub struct Problem {
    pub(crate) kind: ProblemKind,
    /// Where it stands in all texts, to sort by.
    pub(crate) place: usize,
    /// The recipe, or the text of one `--set`.
    pub(crate) text: Arc<NamedSource<String>>,
    /// Places in `text`; the first is the one to change.
    pub(crate) labels: Vec<LabeledSpan>,
}

impl Problem {
    /// What is wrong.
    pub fn kind(&self) -> &ProblemKind {
        &self.kind
    }
}

impl Diagnostic for Problem {
    fn help<'a>(&'a self) -> Option<Box<dyn Display + 'a>> {
        Some(Box::new(self.kind.help()?))
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        Some(self.text.as_ref())
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        Some(Box::new(self.labels.iter().cloned()))
    }
}
