use std::path::PathBuf;

/// Everything that can go wrong between a model on disk and a model in memory.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A file could not be read or written.
    #[error("{action} {}: {source}", path.display())]
    Io {
        /// What was being done, e.g. `"reading"`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// `config.json` is not JSON or lacks a key.
    #[error("{}: {problem}; expected the config.json of a Llama model", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong, naming the key.
        problem: String,
    },
    /// The architecture is not one this crate builds.
    #[error(
        "{}: model type `{found}` is not supported; supported: `llama` (SmolLM2, Llama 3.2)",
        path.display()
    )]
    Architecture {
        /// The file that names the architecture.
        path: PathBuf,
        /// Its name.
        found: String,
    },
    /// A dimension contradicts another.
    #[error("{place}: {problem}")]
    Shape {
        /// The file or section.
        place: String,
        /// The values and the expectation.
        problem: String,
    },
    /// A tensor has other dimensions than the configuration implies.
    #[error(
        "{}: tensor `{tensor}` has shape {found:?}, the configuration implies {expected:?}; \
         the weights and the configuration are of different models",
        path.display()
    )]
    TensorShape {
        /// The weights file.
        path: PathBuf,
        /// Hugging Face name of the tensor.
        tensor: String,
        /// Dimensions in the file, row-major.
        found: Vec<usize>,
        /// Dimensions that the configuration implies.
        expected: Vec<usize>,
    },
    /// The tensors in the file are not those of the configuration.
    #[error(
        "{}: the weights do not fit the configuration{}{}",
        path.display(),
        list(" missing", missing),
        list(" unexpected", unexpected)
    )]
    Tensors {
        /// The weights file or directory.
        path: PathBuf,
        /// Parameters that no tensor fills.
        missing: Vec<String>,
        /// Tensors that fill no parameter.
        unexpected: Vec<String>,
    },
    /// A tensor has an element type this crate does not read.
    #[error("{}: tensor `{tensor}` is {found}; readable: F32, F16, BF16", path.display())]
    Dtype {
        /// The weights file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its element type.
        found: String,
    },
    /// A weight is infinite or not a number.
    #[error(
        "{place}: tensor `{tensor}` holds {value} at index {index}; a model with such a weight \
         cannot be used: restore an earlier checkpoint or lower the learning rate"
    )]
    NonFinite {
        /// The file or run.
        place: String,
        /// The tensor.
        tensor: String,
        /// Row-major index.
        index: usize,
        /// The value.
        value: f32,
    },
    /// A safetensors file is malformed.
    #[error("{}: not a whole safetensors file ({source}); download or write it again", path.display())]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// The parser's answer.
        source: safetensors::SafeTensorError,
    },
    /// A GGUF file is malformed or holds another model.
    #[error(transparent)]
    Gguf(#[from] distill_gguf::GgufError),
    /// A path is neither a model directory nor a GGUF file.
    #[error(
        "{}: not a model; expected a directory with config.json and model.safetensors, or a .gguf file",
        path.display()
    )]
    NotAModel {
        /// The path.
        path: PathBuf,
    },
    /// A backend that this build does not contain.
    #[error("backend `{backend}` is not in this build; rebuild with `--features {backend}`")]
    BackendMissing {
        /// The backend's name.
        backend: &'static str,
    },
    /// Low-rank factors that are no smaller than the matrix that they stand for.
    #[error(
        "`train.lora.rank` is {rank}, and `{linear}` is a matrix of {out} × {input}; choose a rank of \
         at most {}, or leave it out of `train.lora.targets`",
        out.min(input)
    )]
    LoraRank {
        /// The rank.
        rank: usize,
        /// The linear's name.
        linear: String,
        /// Its rows.
        out: usize,
        /// Its columns.
        input: usize,
    },
    /// The layers to keep are not layers of the teacher.
    #[error("student.keep_layers: {problem}")]
    KeepLayers {
        /// The index and how many layers there are.
        problem: String,
    },
}

fn list(label: &str, names: &[String]) -> String {
    const SHOWN: usize = 6;
    if names.is_empty() {
        return String::new();
    }
    let more = names.len().saturating_sub(SHOWN);
    let tail = if more > 0 { format!(" and {more} more") } else { String::new() };
    let shown = names.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    format!(";{label}: {shown}{tail}")
}

impl ModelError {
    pub(crate) fn io(
        action: &'static str,
        path: &std::path::Path,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { action, path, source }
    }
}
