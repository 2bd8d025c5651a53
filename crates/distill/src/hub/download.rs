//! Files of the hub into its cache: listed, fetched, checked, and taken from there next time.
//!
//! The layout is that of `huggingface_hub`: `blobs/<etag>` holds the bytes (`.part` while they
//! arrive), `snapshots/<commit>/<file>` links to them, `refs/<revision>` names the commit. Here a
//! ref is written after everything that was asked for has arrived.

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use hf_hub::api::Progress;
use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo, Metadata};
use hf_hub::{Cache, CacheRepo, RepoType};
use indicatif::{ProgressBar, ProgressStyle};
use sha2::{Digest, Sha256};

use super::HubError;
use super::select::{self, CONFIG, Choice, INDEX, TOKENIZER, WEIGHTS, Want};

/// How often a file that breaks off is taken up again before the user is asked to.
const ATTEMPTS: u32 = 3;

/// What a repository holds.
pub(super) type Kind = RepoType;

/// A hub and its cache.
#[derive(Clone, Debug)]
pub(super) struct Hub {
    pub(super) endpoint: String,
    pub(super) cache: Cache,
    pub(super) token: Option<String>,
    /// Never ask, take what the cache has.
    pub(super) offline: bool,
    /// The pause before a second attempt; it doubles with each.
    pub(super) pause: Duration,
}

/// A repository at a revision.
pub(super) struct Repo<'a> {
    hub: &'a Hub,
    kind: Kind,
    id: String,
    revision: String,
}

/// What the hub says that a revision is.
pub(super) struct Listing {
    /// The commit.
    pub(super) commit: String,
    /// Its files, by path.
    pub(super) files: Vec<String>,
}

impl Hub {
    /// As `HF_HOME`, `HF_ENDPOINT`, `HF_TOKEN` and `HF_HUB_OFFLINE` say.
    pub(super) fn from_env() -> Result<Self, HubError> {
        Self::from_variables(|name| std::env::var(name).ok())
    }

    pub(super) fn from_variables(
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, HubError> {
        let variable = |name| variable(name).filter(|value| !value.is_empty());
        if variable("HF_HOME").is_none() && std::env::home_dir().is_none() {
            return Err(HubError::NoHome);
        }
        let cache = match variable("HF_HOME") {
            Some(home) => Cache::new(Path::new(&home).join("hub")),
            None => Cache::default(),
        };
        let endpoint = variable("HF_ENDPOINT").unwrap_or("https://huggingface.co".to_owned());
        let offline = variable("HF_HUB_OFFLINE").unwrap_or_default().to_lowercase();
        Ok(Self {
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            token: variable("HF_TOKEN").or_else(|| cache.token()),
            cache,
            offline: ["1", "true", "yes", "on"].contains(&offline.as_str()),
            pause: Duration::from_secs(1),
        })
    }

    pub(super) fn repo(&self, kind: Kind, id: &str, revision: &str) -> Result<Repo<'_>, HubError> {
        // The revision is part of a path in the cache.
        if !is_plain(revision) {
            return Err(HubError::NoSuchRepo {
                id: id.to_owned(),
                revision: revision.to_owned(),
                endpoint: self.endpoint.clone(),
                status: 404,
            });
        }
        Ok(Repo { hub: self, kind, id: id.to_owned(), revision: revision.to_owned() })
    }

    fn api(&self) -> Result<Api, ApiError> {
        ApiBuilder::from_cache(self.cache.clone())
            .with_endpoint(self.endpoint.clone())
            .with_token(self.token.clone())
            .with_user_agent("distill", env!("CARGO_PKG_VERSION"))
            .build()
    }
}

