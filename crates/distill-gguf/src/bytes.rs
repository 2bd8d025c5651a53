//! The bytes of a file, shared by all that was read of it.

use std::borrow::Cow;
use std::fmt;
use std::ops::{Deref, Range};
use std::sync::Arc;

use memmap2::Mmap;

/// The bytes of a whole file.
#[derive(Debug)]
pub(crate) enum Content {
    Mapped(Mmap),
    Memory(Cow<'static, [u8]>),
}

impl Deref for Content {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Memory(bytes) => bytes,
        }
    }
}

/// Some bytes of a file, which live as long as this does, or bytes of one's own. Clones share
/// them.
#[derive(Clone)]
pub struct Bytes {
    content: Arc<Content>,
    range: Range<usize>,
}

impl Bytes {
    /// # Panics
    /// If the range ends beyond the content.
    pub(crate) fn new(content: &Arc<Content>, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= content.len(), "{range:?}");
        Self { content: Arc::clone(content), range }
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Self {
        let range = 0..bytes.len();
        Self { content: Arc::new(Content::Memory(bytes.into())), range }
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.content[self.range.clone()]
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Bytes({:?})", self.range)
    }
}
