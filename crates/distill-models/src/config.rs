//! The shape of a Llama model, as Hugging Face's `config.json` spells it.

use std::path::Path;

use distill_gguf::{GgufFile, Metadata};
use serde::{Deserialize, Serialize};

use crate::ModelError;
use crate::rope::inverse_frequencies;

/// Hyperparameters of a Llama model; the field names are those of `config.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LlamaConfig {
    /// Rows of the embedding, padding included.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward network.
    pub intermediate_size: usize,
    /// Decoder layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; divides `num_attention_heads`.
    pub num_key_value_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Llama 3's stretching of the low frequencies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rope_scaling: Option<RopeScaling>,
    /// Added to the mean square in every RMSNorm.
    pub rms_norm_eps: f64,
    /// Longest context the model was made for, in tokens.
    pub max_position_embeddings: usize,
    /// Whether the head is the embedding.
    pub tie_word_embeddings: bool,
    /// Token that begins a text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bos_token_id: Option<u32>,
    /// Token that ends a text, or the several that end a turn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eos_token_id: Option<TokenIds>,
}

/// One token or several, as `config.json` has them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum TokenIds {
    /// A number.
    One(u32),
    /// A list.
    Several(Vec<u32>),
}

/// Llama 3's rotary scaling, in one of the two forms a file may hold it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum RopeScaling {
    /// The four numbers of `config.json`.
    Llama3 {
        /// Always `"llama3"`.
        rope_type: String,
        /// Stretch of the lowest frequencies.
        factor: f64,
        /// Wavelengths above `original / low_freq_factor` are stretched fully.
        low_freq_factor: f64,
        /// Wavelengths below `original / high_freq_factor` are left alone.
        high_freq_factor: f64,
        /// Context length of pre-training.
        original_max_position_embeddings: usize,
    },
    /// Divisors of the inverse frequencies, `[head_dim / 2]`: GGUF's `rope_freqs.weight`.
    Divisors {
        /// One divisor per frequency.
        rope_divisors: Vec<f32>,
    },
}

/// The `(factor, original_max_position_embeddings)` of the models that Meta released with
/// `low_freq_factor` 1 and `high_freq_factor` 4: Llama 3.1 and Llama 3.2.
const LLAMA_3_RELEASES: [(f64, usize); 2] = [(8.0, 8192), (32.0, 8192)];

impl RopeScaling {
    /// The scaling of a GGUF file, `[head_dim / 2]`. A file holds divisors only; those of a
    /// release are given back as its four numbers, the form that transformers reads.
    fn from_divisors(rope_divisors: Vec<f32>, rope_theta: f64) -> Self {
        let releases = LLAMA_3_RELEASES.map(|(factor, original)| Self::Llama3 {
            rope_type: "llama3".into(),
            factor,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: original,
        });
        let half = rope_divisors.len();
        let plain = inverse_frequencies(rope_theta, 2 * half, None);
        let made_the_file = |release: &Self| {
            let scaled = inverse_frequencies(rope_theta, 2 * half, Some(release));
            plain.iter().zip(scaled).zip(&rope_divisors).all(|((plain, scaled), &found)| {
                (plain / scaled - f64::from(found)).abs() <= 1e-5 * f64::from(found)
            })
        };
        let release = releases.into_iter().find(made_the_file);
        release.unwrap_or(Self::Divisors { rope_divisors })
    }
}

/// `config.json` as found: optional where Hugging Face has a default.
#[derive(Deserialize)]
struct RawConfig {
    model_type: Option<String>,
    vocab_size: Option<usize>,
    hidden_size: Option<usize>,
    intermediate_size: Option<usize>,
    num_hidden_layers: Option<usize>,
    num_attention_heads: Option<usize>,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    rope_theta: Option<f64>,
    rope_scaling: Option<serde_json::Value>,
    /// Transformers 5 keeps `rope_theta` and the scaling here.
    rope_parameters: Option<serde_json::Value>,
    rms_norm_eps: Option<f64>,
    max_position_embeddings: Option<usize>,
    tie_word_embeddings: Option<bool>,
    bos_token_id: Option<u32>,
    eos_token_id: Option<TokenIds>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    hidden_act: Option<String>,
}