impl Repo<'_> {
    fn at(&self, revision: &str) -> hf_hub::Repo {
        hf_hub::Repo::with_revision(self.id.clone(), self.kind, revision.to_owned())
    }

    fn in_cache(&self, revision: &str) -> CacheRepo {
        self.hub.cache.repo(self.at(revision))
    }

    /// The directory of the revision in the cache, where there is one.
    fn snapshot(&self) -> Option<PathBuf> {
        // A branch or tag is a ref; a commit may be one, and else stands for itself.
        let folder = self.hub.cache.path().join(self.at(&self.revision).folder_name());
        let reference = folder.join("refs").join(&self.revision);
        let commit = fs::read_to_string(reference).unwrap_or_else(|_| self.revision.clone());
        let snapshot = folder.join("snapshots").join(commit.trim());
        (is_plain(commit.trim()) && snapshot.is_dir()).then_some(snapshot)
    }

    /// What is wanted, if the cache holds all that the hub could add.
    pub(super) fn cached(&self, want: &Want<'_>) -> Option<PathBuf> {
        let snapshot = self.snapshot()?;
        let has = |name: &str| snapshot.join(name).is_file();
        match want {
            Want::File(path) => Some(snapshot.join(path)).filter(|path| path.is_file()),
            Want::Tokenizer => has(TOKENIZER).then_some(snapshot),
            Want::Model if has(TOKENIZER) && is_model(&snapshot) => Some(snapshot),
            Want::Model => None,
        }
    }

    /// What is wanted, if the cache holds enough to work with.
    pub(super) fn cached_at_least(&self, want: &Want<'_>) -> Option<PathBuf> {
        if let Some(path) = self.cached(want) {
            return Some(path);
        }
        let snapshot = self.snapshot()?;
        if matches!(want, Want::Model) && is_model(&snapshot) {
            return Some(snapshot);
        }
        match select::choose(&self.id, want, &self.cached_files()) {
            Ok(Choice::Gguf(file)) => Some(snapshot.join(file)),
            _ => None,
        }
    }

    /// The files of the revision in the cache, by path.
    pub(super) fn cached_files(&self) -> Vec<String> {
        let Some(snapshot) = self.snapshot() else {
            return Vec::new();
        };
        let mut files = Vec::new();
        let mut directories = vec![snapshot.clone()];
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
                let path = entry.path();
                if path.is_dir() {
                    directories.push(path);
                } else if let (true, Ok(relative)) = (path.is_file(), path.strip_prefix(&snapshot))
                {
                    let parts: Vec<_> =
                        relative.iter().map(|part| part.to_string_lossy()).collect();
                    files.push(parts.join("/"));
                }
            }
        }
        files.sort();
        files
    }

    /// These files in the cache; `None` if one is missing.
    pub(super) fn cached_paths(&self, names: &[String]) -> Option<Vec<PathBuf>> {
        let snapshot = self.snapshot()?;
        let paths = names.iter().map(|name| snapshot.join(name));
        paths.map(|path| path.is_file().then_some(path)).collect()
    }

    /// Asks the hub what the revision is.
    pub(super) fn list(&self) -> Result<Listing, HubError> {
        if self.hub.offline {
            return Err(HubError::Offline {
                id: self.id.clone(),
                revision: self.revision.clone(),
                cache: self.hub.cache.path().clone(),
            });
        }
        let info = self.hub.api().and_then(|api| api.repo(self.at(&self.revision)).info());
        match info {
            Ok(info) => Ok(Listing {
                commit: info.sha,
                files: info.siblings.into_iter().map(|file| file.rfilename).collect(),
            }),
            Err(error) => Err(match status(&error) {
                Some(status) => self.refused(status),
                None => HubError::Unreachable {
                    id: self.id.clone(),
                    revision: self.revision.clone(),
                    endpoint: self.hub.endpoint.clone(),
                    reason: error.to_string(),
                    cache: self.hub.cache.path().clone(),
                },
            }),
        }
    }

    /// Downloads what is wanted of a model.
    pub(super) fn fetch_model(
        &self,
        listing: &Listing,
        want: &Want<'_>,
    ) -> Result<PathBuf, HubError> {
        let files = match select::choose(&self.id, want, &listing.files)? {
            Choice::Gguf(file) => {
                let mut paths = self.fetch_files(listing, &[file])?;
                // One name, one path.
                return Ok(paths.remove(0));
            }
            Choice::Directory(files) => files,
        };
        let mut directory = PathBuf::new();
        for file in &files {
            let path = self.fetch(&listing.commit, file)?;
            if file == INDEX {
                for shard in shards(&path)? {
                    self.fetch(&listing.commit, &shard)?;
                }
            }
            directory = path.parent().unwrap_or(Path::new("")).to_owned();
        }
        self.name_commit(&listing.commit)?;
        Ok(directory)
    }

    /// Downloads these files.
    pub(super) fn fetch_files(
        &self,
        listing: &Listing,
        names: &[String],
    ) -> Result<Vec<PathBuf>, HubError> {
        let paths: Result<Vec<_>, _> =
            names.iter().map(|name| self.fetch(&listing.commit, name)).collect();
        let paths = paths?;
        self.name_commit(&listing.commit)?;
        Ok(paths)
    }

    /// Makes the revision known in the cache: from here on it looks whole.
    fn name_commit(&self, commit: &str) -> Result<(), HubError> {
        let in_cache = self.in_cache(&self.revision);
        in_cache
            .create_ref(commit)
            .map_err(|source| HubError::Cache { path: self.hub.cache.path().clone(), source })
    }

    /// One file, from the cache or the hub.
    fn fetch(&self, commit: &str, name: &str) -> Result<PathBuf, HubError> {
        if !is_plain(name) || !is_plain(commit) {
            return Err(HubError::UnsafeName { id: self.id.clone(), file: name.to_owned() });
        }
        let here = self.in_cache(commit).pointer_path(commit).join(name);
        if here.is_file() {
            return Ok(here);
        }
        let mut pause = self.hub.pause;
        for _ in 1..ATTEMPTS {
            match self.attempt(commit, name) {
                Err(HubError::Interrupted { .. }) => std::thread::sleep(pause),
                done => return done,
            }
            pause *= 2;
        }
        self.attempt(commit, name)
    }

    /// Takes up the download of one file where it stopped, and checks what arrived.
    fn attempt(&self, commit: &str, name: &str) -> Result<PathBuf, HubError> {
        let failed = |error: ApiError| self.failed(name, error);
        let api = self.hub.api().map_err(failed)?;
        let repo: ApiRepo = api.repo(self.at(commit));
        let expected = api.metadata(&repo.url(name)).map_err(failed)?;
        let blob = self.in_cache(commit).blob_path(expected.etag());
        self.prepare_part(&blob, expected.size())?;
        let bar = Bar::new(&format!("{} {name}", self.id), expected.size());
        let path = repo.download_with_progress(name, bar).map_err(failed)?;
        self.check(name, &path, &blob, &expected)?;
        Ok(path)
    }

    /// Makes a part that cannot be continued one that can: the hub is never asked for zero bytes.
    fn prepare_part(&self, blob: &Path, size: usize) -> Result<(), HubError> {
        let part = blob.with_extension("part");
        let arrived = fs::metadata(&part).map_or(0, |metadata| metadata.len());
        let continued = if arrived > size as u64 {
            fs::remove_file(&part)
        } else if arrived == size as u64 && arrived > 0 {
            // Killed between the last byte and the rename.
            fs::OpenOptions::new()
                .write(true)
                .open(&part)
                .and_then(|file| file.set_len(arrived - 1))
        } else {
            Ok(())
        };
        continued.map_err(|source| HubError::Cache { path: part, source })
    }

    /// A file that is too short goes back to be continued; a wrong one is deleted.
    fn check(
        &self,
        name: &str,
        path: &Path,
        blob: &Path,
        expected: &Metadata,
    ) -> Result<(), HubError> {
        let cache = |source| HubError::Cache { path: path.to_owned(), source };
        let size = fs::metadata(path).map_err(cache)?.len();
        if size < expected.size() as u64 {
            fs::remove_file(path).map_err(cache)?;
            fs::rename(blob, blob.with_extension("part")).map_err(cache)?;
            return Err(HubError::Interrupted {
                id: self.id.clone(),
                file: name.to_owned(),
                reason: format!("{size} of {} bytes arrived", expected.size()),
            });
        }
        let damage = if size > expected.size() as u64 {
            Some(("size", size.to_string(), expected.size().to_string()))
        } else if is_sha256(expected.etag()) {
            // Large files are named by their hash; the hash of small ones is git's.
            let found = sha256(path).map_err(cache)?;
            let expected = expected.etag().to_lowercase();
            (found != expected).then_some(("sha256", found, expected))
        } else {
            None
        };
        let Some((property, found, expected)) = damage else {
            return Ok(());
        };
        fs::remove_file(path).map_err(cache)?;
        // Where links are not possible, the blob was moved and is gone already.
        match fs::remove_file(blob) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(cache(error)),
            _ => {}
        }
        Err(HubError::Damaged {
            id: self.id.clone(),
            file: name.to_owned(),
            property,
            found,
            expected,
        })
    }

    fn refused(&self, status: u16) -> HubError {
        match status {
            401 | 403 | 404 => HubError::NoSuchRepo {
                id: self.id.clone(),
                revision: self.revision.clone(),
                endpoint: self.hub.endpoint.clone(),
                status,
            },
            status => HubError::HubFailed {
                id: self.id.clone(),
                endpoint: self.hub.endpoint.clone(),
                status,
            },
        }
    }

    fn failed(&self, name: &str, error: ApiError) -> HubError {
        if let Some(status) = status(&error) {
            return self.refused(status);
        }
        match error {
            ApiError::IoError(source) if is_local(&source) => {
                HubError::Cache { path: self.hub.cache.path().clone(), source }
            }
            error => HubError::Interrupted {
                id: self.id.clone(),
                file: name.to_owned(),
                reason: match error {
                    ApiError::LockAcquisition(_) => "another process is downloading it".to_owned(),
                    error => error.to_string(),
                },
            },
        }
    }
}

