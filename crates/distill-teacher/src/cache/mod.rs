//! Signals on disk: asked for once, found again by the text.
//!
//! ```text
//! about.json             what all of it was made with, for people
//! 0f3a….signals          shards, each with the same in its head
//! journal                while a run writes: what fills no shard yet
//! lock                   held by the run that writes
//! ```
//! A run names the texts it needs in the order in which it needs them. Every [`SHARD`] of them become
//! a shard, however often the run was killed in between and in whatever order answers came: the
//! same run ends in the same bytes.

mod about;
mod block;
mod journal;
mod key;
mod shard;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{File, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};

pub use about::About;
pub use block::{decode as decode_signal, encode as encode_signal};
pub use key::{Key, Query, queries};

use crate::error::TeacherError;
use crate::signal::Signal;
use journal::Journal;
use shard::{EXTENSION, Shard, write_whole};

/// Texts of a shard.
pub const SHARD: usize = 256;

/// A cache, open for reading.
#[derive(Debug)]
pub struct Cache {
    path: PathBuf,
    about: About,
    shards: Vec<Shard>,
    /// Where a text's signal lies: the shard, and the place in it.
    places: HashMap<Key, (usize, usize)>,
}

/// How much a cache holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheStatistics {
    /// Shards.
    pub shards: usize,
    /// Texts.
    pub texts: usize,
    /// Positions that a signal says something of.
    pub positions: u64,
    /// Tokens that are spoken of, over all positions.
    pub entries: u64,
    /// Bytes on disk.
    pub bytes: u64,
}

impl Cache {
    /// Opens a cache that is made as `about` says; a directory that is not there is an empty one.
    ///
    /// # Errors
    /// [`TeacherError::Differs`], [`TeacherError::Damaged`], [`TeacherError::Io`].
    pub fn open(path: &Path, about: &About) -> Result<Self, TeacherError> {
        let mut cache = Self {
            path: path.to_path_buf(),
            about: about.clone(),
            shards: Vec::new(),
            places: HashMap::new(),
        };
        for file in shard_files(path)? {
            let shard = Shard::open(&file)?;
            about.accept(shard.about(), &file)?;
            cache.add(shard);
        }
        Ok(cache)
    }

    /// Opens a cache as it is, by what its first shard says about itself.
    ///
    /// # Errors
    /// As [`Cache::open`]; [`TeacherError::Damaged`] of a directory without shards.
    pub fn open_as_it_is(path: &Path) -> Result<Self, TeacherError> {
        let files = shard_files(path)?;
        let Some(first) = files.first() else {
            return Err(TeacherError::NoCache { path: path.to_path_buf() });
        };
        Self::open(path, Shard::open(first)?.about())
    }

    fn add(&mut self, shard: Shard) {
        let number = self.shards.len();
        for (place, key) in shard.keys().enumerate() {
            self.places.entry(key).or_insert((number, place));
        }
        self.shards.push(shard);
    }

    /// Where it lies.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it was made with.
    #[must_use]
    pub fn about(&self) -> &About {
        &self.about
    }

    /// Whether a text's signal is there.
    #[must_use]
    pub fn contains(&self, key: Key) -> bool {
        self.places.contains_key(&key)
    }