impl LlamaConfig {
    /// Reads `config.json`.
    ///
    /// # Errors
    /// [`ModelError::Config`] naming the missing or contradictory key;
    /// [`ModelError::Architecture`] for another model type.
    pub fn from_json(path: &Path) -> Result<Self, ModelError> {
        let text = std::fs::read_to_string(path).map_err(ModelError::io("reading", path))?;
        let problem = |problem: String| ModelError::Config { path: path.to_path_buf(), problem };
        let raw: RawConfig = serde_json::from_str(&text).map_err(|e| problem(e.to_string()))?;
        if let Some(found) = raw.model_type.filter(|m| m != "llama") {
            return Err(ModelError::Architecture { path: path.to_path_buf(), found });
        }
        if raw.attention_bias == Some(true) || raw.mlp_bias == Some(true) {
            return Err(problem("biases in linears are not supported".into()));
        }
        if let Some(act) = raw.hidden_act.filter(|a| a != "silu") {
            return Err(problem(format!("hidden_act is `{act}`, expected `silu`")));
        }
        let need = |value: Option<usize>, key: &str| {
            value.ok_or_else(|| problem(format!("key `{key}` is missing")))
        };
        let hidden_size = need(raw.hidden_size, "hidden_size")?;
        let num_attention_heads = need(raw.num_attention_heads, "num_attention_heads")?;
        if num_attention_heads == 0 {
            return Err(problem("`num_attention_heads` is 0".into()));
        }
        let rope = raw.rope_parameters;
        let theta = raw
            .rope_theta
            .or_else(|| rope.as_ref()?.get("rope_theta")?.as_f64())
            .unwrap_or(10_000.0);
        let config = Self {
            vocab_size: need(raw.vocab_size, "vocab_size")?,
            hidden_size,
            intermediate_size: need(raw.intermediate_size, "intermediate_size")?,
            num_hidden_layers: need(raw.num_hidden_layers, "num_hidden_layers")?,
            num_attention_heads,
            num_key_value_heads: raw.num_key_value_heads.unwrap_or(num_attention_heads),
            head_dim: raw.head_dim.unwrap_or(hidden_size / num_attention_heads),
            rope_theta: theta,
            rope_scaling: scaling(raw.rope_scaling.or(rope)).map_err(problem)?,
            rms_norm_eps: raw.rms_norm_eps.unwrap_or(1e-6),
            max_position_embeddings: raw.max_position_embeddings.unwrap_or(2048),
            tie_word_embeddings: raw.tie_word_embeddings.unwrap_or(false),
            bos_token_id: raw.bos_token_id,
            eos_token_id: raw.eos_token_id,
        };
        config.validate(&path.display().to_string())?;
        Ok(config)
    }

    /// Reads the metadata of a GGUF file of architecture `llama`.
    ///
    /// # Errors
    /// [`ModelError::Gguf`] naming the missing key; [`ModelError::Architecture`].
    pub fn from_gguf(file: &GgufFile, path: &Path) -> Result<Self, ModelError> {
        let meta = file.metadata();
        let architecture = meta.string("general.architecture")?;
        if architecture != "llama" {
            return Err(ModelError::Architecture {
                path: path.to_path_buf(),
                found: architecture.to_string(),
            });
        }
        let size = |key: &str| meta.u32(key).map(|v| v as usize);
        let hidden_size = size("llama.embedding_length")?;
        let heads = size("llama.attention.head_count")?;
        let vocab_size = match file.tensor("token_embd.weight") {
            Some(view) => view.info.dims.get(1).map_or(0, |&rows| rows as usize),
            None => size("llama.vocab_size")?,
        };
        let head_dim = size("llama.attention.key_length").unwrap_or(hidden_size / heads.max(1));
        refuse_what_is_not_llama(file, path, head_dim)?;
        let rope_theta = meta.f32("llama.rope.freq_base").map_or(10_000.0, f64::from);
        let scaling = match file.tensor("rope_freqs.weight") {
            Some(view) => Some(RopeScaling::from_divisors(view.dequantize()?, rope_theta)),
            None => None,
        };
        let config = Self {
            vocab_size,
            hidden_size,
            intermediate_size: size("llama.feed_forward_length")?,
            num_hidden_layers: size("llama.block_count")?,
            num_attention_heads: heads,
            num_key_value_heads: size("llama.attention.head_count_kv").unwrap_or(heads),
            head_dim,
            rope_theta,
            rope_scaling: scaling,
            rms_norm_eps: short_f64(meta.f32("llama.attention.layer_norm_rms_epsilon")?),
            max_position_embeddings: size("llama.context_length")?,
            tie_word_embeddings: file.tensor("output.weight").is_none(),
            bos_token_id: meta.u32("tokenizer.ggml.bos_token_id").ok(),
            eos_token_id: ends(meta)?,
        };
        config.validate(&path.display().to_string())?;
        Ok(config)
    }

