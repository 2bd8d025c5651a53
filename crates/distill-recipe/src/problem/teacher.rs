//! What can be wrong with `[teacher]`.

/// A problem of a teacher, of how it is asked or of what is kept of it.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum TeacherProblem {
    /// Neither here nor elsewhere.
    #[error("[teacher] names no model")]
    Nobody,
    /// Two teachers.
    #[error("a teacher is either local or remote")]
    Two,
    /// Something that needs weights, of a teacher that only answers.
    #[error("{what} needs the teacher's weights, and a remote one only answers")]
    NoWeights {
        /// What needs them.
        what: &'static str,
    },
    /// A student without a tokenizer of its own, and a teacher whose tokenizer nobody has named.
    #[error(
        "the student takes the teacher's tokenizer, and a remote teacher does not hand it over"
    )]
    NoTokenizer,
    /// Two ways to choose tokens.
    #[error("a signal is the likeliest tokens or samples, not both")]
    TwoSignals,
    /// No way to choose tokens.
    #[error("[teacher.signal] does not say which tokens are kept")]
    NoSignal,
    /// A key of samples without samples.
    #[error("`power` is how samples are drawn, and there are none")]
    PowerWithoutDraws,
    /// Samples for a loss that they do not estimate.
    #[error("samples estimate the forward KL, and `distill.loss` is another")]
    SamplesForAnotherLoss,
    /// Samples from a server that gives none.
    #[error("protocol \"{protocol}\" gives the likeliest tokens, and no samples")]
    SamplesFrom {
        /// The protocol.
        protocol: &'static str,
    },
    /// A temperature that servers do not know.
    #[error("protocol \"{protocol}\" gives probabilities at temperature 1, not {temperature}")]
    Temperature {
        /// The protocol.
        protocol: &'static str,
        /// That of `[distill]`.
        temperature: f64,
    },
    /// A cache of nothing.
    #[error("[teacher.cache] is for signals of some tokens, and a local teacher says everything")]
    CacheOfEverything,
    /// A limit of money without a price.
    #[error("`max_cost` needs `price_per_million_tokens`")]
    CostWithoutPrice,
    /// An address that is none.
    #[error("an address must begin with `http://` or `https://`, and is {address:?}")]
    Address {
        /// The address.
        address: String,
    },
}

impl TeacherProblem {
    /// The way out.
    pub(super) fn help(&self) -> &'static str {
        match self {
            Self::Nobody => "add [teacher.local] with `from`, or [teacher.remote] with `endpoints`",
            Self::Two => "keep [teacher.local] or [teacher.remote]",
            Self::NoWeights { .. } => {
                "take `from` or `config` for the student, and name a model for [data.generate]"
            }
            Self::NoTokenizer => {
                "add `tokenizer` to [teacher.remote] (a directory, a `.gguf` file or a hub id), or to \
                 [student]"
            }
            Self::TwoSignals => "keep `top_k` or `draws`",
            Self::NoSignal => {
                "add `top_k = 32`, or `draws = 50` for samples, whose gradient is unbiased"
            }
            Self::PowerWithoutDraws => "remove it, or write `draws` in place of `top_k`",
            Self::SamplesForAnotherLoss => "set `loss = \"forward_kl\"`, or write `top_k`",
            Self::SamplesFrom { .. } => {
                "write `top_k`; samples come from a local teacher or from `distill teacher serve` \
                 (protocol \"distill\")"
            }
            Self::Temperature { .. } => {
                "set `distill.temperature` to 1: what is missing of a tail cannot be softened \
                 afterwards"
            }
            Self::CacheOfEverything => "add [teacher.signal] with `top_k` or `draws`, or remove it",
            Self::CostWithoutPrice => "add `price_per_million_tokens`, or limit `max_tokens`",
            Self::Address { .. } => "write it as `http://127.0.0.1:8000`",
        }
    }

    /// The words beside the caret.
    pub(super) fn label(&self) -> &'static str {
        match self {
            Self::Nobody | Self::NoSignal => "incomplete",
            Self::Two | Self::TwoSignals => "one too many",
            Self::NoWeights { .. } => "no weights",
            Self::NoTokenizer => "no tokenizer",
            Self::PowerWithoutDraws => "would do nothing",
            Self::SamplesForAnotherLoss => "not for samples",
            Self::SamplesFrom { .. } => "gives no samples",
            Self::Temperature { .. } => "must be 1",
            Self::CacheOfEverything => "cache of what?",
            Self::CostWithoutPrice => "in which tokens?",
            Self::Address { .. } => "no address",
        }
    }
}