    /// The texts, shard by shard.
    pub fn keys(&self) -> impl Iterator<Item = Key> + '_ {
        self.shards.iter().flat_map(Shard::keys)
    }

    /// A text's signal, if it is there.
    ///
    /// # Errors
    /// [`TeacherError::Damaged`].
    pub fn get(&self, key: Key) -> Result<Option<Signal>, TeacherError> {
        let Some(&(shard, place)) = self.places.get(&key) else { return Ok(None) };
        let shard = &self.shards[shard];
        let signal = block::decode(shard.block(place), self.about.signal.choice.draws()).map_err(
            |problem| TeacherError::Damaged {
                path: shard.path().to_path_buf(),
                problem: format!("text {key}: {problem}"),
            },
        )?;
        Ok(Some(signal))
    }

    /// Refuses a cache that lacks some of these texts.
    ///
    /// # Errors
    /// [`TeacherError::Missing`].
    pub fn require(&self, keys: &[Key]) -> Result<(), TeacherError> {
        let distinct: HashSet<&Key> = keys.iter().collect();
        let missing = distinct.iter().filter(|key| !self.contains(***key)).count();
        match missing {
            0 => Ok(()),
            missing => {
                Err(TeacherError::Missing { path: self.path.clone(), missing, of: distinct.len() })
            }
        }
    }

    /// Reads everything and holds it against its hashes.
    ///
    /// # Errors
    /// [`TeacherError::Damaged`] of the first shard that is not as it was written.
    pub fn verify(&self) -> Result<CacheStatistics, TeacherError> {
        self.shards.iter().try_for_each(Shard::verify)?;
        self.statistics()
    }

    /// Counts what it holds.
    ///
    /// # Errors
    /// [`TeacherError::Damaged`] of a signal that cannot be read.
    pub fn statistics(&self) -> Result<CacheStatistics, TeacherError> {
        let bytes = self.shards.iter().map(Shard::bytes_on_disk).sum();
        let shards = self.shards.len();
        let mut all = CacheStatistics { shards, bytes, ..CacheStatistics::default() };
        for key in self.keys() {
            if let Some(signal) = self.get(key)? {
                all.texts += 1;
                all.entries += signal.entries() as u64;
                let said = (0..signal.positions()).filter(|&p| !signal.at(p).0.is_empty());
                all.positions += said.count() as u64;
            }
        }
        Ok(all)
    }

    /// Takes over the shards of another cache that was made alike. Texts that both have stay as they
    /// are here. Returns how many texts came.
    ///
    /// # Errors
    /// [`TeacherError::Differs`]; [`TeacherError::Locked`]; as [`Cache::verify`] of the other.
    pub fn merge(&mut self, other: &Self) -> Result<usize, TeacherError> {
        self.about.accept(&other.about, &other.path)?;
        let _lock = lock(&self.path)?;
        let mut came = 0;
        for shard in &other.shards {
            shard.verify()?;
            let new: Vec<(Key, &[u8])> = shard
                .keys()
                .enumerate()
                .filter(|(_, key)| !self.contains(*key))
                .map(|(place, key)| (key, shard.block(place)))
                .collect();
            if !new.is_empty() {
                came += new.len();
                let path = Shard::write(&self.path, &self.about, &new)?;
                self.add(Shard::open(&path)?);
            }
        }
        Ok(came)
    }
}

/// The shards of a directory, in the order of their names.
fn shard_files(path: &Path) -> Result<Vec<PathBuf>, TeacherError> {
    let io = |source| TeacherError::Io { path: path.to_path_buf(), action: "read", source };
    let entries = match std::fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(io(error)),
    };
    let mut files = Vec::new();
    for entry in entries {
        let file = entry.map_err(io)?.path();
        if file.extension().is_some_and(|extension| extension == EXTENSION) {
            files.push(file);
        }
    }
    files.sort();
    Ok(files)
}

/// Removes what a killed writer has left half written. The caller holds the lock.
fn tidy(path: &Path) -> Result<(), TeacherError> {
    let io = |source| TeacherError::Io { path: path.to_path_buf(), action: "tidy", source };
    for entry in std::fs::read_dir(path).map_err(io)? {
        let file = entry.map_err(io)?.path();
        if file.extension().is_some_and(|extension| extension == "tmp") {
            std::fs::remove_file(&file).map_err(io)?;
        }
    }
    Ok(())
}

fn lock(path: &Path) -> Result<File, TeacherError> {
    let io = |source| TeacherError::Io { path: path.to_path_buf(), action: "write into", source };
    std::fs::create_dir_all(path).map_err(io)?;
    let file = File::create(path.join("lock")).map_err(io)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(TeacherError::Locked { path: path.to_path_buf() }),
        Err(TryLockError::Error(error)) => Err(io(error)),
    }
}

/// A cache that a run fills.
#[derive(Debug)]
pub struct Writer {
    cache: Cache,
    /// Held until the writer ends.
    _lock: File,
    journal: Journal,
    /// What fills no shard yet.
    held: BTreeMap<Key, Vec<u8>>,
    /// The texts of each shard to come that are not on disk yet.
    shards: Vec<Vec<Key>>,
    /// Which of them a text belongs to.
    shard_of: HashMap<Key, usize>,
    /// How many texts each of them waits for.
    waits: Vec<usize>,
}

