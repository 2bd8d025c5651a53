//! A session on disk: what was computed for a prompt, to go on from later.
//!
//! ```text
//! 8 bytes   "DISTKV01"
//! u64       hash of the model file
//! u32       bytes of a cached element: 2 (binary16), 4 (binary32) or 1 (Q8_0)
//! u32       tokens, n
//! n × u32   their ids
//! for each 256 tokens, of which m are there, for each layer, for each kv head:
//!   keys    [ceil(m / 16), head_dim, 16 positions]
//!   values  [m, head_dim]
//! ```
//! In Q8_0, keys and values are whole records of 16 positions, codes and scales (see `cache.rs`).
//! All little-endian. Elements are stored as the cache has them, so a restored session goes on with
//! the same bits.

#![allow(unsafe_code)]

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::Path;

use crate::{EdgeError, KvType, Session};

const MAGIC: [u8; 8] = *b"DISTKV01";

impl Session {
    /// Writes the tokens of the session and their cache, whole or not at all.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), EdgeError> {
        let failed = |source| EdgeError::StateIo { file: path.to_owned(), action: "write", source };
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}.tmp", std::process::id()));
        let temporary = path.with_file_name(name);
        let written = self.write_state(&temporary).and_then(|()| std::fs::rename(&temporary, path));
        if written.is_err() {
            // Nothing can be done about a failure here, and the first error matters more.
            let _ = std::fs::remove_file(&temporary);
        }
        written.map_err(failed)
    }

    fn write_state(&self, path: &Path) -> io::Result<()> {
        let mut out = BufWriter::new(File::create(path)?);
        self.save_to(&mut out)?;
        out.into_inner()?.sync_all()
    }

    /// Writes what [`Session::save`] does, anywhere.
    ///
    /// # Errors
    /// If `out` fails.
    pub fn save_to(&self, mut out: impl Write) -> io::Result<()> {
        out.write_all(&MAGIC)?;
        out.write_all(&self.model().hash().to_le_bytes())?;
        out.write_all(&self.cache().kv().tag().to_le_bytes())?;
        out.write_all(&(self.tokens().len() as u32).to_le_bytes())?;
        for token in self.tokens() {
            out.write_all(&token.to_le_bytes())?;
        }
        // SAFETY: threads compute only while the session is borrowed mutably.
        unsafe { self.cache().write_to(self.tokens().len(), &mut out) }
    }

    /// Replaces the session's tokens and cache by those that [`Session::save`] wrote. On an error
    /// the session is empty.
    ///
    /// # Errors
    /// If the file cannot be read, is damaged, is of another model or KV type, or holds more tokens
    /// than the session's context.
    pub fn restore(&mut self, path: &Path) -> Result<(), EdgeError> {
        self.reset();
        let failed = |source| EdgeError::StateIo { file: path.to_owned(), action: "read", source };
        let file = File::open(path).map_err(failed)?;
        let bytes = file.metadata().map_err(failed)?.len();
        self.read_state(BufReader::new(file), bytes, path)
    }

    /// [`Session::restore`] from memory; `name` stands for the file in errors.
    ///
    /// # Errors
    /// As [`Session::restore`].
    pub fn restore_from(&mut self, bytes: &[u8], name: &Path) -> Result<(), EdgeError> {
        self.reset();
        self.read_state(bytes, bytes.len() as u64, name)
    }

    fn read_state(&mut self, from: impl Read, bytes: u64, path: &Path) -> Result<(), EdgeError> {
        let failed = |source| EdgeError::StateIo { file: path.to_owned(), action: "read", source };
        let refuse = |what: &'static str, found: String, expected: String| EdgeError::State {
            file: path.to_owned(),
            what,
            found,
            expected,
        };
        let mut reader = State { path, from };
        let magic = reader.array::<8>()?;
        if magic != MAGIC {
            let found = format!("{:?}", String::from_utf8_lossy(&magic));
            return Err(refuse("its beginning", found, "\"DISTKV01\"".into()));
        }
        let (hash, model) = (u64::from_le_bytes(reader.array()?), self.model().hash());
        if hash != model {
            let expected = format!("{model:016x}, that of {}", self.model().path().display());
            return Err(refuse("the model's hash", format!("{hash:016x}"), expected));
        }
        let (tag, kv) = (u32::from_le_bytes(reader.array()?), self.cache().kv());
        if tag != kv.tag() {
            let found = KvType::of_tag(tag).map_or_else(|| tag.to_string(), |kv| kv.to_string());
            return Err(refuse("the type of keys and values", found, kv.to_string()));
        }
        let count = u32::from_le_bytes(reader.array()?) as usize;
        if count > self.context() {
            let expected = format!("at most {}, the session's context", self.context());
            return Err(refuse("the number of tokens", count.to_string(), expected));
        }
        let expected = 24 + 4 * count as u64 + self.cache().state_bytes(count);
        if bytes != expected {
            return Err(refuse("the size in bytes", bytes.to_string(), expected.to_string()));
        }
        let mut tokens = Vec::with_capacity(count);
        for _ in 0..count {
            tokens.push(u32::from_le_bytes(reader.array()?));
        }
        let vocab = self.model().config().vocab_size;
        if let Some(id) = tokens.iter().find(|&&id| id as usize >= vocab) {
            return Err(refuse("a token id", id.to_string(), format!("an id below {vocab}")));
        }
        // SAFETY: the session is borrowed mutably, and no job runs.
        unsafe { self.cache().read_from(count, &mut reader.from).map_err(failed)? };
        self.set_tokens(&tokens);
        Ok(())
    }
}

/// A state being read.
struct State<'p, R> {
    path: &'p Path,
    from: R,
}

impl<R: Read> State<'_, R> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], EdgeError> {
        let mut bytes = [0; N];
        self.from.read_exact(&mut bytes).map_err(|source| EdgeError::StateIo {
            file: self.path.to_owned(),
            action: "read",
            source,
        })?;
        Ok(bytes)
    }
}
