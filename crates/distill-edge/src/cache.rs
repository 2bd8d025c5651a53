//! The key-value cache.
//!
//! ```text
//! [context / 256, layers, kv_heads] chunks, each:
//!   keys    [16 blocks, head_dim, 16 positions]
//!   values  [256 positions, head_dim]
//! ```
//! Sixteen positions of a key element lie side by side, so that scores are computed with one
//! position a lane and no sum across lanes. A chunk is what attention takes at a time, and memory
//! grows chunk by chunk as positions are written.

use std::io::{self, Read, Write};
use std::ops::Range;

use crate::EdgeError;
use crate::arena::Refused;
use crate::config::Config;
use crate::kernels::{CHUNK, Cached, Kernels, POSITIONS, Queries};
use crate::shared::Shared;

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
    pub(crate) fn bytes(self) -> usize {
        match self {
            Self::F16 => 2,
            Self::F32 => 4,
        }
    }
}

#[derive(Debug)]
enum Store {
    F32(Shared<f32>),
    F16(Shared<u16>),
}

/// The cache of a session.
#[derive(Debug)]
pub(crate) struct Cache {
    store: Store,
    layers: usize,
    kv_heads: usize,
    head_dim: usize,
}

/// Which half of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Key,
    Value,
}

impl Cache {
    /// A cache for `context` positions.
    ///
    /// # Errors
    /// If the memory cannot be reserved.
    pub fn new(config: &Config, context: usize, kv: KvType) -> Result<Self, EdgeError> {
        let Config { layers, kv_heads, head_dim, .. } = *config;
        let elements = [context.div_ceil(CHUNK), layers, kv_heads, 2 * CHUNK, head_dim]
            .into_iter()
            .try_fold(1_usize, |product, n| product.checked_mul(n));
        let refused = |_| EdgeError::Memory {
            context,
            bytes: elements.and_then(|n| n.checked_mul(kv.bytes())).unwrap_or(usize::MAX),
        };
        let elements = elements.ok_or(Refused).map_err(refused)?;
        let store = match kv {
            KvType::F32 => Store::F32(Shared::zeroed(elements).map_err(refused)?),
            KvType::F16 => Store::F16(Shared::zeroed(elements).map_err(refused)?),
        };
        Ok(Self { store, layers, kv_heads, head_dim })
    }

    /// How elements are stored.
    pub fn kv(&self) -> KvType {
        match self.store {
            Store::F32(_) => KvType::F32,
            Store::F16(_) => KvType::F16,
        }
    }

    /// Where the keys and the values of a chunk begin.
    fn chunk(&self, layer: usize, head: usize, chunk: usize) -> [usize; 2] {
        let half = CHUNK * self.head_dim;
        let keys = ((chunk * self.layers + layer) * self.kv_heads + head) * 2 * half;
        [keys, keys + half]
    }

    /// Where keys and values of the first positions of a chunk lie.
    fn filled(
        &self,
        layer: usize,
        head: usize,
        chunk: usize,
        positions: usize,
    ) -> [Range<usize>; 2] {
        let [keys, values] = self.chunk(layer, head, chunk);
        let whole = positions.next_multiple_of(POSITIONS) * self.head_dim;
        [keys..keys + whole, values..values + positions * self.head_dim]
    }

    /// The same for all chunks of the first positions, in the order of a saved state.
    fn all_filled(&self, positions: usize) -> impl Iterator<Item = Range<usize>> {
        let chunks = (0..positions.div_ceil(CHUNK))
            .map(move |chunk| (chunk, CHUNK.min(positions - chunk * CHUNK)));
        chunks.flat_map(move |(chunk, positions)| {
            (0..self.layers * self.kv_heads).flat_map(move |n| {
                self.filled(n / self.kv_heads, n % self.kv_heads, chunk, positions)
            })
        })
    }

    /// Bytes of the state of some positions.
    pub fn state_bytes(&self, positions: usize) -> u64 {
        let elements: usize = self.all_filled(positions).map(|range| range.len()).sum();
        (elements * self.kv().bytes()) as u64
    }

