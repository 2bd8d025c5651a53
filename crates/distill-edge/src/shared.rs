//! Memory that the threads of a session share.
//!
//! Between two barriers every element is either written by one thread, or read by any number:
//! that is the contract of the two unsafe functions here, and keeping it is the whole business of
//! [`crate::forward`]. Slices are made for the ranges a thread uses and no longer, so that no two
//! that are alive at a time overlap unless both are read-only.

#![allow(unsafe_code)]

use std::cell::UnsafeCell;
use std::ops::Range;
use std::ptr::NonNull;

use crate::arena::{Arena, Pages, Refused};

/// A buffer of fixed length.
#[derive(Debug)]
pub(crate) struct Shared<T> {
    first: NonNull<UnsafeCell<T>>,
    len: usize,
    /// Keeps the memory.
    _owner: Owner<T>,
}

#[derive(Debug)]
enum Owner<T> {
    Box { _cells: Box<[UnsafeCell<T>]> },
    Arena { _bytes: Arena },
}

/// Numbers for which all bytes zero are a value, the number zero.
pub(crate) trait Zero: Copy {}

impl Zero for f32 {}
impl Zero for u16 {}
impl Zero for i8 {}

// SAFETY: the memory is owned, like a box's.
unsafe impl<T: Send> Send for Shared<T> {}
// SAFETY: elements are reached only through the two functions below, whose callers promise that
// no thread writes what another reads or writes at the time.
unsafe impl<T: Send + Sync> Sync for Shared<T> {}

impl<T> Shared<T> {
    pub fn new(values: Vec<T>) -> Self {
        let len = values.len();
        let values = Box::into_raw(values.into_boxed_slice());
        // SAFETY: the pointer comes from a box, and `UnsafeCell<T>` is laid out as `T`.
        let mut cells = unsafe { Box::from_raw(values as *mut [UnsafeCell<T>]) };
        let first = NonNull::from(&mut *cells).cast();
        Self { first, len, _owner: Owner::Box { _cells: cells } }
    }

    /// Zeros in large pages.
    pub fn zeroed(len: usize, pages: Pages) -> Result<Self, Refused>
    where
        T: Zero,
    {
        let mut bytes = Arena::new(len.checked_mul(size_of::<T>()).ok_or(Refused)?, pages)?;
        // An arena begins on a page, which aligns any number.
        let first = NonNull::from(bytes.bytes_mut()).cast();
        Ok(Self { first, len, _owner: Owner::Arena { _bytes: bytes } })
    }

    /// A pointer to some elements.
    ///
    /// # Panics
    /// If the range ends beyond the buffer.
    fn at(&self, range: &Range<usize>) -> *mut T {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {}", self.len);
        // SAFETY: the start lies in the buffer or at its end.
        UnsafeCell::raw_get(unsafe { self.first.as_ptr().add(range.start) })
    }

    /// Some elements, to read.
    ///
    /// # Safety
    /// No thread may write any of them while the slice lives.
    ///
    /// # Panics
    /// If the range ends beyond the buffer.
    pub unsafe fn read(&self, range: Range<usize>) -> &[T] {
        // SAFETY: the elements are valid and initialised; the caller rules out writers.
        unsafe { std::slice::from_raw_parts(self.at(&range), range.len()) }
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
        // SAFETY: the elements are valid and initialised; the caller rules out every other use.
        unsafe { std::slice::from_raw_parts_mut(self.at(&range), range.len()) }
    }
}
