//! `[teacher]`.

use schemars::JsonSchema;
use serde::Deserialize;

use super::Written;
use crate::defaults;
use crate::resolved::{Engine, Protocol};

/// The model to learn from: `local` or `remote`. Without this table the student is trained on the
/// text alone.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Teacher {
    pub(crate) local: Option<Written<LocalTeacher>>,
    pub(crate) remote: Option<Written<RemoteTeacher>>,
    pub(crate) signal: Option<Written<TeacherSignal>>,
    pub(crate) cache: Option<Written<TeacherCache>>,
}

/// A teacher that a server runs. It is asked about every sequence once, before training, and what it
/// says is kept in a cache.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RemoteTeacher {
    /// What the server speaks.
    pub(crate) protocol: Written<Protocol>,
    /// Addresses of servers of this teacher, such as `http://127.0.0.1:8000`. All are asked at once.
    #[schemars(length(min = 1), inner(length(min = 1)))]
    pub(crate) endpoints: Written<Vec<Written<String>>>,
    /// The model, as the servers call it. Signals of different models are never mixed up.
    #[schemars(length(min = 1))]
    pub(crate) model: Written<String>,
    /// The teacher's tokenizer: a directory, a `.gguf` file or a hub id. It must be the student's.
    /// Default: it is taken to be, and `distill teacher probe` looks whether answers agree with that.
    #[schemars(length(min = 1))]
    pub(crate) tokenizer: Option<Written<String>>,
    /// The environment variable that holds the API key.
    #[schemars(length(min = 1))]
    pub(crate) api_key_env: Option<Written<String>>,
    /// Requests that are on their way to each endpoint at a time.
    #[schemars(range(min = 1, max = 1024), extend("default" = defaults::CONCURRENCY))]
    pub(crate) concurrency: Option<Written<usize>>,
    /// Seconds that an answer may take.
    #[schemars(extend("exclusiveMinimum" = 0), range(max = 86_400), extend("default" = defaults::TIMEOUT_S))]
    pub(crate) timeout_s: Option<Written<f64>>,
    /// How often a request is tried before its endpoint is given up.
    #[schemars(range(min = 1, max = 1000), extend("default" = defaults::ATTEMPTS))]
    pub(crate) attempts: Option<Written<u32>>,
    /// Requests in a minute that the service allows, over all endpoints.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub(crate) requests_per_minute: Option<Written<f64>>,
    /// Tokens in a minute that the service allows, over all endpoints.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub(crate) tokens_per_minute: Option<Written<f64>>,
    /// Most tokens to send. What has come by then is kept.
    #[schemars(range(min = 1))]
    pub(crate) max_tokens: Option<Written<u64>>,
    /// What a million tokens cost, in any currency.
    #[schemars(range(min = 0))]
    pub(crate) price_per_million_tokens: Option<Written<f64>>,
    /// The most that the teacher may cost, in that currency.
    #[schemars(range(min = 0))]
    pub(crate) max_cost: Option<Written<f64>>,
}

/// Which tokens the teacher speaks of: `top_k` or `draws`. Of a local teacher, this keeps what it says
/// in a cache; without this table it is computed again in every step. Default of a remote teacher:
/// `top_k = 20`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct TeacherSignal {
    /// The likeliest tokens. All others are one bucket, and nothing is renormalised.
    #[schemars(range(min = 1, max = 65_535))]
    pub(crate) top_k: Option<Written<usize>>,
    /// Tokens that are drawn at each position, whose gradient is that of all tokens in the mean; about a
    /// quarter as many are different.
    #[schemars(range(min = 1, max = 32_767))]
    pub(crate) draws: Option<Written<u32>>,
    /// Draws are from p to this power; weights make up for it.
    #[schemars(extend("exclusiveMinimum" = 0), range(max = 4), extend("default" = defaults::POWER))]
    pub(crate) power: Option<Written<f64>>,
}

/// Where what the teacher says is kept.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct TeacherCache {
    /// A directory, which is then only for this teacher and this kind of signal. Without this table:
    /// one for each of these below `<output>/teacher`.
    #[schemars(length(min = 1))]
    pub(crate) path: Written<String>,
}

/// A teacher that runs in the same process.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct LocalTeacher {
    /// A Hugging Face directory, a `.gguf` file, or a hub id `owner/name`
    /// (`owner/name/file.gguf` where a repository has several).
    #[schemars(length(min = 1))]
    pub(crate) from: Written<String>,
    /// Branch, tag or commit of a hub id.
    #[schemars(length(min = 1), extend("default" = defaults::REVISION))]
    pub(crate) revision: Option<Written<String>>,
    /// What computes it: the training graph, or the edge runtime, which reads a `.gguf` file and
    /// takes a fraction of the time and memory where that is quantised.
    #[schemars(extend("default" = defaults::ENGINE))]
    pub(crate) engine: Option<Written<Engine>>,
}