    /// Writes keys and values of the first positions.
    ///
    /// # Safety
    /// No thread may write to the cache at the time.
    #[allow(unsafe_code)]
    pub unsafe fn write_to(&self, positions: usize, out: &mut impl Write) -> io::Result<()> {
        for range in self.all_filled(positions) {
            // SAFETY: the caller's.
            unsafe {
                match &self.store {
                    Store::F32(store) => {
                        for x in store.read(range) {
                            out.write_all(&x.to_le_bytes())?;
                        }
                    }
                    Store::F16(store) => {
                        for x in store.read(range) {
                            out.write_all(&x.to_le_bytes())?;
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Reads what [`Cache::write_to`] wrote.
    ///
    /// # Safety
    /// No thread may use the cache at the time.
    #[allow(unsafe_code)]
    pub unsafe fn read_from(&self, positions: usize, from: &mut impl Read) -> io::Result<()> {
        for range in self.all_filled(positions) {
            // SAFETY: the caller's.
            unsafe {
                match &self.store {
                    Store::F32(store) => {
                        for x in store.write(range) {
                            let mut bytes = [0; 4];
                            from.read_exact(&mut bytes)?;
                            *x = f32::from_le_bytes(bytes);
                        }
                    }
                    Store::F16(store) => {
                        for x in store.write(range) {
                            let mut bytes = [0; 2];
                            from.read_exact(&mut bytes)?;
                            *x = u16::from_le_bytes(bytes);
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Stores some rows of a layer's keys or values at one position. `from` holds the rows
    /// `first..` of `[kv_heads · head_dim]`.
    ///
    /// # Safety
    /// No thread may read this position or write these rows of it at the time. (Threads that
    /// write other rows do not touch the same elements.)
    #[allow(unsafe_code)]
    pub unsafe fn write(
        &self,
        part: Part,
        layer: usize,
        position: usize,
        first: usize,
        from: &[f32],
        kernels: &Kernels,
    ) {
        let mut row = first;
        let mut from = from;
        while !from.is_empty() {
            let (head, d) = (row / self.head_dim, row % self.head_dim);
            let count = from.len().min(self.head_dim - d);
            let (now, later) = from.split_at(count);
            let [keys, values] = self.chunk(layer, head, position / CHUNK);
            let position = position % CHUNK;
            let range = match part {
                Part::Value => {
                    let start = values + position * self.head_dim + d;
                    start..start + count
                }
                Part::Key => {
                    let block = keys + position / POSITIONS * POSITIONS * self.head_dim;
                    block + d * POSITIONS..block + (d + count) * POSITIONS
                }
            };
            // SAFETY: a value's range is this position's rows; a key's is these rows of its block,
            // all positions. Both belong to the caller's rows alone.
            unsafe {
                match (&self.store, part) {
                    (Store::F32(s), Part::Value) => s.write(range).copy_from_slice(now),
                    (Store::F16(s), Part::Value) => (kernels.to_f16)(now, s.write(range)),
                    (Store::F32(s), Part::Key) => scatter(now, s.write(range), position),
                    (Store::F16(s), Part::Key) => {
                        let lanes = s.write(range).chunks_mut(BITS * POSITIONS);
                        for (now, lanes) in now.chunks(BITS).zip(lanes) {
                            let mut bits = [0; BITS];
                            (kernels.to_f16)(now, &mut bits[..now.len()]);
                            scatter(&bits[..now.len()], lanes, position);
                        }
                    }
                }
            }
            row += count;
            from = later;
        }
    }

    /// Attention of queries of one kv head over the first `positions` of a chunk.
    ///
    /// # Safety
    /// No thread may write to the chunk at the time.
    #[allow(unsafe_code)]
    pub unsafe fn attend(
        &self,
        layer: usize,
        head: usize,
        chunk: usize,
        positions: usize,
        queries: Queries<'_>,
        kernels: &Kernels,
    ) {
        let [keys, values] = self.filled(layer, head, chunk, positions);
        // SAFETY: the caller's.
        unsafe {
            match &self.store {
                Store::F32(s) => (kernels.attend_f32)(
                    queries,
                    Cached { keys: s.read(keys), values: s.read(values) },
                ),
                Store::F16(s) => (kernels.attend_f16)(
                    queries,
                    Cached { keys: s.read(keys), values: s.read(values) },
                ),
            }
        }
    }
}

/// Elements of a key that are narrowed together.
const BITS: usize = 64;

/// Writes one position's elements into the lanes of their block.
fn scatter<T: Copy>(from: &[T], block: &mut [T], position: usize) {
    for (lanes, &value) in block.chunks_exact_mut(POSITIONS).zip(from) {
        lanes[position % POSITIONS] = value;
    }
}
