//! Files of text, read one document at a time.

pub(crate) mod jsonl;
mod parquet;
mod paths;
mod text;

use std::path::{Path, PathBuf};

use crate::error::DataError;

/// One file of documents.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Source {
    /// Plain UTF-8 text: one document, or several with a separator between them.
    Text {
        /// The file.
        path: PathBuf,
        /// What stands between two documents; it belongs to neither.
        document_separator: Option<String>,
    },
    /// One JSON object a line; each holds a document.
    Jsonl {
        /// The file.
        path: PathBuf,
        /// The key of the text.
        field: String,
    },
    /// A table; each row holds a document.
    Parquet {
        /// The file.
        path: PathBuf,
        /// The column of the text; no other column is read.
        field: String,
    },
}

/// How files are read whose format leaves a choice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceOptions {
    /// The field or column that holds the text of JSONL and Parquet files.
    pub text_field: String,
    /// What stands between the documents of a text file; without it, a file is one document.
    pub document_separator: Option<String>,
}

impl Default for SourceOptions {
    /// The field `text`; text files are one document each.
    fn default() -> Self {
        Self { text_field: "text".into(), document_separator: None }
    }
}

impl Source {
    /// The files that `spec` names, in the order of their paths: a file, a directory (all files
    /// of known formats below it) or a pattern with `*`, `?` and `**`.
    ///
    /// The extension tells the format: `.txt`, `.text`, `.md` are text, `.jsonl`, `.ndjson`
    /// JSONL, `.parquet` Parquet. Directories and patterns pass over other files, and over text
    /// that documents the data (`.md`).
    ///
    /// # Errors
    /// [`DataError::NotFound`], [`DataError::NothingMatches`], [`DataError::EmptyDirectory`],
    /// [`DataError::UnknownFormat`], [`DataError::EmptySeparator`], [`DataError::Io`].
    pub fn resolve(spec: &str, options: &SourceOptions) -> Result<Vec<Self>, DataError> {
        if options.document_separator.as_deref() == Some("") {
            return Err(DataError::EmptySeparator);
        }
        let files = paths::expand(spec)?;
        files.into_iter().map(|path| Self::from_path(path, options)).collect()
    }

    fn from_path(path: PathBuf, options: &SourceOptions) -> Result<Self, DataError> {
        let field = options.text_field.clone();
        match Format::of(&path) {
            Some(Format::Text | Format::Prose) => {
                Ok(Self::Text { path, document_separator: options.document_separator.clone() })
            }
            Some(Format::Jsonl) => Ok(Self::Jsonl { path, field }),
            Some(Format::Parquet) => Ok(Self::Parquet { path, field }),
            None => {
                let extension = path.extension().map(|e| format!(".{}", e.to_string_lossy()));
                let found = extension.unwrap_or_else(|| "no extension".into());
                Err(DataError::UnknownFormat { path, found })
            }
        }
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            Self::Text { path, .. } | Self::Jsonl { path, .. } | Self::Parquet { path, .. } => path,
        }
    }

    fn open(&self) -> Result<Documents, DataError> {
        Ok(match self {
            Self::Text { path, document_separator } => {
                Box::new(text::TextFile::open(path, document_separator.as_deref())?)
            }
            Self::Jsonl { path, field } => Box::new(jsonl::JsonlFile::open(path, field)?),
            Self::Parquet { path, field } => Box::new(parquet::ParquetFile::open(path, field)?),
        })
    }
}

/// A stream of documents.
pub type Documents = Box<dyn Iterator<Item = Result<String, DataError>> + Send>;

/// The documents of all sources, in order, read as they are asked for. Documents without any
/// visible character are passed over. After an error there are no more.
///
/// # Errors
/// [`DataError::NoSources`] for an empty list.
pub fn documents(sources: &[Source]) -> Result<Documents, DataError> {
    if sources.is_empty() {
        return Err(DataError::NoSources);
    }
    let mut sources = Vec::from(sources).into_iter();
    let mut open: Option<Documents> = None;
    let mut failed = false;
    Ok(Box::new(std::iter::from_fn(move || {
        while !failed {
            if open.is_none() {
                match sources.next()?.open() {
                    Ok(file) => open = Some(file),
                    Err(error) => {
                        failed = true;
                        return Some(Err(error));
                    }
                }
            }
            match open.as_mut().and_then(Iterator::next) {
                None => open = None,
                Some(Ok(text)) if text.trim().is_empty() => {}
                Some(Ok(text)) => return Some(Ok(text)),
                Some(Err(error)) => {
                    failed = true;
                    return Some(Err(error));
                }
            }
        }
        None
    })))
}

/// The formats, told apart by extension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Text,
    /// Text that usually describes data: read when named, passed over in a directory.
    Prose,
    Jsonl,
    Parquet,
}

impl Format {
    fn of(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
            "txt" | "text" => Some(Self::Text),
            "md" => Some(Self::Prose),
            "jsonl" | "ndjson" => Some(Self::Jsonl),
            "parquet" => Some(Self::Parquet),
            _ => None,
        }
    }
}

/// Opens a regular file.
pub(crate) fn open_file(path: &Path) -> Result<std::fs::File, DataError> {
    std::fs::File::open(path).map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound => DataError::NotFound { path: path.to_path_buf() },
        _ => DataError::Io { path: path.to_path_buf(), action: "open", source },
    })
}
