//! Keys and values of past tokens.

use burn::tensor::Tensor;

/// One pair of tensors a layer, each `[batch, kv_heads, tokens, head_dim]`, keys rotated.
#[derive(Clone, Debug, Default)]
pub struct KvCache {
    layers: Vec<Option<(Tensor<4>, Tensor<4>)>>,
}

impl KvCache {
    /// An empty cache for `layers` layers.
    pub fn new(layers: usize) -> Self {
        Self { layers: vec![None; layers] }
    }

    /// Appends the new keys and values of one layer and returns all of them.
    pub(crate) fn append(
        &mut self,
        layer: usize,
        keys: Tensor<4>,
        values: Tensor<4>,
    ) -> (Tensor<4>, Tensor<4>) {
        let all = match self.layers[layer].take() {
            None => (keys, values),
            Some((past_keys, past_values)) => {
                (Tensor::cat(vec![past_keys, keys], 2), Tensor::cat(vec![past_values, values], 2))
            }
        };
        self.layers[layer] = Some(all.clone());
        all
    }

    /// Tokens held.
    pub fn tokens(&self) -> usize {
        self.layers.first().and_then(Option::as_ref).map_or(0, |(keys, _)| keys.dims()[2])
    }
}