/// Whether a directory holds a configuration and all of the weights.
fn is_model(directory: &Path) -> bool {
    let has = |name: &str| directory.join(name).is_file();
    let whole =
        || shards(&directory.join(INDEX)).is_ok_and(|shards| shards.iter().all(|shard| has(shard)));
    has(CONFIG) && (has(WEIGHTS) || (has(INDEX) && whole()))
}

/// The files that an index of shards names, each once.
fn shards(index: &Path) -> Result<Vec<String>, HubError> {
    let problem = |problem: String| HubError::Index { path: index.to_owned(), problem };
    let text = fs::read_to_string(index)
        .map_err(|source| HubError::Cache { path: index.to_owned(), source })?;
    let json: serde_json::Value =
        serde_json::from_str(&text).map_err(|error| problem(format!("not JSON: {error}")))?;
    let Some(map) = json["weight_map"].as_object() else {
        return Err(problem("has no object `weight_map`, so it names no shards".to_owned()));
    };
    let mut shards = Vec::new();
    for (tensor, shard) in map {
        match shard.as_str() {
            Some(shard) if is_plain(shard) => shards.push(shard.to_owned()),
            _ => {
                return Err(problem(format!(
                    "tensor {tensor} is in {shard}, which is no file name"
                )));
            }
        }
    }
    shards.sort();
    shards.dedup();
    if shards.is_empty() {
        return Err(problem("its `weight_map` is empty".to_owned()));
    }
    Ok(shards)
}

