//! A shard: signals of some texts in one file, mapped into memory.
//!
//! ```text
//! "DSTLSIG\1" · length u32 · what the cache says about itself, JSON
//! blocks, one behind the other
//! index: key [16] · offset u64 · length u32, in the order of the blocks
//! footer: offset of the index u64 · texts u32 · SHA-256 of everything before it [32] · "DSTLSIG\1"
//! ```
//! All numbers are little-endian. A shard is written whole or not at all, and never changed.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use sha2::{Digest, Sha256};

use super::about::About;
use super::key::Key;
use crate::error::TeacherError;

const MAGIC: &[u8; 8] = b"DSTLSIG\x01";
const ENTRY: usize = 16 + 8 + 4;
const FOOTER: usize = 8 + 4 + 32 + 8;
/// The extension of a shard's file.
pub(super) const EXTENSION: &str = "signals";

/// Each text with the bytes of its block.
type Entries = Vec<(Key, std::ops::Range<usize>)>;

/// A shard that is open.
#[derive(Debug)]
pub(super) struct Shard {
    path: PathBuf,
    map: Mmap,
    about: About,
    /// Where each text's block lies, in order.
    entries: Entries,
}

impl Shard {
    /// The file of a shard of these texts.
    pub(super) fn name(keys: &[Key]) -> String {
        format!("{}.{EXTENSION}", Key::of_all(keys))
    }

    /// Writes a shard whole or not at all.
    pub(super) fn write(
        directory: &Path,
        about: &About,
        texts: &[(Key, &[u8])],
    ) -> Result<PathBuf, TeacherError> {
        let keys: Vec<Key> = texts.iter().map(|(key, _)| *key).collect();
        let path = directory.join(Self::name(&keys));
        let bytes = Self::bytes(about, texts);
        write_whole(&path, |out| out.write_all(&bytes))?;
        Ok(path)
    }

    fn bytes(about: &About, texts: &[(Key, &[u8])]) -> Vec<u8> {
        let about = serde_json::to_vec(about).expect("plain data");
        let mut bytes = MAGIC.to_vec();
        bytes.extend((about.len() as u32).to_le_bytes());
        bytes.extend(about);
        let mut index = Vec::with_capacity(texts.len() * ENTRY);
        for (key, block) in texts {
            index.extend(key.0);
            index.extend((bytes.len() as u64).to_le_bytes());
            index.extend((block.len() as u32).to_le_bytes());
            bytes.extend(*block);
        }
        let index_at = bytes.len() as u64;
        bytes.extend(index);
        bytes.extend(index_at.to_le_bytes());
        bytes.extend((texts.len() as u32).to_le_bytes());
        let hash = Sha256::digest(&bytes);
        bytes.extend(hash);
        bytes.extend(MAGIC);
        bytes
    }

    /// Maps a shard and reads its index. Blocks are looked at when they are asked for.
    pub(super) fn open(path: &Path) -> Result<Self, TeacherError> {
        let io = |source| TeacherError::Io { path: path.to_path_buf(), action: "read", source };
        let map = distill_gguf::map_file(&File::open(path).map_err(io)?).map_err(io)?;
        let damaged = |problem: &str| TeacherError::Damaged {
            path: path.to_path_buf(),
            problem: problem.to_owned(),
        };
        let parse = || -> Option<(About, Entries)> {
            let footer_at = map.len().checked_sub(FOOTER)?;
            let (body, footer) = map.split_at(footer_at);
            let rest = body.strip_prefix(MAGIC)?;
            let (length, rest) = rest.split_first_chunk::<4>()?;
            let about = rest.get(..u32::from_le_bytes(*length) as usize)?;
            let about = serde_json::from_slice(about).ok()?;
            let index_at = u64::from_le_bytes(*footer.first_chunk()?);
            let texts = u32::from_le_bytes(*footer[8..].first_chunk()?) as usize;
            let index = body.get(usize::try_from(index_at).ok()?..)?;
            if !footer.ends_with(MAGIC) || index.len() != texts.checked_mul(ENTRY)? {
                return None;
            }
            let entries = index.chunks_exact(ENTRY).map(|entry| {
                let offset = u64::from_le_bytes(*entry[16..].first_chunk()?);
                let length = u32::from_le_bytes(*entry[24..].first_chunk()?) as usize;
                let offset = usize::try_from(offset).ok()?;
                let range = offset..offset.checked_add(length)?;
                body.get(range.clone())?;
                Some((Key(*entry.first_chunk()?), range))
            });
            Some((about, entries.collect::<Option<_>>()?))
        };
        let (about, entries) = parse().ok_or_else(|| damaged("not a whole shard of signals"))?;
        Ok(Self { path: path.to_path_buf(), map, about, entries })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn about(&self) -> &About {
        &self.about
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = Key> + '_ {
        self.entries.iter().map(|(key, _)| *key)
    }

    pub(super) fn bytes_on_disk(&self) -> u64 {
        self.map.len() as u64
    }

    /// The block of a text, by its place in the shard.
    pub(super) fn block(&self, place: usize) -> &[u8] {
        &self.map[self.entries[place].1.clone()]
    }

    /// Holds the file against its hash.
    pub(super) fn verify(&self) -> Result<(), TeacherError> {
        let (body, footer) = self.map.split_at(self.map.len() - FOOTER);
        let (numbers, rest) = footer.split_at(12);
        let hash = Sha256::new_with_prefix(body).chain_update(numbers).finalize();
        if hash[..] != rest[..32] {
            return Err(TeacherError::Damaged {
                path: self.path.clone(),
                problem: "its bytes do not have the hash that it was written with".to_owned(),
            });
        }
        Ok(())
    }
}

/// Writes under a temporary name, flushes, renames.
pub(super) fn write_whole(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<File>) -> std::io::Result<()>,
) -> Result<(), TeacherError> {
    let partial = path.with_extension(format!("{}.tmp", std::process::id()));
    let written = (|| {
        let mut out = BufWriter::new(File::create(&partial)?);
        write(&mut out)?;
        out.into_inner()?.sync_all()?;
        std::fs::rename(&partial, path)?;
        // The name is in the directory, which has to reach the disk too.
        path.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
    })();
    written.map_err(|source| {
        // The first error matters more than one of tidying up.
        let _ = std::fs::remove_file(&partial);
        TeacherError::Io { path: path.to_path_buf(), action: "write", source }
    })
}
