//! Where the tokens of a batch stand: what rotary embeddings and the causal mask need.

use std::sync::{Arc, OnceLock};

use burn::tensor::{Device, Tensor, TensorData};

use crate::cpu::attention::{self, Shape};

/// The positions of a batch, on the host.
#[derive(Clone, Debug)]
pub struct Layout {
    pub(crate) shape: Shape,
    /// `[batch, tokens, head_dim / 2]`.
    cos: Vec<f32>,
    /// `[batch, tokens, head_dim / 2]`.
    sin: Vec<f32>,
    /// The first key that each query sees, `[batch, tokens]`.
    first: Vec<usize>,
}

impl Layout {
    pub(crate) fn view(&self) -> attention::Positions<'_> {
        attention::Positions { cos: &self.cos, sin: &self.sin, first: &self.first }
    }
}

/// The positions of a batch of packed documents, for the attention of one model.
#[derive(Clone, Debug)]
pub struct Positions {
    pub(crate) layout: Arc<Layout>,
    /// Made when a backend without the fused operator asks first.
    tensors: Arc<OnceLock<Tensors>>,
}

/// The same as tensors.
#[derive(Clone, Debug)]
pub(crate) struct Tensors {
    /// `[batch, 1, tokens, head_dim / 2]`.
    pub cos: Tensor<4>,
    /// `[batch, 1, tokens, head_dim / 2]`.
    pub sin: Tensor<4>,
    /// Added to the scores: 0 where attention may look, −3e38 where not. `[batch, 1, 1, tokens, tokens]`.
    pub bias: Tensor<5>,
}

const BLOCKED: f32 = -3.0e38;

impl Positions {
    /// The same, with tensors of its own if it needs any: where many are kept and each is asked once in a
    /// while, these would be the larger part of what they take.
    #[must_use]
    pub fn afresh(&self) -> Self {
        Self { layout: self.layout.clone(), tensors: Arc::default() }
    }

    /// Positions of documents that follow each other in their sequences: attention is causal and
    /// does not cross from one to the next. `frequencies` are RoPE's, `[head_dim / 2]`, in radians a
    /// position; `position_ids` and `document_ids` are `[batch, tokens]`. Angles are computed in f64
    /// and rounded once.
    ///
    /// # Panics
    /// If a slice has not the length that `shape` gives it.
    pub fn packed(
        shape: Shape,
        frequencies: &[f64],
        position_ids: &[u32],
        document_ids: &[u32],
    ) -> Self {
        let Shape { batch, tokens, head_dim, .. } = shape;
        assert_eq!(frequencies.len(), head_dim / 2);
        assert_eq!((position_ids.len(), document_ids.len()), (batch * tokens, batch * tokens));
        let (sin, cos) = position_ids
            .iter()
            .flat_map(|&p| frequencies.iter().map(move |f| f64::from(p) * f))
            .map(|angle| (angle.sin() as f32, angle.cos() as f32))
            .unzip();
        let mut first = Vec::with_capacity(batch * tokens);
        for documents in document_ids.chunks_exact(tokens.max(1)) {
            let mut start = 0;
            for t in 0..tokens {
                if t > 0 && documents[t] != documents[t - 1] {
                    start = t;
                }
                first.push(start);
            }
        }
        let layout = Layout { shape, cos, sin, first };
        Self { layout: Arc::new(layout), tensors: Arc::default() }
    }

    /// Tensors on a device, without autodiff.
    pub(crate) fn tensors(&self, device: &Device) -> &Tensors {
        self.tensors.get_or_init(|| {
            let Layout { shape, cos, sin, first } = &*self.layout;
            let Shape { batch, tokens, head_dim, .. } = *shape;
            let device = &device.clone().without_autodiff();
            let mut bias = vec![BLOCKED; batch * tokens * tokens];
            for (query, (row, &first)) in
                bias.chunks_exact_mut(tokens.max(1)).zip(first).enumerate()
            {
                row[first..=query % tokens].fill(0.0);
            }
            let rotation = [batch, 1, tokens, head_dim / 2];
            let tensor = |values: &[f32]| TensorData::new(values.to_vec(), rotation);
            Tensors {
                cos: Tensor::from_data(tensor(cos), device),
                sin: Tensor::from_data(tensor(sin), device),
                bias: Tensor::from_data(
                    TensorData::new(bias, [batch, 1, 1, tokens, tokens]),
                    device,
                ),
            }
        })
    }
}
