//! Texts that a model has made up, as the tokens that it drew: a directory of shards.
//!
//! ```text
//! drawn-by.json         how the texts are drawn
//! texts-000000.jsonl    texts 0 … 63, one a line: {"index", "begin", "log_prob", "ids", "text"}
//! texts-000001.jsonl    texts 64 … 127
//! …
//! ```
//! Text n depends on its number and on how the directory's texts are drawn, which the directory's
//! name stands for; so a directory can be continued, and recipes that ask for more or less of the
//! same texts share one. A shard is written whole or not at all. Every text is kept, and filters
//! choose among them when they are read.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::{DataError, Place};
use crate::fingerprint::hex;

/// Texts of a shard.
pub const SHARD: u64 = 64;

/// Tokens of a run that is looked for again in the same text.
const RUN: usize = 4;

/// A text that a model has made up.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sample {
    /// Its number.
    pub index: u64,
    /// Tokens that it was begun with; the model drew those behind them.
    pub begin: usize,
    /// The mean natural logarithm of the probability that a token was drawn with.
    pub log_prob: f32,
    /// All its tokens.
    pub ids: Vec<u32>,
    /// The same as text, for people.
    pub text: String,
}

impl Sample {
    /// The tokens that were drawn.
    fn drawn(&self) -> &[u32] {
        &self.ids[self.begin.min(self.ids.len())..]
    }

    /// The share of runs of four drawn tokens that the text has had before; 0 of fewer than four.
    #[must_use]
    pub fn repetition(&self) -> f64 {
        let runs = self.drawn().windows(RUN);
        let count = runs.len();
        let distinct = runs.collect::<HashSet<_>>().len();
        if count == 0 { 0.0 } else { (count - distinct) as f64 / count as f64 }
    }
}

/// Which texts to train on.
#[derive(Clone, Debug, PartialEq)]
pub struct SampleFilters {
    /// The fewest drawn tokens.
    pub min_tokens: usize,
    /// The largest [`Sample::repetition`].
    pub max_repetition: f64,
    /// The least mean `log_prob`: below, the text is unlikely even for the model.
    pub min_log_prob: Option<f64>,
    /// The greatest mean `log_prob`: above, it is too predictable to teach anything.
    pub max_log_prob: Option<f64>,
}

impl SampleFilters {
    fn verdict(&self, sample: &Sample) -> Verdict {
        let log_prob = f64::from(sample.log_prob);
        if sample.drawn().len() < self.min_tokens {
            Verdict::Short
        } else if sample.repetition() > self.max_repetition {
            Verdict::Repetitive
        } else if self.min_log_prob.is_some_and(|least| log_prob < least)
            || self.max_log_prob.is_some_and(|most| log_prob > most)
        {
            Verdict::Likelihood
        } else {
            Verdict::Kept
        }
    }
}

/// What the filters say of a text.
enum Verdict {
    Kept,
    Short,
    Repetitive,
    Likelihood,
}

/// How many texts were looked at, and what became of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SampleCounts {
    /// Texts that are trained on.
    pub kept: u64,
    /// Their tokens.
    pub tokens: u64,
    /// Texts with too few tokens.
    pub short: u64,
    /// Texts that repeat themselves.
    pub repetitive: u64,
    /// Texts that are too unlikely, or too likely.
    pub likelihood: u64,
}

impl SampleCounts {
    /// Texts looked at.
    #[must_use]
    pub fn texts(&self) -> u64 {
        self.kept + self.short + self.repetitive + self.likelihood
    }
}

/// A directory of shards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SampleDirectory {
    path: PathBuf,
}

impl SampleDirectory {
    /// The directory, which need not be there yet.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// The directory below `home` of the texts that are drawn so: its name is a hash of that.
    #[must_use]
    pub fn of(home: &Path, drawn_by: &serde_json::Value) -> Self {
        Self::new(home.join(hex(&Sha256::digest(drawn_by.to_string()))))
    }

