//! Signals that have come but fill no shard yet: appended one by one, so that a killed run has them.
//!
//! ```text
//! "DSTLJNL\1" · the cache's name, 32 hexadecimal digits
//! each: length u32 · key [16] · first 8 bytes of the SHA-256 of key and block · block
//! ```
//! What a kill left half written ends the journal, and is cut off when it is opened again.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use super::key::Key;
use crate::error::TeacherError;

const MAGIC: &[u8; 8] = b"DSTLJNL\x01";
const HEAD: usize = 4 + 16 + 8;
/// What a machine that loses its power may forget; a killed process forgets nothing.
const SYNC_EVERY: Duration = Duration::from_secs(1);

/// The journal of a cache, open for writing.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    file: File,
    synced: Instant,
}

impl Journal {
    /// Opens or begins a journal, and hands over what it holds.
    pub(super) fn open(
        directory: &Path,
        name: &str,
    ) -> Result<(Self, BTreeMap<Key, Vec<u8>>), TeacherError> {
        let path = directory.join("journal");
        let io = |action| {
            let path = path.clone();
            move |source| TeacherError::Io { path, action, source }
        };
        let head = [MAGIC.as_slice(), name.as_bytes()].concat();
        let options = OpenOptions::new().read(true).append(true).create(true).clone();
        let mut file = options.open(&path).map_err(io("open"))?;
        let bytes = std::fs::read(&path).map_err(io("read"))?;
        // A kill may have left a part of the head; anything else was not written here.
        let (held, end) = if bytes.starts_with(&head) {
            records(&bytes, head.len())
        } else if head.starts_with(&bytes) {
            file.set_len(0).map_err(io("write"))?;
            file.write_all(&head).map_err(io("write"))?;
            (BTreeMap::new(), head.len())
        } else {
            let problem = "not the journal of this cache".to_owned();
            return Err(TeacherError::Damaged { path, problem });
        };
        if end < bytes.len() {
            file.set_len(end as u64).map_err(io("write"))?;
        }
        Ok((Self { path: path.clone(), file, synced: Instant::now() }, held))
    }

    /// Adds a text's block.
    pub(super) fn append(&mut self, key: Key, block: &[u8]) -> Result<(), TeacherError> {
        let path = &self.path;
        let io = |source| TeacherError::Io { path: path.clone(), action: "write", source };
        // One write, so that a kill leaves all of it or a torn end.
        self.file.write_all(&record(key, block)).map_err(io)?;
        if self.synced.elapsed() > SYNC_EVERY {
            self.file.sync_data().map_err(io)?;
            self.synced = Instant::now();
        }
        Ok(())
    }

    /// Forgets all but what is given.
    pub(super) fn keep(
        self,
        name: &str,
        held: &BTreeMap<Key, Vec<u8>>,
    ) -> Result<Self, TeacherError> {
        let head = [MAGIC.as_slice(), name.as_bytes()].concat();
        super::shard::write_whole(&self.path, |out| {
            out.write_all(&head)?;
            held.iter().try_for_each(|(key, block)| out.write_all(&record(*key, block)))
        })?;
        let file = OpenOptions::new().append(true).open(&self.path);
        let io = |source| TeacherError::Io { path: self.path.clone(), action: "open", source };
        Ok(Self { file: file.map_err(io)?, path: self.path, synced: Instant::now() })
    }

    /// Ends a journal that holds nothing that is needed.
    pub(super) fn remove(self) -> Result<(), TeacherError> {
        std::fs::remove_file(&self.path).map_err(|source| TeacherError::Io {
            path: self.path,
            action: "remove",
            source,
        })
    }
}

fn record(key: Key, block: &[u8]) -> Vec<u8> {
    let mut bytes = (block.len() as u32).to_le_bytes().to_vec();
    bytes.extend(key.0);
    bytes.extend(&hash(key, block)[..8]);
    bytes.extend(block);
    bytes
}

fn hash(key: Key, block: &[u8]) -> [u8; 32] {
    Sha256::new_with_prefix(key.0).chain_update(block).finalize().into()
}

/// The whole records behind `start`, and where they end.
fn records(bytes: &[u8], start: usize) -> (BTreeMap<Key, Vec<u8>>, usize) {
    let (mut held, mut end) = (BTreeMap::new(), start);
    while let Some((head, rest)) = bytes[end..].split_first_chunk::<HEAD>() {
        let length = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
        let mut key = Key([0; 16]);
        key.0.copy_from_slice(&head[4..20]);
        let Some(block) = rest.get(..length).filter(|block| hash(key, block)[..8] == head[20..])
        else {
            break;
        };
        held.insert(key, block.to_vec());
        end += HEAD + length;
    }
    (held, end)
}
