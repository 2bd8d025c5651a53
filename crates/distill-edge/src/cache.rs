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
//!
//! In Q8_0 these are codes, and behind those of each 16 positions, of keys and of values alike, lie
//! their scales, `[head_dim / 32, 16 positions]`: one vector for 32 codes of each of them. Scales
//! are binary16, as in files: they cost attention one conversion in 32 of codes, and f32 would take
//! 6 % more of the memory whose speed is the limit.

use std::fmt;
use std::io::{self, Read, Write};
use std::ops::Range;
use std::str::FromStr;

use distill_quant::f16;
use distill_quant::q8_0::BlockQ8_0;

use crate::EdgeError;
use crate::arena::Pages;
use crate::config::Config;
use crate::kernels::{BLOCK, Block, CHUNK, Cached, Element, Kernels, POSITIONS, Queries};
use crate::shared::{Shared, Zero};

/// How keys and values are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvType {
    /// binary16, rounded to nearest even: half the memory and bandwidth.
    #[default]
    F16,
    /// As computed.
    F32,
    /// 8-bit codes, with a scale for 32 elements of a head: half of binary16's, and a little more.
    /// For heads of a multiple of 32 elements.
    Q8_0,
}

impl KvType {
    const ALL: [Self; 3] = [Self::F16, Self::F32, Self::Q8_0];

    /// Bytes of an element, without its share of a scale.
    fn bytes(self) -> usize {
        match self {
            Self::F16 => size_of::<u16>(),
            Self::F32 => size_of::<f32>(),
            Self::Q8_0 => size_of::<i8>(),
        }
    }

    /// Elements of a record: of 16 positions of a head's keys or values.
    fn record(self, head_dim: usize) -> usize {
        match self {
            Self::F16 => u16::record(head_dim),
            Self::F32 => f32::record(head_dim),
            Self::Q8_0 => i8::record(head_dim),
        }
    }

    /// Elements of a head that are stored together.
    pub(crate) fn block(self) -> usize {
        match self {
            Self::F16 | Self::F32 => 1,
            Self::Q8_0 => BLOCK,
        }
    }

    /// Bytes of one position in a cache.
    pub(crate) fn position_bytes(self, config: &Config) -> u128 {
        let a_head = self.bytes() * self.record(config.head_dim) / POSITIONS;
        2 * config.layers as u128 * (config.kv_heads * a_head) as u128
    }

    /// What stands for the type in a saved state: the bytes of an element.
    pub(crate) fn tag(self) -> u32 {
        self.bytes() as u32
    }

    /// The type that a saved state names.
    pub(crate) fn of_tag(tag: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|kv| kv.tag() == tag)
    }
}

impl fmt::Display for KvType {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::F16 => "f16",
            Self::F32 => "f32",
            Self::Q8_0 => "q8_0",
        })
    }
}

impl FromStr for KvType {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let kv = Self::ALL.into_iter().find(|kv| kv.to_string() == name);
        kv.ok_or_else(|| "expected f16, f32 or q8_0".into())
    }
}

#[derive(Debug)]
enum Store {
    F32(Shared<f32>),
    F16(Shared<u16>),
    Q8_0(Shared<i8>),
}

/// The cache of a sequence.
#[derive(Debug)]
pub(crate) struct Cache {
    store: Store,
    layers: usize,
    kv_heads: usize,
    head_dim: usize,
    /// See [`KvType::record`].
    record: usize,
}

/// Which half of a chunk.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Part {
    Key,
    Value,
}

impl Cache {
    /// A cache for `context` positions.
    ///
    /// # Errors
    /// If the memory cannot be reserved, or heads are not whole blocks of the type.
    pub fn new(config: &Config, context: usize, kv: KvType) -> Result<Self, EdgeError> {
        let Config { layers, kv_heads, head_dim, .. } = *config;
        if !head_dim.is_multiple_of(kv.block()) {
            return Err(EdgeError::KvBlocks { head_dim, kv });
        }
        let bytes = usize::try_from(Self::bytes(config, context, kv)).unwrap_or(usize::MAX);
        let refused = |_| EdgeError::Memory { context, bytes };
        let elements = bytes / kv.bytes();
        // A context of less than a chunk leaves gaps, which large pages would fill.
        let pages = if context <= CHUNK { Pages::Small } else { Pages::Large };
        let store = match kv {
            KvType::F32 => Store::F32(Shared::zeroed(elements, pages).map_err(refused)?),
            KvType::F16 => Store::F16(Shared::zeroed(elements, pages).map_err(refused)?),
            KvType::Q8_0 => Store::Q8_0(Shared::zeroed(elements, pages).map_err(refused)?),
        };
        Ok(Self { store, layers, kv_heads, head_dim, record: kv.record(head_dim) })
    }

    /// What [`Cache::new`] allocates.
    pub fn bytes(config: &Config, context: usize, kv: KvType) -> u128 {
        let positions = CHUNK as u128 * context.div_ceil(CHUNK) as u128;
        kv.position_bytes(config) * positions
    }

    /// How elements are stored.
    pub fn kv(&self) -> KvType {
        match self.store {
            Store::F32(_) => KvType::F32,
            Store::F16(_) => KvType::F16,
            Store::Q8_0(_) => KvType::Q8_0,
        }
    }

