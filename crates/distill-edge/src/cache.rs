//! The key-value cache.
//!
//! ```text
//! keys    [layers, kv_heads, context / 16, head_dim, 16 positions]
//! values  [layers, kv_heads, context, head_dim]
//! ```
//! Sixteen positions of a key element lie side by side, so that scores are computed with one
//! position a lane and no sum across lanes.

use std::io::{self, Read, Write};
use std::ops::Range;

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

/// Keys and values in one type.
#[derive(Debug)]
struct Store<T> {
    keys: Shared<T>,
    values: Shared<T>,
}

#[derive(Debug)]
enum Stores {
    F32(Store<f32>),
    F16(Store<u16>),
}

/// The cache of a session.
#[derive(Debug)]
pub(crate) struct Cache {
    stores: Stores,
    layers: usize,
    kv_heads: usize,
    head_dim: usize,
    /// Positions of a head, a multiple of [`POSITIONS`].
    capacity: usize,
}

/// Which of the two stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Key,
    Value,
}

impl Cache {
    /// A cache for `context` positions; untouched memory stays unmapped until they are written.
    ///
    /// # Panics
    /// If [`Cache::bytes`] cannot be allocated.
    pub fn new(config: &Config, context: usize, kv: KvType) -> Self {
        let capacity = context.next_multiple_of(POSITIONS);
        let elements = config.layers * config.kv_heads * capacity * config.head_dim;
        let stores = match kv {
            KvType::F32 => Stores::F32(Store {
                keys: Shared::new(vec![0.0; elements]),
                values: Shared::new(vec![0.0; elements]),
            }),
            KvType::F16 => Stores::F16(Store {
                keys: Shared::new(vec![0; elements]),
                values: Shared::new(vec![0; elements]),
            }),
        };
        let Config { layers, kv_heads, head_dim, .. } = *config;
        Self { stores, layers, kv_heads, head_dim, capacity }
    }

    /// What [`Cache::new`] allocates.
    pub fn bytes(config: &Config, context: usize, kv: KvType) -> u128 {
        let capacity = (context as u128).next_multiple_of(POSITIONS as u128);
        let a_position = config.layers as u128 * (config.kv_heads * config.head_dim) as u128;
        2 * kv.bytes() as u128 * a_position * capacity
    }

    /// How elements are stored.
    pub fn kv(&self) -> KvType {
        match self.stores {
            Stores::F32(_) => KvType::F32,
            Stores::F16(_) => KvType::F16,
        }
    }

    /// Bytes of the state of some positions.
    pub fn state_bytes(&self, positions: usize) -> u64 {
        let a_head = positions.next_multiple_of(POSITIONS) + positions;
        (self.layers * self.kv_heads * a_head * self.head_dim * self.kv().bytes()) as u64
    }

    /// Where keys and values of some positions lie, head after head.
    fn state_ranges(&self, positions: usize) -> impl Iterator<Item = [Range<usize>; 2]> {
        let (keys, values) = (positions.next_multiple_of(POSITIONS), positions);
        let head_dim = self.head_dim;
        (0..self.layers * self.kv_heads).map(move |head| {
            let base = head * self.capacity * head_dim;
            [base..base + keys * head_dim, base..base + values * head_dim]
        })
    }

    /// Writes keys and values of the first positions.
    ///
    /// # Safety
    /// No thread may write to the cache at the time.
    #[allow(unsafe_code)]
    pub unsafe fn write_to(&self, positions: usize, out: &mut impl Write) -> io::Result<()> {
        for [keys, values] in self.state_ranges(positions) {
            // SAFETY: the caller's.
            unsafe {
                match &self.stores {
                    Stores::F32(s) => {
                        for x in s.keys.read(keys).iter().chain(s.values.read(values)) {
                            out.write_all(&x.to_le_bytes())?;
                        }
                    }
                    Stores::F16(s) => {
                        for x in s.keys.read(keys).iter().chain(s.values.read(values)) {
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
        for [keys, values] in self.state_ranges(positions) {
            // SAFETY: the caller's; keys and values are different memory.
            unsafe {
                match &self.stores {
                    Stores::F32(s) => {
                        for x in s.keys.write(keys).iter_mut().chain(s.values.write(values)) {
                            let mut bytes = [0; 4];
                            from.read_exact(&mut bytes)?;
                            *x = f32::from_le_bytes(bytes);
                        }
                    }
                    Stores::F16(s) => {
                        for x in s.keys.write(keys).iter_mut().chain(s.values.write(values)) {
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

    /// Where a head of a layer begins.
    fn base(&self, layer: usize, head: usize) -> usize {
        (layer * self.kv_heads + head) * self.capacity * self.head_dim
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
            let base = self.base(layer, head);
            let range = match part {
                Part::Value => {
                    let start = base + position * self.head_dim + d;
                    start..start + count
                }
                Part::Key => {
                    let block = base + position / POSITIONS * POSITIONS * self.head_dim;
                    block + d * POSITIONS..block + (d + count) * POSITIONS
                }
            };
            // SAFETY: a value's range is this position's rows; a key's is these rows of its block,
            // all positions. Both belong to the caller's rows alone.
            unsafe {
                match (&self.stores, part) {
                    (Stores::F32(s), Part::Value) => s.values.write(range).copy_from_slice(now),
                    (Stores::F16(s), Part::Value) => {
                        (kernels.to_f16)(now, s.values.write(range));
                    }
                    (Stores::F32(s), Part::Key) => scatter(now, s.keys.write(range), position),
                    (Stores::F16(s), Part::Key) => {
                        let lanes = s.keys.write(range).chunks_mut(BITS * POSITIONS);
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

    /// Attention of queries of one kv head over one chunk of `positions`.
    ///
    /// # Safety
    /// No thread may write these positions of the layer at the time.
    #[allow(unsafe_code)]
    pub unsafe fn attend(
        &self,
        layer: usize,
        head: usize,
        positions: Range<usize>,
        queries: Queries<'_>,
        kernels: &Kernels,
    ) {
        debug_assert!(positions.start.is_multiple_of(CHUNK) && positions.len() <= CHUNK);
        let base = self.base(layer, head);
        let at = |position: usize| base + position * self.head_dim;
        let values = at(positions.start)..at(positions.end);
        let keys = at(positions.start)..at(positions.end.next_multiple_of(POSITIONS));
        // SAFETY: the caller's.
        unsafe {
            match &self.stores {
                Stores::F32(s) => (kernels.attend_f32)(
                    queries,
                    Cached { keys: s.keys.read(keys), values: s.values.read(values) },
                ),
                Stores::F16(s) => (kernels.attend_f16)(
                    queries,
                    Cached { keys: s.keys.read(keys), values: s.values.read(values) },
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
