//! `config.json` of the Llama family.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::ExportError;
use crate::error::shortened;

/// No model is near these; a number beyond them is a mistake that should not become an allocation.
const LARGEST_DIM: u64 = 1 << 24;
const MOST_LAYERS: usize = 1 << 12;

/// The numbers that an export needs.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct LlamaConfig {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub num_key_value_heads: usize,
    pub head_dim: usize,
    pub max_position_embeddings: usize,
    pub rms_norm_eps: f64,
    pub rope_theta: f64,
    /// What the inverse frequencies are divided by, `[head_dim / 2]`, where RoPE is scaled.
    pub rope_divisors: Option<Vec<f32>>,
    pub tie_word_embeddings: bool,
    /// The whole file, for keys that concern the tokenizer.
    pub json: Value,
}

impl LlamaConfig {
    /// Reads `config.json` in `directory`.
    pub fn read(directory: &Path) -> Result<Self, ExportError> {
        let file = directory.join("config.json");
        let text = std::fs::read(&file).map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => ExportError::Missing {
                file: file.clone(),
                expected: "a Hugging Face directory with config.json, model.safetensors and \
                           tokenizer.json",
            },
            _ => ExportError::Read { file: file.clone(), source },
        })?;
        let json: Value = serde_json::from_slice(&text)
            .map_err(|source| ExportError::Json { file: file.clone(), source })?;
        Keys { file, json: &json }.config(json.clone())
    }
}

struct Keys<'a> {
    file: PathBuf,
    json: &'a Value,
}

