//! What can go wrong between a student and its teacher.

use std::path::PathBuf;

/// An error of a teacher, of the way to it, or of what is kept of it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TeacherError {
    /// A file cannot be read or written.
    #[error("{path}: cannot {action} it: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// Why not.
        source: std::io::Error,
    },
    /// A file of a cache is not as it was written.
    #[error(
        "{path}: {problem}; delete this file, and what it held is asked for again",
        path = path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was found.
        problem: String,
    },
    /// A cache was made otherwise than is asked for.
    #[error(
        "{path}: these signals were made with another {what}: {found}, and the recipe has {asked}; \
         give `teacher.cache.path` another directory, or leave it out",
        path = path.display()
    )]
    Differs {
        /// The cache or a shard.
        path: PathBuf,
        /// What differs.
        what: &'static str,
        /// How the signals were made.
        found: String,
        /// How they are wanted.
        asked: String,
    },
    /// Another process writes into a cache.
    #[error("{path}: another run is writing into this cache; wait for it", path = path.display())]
    Locked {
        /// The cache.
        path: PathBuf,
    },
    /// A text has not been asked about.
    #[error(
        "{path}: {missing} of {of} sequences are not in this cache; `distill teacher cache` asks \
         for them",
        path = path.display()
    )]
    Missing {
        /// The cache.
        path: PathBuf,
        /// Sequences without a signal.
        missing: usize,
        /// Sequences needed.
        of: usize,
    },
    /// There is no cache at a path.
    #[error("{path}: there are no signals in this directory", path = path.display())]
    NoCache {
        /// The directory.
        path: PathBuf,
    },
    /// A signal has more, or larger, tokens than the cache's format holds.
    #[error(
        "a position speaks of {entries} tokens up to number {token}: a cache holds 65,535 of a \
         position, up to number 16,777,215; ask for fewer"
    )]
    Unstorable {
        /// Tokens of the position that has most.
        entries: usize,
        /// The largest.
        token: u32,
    },
    /// A Parquet file cannot be written.
    #[error("{path}: cannot write it: {source}", path = path.display())]
    Parquet {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: parquet::errors::ParquetError,
    },
    /// An address is none.
    #[error("{address:?} is no address of a server; write `http://host:port` or `https://host`")]
    Address {
        /// What was written.
        address: String,
    },
    /// The environment lacks a key.
    #[error("the environment variable {variable} is not set; it is to hold the teacher's API key")]
    NoKey {
        /// Its name.
        variable: String,
    },
    /// A server does not answer, or not with an answer.
    #[error("{endpoint}: no answer after {attempts} attempts: {reason}")]
    Unreachable {
        /// The server.
        endpoint: String,
        /// How often it was tried.
        attempts: u32,
        /// What happened last.
        reason: String,
    },
    /// A server refuses what it is asked.
    #[error("{endpoint}: refused with status {status}: {message}\n{hint}")]
    Refused {
        /// The server.
        endpoint: String,
        /// The HTTP status.
        status: u16,
        /// What it says.
        message: String,
        /// The way out.
        hint: &'static str,
    },
    /// An answer cannot be what was asked for.
    #[error(
        "{endpoint}: its answer is about something else: {problem}\n`distill teacher probe` looks \
         closer; nothing of this answer was kept"
    )]
    Misread {
        /// The server.
        endpoint: String,
        /// What is wrong.
        problem: String,
    },
    /// A remote teacher cannot be believed.
    #[error(
        "the teacher's self-test failed, and nothing was asked:\n{failures}\n`distill teacher probe` \
         shows all that was looked at"
    )]
    Probe {
        /// What was found, a line each.
        failures: String,
    },
    /// The probe's text cannot be cut into tokens.
    #[error("the probe's text: {problem}")]
    Text {
        /// Why not.
        problem: String,
    },
    /// The budget ended before the texts did.
    #[error(
        "the teacher's budget is spent: {tokens} tokens for {texts} of {of} sequences that were \
         missing, which are kept in {path}; raise `teacher.remote.max_tokens` or `max_cost`, or train for \
         fewer steps",
        path = path.display()
    )]
    Budget {
        /// Where what has come is kept.
        path: PathBuf,
        /// Tokens that were sent, in all runs.
        tokens: u64,
        /// Sequences asked about now.
        texts: usize,
        /// Sequences that were missing.
        of: usize,
    },
    /// A server that others can reach, and that asks for no key.
    #[error(
        "{address} can be reached from elsewhere, and there is no API key: set `--api-key-env` to a \
         variable that holds one, or listen on 127.0.0.1"
    )]
    Open {
        /// Where it would listen.
        address: std::net::SocketAddr,
    },
    /// A server cannot listen.
    #[error("{address}: cannot listen there: {source}")]
    Listen {
        /// Where.
        address: std::net::SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// The edge runtime has failed.
    #[error("the teacher in the edge runtime: {0}")]
    Runtime(distill_edge::EdgeError),
    /// Asking was ended from outside.
    #[error("stopped; what has come is kept, and the same command goes on from there")]
    Stopped,
}

impl TeacherError {
    /// Whether what the user wrote is wrong.
    #[must_use]
    pub fn is_input(&self) -> bool {
        matches!(
            self,
            Self::Differs { .. }
                | Self::NoCache { .. }
                | Self::Address { .. }
                | Self::NoKey { .. }
                | Self::Open { .. }
        )
    }
}