/// A relative path that stays below where it is joined, on every system.
fn is_plain(name: &str) -> bool {
    !name.is_empty()
        && !name.contains(['\\', ':', '\0'])
        && Path::new(name).components().all(|part| matches!(part, Component::Normal(_)))
}

/// The HTTP status behind an error. The client's own type is not re-exported; its text is.
fn status(error: &ApiError) -> Option<u16> {
    match error {
        ApiError::RequestError(error) => {
            error.to_string().strip_prefix("http status: ")?.parse().ok()
        }
        _ => None,
    }
}

/// Whether an error comes from the disk and not from the network.
fn is_local(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    matches!(
        error.kind(),
        Kind::StorageFull
            | Kind::QuotaExceeded
            | Kind::PermissionDenied
            | Kind::ReadOnlyFilesystem
            | Kind::NotADirectory
            | Kind::IsADirectory
            | Kind::AlreadyExists
            | Kind::NotFound
            | Kind::FileTooLarge
    )
}

fn is_sha256(etag: &str) -> bool {
    etag.len() == 64 && etag.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn sha256(path: &Path) -> io::Result<String> {
    let mut hash = Sha256::new();
    io::copy(&mut fs::File::open(path)?, &mut hash)?;
    Ok(format!("{:x}", hash.finalize()))
}

/// Progress on stderr: a bar, or one line where there is no terminal.
struct Bar(ProgressBar);

impl Bar {
    fn new(what: &str, size_bytes: usize) -> Self {
        let bar = ProgressBar::new(size_bytes as u64).with_message(what.to_owned());
        let style = ProgressStyle::with_template(
            "{msg} {bar:24} {bytes}/{total_bytes} {bytes_per_sec} {eta} left",
        );
        bar.set_style(style.expect("the template is a constant of this file"));
        if bar.is_hidden() && !cfg!(test) {
            eprintln!("downloading {what} ({})", indicatif::HumanBytes(size_bytes as u64));
        }
        Self(bar)
    }
}

impl Progress for Bar {
    fn init(&mut self, size: usize, _filename: &str) {
        self.0.set_length(size as u64);
        self.0.set_position(0);
    }

    fn update(&mut self, size: usize) {
        self.0.inc(size as u64);
    }

    fn finish(&mut self) {
        self.0.finish_and_clear();
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