impl Keys<'_> {
    fn config(&self, json: Value) -> Result<LlamaConfig, ExportError> {
        let model_type = self.json.get("model_type").and_then(Value::as_str);
        if model_type.is_some_and(|found| found != "llama") {
            return Err(self.bad("model_type", "\"llama\""));
        }
        for key in ["attention_bias", "mlp_bias"] {
            if self.json.get(key).and_then(Value::as_bool) == Some(true) {
                return Err(self.bad(key, "false: linears with a bias are not supported"));
            }
        }
        if self.json.get("hidden_act").is_some_and(|act| act != "silu") {
            return Err(self.bad("hidden_act", "\"silu\""));
        }
        let hidden_size = self.dim("hidden_size", None)?;
        let num_attention_heads = self.dim("num_attention_heads", None)?;
        let rope_theta = self.rope_theta()?;
        let head_dim = self.dim("head_dim", Some(hidden_size / num_attention_heads))?;
        if head_dim == 0 || head_dim % 2 == 1 {
            return Err(self.bad("head_dim", "an even number: rotary embeddings turn pairs"));
        }
        let num_key_value_heads = self.dim("num_key_value_heads", Some(num_attention_heads))?;
        if !num_attention_heads.is_multiple_of(num_key_value_heads) {
            let expected = format!("a divisor of num_attention_heads, {num_attention_heads}");
            return Err(self.bad("num_key_value_heads", &expected));
        }
        let num_hidden_layers = self.dim("num_hidden_layers", None)?;
        if num_hidden_layers > MOST_LAYERS {
            return Err(self.bad("num_hidden_layers", &format!("at most {MOST_LAYERS}")));
        }
        Ok(LlamaConfig {
            vocab_size: self.dim("vocab_size", None)?,
            hidden_size,
            intermediate_size: self.dim("intermediate_size", None)?,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            max_position_embeddings: self.dim("max_position_embeddings", Some(2048))?,
            rms_norm_eps: self.positive("rms_norm_eps", self.json.get("rms_norm_eps"), 1e-6)?,
            rope_theta,
            rope_divisors: self.rope_divisors(rope_theta, head_dim)?,
            tie_word_embeddings: match self.json.get("tie_word_embeddings") {
                None | Some(Value::Null) => false,
                Some(&Value::Bool(tied)) => tied,
                Some(_) => return Err(self.bad("tie_word_embeddings", "true or false")),
            },
            json,
        })
    }

    fn dim(&self, key: &'static str, default: Option<usize>) -> Result<usize, ExportError> {
        match (self.json.get(key).filter(|value| !value.is_null()), default) {
            (None, Some(default)) => Ok(default),
            (Some(value), _) => value
                .as_u64()
                .filter(|dim| (1..=LARGEST_DIM).contains(dim))
                .map(|dim| dim as usize)
                .ok_or_else(|| self.bad(key, &format!("an integer from 1 to {LARGEST_DIM}"))),
            (None, None) => Err(self.bad(key, "an integer")),
        }
    }

    fn positive(
        &self,
        key: &'static str,
        value: Option<&Value>,
        default: f64,
    ) -> Result<f64, ExportError> {
        match value.filter(|value| !value.is_null()) {
            None => Ok(default),
            Some(value) => value
                .as_f64()
                .filter(|x| *x > 0.0 && (*x as f32).is_finite())
                .ok_or_else(|| self.bad_value(key, Some(value), "a positive number")),
        }
    }

    /// `rope_theta`, in the place of old or of new transformers.
    fn rope_theta(&self) -> Result<f64, ExportError> {
        let new = self.json.get("rope_parameters").and_then(|rope| rope.get("rope_theta"));
        self.positive("rope_theta", self.json.get("rope_theta").or(new), 10_000.0)
    }

    fn rope_divisors(&self, theta: f64, head_dim: usize) -> Result<Option<Vec<f32>>, ExportError> {
        let present = |key| self.json.get(key).filter(|value: &&Value| !value.is_null());
        let Some(scaling) = present("rope_scaling").or(present("rope_parameters")) else {
            return Ok(None);
        };
        if let Some(divisors) = scaling.get("rope_divisors") {
            let values: Option<Vec<f32>> = divisors
                .as_array()
                .map(|list| list.iter().filter_map(|x| x.as_f64().map(|x| x as f32)).collect());
            return match values {
                Some(values)
                    if values.len() == head_dim / 2
                        && values.iter().all(|x| x.is_finite() && *x > 0.0) =>
                {
                    Ok(Some(values))
                }
                _ => {
                    let expected = format!("{} positive numbers", head_dim / 2);
                    Err(self.bad_value("rope_divisors", Some(divisors), &expected))
                }
            };
        }
        let kind = scaling.get("rope_type").or(scaling.get("type")).and_then(Value::as_str);
        match kind {
            None | Some("default") => Ok(None),
            Some("llama3") => {
                let number = |key: &'static str| {
                    let value = scaling.get(key);
                    value
                        .and_then(Value::as_f64)
                        .filter(|x| *x > 0.0)
                        .ok_or_else(|| self.bad_value(key, value, "a positive number"))
                };
                let llama3 = Llama3 {
                    factor: number("factor")?,
                    low: number("low_freq_factor")?,
                    high: number("high_freq_factor")?,
                    original: number("original_max_position_embeddings")?,
                };
                if llama3.high <= llama3.low {
                    let value = scaling.get("high_freq_factor");
                    let expected = "a number above low_freq_factor";
                    return Err(self.bad_value("high_freq_factor", value, expected));
                }
                Ok(Some(llama3.divisors(theta, head_dim)))
            }
            Some(_) => {
                Err(self.bad_value("rope_scaling", Some(scaling), "the type \"llama3\", or none"))
            }
        }
    }

    fn bad(&self, key: &'static str, expected: &str) -> ExportError {
        self.bad_value(key, self.json.get(key), expected)
    }

    fn bad_value(&self, key: &'static str, value: Option<&Value>, expected: &str) -> ExportError {
        ExportError::Config {
            file: self.file.clone(),
            key,
            found: value.map_or_else(|| "missing".to_owned(), shortened),
            expected: expected.to_owned(),
        }
    }
}

/// Llama 3's scaling of RoPE: long waves are stretched by `factor`, short ones kept, and those
/// between blended by where their length lies.
struct Llama3 {
    factor: f64,
    low: f64,
    high: f64,
    original: f64,
}

