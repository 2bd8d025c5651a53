//! A file, mapped or in memory.

use std::borrow::Cow;
use std::ops::Deref;
use std::path::Path;
use std::sync::Arc;

use memmap2::Mmap;

use crate::{Gguf, GgufError, Metadata, TensorInfo, TensorView, map};

/// A GGUF file, memory-mapped or given as bytes. Clones share them; they live as long as the last.
#[derive(Clone, Debug)]
pub struct GgufFile {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    content: Content,
    header: Gguf,
}

/// The bytes of a whole file.
#[derive(Debug)]
enum Content {
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
        let header = Gguf::parse(&content, path)?;
        Ok(Self { shared: Arc::new(Shared { content, header }) })
    }

    /// The path the file was opened by, or the name its bytes were given.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.metadata().file()
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

    /// The whole file; [`TensorInfo::range`] counts in it.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.shared.content
    }
}
