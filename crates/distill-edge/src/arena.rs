//! Large zeroed allocations, in large pages where the system has them.
//!
//! Decoding walks through all weights and the whole cache for every token; with pages of 4 KiB each
//! of them would cost a look-up, which costs as much as reading it. Pages that are not touched take
//! no memory. What does not fill a large page comes from the heap, where it takes no more than its
//! size, and where tools that watch memory see its ends.

use std::ops::Range;

use memmap2::MmapMut;

/// Size of a large page.
const PAGE: usize = 2 << 20;
/// Size of a cache line.
const LINE: usize = 64;

/// Bytes that begin on a large page if they fill one, else on a cache line.
#[derive(Debug)]
pub(crate) struct Arena {
    memory: Memory,
    /// The bytes, behind those that align them.
    range: Range<usize>,
}

#[derive(Debug)]
enum Memory {
    Heap(Vec<u8>),
    Map(MmapMut),
}

/// The pages that memory is asked for in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pages {
    /// For what is walked through from end to end.
    Large,
    /// For what is touched here and there.
    Small,
}

/// The allocation was refused.
#[derive(Debug)]
pub(crate) struct Refused;

impl Arena {
    /// Zeroed bytes.
    pub fn new(bytes: usize, pages: Pages) -> Result<Self, Refused> {
        let align = if bytes < PAGE { LINE } else { PAGE };
        let room = bytes.checked_add(align).filter(|&n| n <= isize::MAX as usize).ok_or(Refused)?;
        let memory = if bytes < PAGE { Memory::heap(room)? } else { Memory::map(room, pages)? };
        let first = memory.bytes().as_ptr().addr();
        let start = first.next_multiple_of(align) - first;
        Ok(Self { memory, range: start..start + bytes })
    }

    pub fn bytes(&self) -> &[u8] {
        &self.memory.bytes()[self.range.clone()]
    }

    pub fn bytes_mut(&mut self) -> &mut [u8] {
        let bytes = match &mut self.memory {
            Memory::Heap(bytes) => &mut bytes[..],
            Memory::Map(map) => &mut map[..],
        };
        &mut bytes[self.range.clone()]
    }
}

impl Memory {
    fn heap(room: usize) -> Result<Self, Refused> {
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(room).map_err(|_| Refused)?;
        bytes.resize(room, 0);
        Ok(Self::Heap(bytes))
    }

    fn map(room: usize, pages: Pages) -> Result<Self, Refused> {
        let map = MmapMut::map_anon(room).map_err(|_| Refused)?;
        #[cfg(all(target_os = "linux", not(miri)))]
        if pages == Pages::Large {
            // A system without large pages refuses, and all goes on with small ones.
            let _ = map.advise(memmap2::Advice::HugePage);
        }
        Ok(Self::Map(map))
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Self::Heap(bytes) => bytes,
            Self::Map(map) => map,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_zeros_that_begin_on_a_line_or_on_a_page() {
        for (bytes, align) in [(0, LINE), (1, LINE), (PAGE - 1, LINE), (PAGE, PAGE)] {
            let mut arena = Arena::new(bytes, Pages::Large).unwrap();
            assert_eq!(arena.bytes().len(), bytes);
            assert!(arena.bytes().as_ptr().addr().is_multiple_of(align), "{bytes}");
            if let [first, .., last] = arena.bytes_mut() {
                assert_eq!([*first, *last], [0, 0]);
                [*first, *last] = [1, 2];
            }
        }
    }

    #[test]
    fn more_than_an_address_can_reach_is_refused() {
        for bytes in [usize::MAX, isize::MAX as usize] {
            assert!(Arena::new(bytes, Pages::Large).is_err());
        }
    }
}