impl Llama3 {
    /// `divisors[i]` for the frequency `theta^(−2i / head_dim)`.
    fn divisors(&self, theta: f64, head_dim: usize) -> Vec<f32> {
        let divisor = |i: usize| {
            let frequency = theta.powf(-(2.0 * i as f64) / head_dim as f64);
            let waves = self.original * frequency / std::f64::consts::TAU;
            if waves > self.high {
                1.0
            } else if waves < self.low {
                self.factor
            } else {
                let smooth = (waves - self.low) / (self.high - self.low);
                1.0 / ((1.0 - smooth) / self.factor + smooth)
            }
        };
        (0..head_dim / 2).map(|i| divisor(i) as f32).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<LlamaConfig, String> {
        let json: Value = serde_json::from_str(json).unwrap();
        let keys = Keys { file: "config.json".into(), json: &json };
        keys.config(json.clone()).map_err(|error| error.to_string())
    }

    const TINY: &str = r#"{"model_type":"llama","vocab_size":96,"hidden_size":64,
        "intermediate_size":128,"num_hidden_layers":2,"num_attention_heads":4,
        "num_key_value_heads":2,"max_position_embeddings":128,"rms_norm_eps":1e-5,
        "rope_theta":10000.0,"tie_word_embeddings":true}"#;

    #[test]
    fn defaults_are_those_of_transformers() {
        let config = read(
            r#"{"vocab_size":96,"hidden_size":64,"intermediate_size":128,
                "num_hidden_layers":2,"num_attention_heads":4,"head_dim":null}"#,
        )
        .unwrap();
        assert_eq!((config.num_key_value_heads, config.head_dim), (4, 16));
        assert_eq!((config.rms_norm_eps, config.rope_theta), (1e-6, 10_000.0));
        assert!(!config.tie_word_embeddings && config.rope_divisors.is_none());
    }

    #[test]
    fn each_bad_key_is_named_with_what_it_is_and_should_be() {
        for (from, to, expected) in [
            ("\"llama\"", "\"gemma\"", "key `model_type` is \"gemma\"; expected \"llama\""),
            ("\"vocab_size\":96,", "", "key `vocab_size` is missing; expected an integer"),
            (":96", ":0", "key `vocab_size` is 0; expected an integer from 1 to 16777216"),
            (":96", ":1e30", "key `vocab_size` is 1e+30; expected an integer from 1 to 16777216"),
            (":64", ":\"x\"", "key `hidden_size` is \"x\"; expected an integer from 1 to 16777216"),
            ("heads\":2", "heads\":3", "key `num_key_value_heads` is 3; expected a divisor of"),
            (":1e-5", ":-1", "key `rms_norm_eps` is -1; expected a positive number"),
            (":true", ":1", "key `tie_word_embeddings` is 1; expected true or false"),
            (":true", ":true,\"attention_bias\":true", "key `attention_bias` is true; expected"),
            (":true", ":true,\"hidden_act\":\"gelu\"", "key `hidden_act` is \"gelu\"; expected"),
            (
                ":true",
                ":true,\"rope_scaling\":{\"type\":\"yarn\"}",
                "key `rope_scaling` is {\"type\":\"yarn\"}; expected the type \"llama3\", or none",
            ),
            (
                ":true",
                ":true,\"rope_scaling\":{\"rope_type\":\"llama3\"}",
                "key `factor` is missing; expected a positive number",
            ),
        ] {
            let changed = TINY.replacen(from, to, 1);
            assert_ne!(changed, TINY);
            let error = read(&changed).unwrap_err();
            assert!(error.starts_with(&format!("config.json: {expected}")), "{error}");
        }
    }

    #[test]
    fn llama_3_2_divisors_keep_short_waves_and_stretch_long_ones() {
        let llama3 = Llama3 { factor: 32.0, low: 1.0, high: 4.0, original: 8192.0 };
        let divisors = llama3.divisors(500_000.0, 64);
        assert_eq!(divisors.len(), 32);
        // Wave i has the length 2π · 500000^(i/32): below 2048 up to i = 14, above 8192 from 18.
        assert_eq!(divisors[..15], [1.0; 15]);
        assert_eq!(divisors[18..], [32.0; 14]);
        // i = 16: 2π · √500000 = 4442.88…, so 1.8438… waves fit into 8192 and smooth = 0.28128….
        let smooth = (8192.0 / (std::f64::consts::TAU * 500_000f64.sqrt()) - 1.0) / 3.0;
        let expected = 1.0 / ((1.0 - smooth) / 32.0 + smooth);
        assert!((f64::from(divisors[16]) - expected).abs() < 1e-5);
    }
}
