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
    /// A file of questions or a tokenizer could not be read.
    #[error(transparent)]
    Data(#[from] distill_data::DataError),
    /// A file could not be read or written.
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
    /// A text that is not UTF-8.
    #[error("{}: invalid UTF-8 at byte {offset}; convert it first, e.g. `iconv -f latin1 -t utf8`", path.display())]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// From 0.
        offset: usize,
    },
    /// A text without a single window.
    #[error(
        "{}: {tokens} tokens are less than one window of {context}; give more text or a shorter context",
        path.display()
    )]
    TooShort {
        /// The file.
        path: PathBuf,
        /// Its tokens.
        tokens: usize,
        /// Tokens of a window.
        context: usize,
    },
    /// Windows of which nothing would be scored.
    #[error("windows of {context} tokens have none to score; expected at least 3")]
    Window {
        /// Tokens of a window.
        context: usize,
    },
    /// More tokens than the model was made for.
    #[error("{tokens} tokens at once; the model was made for {context}: take a shorter context")]
    Context {
        /// Tokens to be read.
        tokens: usize,
        /// The most that the model reads.
        context: usize,
    },
    /// A file of questions without any.
    #[error("{}: holds no item; expected a line for each: {form}", path.display())]
    NoItems {
        /// The file.
        path: PathBuf,
        /// What a line holds.
        form: &'static str,
    },
    /// A question that cannot be put to this model.
    #[error("{}:{line}: {problem}", path.display())]
    Item {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: u64,
        /// What is wrong.
        problem: String,
    },
    /// A model and a reference whose logits stand for other tokens.
    #[error(
        "the model has {model} logits and the reference {reference}; only models of one vocabulary \
         can be compared token by token"
    )]
    Vocabularies {
        /// Logits of the model.
        model: usize,
        /// Logits of the reference.
        reference: usize,
    },
    /// A model and a reference that read a text as other tokens.
    #[error(
        "{}: the model and the reference read other tokens, first at token {token}; only models of \
         one tokenizer can be compared token by token",
        path.display()
    )]
    Tokenizers {
        /// The text.
        path: PathBuf,
        /// The first that differs.
        token: usize,
    },
    /// A tokenizer with more tokens than the model has logits.
    #[error("the tokenizer has {tokens} tokens, the model {logits}: they do not belong together")]
    TokensWithoutLogits {
        /// Tokens of the tokenizer.
        tokens: usize,
        /// Rows of the head.
        logits: usize,
    },
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

impl EvalError {
    /// Whether the user can mend it: a file, an option, a model of another kind.
    pub fn is_input(&self) -> bool {
        match self {
            Self::Edge(error) => error.is_input(),
            Self::NotUtf8 { .. }
            | Self::TooShort { .. }
            | Self::Window { .. }
            | Self::Context { .. }
            | Self::NoItems { .. }
            | Self::Item { .. }
            | Self::Vocabularies { .. }
            | Self::Tokenizers { .. }
            | Self::TokensWithoutLogits { .. }
            | Self::Data(_) => true,
            Self::Model(_)
            | Self::Io { .. }
            | Self::Vocabulary { .. }
            | Self::NoText
            | Self::Chart { .. }
            | Self::Template(_) => false,
        }
    }
}
