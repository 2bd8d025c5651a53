//! The shape of a Llama-family model, from GGUF metadata.

use std::path::Path;

use distill_gguf::{Decimal, GgufFile, Metadata};

use crate::EdgeError;
use crate::tokenizer::vocab_size;

/// Sizes and constants of a model. All sizes are elements, not bytes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Config {
    /// The longest context the model was made for, in tokens.
    pub context_length: usize,
    /// The residual stream.
    pub hidden_size: usize,
    /// Transformer layers.
    pub layers: usize,
    /// The inner width of the gated MLP.
    pub feed_forward: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; divides `heads`.
    pub kv_heads: usize,
    /// Elements of a head; even.
    pub head_dim: usize,
    /// Epsilon inside the root of RMSNorm.
    pub rms_epsilon: f32,
    /// RoPE: pair i of a head turns by position · theta^(−2i / head_dim).
    pub rope_theta: f32,
    /// Tokens of the vocabulary: rows of the embedding.
    pub vocab_size: usize,
}

impl Config {
    pub(crate) fn from_gguf(gguf: &GgufFile) -> Result<Self, EdgeError> {
        let (metadata, file) = (gguf.metadata(), gguf.path());
        let architecture = metadata.string("general.architecture")?;
        if architecture != "llama" {
            return Err(EdgeError::Architecture {
                file: file.to_owned(),
                found: architecture.to_owned(),
            });
        }
        let reader = Reader { metadata, file };
        let heads = reader.size("llama.attention.head_count")?;
        let hidden_size = reader.size("llama.embedding_length")?;
        let config = Self {
            context_length: reader.size("llama.context_length")?,
            hidden_size,
            layers: reader.size("llama.block_count")?,
            feed_forward: reader.size("llama.feed_forward_length")?,
            heads,
            kv_heads: reader.optional_size("llama.attention.head_count_kv")?.unwrap_or(heads),
            head_dim: reader
                .optional_size("llama.attention.key_length")?
                .unwrap_or(hidden_size / heads),
            rms_epsilon: metadata.f32("llama.attention.layer_norm_rms_epsilon")?,
            rope_theta: metadata.optional_f32("llama.rope.freq_base")?.unwrap_or(10_000.0),
            vocab_size: vocab_size(gguf)?,
        };
        reader.check(&config)?;
        Ok(config)
    }
}

struct Reader<'m> {
    metadata: &'m Metadata,
    file: &'m Path,
}

impl Reader<'_> {
    fn refuse(&self, key: &str, found: impl ToString, expected: impl ToString) -> EdgeError {
        EdgeError::Config {
            file: self.file.to_owned(),
            key: key.to_owned(),
            found: found.to_string(),
            expected: expected.to_string(),
        }
    }

    /// A positive integer. Sizes are at most 2³²; products are checked against the tensors.
    fn size(&self, key: &str) -> Result<usize, EdgeError> {
        match self.metadata.u32(key)? {
            0 => Err(self.refuse(key, 0, "at least 1")),
            size => Ok(size as usize),
        }
    }

    fn optional_size(&self, key: &str) -> Result<Option<usize>, EdgeError> {
        self.metadata.contains(key).then(|| self.size(key)).transpose()
    }

    fn check(&self, config: &Config) -> Result<(), EdgeError> {
        let Config { heads, kv_heads, head_dim, .. } = *config;
        if !heads.is_multiple_of(kv_heads) {
            let expected = format!("a divisor of llama.attention.head_count, {heads}");
            return Err(self.refuse("llama.attention.head_count_kv", kv_heads, expected));
        }
        if head_dim == 0 || head_dim % 2 == 1 {
            return Err(self.refuse(
                "llama.attention.key_length",
                head_dim,
                "an even number: RoPE turns pairs",
            ));
        }
        for key in ["llama.attention.value_length", "llama.rope.dimension_count"] {
            if let Some(found) = self.optional_size(key)?.filter(|&n| n != head_dim) {
                return Err(self.refuse(key, found, format!("the head's length, {head_dim}")));
            }
        }
        if let Some(found) =
            self.optional_size("llama.vocab_size")?.filter(|&n| n != config.vocab_size)
        {
            let expected = format!("the length of tokenizer.ggml.tokens, {}", config.vocab_size);
            return Err(self.refuse("llama.vocab_size", found, expected));
        }
        if config.vocab_size == 0 {
            return Err(self.refuse("tokenizer.ggml.tokens", "empty", "at least one token"));
        }
        let positive = |x: f32| x.is_finite() && x > 0.0;
        if !(config.rms_epsilon.is_finite() && config.rms_epsilon >= 0.0) {
            let key = "llama.attention.layer_norm_rms_epsilon";
            let found = Decimal(config.rms_epsilon.into());
            return Err(self.refuse(key, found, "a finite number, not negative"));
        }
        if !positive(config.rope_theta) {
            return Err(self.refuse(
                "llama.rope.freq_base",
                Decimal(config.rope_theta.into()),
                "a positive finite number",
            ));
        }
        if let Some(kind) =
            self.metadata.optional_string("llama.rope.scaling.type")?.filter(|&k| k != "none")
        {
            let expected = "`none` (Llama 3's scaling is the tensor rope_freqs.weight)";
            return Err(self.refuse("llama.rope.scaling.type", format!("`{kind}`"), expected));
        }
        match self.metadata.optional_u32("llama.expert_count")?.unwrap_or(0) {
            0 => Ok(()),
            experts => Err(self.refuse("llama.expert_count", experts, "0: a dense model")),
        }
    }
}
