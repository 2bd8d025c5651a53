//! Memory for programs that train: what is large begins at a cache line, and what was freed is used
//! again.
//!
//! The standard allocator begins large blocks 16 bytes behind a page, so that every vector of 64
//! bytes lies in two lines: a product then takes a tenth longer. And it gives memory back to the
//! system at the end of every backward pass, which the next step then gets page by page, a fifth
//! of its time. A program opts in:
//!
//! ```
//! use distill_ops::memory::{self, Aligned};
//!
//! #[global_allocator]
//! static ALLOCATOR: Aligned = Aligned;
//!
//! fn main() {
//!     memory::keep_what_is_freed();
//!     let tensor = vec![0_f32; 5000];
//!     assert_eq!(tensor.as_ptr().addr() % 64, 0);
//! }
//! ```

#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::ptr;

/// Bytes of a cache line.
const LINE: usize = 64;
/// Smallest block that is aligned.
const LARGE: usize = 4096;

/// Asks the C library's allocator for one heap that never shrinks, instead of one for each thread
/// and of maps of their own for large blocks. To be called before there are threads; does nothing
/// where the library is not glibc.
pub fn keep_what_is_freed() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: sets numbers of the allocator's, which has a lock for it.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_MMAP_MAX, 0);
        libc::mallopt(libc::M_TRIM_THRESHOLD, -1);
    }
}

/// The system's allocator, with blocks of 4 KiB and more at the start of a cache line.
///
/// Such a block lies in one of the system's that is a line longer; the word before it tells where
/// that begins.
#[derive(Clone, Copy, Debug, Default)]
pub struct Aligned;

/// The system's block for a large one; none for what the system does as it should.
fn around(layout: Layout) -> Option<Layout> {
    let large = layout.size() >= LARGE && layout.align() < LINE;
    large.then(|| Layout::from_size_align(layout.size() + LINE, align_of::<*mut u8>()).ok())?
}

/// The line in a block of the system's, which is noted before it.
///
/// # Safety
/// The block is null or has the size that [`around`] gives it.
unsafe fn line_in(block: *mut u8) -> *mut u8 {
    if block.is_null() {
        return block;
    }
    let to_line = LINE - block.addr() % LINE;
    // SAFETY: the system aligns to at least 8, so there are 8 to 64 bytes before the line, which is
    // in the block.
    unsafe {
        let line = block.add(to_line);
        line.cast::<*mut u8>().sub(1).write(block);
        line
    }
}

/// # Safety
/// The pointer is one that [`line_in`] gave.
unsafe fn block_of(line: *mut u8) -> *mut u8 {
    // SAFETY: the caller's contract.
    unsafe { line.cast::<*mut u8>().sub(1).read() }
}

// SAFETY: a block is the system's, or lies in one of the system's as `line_in` says; which of the
// two, size and alignment tell.
unsafe impl GlobalAlloc for Aligned {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's contract; `line_in`'s is kept by `around`.
        unsafe {
            match around(layout) {
                Some(outer) => line_in(System.alloc(outer)),
                None => System.alloc(layout),
            }
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as in `alloc`.
        unsafe {
            match around(layout) {
                Some(outer) => line_in(System.alloc_zeroed(outer)),
                None => System.alloc_zeroed(layout),
            }
        }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        // SAFETY: the caller's contract: this layout gave the block.
        unsafe {
            match around(layout) {
                Some(outer) => System.dealloc(block_of(place), outer),
                None => System.dealloc(place, layout),
            }
        }
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller's contract, by which the new layout is one.
        unsafe {
            let new = Layout::from_size_align_unchecked(size, layout.align());
            match (around(layout), around(new)) {
                (None, None) => System.realloc(place, layout, size),
                (Some(outer), Some(new)) => {
                    let block = block_of(place);
                    let before = place.offset_from_unsigned(block);
                    let block = System.realloc(block, outer, new.size());
                    line_in_moved(block, before, layout.size().min(size))
                }
                _ => {
                    let moved = self.alloc(new);
                    if !moved.is_null() {
                        ptr::copy_nonoverlapping(place, moved, layout.size().min(size));
                        self.dealloc(place, layout);
                    }
                    moved
                }
            }
        }
    }
}

/// The line in a block whose contents lie `before` bytes behind its start.
///
/// # Safety
/// As [`line_in`]; `used` bytes are there.
unsafe fn line_in_moved(block: *mut u8, before: usize, used: usize) -> *mut u8 {
    if block.is_null() {
        return block;
    }
    // SAFETY: the caller's contract; contents move before the word in front of them is written.
    unsafe {
        let line = block.add(LINE - block.addr() % LINE);
        ptr::copy(block.add(before), line, used);
        line_in(block)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_blocks_begin_at_a_line_and_keep_what_they_hold() {
        let layout = |size| Layout::from_size_align(size, 4).unwrap();
        for (before, after) in [
            (100, 5000),
            (5000, 100),
            (4096, 4095),
            (5000, 300_000),
            (300_000, 5000),
            (300_000, 40_000_000),
            (40_000_000, 300_000),
        ] {
            let kept = usize::min(before, after);
            // SAFETY: every block is used within its size, and freed by its layout.
            unsafe {
                let block = Aligned.alloc_zeroed(layout(before));
                assert!((0..before).all(|i| block.add(i).read() == 0));
                for i in 0..before {
                    block.add(i).write((i % 251) as u8);
                }
                let moved = Aligned.realloc(block, layout(before), after);
                assert!((0..kept).all(|i| moved.add(i).read() == (i % 251) as u8));
                moved.add(after - 1).write(1);
                assert!(after < LARGE || moved.addr() % LINE == 0);
                Aligned.dealloc(moved, layout(after));
            }
        }
    }

    #[test]
    fn greater_alignments_are_the_systems() {
        for align in [64, 4096] {
            let layout = Layout::from_size_align(10_000, align).unwrap();
            // SAFETY: as above.
            unsafe {
                let block = Aligned.alloc(layout);
                assert_eq!(block.addr() % align, 0);
                Aligned.dealloc(block, layout);
            }
        }
    }
}