impl Writer {
    /// Opens a cache to add what it lacks of `keys`.
    ///
    /// # Errors
    /// As [`Cache::open`], and [`TeacherError::Locked`].
    pub fn open(path: &Path, about: &About, keys: &[Key]) -> Result<Self, TeacherError> {
        let lock = lock(path)?;
        tidy(path)?;
        let cache = Cache::open(path, about)?;
        write_whole(&path.join("about.json"), |out| {
            serde_json::to_writer_pretty(&mut *out, about)?;
            out.write_all(b"\n")
        })?;
        let (journal, mut held) = Journal::open(path, &about.name())?;
        held.retain(|key, _| !cache.contains(*key));
        let mut seen = HashSet::new();
        let distinct: Vec<Key> = keys.iter().copied().filter(|key| seen.insert(*key)).collect();
        let lacks = |keys: &[Key]| -> Vec<Key> {
            keys.iter().copied().filter(|key| !cache.contains(*key)).collect()
        };
        let shards: Vec<Vec<Key>> = distinct.chunks(SHARD).map(lacks).collect();
        let numbered = shards.iter().enumerate();
        let shard_of = numbered.flat_map(|(n, keys)| keys.iter().map(move |key| (*key, n)));
        let waits =
            shards.iter().map(|keys| keys.iter().filter(|key| !held.contains_key(key)).count());
        let mut writer = Self {
            _lock: lock,
            journal,
            shard_of: shard_of.collect(),
            waits: waits.collect(),
            cache,
            held,
            shards,
        };
        // A kill may have come between the last text of a shard and the shard.
        for number in 0..writer.shards.len() {
            writer.write_if_whole(number)?;
        }
        Ok(writer)
    }

    /// Whether a text has still to be asked about.
    #[must_use]
    pub fn lacks(&self, key: Key) -> bool {
        self.shard_of.contains_key(&key) && !self.held.contains_key(&key)
    }

    /// How many texts have still to be asked about.
    #[must_use]
    pub fn missing(&self) -> usize {
        self.waits.iter().sum()
    }

    /// Keeps a text's signal. When this returns, a kill of the process does not lose it.
    ///
    /// # Errors
    /// [`TeacherError::Io`]; [`TeacherError::Unstorable`] of more or larger tokens than the format holds.
    pub fn put(&mut self, key: Key, signal: &Signal) -> Result<(), TeacherError> {
        if !self.lacks(key) {
            return Ok(());
        }
        let most = (0..signal.positions()).map(|p| signal.at(p).0.len()).max().unwrap_or(0);
        let largest = signal.largest_token().unwrap_or(0);
        if most > block::MOST_ENTRIES || largest > block::LARGEST_TOKEN {
            return Err(TeacherError::Unstorable { entries: most, token: largest });
        }
        self.put_block(key, block::encode(signal, self.cache.about.signal.choice.draws()))
    }

    /// [`Writer::put`] of a signal that is bytes already.
    pub(crate) fn put_block(&mut self, key: Key, block: Vec<u8>) -> Result<(), TeacherError> {
        if !self.lacks(key) {
            return Ok(());
        }
        self.journal.append(key, &block)?;
        self.held.insert(key, block);
        let number = self.shard_of[&key];
        self.waits[number] -= 1;
        self.write_if_whole(number)
    }

    fn write_if_whole(&mut self, number: usize) -> Result<(), TeacherError> {
        if self.waits[number] > 0 || self.shards[number].is_empty() {
            return Ok(());
        }
        let keys = std::mem::take(&mut self.shards[number]);
        let blocks: Vec<(Key, &[u8])> =
            keys.iter().map(|key| (*key, self.held[key].as_slice())).collect();
        let path = Shard::write(&self.cache.path, &self.cache.about, &blocks)?;
        self.cache.add(Shard::open(&path)?);
        for key in &keys {
            self.held.remove(key);
            self.shard_of.remove(key);
        }
        Ok(())
    }

    /// Ends writing. What fills no shard stays in the journal for the next run.
    ///
    /// # Errors
    /// [`TeacherError::Io`].
    pub fn finish(self) -> Result<Cache, TeacherError> {
        match self.held.is_empty() {
            true => self.journal.remove()?,
            false => {
                self.journal.keep(&self.cache.about.name(), &self.held)?;
            }
        }
        Ok(self.cache)
    }
}

#[cfg(test)]
mod tests;