    /// Checks that the dimensions fit each other; `place` begins the message.
    ///
    /// # Errors
    /// [`ModelError::Shape`] with both numbers.
    pub fn validate(&self, place: &str) -> Result<(), ModelError> {
        let fail = |problem: String| Err(ModelError::Shape { place: place.to_string(), problem });
        for (key, value) in [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.num_key_value_heads),
            ("head_dim", self.head_dim),
        ] {
            if value == 0 || value > 1 << 24 {
                return fail(format!("`{key}` is {value}, expected 1 to {}", 1 << 24));
            }
        }
        if self.num_hidden_layers > 4096 {
            return fail(format!(
                "`num_hidden_layers` is {}, expected 1 to 4096",
                self.num_hidden_layers
            ));
        }
        for (key, value) in [("rope_theta", self.rope_theta), ("rms_norm_eps", self.rms_norm_eps)] {
            if !(value.is_finite() && value > 0.0) {
                return fail(format!("`{key}` is {value}, expected a number above 0"));
            }
        }
        if !self.num_attention_heads.is_multiple_of(self.num_key_value_heads) {
            return fail(format!(
                "`num_attention_heads` ({}) is no multiple of `num_key_value_heads` ({})",
                self.num_attention_heads, self.num_key_value_heads
            ));
        }
        if !self.head_dim.is_multiple_of(2) {
            return fail(format!(
                "`head_dim` is {}, rotary embeddings need an even one",
                self.head_dim
            ));
        }
        if let Some(RopeScaling::Divisors { rope_divisors }) = &self.rope_scaling
            && rope_divisors.len() != self.head_dim / 2
        {
            return fail(format!(
                "`rope_freqs.weight` has {} elements, expected head_dim / 2 = {}",
                rope_divisors.len(),
                self.head_dim / 2
            ));
        }
        Ok(())
    }

    /// Elements of all parameters.
    pub fn parameters(&self) -> usize {
        let queries = self.num_attention_heads * self.head_dim;
        let keys = self.num_key_value_heads * self.head_dim;
        let attention = 2 * self.hidden_size * (queries + keys);
        let mlp = 3 * self.hidden_size * self.intermediate_size;
        let layer = attention + mlp + 2 * self.hidden_size;
        let tables = if self.tie_word_embeddings { 1 } else { 2 };
        tables * self.vocab_size * self.hidden_size
            + self.num_hidden_layers * layer
            + self.hidden_size
    }

    /// The shape of a model made of some of this one's layers, in order.
    ///
    /// # Errors
    /// [`ModelError::KeepLayers`] if an index is out of range or the list is not rising.
    pub fn cut(&self, keep: &[usize]) -> Result<Self, ModelError> {
        let count = self.num_hidden_layers;
        let rising = keep.windows(2).all(|pair| pair[0] < pair[1]);
        if keep.is_empty() || !rising || keep.iter().any(|&layer| layer >= count) {
            return Err(ModelError::KeepLayers {
                problem: format!(
                    "{keep:?}; expected rising indices below the teacher's {count} layers"
                ),
            });
        }
        Ok(Self { num_hidden_layers: keep.len(), ..self.clone() })
    }

    /// `config.json` in the form that transformers reads.
    pub fn to_json(&self) -> serde_json::Value {
        let mut json = serde_json::to_value(self).unwrap_or_default();
        let extra = [
            ("architectures", serde_json::json!(["LlamaForCausalLM"])),
            ("model_type", "llama".into()),
            ("hidden_act", "silu".into()),
            ("attention_bias", false.into()),
            ("mlp_bias", false.into()),
            ("torch_dtype", "float32".into()),
        ];
        for (key, value) in extra {
            json[key] = value;
        }
        json
    }
}

/// Every token that a GGUF file says ends a text or a turn.
fn ends(meta: &Metadata) -> Result<Option<TokenIds>, ModelError> {
    let mut ids = Vec::new();
    for key in ["eos", "eot", "eom"] {
        let id = meta.optional_u32(&format!("tokenizer.ggml.{key}_token_id"))?;
        ids.extend(id.filter(|id| !ids.contains(id)));
    }
    Ok(match ids[..] {
        [] => None,
        [id] => Some(TokenIds::One(id)),
        _ => Some(TokenIds::Several(ids)),
    })
}

