//! One allocation for all packed weights.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc_zeroed, dealloc};

/// Bytes that begin on a page of 2 MiB if they fill one, so that the system can map them in large
/// pages, and else on a cache line.
#[derive(Debug)]
pub(crate) struct Arena {
    first: *mut u8,
    layout: Layout,
}

/// Size of a large page.
const PAGE: usize = 2 << 20;
/// Size of a cache line.
const LINE: usize = 64;

/// The allocation was refused.
#[derive(Debug)]
pub(crate) struct Refused;

// SAFETY: the arena owns its bytes, and hands them out by the rules of references.
unsafe impl Send for Arena {}
// SAFETY: as above.
unsafe impl Sync for Arena {}

impl Arena {
    /// Zeroed bytes.
    pub fn new(bytes: usize) -> Result<Self, Refused> {
        let align = if bytes < PAGE { LINE } else { PAGE };
        let layout = Layout::from_size_align(bytes.max(1), align).map_err(|_| Refused)?;
        // SAFETY: the size is not zero.
        let first = unsafe { alloc_zeroed(layout) };
        if first.is_null() { Err(Refused) } else { Ok(Self { first, layout }) }
    }

    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the allocation holds this many initialised bytes.
        unsafe { std::slice::from_raw_parts(self.first, self.layout.size()) }
    }

    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and the arena is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.first, self.layout.size()) }
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout and not freed before.
        unsafe { dealloc(self.first, self.layout) };
    }
}
