//! The teacher, and how it is asked.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ModelRef;

/// The model the student learns from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Teacher {
    /// Where it is. In TOML: the table `local` or `remote`.
    #[serde(flatten)]
    pub source: TeacherSource,
    /// Which tokens it speaks of; `None` exactly if it is local and computed in every step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<TeacherSignal>,
    /// Where that is kept; `None`: below `<output>/teacher`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<TeacherCache>,
}

impl Teacher {
    /// The teacher of which there are weights.
    pub fn local(&self) -> Option<&LocalTeacher> {
        match &self.source {
            TeacherSource::Local(local) => Some(local),
            TeacherSource::Remote(_) => None,
        }
    }

    /// The teacher that a server runs.
    pub fn remote(&self) -> Option<&RemoteTeacher> {
        match &self.source {
            TeacherSource::Local(_) => None,
            TeacherSource::Remote(remote) => Some(remote),
        }
    }
}

/// Where a teacher is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TeacherSource {
    /// In this process.
    Local(LocalTeacher),
    /// On a server.
    Remote(RemoteTeacher),
}

/// A teacher that a server runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RemoteTeacher {
    /// What the server speaks.
    pub protocol: Protocol,
    /// Addresses; at least one.
    pub endpoints: Vec<String>,
    /// The model, as the servers call it.
    pub model: String,
    /// Where its tokenizer comes from; `None`: it is taken to be the student's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<String>,
    /// The environment variable that holds the API key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_key_env: Option<String>,
    /// Requests on their way to each endpoint at a time.
    pub concurrency: usize,
    /// Seconds that an answer may take.
    pub timeout_s: f64,
    /// How often a request is tried.
    pub attempts: u32,
    /// Requests in a minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests_per_minute: Option<f64>,
    /// Tokens in a minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_per_minute: Option<f64>,
    /// Most tokens to send.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u64>,
    /// What a million tokens cost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub price_per_million_tokens: Option<f64>,
    /// The most that all may cost; there is a price then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_cost: Option<f64>,
}

/// What a server of a teacher speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// `distill teacher serve`.
    Distill,
    /// vLLM's `/v1/completions` with `prompt_logprobs`.
    Vllm,
    /// SGLang's `/generate`.
    Sglang,
    /// TRL's `vllm-serve`, `/get_sequence_logprobs/`.
    Trl,
    /// llama.cpp's `llama-server`, `/completion`: a request for each position.
    LlamaServer,
    /// Any `/v1/completions` with `echo` and `logprobs`: text goes out and comes back.
    Openai,
    /// llama-cpp-python's server, whose rows are shifted where there is no beginning-of-sequence token.
    LlamaCppPython,
}

impl Protocol {
    /// As in a recipe.
    pub fn name(self) -> &'static str {
        match self {
            Self::Distill => "distill",
            Self::Vllm => "vllm",
            Self::Sglang => "sglang",
            Self::Trl => "trl",
            Self::LlamaServer => "llama_server",
            Self::Openai => "openai",
            Self::LlamaCppPython => "llama_cpp_python",
        }
    }
}

/// Which tokens a teacher speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum TeacherSignal {
    /// The likeliest; all others are one bucket.
    TopK {
        /// So many.
        top_k: usize,
    },
    /// Samples.
    Sampled {
        /// So many.
        draws: u32,
        /// From p to this power.
        power: f64,
    },
}

/// Where what a teacher says is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TeacherCache {
    /// The directory.
    pub path: PathBuf,
}

/// A teacher that runs in this process. In TOML: the model's keys, and `engine` beside them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalTeacher {
    /// Where it comes from.
    #[serde(flatten)]
    pub model: ModelRef,
    /// What computes it.
    #[serde(default)]
    pub engine: Engine,
}

/// What computes a local teacher.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Engine {
    /// The training graph, with weights in f32.
    #[default]
    Graph,
    /// The edge runtime, with the weights of a `.gguf` file as they are: integer products where
    /// they are quantised.
    Runtime,
}
