//! The key-value cache: one stripe a thread, with the heads of its share.

use std::ops::Range;

use crate::EdgeError;
use crate::config::Config;
use crate::kernels::Kernels;

/// How keys and values are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvType {
    /// binary16, rounded to nearest even: half the memory and bandwidth.
    #[default]
    F16,
    /// As computed.
    F32,
}

impl KvType {
    fn bytes(self) -> usize {
        match self {
            Self::F16 => 2,
            Self::F32 => 4,
        }
    }
}

/// Keys or values, [layers, heads, context, head_dim].
#[derive(Debug)]
pub(crate) enum Store {
    F32(Vec<f32>),
    F16(Vec<u16>),
}

/// The cache of some heads.
#[derive(Debug)]
pub(crate) struct Stripe {
    keys: Store,
    values: Store,
    heads: usize,
    context: usize,
    head_dim: usize,
}

/// Which of the two stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Key,
    Value,
}

impl Stripe {
    /// A stripe for `heads` heads; untouched memory stays unmapped until positions are written.
    ///
    /// # Errors
    /// If the memory cannot be reserved.
    pub fn new(
        config: &Config,
        heads: usize,
        context: usize,
        kv: KvType,
    ) -> Result<Self, EdgeError> {
        let elements = [config.layers, heads, context, config.head_dim]
            .into_iter()
            .try_fold(1_usize, |product, n| product.checked_mul(n))
            .filter(|&n| {
                n.checked_mul(kv.bytes()).is_some_and(|bytes| bytes <= isize::MAX as usize)
            })
            .ok_or(EdgeError::Memory { context, bytes: usize::MAX })?;
        let store = || -> Result<Store, EdgeError> {
            // Reserving first turns "out of memory" into an error; the zeroed allocation that
            // follows, unlike filling the reserved one, leaves its pages untouched.
            let bytes = elements * kv.bytes();
            let refused = |_| EdgeError::Memory { context, bytes };
            Vec::<u8>::new().try_reserve_exact(bytes).map_err(refused)?;
            Ok(match kv {
                KvType::F32 => Store::F32(vec![0.0; elements]),
                KvType::F16 => Store::F16(vec![0; elements]),
            })
        };
        Ok(Self { keys: store()?, values: store()?, heads, context, head_dim: config.head_dim })
    }

    /// The elements of `positions` of one head.
    fn range(&self, layer: usize, head: usize, positions: Range<usize>) -> Range<usize> {
        let base = (layer * self.heads + head) * self.context;
        (base + positions.start) * self.head_dim..(base + positions.end) * self.head_dim
    }

    /// Stores one position of one head: `from` [head_dim].
    pub fn write(
        &mut self,
        part: Part,
        layer: usize,
        head: usize,
        position: usize,
        from: &[f32],
        kernels: &Kernels,
    ) {
        let range = self.range(layer, head, position..position + 1);
        let store = match part {
            Part::Key => &mut self.keys,
            Part::Value => &mut self.values,
        };
        match store {
            Store::F32(to) => to[range].copy_from_slice(from),
            Store::F16(to) => (kernels.to_f16)(from, &mut to[range]),
        }
    }

    /// Attention of `query` [head_dim] over positions 0..scores.len() of one head.
    pub fn attend(
        &self,
        layer: usize,
        head: usize,
        query: &[f32],
        scores: &mut [f32],
        out: &mut [f32],
        kernels: &Kernels,
    ) {
        let range = self.range(layer, head, 0..scores.len());
        let scale = 1.0 / (self.head_dim as f32).sqrt();
        match (&self.keys, &self.values) {
            (Store::F32(k), Store::F32(v)) => {
                (kernels.attend_f32)(query, &k[range.clone()], &v[range], scale, scores, out);
            }
            (Store::F16(k), Store::F16(v)) => {
                (kernels.attend_f16)(query, &k[range.clone()], &v[range], scale, scores, out);
            }
            _ => unreachable!("both stores are made of one type"),
        }
    }
}