    /// Where the keys and the values of a chunk begin.
    fn chunk(&self, layer: usize, head: usize, chunk: usize) -> [usize; 2] {
        let half = CHUNK / POSITIONS * self.record;
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
        let whole = positions.div_ceil(POSITIONS) * self.record;
        let filled = match self.store {
            Store::F32(_) | Store::F16(_) => positions * self.head_dim,
            Store::Q8_0(_) => whole,
        };
        [keys..keys + whole, values..values + filled]
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
                    Store::F32(store) => save(store, range, out, f32::to_le_bytes)?,
                    Store::F16(store) => save(store, range, out, u16::to_le_bytes)?,
                    Store::Q8_0(store) => save(store, range, out, i8::to_le_bytes)?,
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
                    Store::F32(store) => load(store, range, from, f32::from_le_bytes)?,
                    Store::F16(store) => load(store, range, from, u16::from_le_bytes)?,
                    Store::Q8_0(store) => load(store, range, from, i8::from_le_bytes)?,
                }
            }
        }
        Ok(())
    }

    /// Stores some rows of a layer's keys or values at one position. `from` holds the rows
    /// `first..` of `[kv_heads · head_dim]`, in whole [blocks](KvType::block).
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
            let record = self.chunk(layer, head, position / CHUNK)[part as usize]
                + position % CHUNK / POSITIONS * self.record;
            let range = self.rows(part, record, position, d..d + count);
            // SAFETY: a value's range is this position's rows; a key's, and that of scales, is
            // these rows of its record, all positions. All belong to the caller's rows alone.
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
                    (Store::Q8_0(s), _) => {
                        let (blocks, rest) = now.as_chunks::<BLOCK>();
                        assert!(d.is_multiple_of(BLOCK) && rest.is_empty(), "whole blocks");
                        let scales = record + POSITIONS * self.head_dim;
                        for (b, values) in (d / BLOCK..).zip(blocks) {
                            let BlockQ8_0 { d: scale, qs: codes } = quantize(values, kernels);
                            let scale = scale.to_le_bytes().map(u8::cast_signed);
                            let at = scales + 2 * (b * POSITIONS + position % POSITIONS);
                            s.write(at..at + 2).copy_from_slice(&scale);
                            let rows = b * BLOCK..(b + 1) * BLOCK;
                            let range = self.rows(part, record, position, rows);
                            match part {
                                Part::Key => scatter(&codes, s.write(range), position),
                                Part::Value => s.write(range).copy_from_slice(&codes),
                            }
                        }
                    }
                }
            }
            row += count;
            from = later;
        }
    }

    /// Where some rows of a position lie in a record, in a key's case with those of all its
    /// positions.
    fn rows(&self, part: Part, record: usize, position: usize, rows: Range<usize>) -> Range<usize> {
        match part {
            Part::Key => record + rows.start * POSITIONS..record + rows.end * POSITIONS,
            Part::Value => {
                let first = record + position % POSITIONS * self.head_dim;
                first + rows.start..first + rows.end
            }
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
                Store::Q8_0(s) => (kernels.attend_q8_0)(
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

/// [`BlockQ8_0::quantize`], faster: its codes are those of activations wherever binary16 has the
/// scale.
fn quantize(values: &[f32; BLOCK], kernels: &Kernels) -> BlockQ8_0 {
    let mut block = [Block::default()];
    (kernels.quantize_activations)(values, &mut block, 1);
    let [Block { scale, codes, .. }] = block;
    match f16::from_f32(scale) {
        d @ 1..=f16::MAX_BITS => BlockQ8_0 { d, qs: codes },
        _ => BlockQ8_0::quantize(values),
    }
}

/// Writes some elements.
///
/// # Safety
/// As [`Shared::read`].
#[allow(unsafe_code)]
unsafe fn save<T: Zero, const N: usize>(
    store: &Shared<T>,
    range: Range<usize>,
    out: &mut impl Write,
    bytes: fn(T) -> [u8; N],
) -> io::Result<()> {
    // SAFETY: the caller's.
    let elements = unsafe { store.read(range) };
    elements.iter().try_for_each(|&x| out.write_all(&bytes(x)))
}

/// Reads some elements.
///
/// # Safety
/// As [`Shared::write`].
#[allow(unsafe_code)]
unsafe fn load<T: Zero, const N: usize>(
    store: &Shared<T>,
    range: Range<usize>,
    from: &mut impl Read,
    element: fn([u8; N]) -> T,
) -> io::Result<()> {
    // SAFETY: the caller's.
    for x in unsafe { store.write(range) } {
        let mut bytes = [0; N];
        from.read_exact(&mut bytes)?;
        *x = element(bytes);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::KernelChoice;
    use crate::kernels::choose;

    #[test]
    fn codes_and_scales_are_those_of_the_file_format() {
        let unit = |i: usize| (i * 37 % 101) as f32 / 50.0 - 1.0;
        // From scales that vanish to those that saturate.
        for exponent in -40..=40 {
            for i in 0..20 {
                let factor = 2.0_f32.powi(exponent);
                let values = std::array::from_fn(|d| unit(i * BLOCK + d) * factor);
                for choice in [KernelChoice::Best, KernelChoice::Avx2, KernelChoice::Scalar] {
                    let got = quantize(&values, choose(choice));
                    assert_eq!(got, BlockQ8_0::quantize(&values), "{values:?}");
                }
            }
        }
    }

    #[test]
    fn names_and_tags_name_one_type_each() {
        for kv in KvType::ALL {
            assert_eq!(kv.to_string().parse(), Ok(kv));
            assert_eq!(KvType::of_tag(kv.tag()), Some(kv));
        }
        assert!("q4_0".parse::<KvType>().is_err());
        assert_eq!(KvType::of_tag(3), None);
    }
}
