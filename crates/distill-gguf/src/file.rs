//! A file, mapped or in memory.

use std::borrow::Cow;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use crate::bytes::Content;
use crate::reader::Header;
use crate::{Bytes, GgufError, Metadata, TensorInfo, TensorView, map};

/// A GGUF file, memory-mapped or given as bytes. Clones share them; they live as long as the last.
#[derive(Clone, Debug)]
pub struct GgufFile {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    content: Arc<Content>,
    header: Header,
}

impl GgufFile {
    /// Maps `path` and checks its header.
    ///
    /// # Errors
    /// If the file cannot be opened, is no GGUF file, or is damaged.
    pub fn open(path: &Path) -> Result<Self, GgufError> {
        Self::new(Content::Mapped(map::map(path)?), path)
    }

    /// Takes a whole file from memory and checks its header: for what is embedded in a program
    /// (`include_bytes!`), downloaded, or run where there are no files. `name` stands for the file
    /// in errors. Borrowed bytes are not copied.
    ///
    /// # Errors
    /// If the bytes are no GGUF file, or damaged.
    pub fn from_bytes(
        bytes: impl Into<Cow<'static, [u8]>>,
        name: &Path,
    ) -> Result<Self, GgufError> {
        Self::new(Content::Memory(bytes.into()), name)
    }

    fn new(content: Content, path: &Path) -> Result<Self, GgufError> {
        let content = Arc::new(content);
        let header = Header::parse(&content, path)?;
        Ok(Self { shared: Arc::new(Shared { content, header }) })
    }

    /// The path the file was opened by, or the name its bytes were given.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.metadata().file()
    }

    /// The container's version, 2 or 3.
    #[must_use]
    pub fn version(&self) -> u32 {
        self.shared.header.version()
    }

    /// The metadata.
    #[must_use]
    pub fn metadata(&self) -> &Metadata {
        self.shared.header.metadata()
    }

    /// The tensors' records, in the order of the file.
    #[must_use]
    pub fn tensors(&self) -> &[TensorInfo] {
        self.shared.header.tensors()
    }

    /// The tensor `name`, if there.
    #[must_use]
    pub fn tensor(&self, name: &str) -> Option<TensorView<'_>> {
        self.shared.header.tensor(&self.shared.content, name)
    }

    /// The tensor `name`.
    ///
    /// # Errors
    /// If it is not there.
    pub fn require(&self, name: &str) -> Result<TensorView<'_>, GgufError> {
        self.tensor(name).ok_or_else(|| GgufError::MissingTensor {
            file: self.path().to_owned(),
            tensor: name.to_owned(),
            count: self.tensors().len(),
        })
    }

    /// Some bytes of the file, which keep it open.
    ///
    /// # Panics
    /// If the range ends beyond the file.
    #[must_use]
    pub fn share(&self, range: Range<usize>) -> Bytes {
        Bytes::new(&self.shared.content, range)
    }

    /// Takes bytes that are not needed soon out of memory, if the file is mapped: a model that is
    /// made of another copy then needs only one. They can be read as before.
    ///
    /// # Panics
    /// If the range ends beyond the file.
    pub fn release(&self, range: Range<usize>) {
        assert!(range.start <= range.end && range.end <= self.bytes().len(), "{range:?}");
        if let Content::Mapped(map) = &*self.shared.content {
            map::release(map, range);
        }
    }

    /// The whole file; [`TensorInfo::range`] counts in it.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.shared.content
    }
}
