//! What can go wrong between a name in a recipe and a file on this machine.

use std::path::PathBuf;

/// Why a model or data set has no local path.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// Neither a path nor a hub id.
    #[error(
        "there is no {place} here, and it is not a hub id either: give a directory, a .gguf file, \
         or `owner/name`"
    )]
    NotFound {
        /// What the recipe says.
        place: String,
    },
    /// `hf:` with something else than an id after it.
    #[error(
        "{place} is not a data set of the hub: write hf:owner/name or hf:owner/name/path/in/repo"
    )]
    NotADataset {
        /// What the recipe says.
        place: String,
    },
    /// `HF_HUB_OFFLINE` is set and the cache does not have it.
    #[error(
        "there is no local path {id}, {id} (revision {revision}) is not whole in the cache {}, and \
         HF_HUB_OFFLINE forbids to download it: unset HF_HUB_OFFLINE, or run `hf download {id} --revision {revision}` where \
         there is a network and copy the cache, or put the path of a local copy into the recipe",
        cache.display()
    )]
    Offline {
        /// The hub id.
        id: String,
        /// Its revision.
        revision: String,
        /// Where was looked.
        cache: PathBuf,
    },
    /// The hub does not answer, and the cache does not have it.
    #[error(
        "cannot reach {endpoint} for {id} (revision {revision}): {reason}. There is no local path \
         {id}, and the cache {} does not have it whole: check the network, or run `hf download \
         {id} --revision {revision}` elsewhere and copy the cache, or put the path of a local \
         copy into the recipe",
        cache.display()
    )]
    Unreachable {
        /// The hub id.
        id: String,
        /// Its revision.
        revision: String,
        /// The hub asked.
        endpoint: String,
        /// What the network said.
        reason: String,
        /// Where was looked.
        cache: PathBuf,
    },
    /// The hub knows no such model or data set, or keeps it from us.
    #[error(
        "{endpoint} has no {id} at revision {revision} that may be read (HTTP {status}), and there \
         is no local path {id}: check the spelling; for a private or gated one set HF_TOKEN"
    )]
    NoSuchRepo {
        /// The hub id.
        id: String,
        /// Its revision.
        revision: String,
        /// The hub asked.
        endpoint: String,
        /// 401, 403 or 404.
        status: u16,
    },
    /// The hub answered with an error of its own.
    #[error("{endpoint} failed for {id}: HTTP {status}; try again later")]
    HubFailed {
        /// The hub id.
        id: String,
        /// The hub asked.
        endpoint: String,
        /// The HTTP status.
        status: u16,
    },
    /// A repository without weights that can be read.
    #[error(
        "{id} has neither model.safetensors, nor model.safetensors.index.json, nor a .gguf file; \
         it has: {}",
        files(.has)
    )]
    NoWeights {
        /// The hub id.
        id: String,
        /// The files it has.
        has: Vec<String>,
    },
    /// A repository without a tokenizer that can be read.
    #[error("{id} has neither tokenizer.json nor a single .gguf file; it has: {}", files(.has))]
    NoTokenizer {
        /// The hub id.
        id: String,
        /// The files it has.
        has: Vec<String>,
    },
    /// Several GGUF files, none of them named.
    #[error("{id} has several .gguf files: name one, as in \"{id}/{}\"; it has: {}", .has[0], files(.has))]
    Ambiguous {
        /// The hub id.
        id: String,
        /// The GGUF files; at least two.
        has: Vec<String>,
    },
    /// A file or folder that the repository does not have.
    #[error("{id} has no {path}; it has: {}", files(.has))]
    NoSuchFile {
        /// The hub id.
        id: String,
        /// What was asked for.
        path: String,
        /// The files that could have been meant.
        has: Vec<String>,
    },
    /// A data set without text that can be read.
    #[error("{id} has no .parquet, .jsonl or .txt file; it has: {}", files(.has))]
    NoText {
        /// The hub id.
        id: String,
        /// The files it has.
        has: Vec<String>,
    },
    /// A file that broke off, several times.
    #[error(
        "the download of {file} of {id} broke off: {reason}. What has arrived is kept; run the \
         same command again and it goes on from there"
    )]
    Interrupted {
        /// The hub id.
        id: String,
        /// The file.
        file: String,
        /// What the network said, the last time.
        reason: String,
    },
    /// A file that is not what the hub announced.
    #[error(
        "{file} of {id} arrived damaged ({property} {found}, expected {expected}); it was deleted: \
         run the same command again"
    )]
    Damaged {
        /// The hub id.
        id: String,
        /// The file.
        file: String,
        /// `size` or `sha256`.
        property: &'static str,
        /// What arrived.
        found: String,
        /// What was announced.
        expected: String,
    },
    /// A file name that would leave the cache.
    #[error(
        "{id} lists the file {file:?}, which is not a plain relative path; it is not downloaded"
    )]
    UnsafeName {
        /// The hub id.
        id: String,
        /// The name listed.
        file: String,
    },
    /// An index of shards that cannot be used.
    #[error("{}: {problem}", path.display())]
    Index {
        /// The index.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The cache cannot be read or written.
    #[error("the cache {} cannot be used: {source}; set HF_HOME to a directory of yours", path.display())]
    Cache {
        /// The file or directory.
        path: PathBuf,
        /// What the file system said.
        source: std::io::Error,
    },
    /// No place for the cache.
    #[error("there is no home directory to keep downloads in: set HF_HOME to a directory")]
    NoHome,
}

impl HubError {
    /// Whether the user's input is at fault (exit code 2) rather than the work (1).
    pub fn is_input(&self) -> bool {
        match self {
            Self::NotFound { .. }
            | Self::NotADataset { .. }
            | Self::Offline { .. }
            | Self::NoSuchRepo { .. }
            | Self::NoWeights { .. }
            | Self::NoTokenizer { .. }
            | Self::Ambiguous { .. }
            | Self::NoSuchFile { .. }
            | Self::NoText { .. }
            | Self::NoHome => true,
            Self::Unreachable { .. }
            | Self::HubFailed { .. }
            | Self::Interrupted { .. }
            | Self::Damaged { .. }
            | Self::UnsafeName { .. }
            | Self::Index { .. }
            | Self::Cache { .. } => false,
        }
    }
}

/// The first few names; a data set can have thousands.
fn files(names: &[String]) -> String {
    const SHOWN: usize = 12;
    let mut text = names.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    if names.is_empty() {
        text.push_str("nothing");
    } else if names.len() > SHOWN {
        text.push_str(&format!(" and {} more", names.len() - SHOWN));
    }
    text
}
