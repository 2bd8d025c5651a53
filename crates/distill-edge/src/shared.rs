//! Memory that the threads of a session share.
//!
//! Between two barriers every element is either written by one thread, or read by any number:
//! that is the contract of the two unsafe functions here, and keeping it is the whole business of
//! [`crate::forward`]. Slices are made for the ranges a thread uses and no longer, so that no two
//! that are alive at a time overlap unless both are read-only.

#![allow(unsafe_code)]

use std::cell::UnsafeCell;
use std::ops::Range;

/// A buffer of fixed length.
#[derive(Debug)]
pub(crate) struct Shared<T> {
    cells: Box<[UnsafeCell<T>]>,
}

// SAFETY: elements are reached only through the two functions below, whose callers promise that
// no thread writes what another reads or writes at the time.
unsafe impl<T: Send + Sync> Sync for Shared<T> {}

impl<T> Shared<T> {
    pub fn new(values: Vec<T>) -> Self {
        let values = Box::into_raw(values.into_boxed_slice());
        // SAFETY: the pointer comes from a box, and `UnsafeCell<T>` is laid out as `T`.
        Self { cells: unsafe { Box::from_raw(values as *mut [UnsafeCell<T>]) } }
    }

    /// Some elements, to read.
    ///
    /// # Safety
    /// No thread may write any of them while the slice lives.
    ///
    /// # Panics
    /// If the range ends beyond the buffer.
    pub unsafe fn read(&self, range: Range<usize>) -> &[T] {
        let cells = &self.cells[range];
        // SAFETY: the cells are valid and initialised; the caller rules out writers.
        unsafe { std::slice::from_raw_parts(cells.as_ptr().cast(), cells.len()) }
    }

    /// Some elements, to write.
    ///
    /// # Safety
    /// No other slice, of this thread or another, may overlap this one while it lives.
    ///
    /// # Panics
    /// If the range ends beyond the buffer.
    #[expect(clippy::mut_from_ref, reason = "the caller promises exclusive use")]
    pub unsafe fn write(&self, range: Range<usize>) -> &mut [T] {
        let cells = &self.cells[range];
        let first = UnsafeCell::raw_get(cells.as_ptr());
        // SAFETY: the cells are valid and initialised; the caller rules out every other use.
        unsafe { std::slice::from_raw_parts_mut(first, cells.len()) }
    }
}
