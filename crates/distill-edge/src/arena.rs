//! Large zeroed allocations, in large pages where the system has them.
//!
//! Decoding walks through all weights and the whole cache for every token; with pages of 4 KiB each
//! of them would cost a look-up, which costs as much as reading it. Pages that are not touched take
//! no memory.

use std::ops::Range;

use memmap2::MmapMut;

/// Size of a large page.
const PAGE: usize = 2 << 20;

/// Bytes that begin on a large page.
#[derive(Debug)]
pub(crate) struct Arena {
    map: MmapMut,
    range: Range<usize>,
}

/// The allocation was refused.
#[derive(Debug)]
pub(crate) struct Refused;

impl Arena {
    /// Zeroed bytes.
    pub fn new(bytes: usize) -> Result<Self, Refused> {
        let room = bytes.checked_add(PAGE).filter(|&n| n <= isize::MAX as usize).ok_or(Refused)?;
        let map = MmapMut::map_anon(room).map_err(|_| Refused)?;
        let start = map.as_ptr().addr().next_multiple_of(PAGE) - map.as_ptr().addr();
        #[cfg(target_os = "linux")]
        {
            // A system without large pages refuses, and all goes on with small ones.
            let _ = map.advise(memmap2::Advice::HugePage);
        }
        Ok(Self { map, range: start..start + bytes })
    }

    pub fn bytes(&self) -> &[u8] {
        &self.map[self.range.clone()]
    }

    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.map[self.range.clone()]
    }
}
