//! How a command fails: a message for a person and an exit code for a script.

use std::process::ExitCode;

use distill_train::TrainError;

/// A failed command.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The recipe is wrong; the message points into it.
    #[error(transparent)]
    Recipe(#[from] distill_recipe::RecipeError),
    /// The device cannot do what the recipe asks of it; the message points into the recipe.
    #[error(transparent)]
    Budget(distill_recipe::RecipeError),
    /// Training or its preparation failed.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// A teacher was not heard, or what is kept of it is not right.
    #[error(transparent)]
    Teacher(#[from] distill_teacher::TeacherError),
    /// A download failed or the id is wrong.
    #[error(transparent)]
    Hub(#[from] crate::hub::HubError),
    /// The runtime refused.
    #[error(transparent)]
    Edge(#[from] distill_edge::EdgeError),
    /// The export failed.
    #[error(transparent)]
    Export(#[from] distill_export::ExportError),
    /// Measuring failed.
    #[error(transparent)]
    Eval(#[from] distill_eval::EvalError),
    /// A file could not be read or written.
    #[error("{action} {}: {source}", path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// The file.
        path: std::path::PathBuf,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// A directory is not a run.
    #[error("{}: {problem}", path.display())]
    NotARun {
        /// The directory.
        path: std::path::PathBuf,
        /// What is missing, and the way out.
        problem: String,
    },
    /// What was asked for cannot be done with this model or recipe.
    #[error("{0}")]
    Usage(String),
    /// Training graph and runtime disagree.
    #[error(
        "parity failed: the exported model does not compute what was trained.\n{details}\n\
         The checkpoint is intact; see {}",
        path.display()
    )]
    Parity {
        /// Where the two part, for each configuration.
        details: String,
        /// The file with all figures.
        path: std::path::PathBuf,
    },
}

impl Failure {
    /// For `map_err`.
    pub fn io(
        action: &'static str,
        path: &std::path::Path,
    ) -> impl FnOnce(std::io::Error) -> Self + use<> {
        let path = path.to_path_buf();
        move |source| Self::Io { action, path, source }
    }

    /// Prints the message to stderr and gives the exit code.
    pub fn report(self) -> ExitCode {
        let code = self.code();
        match self {
            Self::Recipe(error) | Self::Budget(error) => {
                eprintln!("{:?}", miette::Report::new(error))
            }
            other => eprintln!("error: {other}"),
        }
        ExitCode::from(code)
    }

    /// 2 for what the user wrote, 1 for what failed.
    fn code(&self) -> u8 {
        let is_input = match self {
            Self::Recipe(_) | Self::NotARun { .. } | Self::Usage(_) => true,
            Self::Train(error) => error.is_input(),
            Self::Teacher(error) => error.is_input(),
            Self::Hub(error) => error.is_input(),
            Self::Edge(error) => error.is_input(),
            Self::Eval(error) => error.is_input(),
            Self::Budget(_) | Self::Export(_) | Self::Io { .. } | Self::Parity { .. } => false,
        };
        if is_input { 2 } else { 1 }
    }
}