    /// Says in the directory how its texts are drawn.
    ///
    /// # Errors
    /// [`DataError::Io`].
    pub fn describe(&self, drawn_by: &serde_json::Value) -> Result<(), DataError> {
        let path = self.path.join("drawn-by.json");
        self.write_whole(&path, |out| writeln!(out, "{drawn_by:#}"))
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn shard(&self, shard: u64) -> PathBuf {
        self.path.join(format!("texts-{shard:06}.jsonl"))
    }

    /// Shards that are there, one behind the other from the first.
    #[must_use]
    pub fn shards(&self) -> u64 {
        (0..).find(|&shard| !self.shard(shard).is_file()).unwrap_or(0)
    }

    /// Writes a shard whole or not at all.
    ///
    /// # Errors
    /// [`DataError::Io`].
    pub fn write(&self, shard: u64, samples: &[Sample]) -> Result<(), DataError> {
        self.write_whole(&self.shard(shard), |out| {
            samples.iter().try_for_each(|sample| {
                serde_json::to_writer(&mut *out, sample)?;
                out.write_all(b"\n")
            })
        })
    }

    fn write_whole(
        &self,
        path: &Path,
        write: impl FnOnce(&mut BufWriter<File>) -> std::io::Result<()>,
    ) -> Result<(), DataError> {
        let partial = path.with_extension(format!("{}.tmp", std::process::id()));
        let written = std::fs::create_dir_all(&self.path).and_then(|()| {
            let mut out = BufWriter::new(File::create(&partial)?);
            write(&mut out)?;
            out.into_inner()?.sync_all()?;
            std::fs::rename(&partial, path)
        });
        written.map_err(|source| {
            // The first error matters more than one of tidying up.
            let _ = std::fs::remove_file(&partial);
            DataError::Io { path: path.to_path_buf(), action: "write", source }
        })
    }

    /// The texts of a shard.
    ///
    /// # Errors
    /// [`DataError::Io`], [`DataError::NotFound`]; [`DataError::Sample`] if a line is none.
    pub fn read(&self, shard: u64) -> Result<Vec<Sample>, DataError> {
        let path = self.shard(shard);
        let mut samples = Vec::new();
        for (line, index) in
            BufReader::new(crate::source::open_file(&path)?).lines().zip(shard * SHARD..)
        {
            let line = line.map_err(|source| DataError::Io {
                path: path.clone(),
                action: "read",
                source,
            })?;
            let refuse = |reason: String| DataError::Sample {
                path: path.clone(),
                place: Place::Line(index - shard * SHARD + 1),
                reason,
            };
            let sample: Sample =
                serde_json::from_str(&line).map_err(|error| refuse(error.to_string()))?;
            if sample.index != index || sample.begin > sample.ids.len() {
                return Err(refuse(format!("it is text {}, expected {index}", sample.index)));
            }
            samples.push(sample);
        }
        if samples.len() as u64 != SHARD {
            return Err(DataError::Sample {
                path,
                place: Place::Line(samples.len() as u64),
                reason: format!("it is the last, expected {SHARD} lines"),
            });
        }
        Ok(samples)
    }

    /// Reads texts from the first on until those that pass the filters have so many tokens, or
    /// there are no more shards; `keep` gets their tokens.
    ///
    /// # Errors
    /// As [`SampleDirectory::read`].
    pub fn choose(
        &self,
        filters: &SampleFilters,
        tokens: u64,
        mut keep: impl FnMut(Vec<u32>),
    ) -> Result<SampleCounts, DataError> {
        let mut counts = SampleCounts::default();
        for shard in 0..self.shards() {
            for sample in self.read(shard)? {
                if counts.tokens >= tokens {
                    return Ok(counts);
                }
                counts.add(filters, sample, &mut keep);
            }
        }
        Ok(counts)
    }
}

impl SampleCounts {
    /// Looks at one more text; `keep` gets the tokens of one that passes.
    pub fn add(&mut self, filters: &SampleFilters, sample: Sample, mut keep: impl FnMut(Vec<u32>)) {
        match filters.verdict(&sample) {
            Verdict::Kept => {
                self.kept += 1;
                self.tokens += sample.ids.len() as u64;
                keep(sample.ids);
            }
            Verdict::Short => self.short += 1,
            Verdict::Repetitive => self.repetitive += 1,
            Verdict::Likelihood => self.likelihood += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(index: u64, ids: &[u32]) -> Sample {
        Sample { index, begin: 1, log_prob: -2.0, ids: ids.to_vec(), text: "é\n\"".to_owned() }
    }

    const FILTERS: SampleFilters = SampleFilters {
        min_tokens: 3,
        max_repetition: 0.5,
        min_log_prob: None,
        max_log_prob: None,
    };

    fn counts(filters: &SampleFilters, sample: Sample) -> SampleCounts {
        let mut counts = SampleCounts::default();
        counts.add(filters, sample, |_| {});
        counts
    }

    #[test]
    fn repetition_is_the_share_of_runs_of_four_that_came_before() {
        // Drawn: 1 2 3 4 1 2 3 4 1: runs 1234 2341 3412 4123 1234 2341, of which two came before.
        assert_eq!(sample(0, &[9, 1, 2, 3, 4, 1, 2, 3, 4, 1]).repetition(), 2.0 / 6.0);
        assert_eq!(sample(0, &[9, 1, 2, 3]).repetition(), 0.0);
        assert_eq!(sample(0, &[9, 5, 5, 5, 5, 5, 5, 5]).repetition(), 0.75);
    }

    #[test]
    fn each_filter_drops_what_it_is_for() {
        let good = sample(0, &[9, 1, 2, 3, 4]);
        let kept = SampleCounts { kept: 1, tokens: 5, ..SampleCounts::default() };
        assert_eq!(counts(&FILTERS, good.clone()), kept);
        assert_eq!(counts(&FILTERS, sample(0, &[9, 1, 2])).short, 1);
        assert_eq!(counts(&FILTERS, sample(0, &[9, 5, 5, 5, 5, 5, 5, 5])).repetitive, 1);
        let unlikely = SampleFilters { min_log_prob: Some(-1.9), ..FILTERS };
        let likely = SampleFilters { max_log_prob: Some(-2.1), ..FILTERS };
        assert_eq!(counts(&unlikely, good.clone()).likelihood, 1);
        assert_eq!(counts(&likely, good).likelihood, 1);
    }

    #[test]
    fn texts_are_chosen_in_order_until_there_are_enough_tokens() {
        let home = tempfile::tempdir().unwrap();
        let directory = SampleDirectory::new(home.path().join("texts"));
        assert_eq!(directory.shards(), 0);
        let shard = |n: u64| -> Vec<Sample> {
            let texts = n * SHARD..(n + 1) * SHARD;
            texts.map(|i| sample(i, if i % 2 == 0 { &[7, 1, 2, 3] } else { &[7, 1] })).collect()
        };
        directory.write(0, &shard(0)).unwrap();
        directory.write(2, &shard(2)).unwrap();
        assert_eq!(directory.shards(), 1, "the second is missing");
        directory.write(1, &shard(1)).unwrap();
        assert_eq!(directory.shards(), 3);
        assert_eq!(directory.read(1).unwrap(), shard(1));
        let mut kept = Vec::new();
        let counts = directory.choose(&FILTERS, 240, |ids| kept.push(ids)).unwrap();
        // 60 texts of 4 tokens, each but the first behind a short one.
        let expected = SampleCounts { kept: 60, tokens: 240, short: 59, ..SampleCounts::default() };
        assert_eq!((counts, kept.len()), (expected, 60));
        let all = directory.choose(&FILTERS, u64::MAX, |_| {}).unwrap();
        assert_eq!((all.kept, all.texts()), (96, 192));
    }

    #[test]
    fn a_damaged_shard_is_named_with_its_line() {
        let home = tempfile::tempdir().unwrap();
        let directory = SampleDirectory::new(home.path().to_owned());
        let whole: Vec<Sample> = (0..SHARD).map(|i| sample(i, &[1, 2])).collect();
        directory.write(0, &whole).unwrap();
        let path = home.path().join("texts-000000.jsonl");
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        for (damaged, expected) in [
            (
                lines[..10].join("\n"),
                "texts-000000.jsonl:10: not as it was written: it is the last",
            ),
            (text.replacen("[1,2]", "[1,-2]", 1), "texts-000000.jsonl:1: not as it was written"),
            (lines[1..].join("\n"), "texts-000000.jsonl:1: not as it was written: it is text 1"),
            (text.replacen("\"begin\":1", "\"begin\":7", 1), "texts-000000.jsonl:1"),
        ] {
            std::fs::write(&path, damaged).unwrap();
            let error = directory.read(0).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
