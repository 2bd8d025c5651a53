//! A file, mapped.

use std::path::Path;
use std::sync::Arc;

use memmap2::Mmap;

use crate::{Gguf, GgufError, Metadata, TensorInfo, TensorView, map};

/// A memory-mapped GGUF file. Clones share the map, which lives as long as the last of them.
#[derive(Clone, Debug)]
pub struct GgufFile {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    map: Mmap,
    header: Gguf,
}

impl GgufFile {
    /// Maps `path` and checks its header.
    ///
    /// # Errors
    /// If the file cannot be opened, is no GGUF file, or is damaged.
    pub fn open(path: &Path) -> Result<Self, GgufError> {
        let map = map::map(path)?;
        let header = Gguf::parse(&map, path)?;
        Ok(Self { shared: Arc::new(Shared { map, header }) })
    }

    /// The path the file was opened by.
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
        self.shared.header.tensor(&self.shared.map, name)
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
        &self.shared.map
    }
}
