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
    owner: Owner,
}

/// What keeps the memory.
#[derive(Debug)]
enum Owner {
    /// A box of `[T]`, of which `first` is all that is left: a box that is moved claims its memory
    /// for itself, and no pointer from before may be used then.
    Leaked,
    Arena {
        _bytes: Arena,
    },
}

/// Numbers for which all bytes zero are a value, the number zero.
pub(crate) trait Zero: Copy {}

impl Zero for f32 {}
impl Zero for u16 {}
impl Zero for i8 {}

impl<T> Drop for Shared<T> {
    fn drop(&mut self) {
        if matches!(self.owner, Owner::Leaked) {
            let elements = NonNull::slice_from_raw_parts(self.first.cast::<T>(), self.len);
            // SAFETY: `new` leaked a box of these elements, and nothing else owns them.
            drop(unsafe { Box::from_raw(elements.as_ptr()) });
        }
    }
}

// SAFETY: the memory is owned, like a box's.
unsafe impl<T: Send> Send for Shared<T> {}
// SAFETY: elements are reached only through the two functions below, whose callers promise that
// no thread writes what another reads or writes at the time.
unsafe impl<T: Send + Sync> Sync for Shared<T> {}

impl<T> Shared<T> {
    pub fn new(values: Vec<T>) -> Self {
        let len = values.len();
        // `UnsafeCell<T>` is laid out as `T`.
        let first = NonNull::from(Box::leak(values.into_boxed_slice())).cast();
        Self { first, len, owner: Owner::Leaked }
    }

    /// Zeros in large pages.
    pub fn zeroed(len: usize, pages: Pages) -> Result<Self, Refused>
    where
        T: Zero,
    {
        let mut bytes = Arena::new(len.checked_mul(size_of::<T>()).ok_or(Refused)?, pages)?;
        // An arena begins on a page, which aligns any number.
        let first = NonNull::from(bytes.bytes_mut()).cast();
        Ok(Self { first, len, owner: Owner::Arena { _bytes: bytes } })
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