/// Files of architecture `llama` may ask for more than a Llama: other rotary scalings, rotation
/// of part of a head, experts. What the graph does not compute is refused, never ignored.
fn refuse_what_is_not_llama(
    file: &GgufFile,
    path: &Path,
    head_dim: usize,
) -> Result<(), ModelError> {
    let meta = file.metadata();
    let refuse = |key: &str, found: &dyn std::fmt::Display, expected: &dyn std::fmt::Display| {
        let problem = format!("`{key}` is {found}; expected {expected}");
        Err(ModelError::Config { path: path.to_path_buf(), problem })
    };
    for key in ["llama.attention.value_length", "llama.rope.dimension_count"] {
        if let Some(found) = meta.optional_u32(key)?.filter(|&found| found as usize != head_dim) {
            return refuse(key, &found, &format!("the head's length, {head_dim}"));
        }
    }
    let key = "llama.rope.scaling.type";
    if let Some(found) = meta.optional_string(key)?.filter(|&kind| kind != "none") {
        let expected = "`none` (Llama 3's scaling is the tensor rope_freqs.weight)";
        return refuse(key, &format!("`{found}`"), &expected);
    }
    let key = "llama.expert_count";
    match meta.optional_u32(key)?.unwrap_or(0) {
        0 => Ok(()),
        experts => refuse(key, &experts, &"0: a dense model"),
    }
}

fn scaling(json: Option<serde_json::Value>) -> Result<Option<RopeScaling>, String> {
    let Some(json) = json.filter(|j| !j.is_null()) else { return Ok(None) };
    if json.get("rope_divisors").is_some() {
        return serde_json::from_value(json).map(Some).map_err(|e| format!("rope_scaling: {e}"));
    }
    let kind = json.get("rope_type").or(json.get("type")).and_then(|k| k.as_str());
    match kind {
        None | Some("default") => Ok(None),
        Some("llama3") => {
            let mut json = json;
            json["rope_type"] = "llama3".into();
            serde_json::from_value(json).map(Some).map_err(|_| {
                "rope_scaling of type llama3 needs factor, low_freq_factor, high_freq_factor \
                 and original_max_position_embeddings"
                    .to_string()
            })
        }
        Some(other) => Err(format!("rope_scaling type `{other}` is not supported, only `llama3`")),
    }
}

/// The f64 with the fewest digits that is this f32 (1e-5, not 9.999999747378752e-6).
fn short_f64(x: f32) -> f64 {
    format!("{x}").parse().unwrap_or(f64::from(x))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<LlamaConfig, ModelError> {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("config.json");
        std::fs::write(&path, json).expect("write");
        LlamaConfig::from_json(&path)
    }

    const LLAMA_32: &str = r#"{"model_type":"llama","vocab_size":128256,"hidden_size":2048,
        "intermediate_size":8192,"num_hidden_layers":16,"num_attention_heads":32,
        "num_key_value_heads":8,"head_dim":64,"rope_theta":500000.0,"rms_norm_eps":1e-5,
        "max_position_embeddings":131072,"tie_word_embeddings":true,
        "eos_token_id":[128001,128008],"rope_scaling":{"factor":32.0,"high_freq_factor":4.0,
        "low_freq_factor":1.0,"original_max_position_embeddings":8192,"rope_type":"llama3"}}"#;

    #[test]
    fn llama_3_2_config_reads_and_writes_itself_again() {
        let config = read(LLAMA_32).expect("reads");
        assert_eq!(config.eos_token_id, Some(TokenIds::Several(vec![128_001, 128_008])));
        assert!(matches!(config.rope_scaling, Some(RopeScaling::Llama3 { factor: 32.0, .. })));
        assert_eq!(read(&config.to_json().to_string()).expect("again"), config);
    }

    #[test]
    fn the_divisors_of_a_release_are_its_four_numbers_and_others_stay_divisors() {
        let config = read(LLAMA_32).expect("reads");
        let theta = config.rope_theta;
        let plain = inverse_frequencies(theta, 64, None);
        let scaled = inverse_frequencies(theta, 64, config.rope_scaling.as_ref());
        let mut divisors: Vec<f32> =
            plain.iter().zip(scaled).map(|(plain, scaled)| (plain / scaled) as f32).collect();
        assert_eq!(Some(RopeScaling::from_divisors(divisors.clone(), theta)), config.rope_scaling);
        divisors[20] *= 1.001;
        let others = RopeScaling::from_divisors(divisors.clone(), theta);
        assert_eq!(others, RopeScaling::Divisors { rope_divisors: divisors });
    }

    #[test]
    fn a_missing_key_is_named() {
        let error = read(r#"{"model_type":"llama","hidden_size":64,"num_attention_heads":2}"#)
            .expect_err("incomplete");
        assert!(error.to_string().contains("`vocab_size` is missing"), "{error}");
    }

    #[test]
    fn other_architectures_and_scalings_are_refused() {
        let error = read(r#"{"model_type":"mamba"}"#).expect_err("mamba");
        assert!(error.to_string().contains("`mamba` is not supported"), "{error}");
        let yarn = LLAMA_32.replace(r#""rope_type":"llama3""#, r#""rope_type":"yarn""#);
        assert!(read(&yarn).expect_err("yarn").to_string().contains("`yarn`"));
    }
}
