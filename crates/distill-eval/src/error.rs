use std::path::PathBuf;

/// What can go wrong while measuring.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    /// The runtime refused the exported file.
    #[error(transparent)]
    Edge(#[from] distill_edge::EdgeError),
    /// The training graph could not be built.
    #[error(transparent)]
    Model(#[from] distill_models::ModelError),
    /// A file could not be written.
    #[error("{action} {}: {source}", path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// Graph and file do not even have the same vocabulary.
    #[error(
        "{}: the file has {found} tokens, the training graph {expected}; \
         it was not exported from this run",
        path.display()
    )]
    Vocabulary {
        /// The exported file.
        path: PathBuf,
        /// Tokens in the file.
        found: usize,
        /// Tokens of the graph.
        expected: usize,
    },
    /// There is no text to compare on.
    #[error("there is no held-out text to compare on; raise `data.held_out` or add text")]
    NoText,
    /// A chart could not be drawn.
    #[error("drawing the chart `{chart}`: {problem}")]
    Chart {
        /// Its title.
        chart: String,
        /// The drawing library's answer.
        problem: String,
    },
    /// The report's template could not be filled in.
    #[error("writing the report: {0}")]
    Template(#[from] minijinja::Error),
}
