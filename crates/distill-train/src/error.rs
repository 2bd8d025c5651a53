use std::path::{Path, PathBuf};

use distill_data::DataError;
use distill_models::ModelError;

/// Everything that can go wrong in a training run.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// A model could not be read, made or written.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The teacher could not be loaded by the edge runtime, or not run.
    #[error(
        "the teacher in the edge runtime: {0}; without `teacher.local.engine` the training graph \
         computes it"
    )]
    Runtime(#[from] distill_edge::EdgeError),
    /// The model that writes the recipe's text could not be loaded by the edge runtime, or not run.
    #[error("the model of [data.generate] in the edge runtime: {0}")]
    Writer(distill_edge::EdgeError),
    /// A teacher was not heard, or what is kept of it is not right.
    #[error(transparent)]
    Teacher(#[from] distill_teacher::TeacherError),
    /// A recipe's text cannot be generated.
    #[error("[data.generate]: {problem}")]
    Generate {
        /// Why, and the way out.
        problem: String,
    },
    /// The data could not be read.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A model that the trained one is to be held against could not be kept.
    #[error("a baseline of [eval.tasks]: {0}")]
    Untrained(Box<dyn std::error::Error + Send + Sync>),
    /// A file of the run directory could not be read or written.
    #[error("{action} {}: {source}{}", path.display(), crate::error::advice(source))]
    Io {
        /// What was being done.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// A file of the run directory does not hold what was written there.
    #[error(
        "{}: {problem}; the checkpoint is damaged: remove its directory to resume from the one before",
        path.display()
    )]
    Checkpoint {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A checkpoint's moments are of another type than the recipe asks for.
    #[error(
        "{}: the optimiser's state is {found}, and the recipe asks for {expected}; continue with \
         `train.optimizer_state = \"{found}\"`, or start a new run from this checkpoint's weights",
        path.display()
    )]
    OptimizerState {
        /// The file.
        path: PathBuf,
        /// Its type, as recipes call it.
        found: &'static str,
        /// The recipe's.
        expected: &'static str,
    },
    /// The frozen weights are others than those that an adapter was trained beside.
    #[error(
        "{}: the adapter was trained beside other weights than the student has now; the model that \
         `student` names has changed since the run began: put it back, or start a new run",
        path.display()
    )]
    OtherBase {
        /// The checkpoint.
        path: PathBuf,
    },
    /// Teacher and student speak different tokens.
    #[error(
        "the teacher's tokenizer is not the student's: {problem}; distillation compares \
         probabilities token by token, so choose a teacher of the student's family, or train a \
         new student on the teacher's tokenizer"
    )]
    Tokenizers {
        /// How they differ.
        problem: String,
    },
    /// A pretrained student was given another tokenizer.
    #[error(
        "`student.tokenizer` is not the tokenizer that the student was trained with: {problem}; \
         leave it out, or start a new student from `student.config`"
    )]
    OwnTokenizer {
        /// How they differ.
        problem: String,
    },
    /// Sequences beyond the longest that a pretrained student was made for.
    #[error(
        "`data.sequence_length` is {sequence_length}, but the student was made for at most \
         {positions} positions; shorten the sequences"
    )]
    SequenceTooLong {
        /// Positions a sequence.
        sequence_length: usize,
        /// The student's `max_position_embeddings`.
        positions: usize,
    },
    /// A model's embedding does not cover its tokenizer.
    #[error(
        "the {model} has {rows} embedding rows but its tokenizer {tokens} tokens; \
         they belong to different models"
    )]
    Vocabulary {
        /// `"student"` or `"teacher"`.
        model: &'static str,
        /// Rows of the embedding.
        rows: usize,
        /// Tokens of the tokenizer.
        tokens: usize,
    },
    /// The loss or the gradient is not a number.
    #[error(
        "step {step}: the {what} is {value}; the run stopped before it touched the weights. \
         The last good checkpoint is {}. Start a new run with a lower `train.learning_rate`, \
         longer `train.warmup_steps` or a smaller `train.clip_norm`, from the beginning or with \
         `student.from` set to that checkpoint",
        checkpoint.as_ref().map_or("none yet".into(), |c| c.display().to_string())
    )]
    Diverged {
        /// The step, from 0.
        step: usize,
        /// `"loss"` or `"gradient norm"`.
        what: &'static str,
        /// Its value.
        value: f64,
        /// Directory of the newest checkpoint.
        checkpoint: Option<PathBuf>,
    },
    /// A run is resumed with another recipe.
    #[error(
        "{}: the recipe has changed since this run began ({difference}); \
         resume with the recipe it began with, or start a new run without --resume",
        path.display()
    )]
    RecipeChanged {
        /// The saved recipe.
        path: PathBuf,
        /// The first line that differs.
        difference: String,
    },
}

impl TrainError {
    /// Whether the user's input is at fault (exit code 2) rather than the work (1).
    pub fn is_input(&self) -> bool {
        match self {
            Self::Io { .. } | Self::Checkpoint { .. } | Self::Diverged { .. } => false,
            Self::Runtime(error) | Self::Writer(error) => error.is_input(),
            Self::Teacher(error) => error.is_input(),
            Self::Model(error) => !matches!(
                error,
                ModelError::NonFinite { .. } | ModelError::Io { action: "writing", .. }
            ),
            _ => true,
        }
    }

    /// A failure to write, whichever crate met it, told as this crate tells it.
    pub(crate) fn while_writing(self) -> Self {
        match self {
            Self::Data(DataError::Io { path, source, .. })
            | Self::Model(ModelError::Io { path, source, .. }) => {
                Self::Io { action: "writing", path, source }
            }
            other => other,
        }
    }

    pub(crate) fn io(
        action: &'static str,
        path: &Path,
    ) -> impl FnOnce(std::io::Error) -> Self + use<> {
        let path = path.to_path_buf();
        move |source| Self::Io { action, path, source }
    }
}

/// The way out of the usual failures of a disk.
pub(crate) fn advice(error: &std::io::Error) -> &'static str {
    use std::io::ErrorKind::{
        FileTooLarge, NotADirectory, PermissionDenied, QuotaExceeded, StorageFull,
    };
    match error.kind() {
        StorageFull | QuotaExceeded => {
            "; free some space and continue with --resume: finished checkpoints are intact"
        }
        FileTooLarge => {
            "; raise the limit (`ulimit -f`) or set `output` to a file system without it"
        }
        NotADirectory => "; a file is in the way: move it or set `output` to another directory",
        PermissionDenied => "; make the directory writable or set `output` to another one",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_with_the_way_out() {
        const ENOSPC: i32 = 28;
        let full = std::io::Error::from_raw_os_error(ENOSPC);
        let error = TrainError::io("writing", Path::new("step-2/optimizer.safetensors"))(full);
        insta::assert_snapshot!(error, @"writing step-2/optimizer.safetensors: No space left on device (os error 28); free some space and continue with --resume: finished checkpoints are intact");
        assert!(!error.is_input());
    }
}
