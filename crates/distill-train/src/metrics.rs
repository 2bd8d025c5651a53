//! Metrics: one JSON object a line, mirrored to TensorBoard.
//!
//! `metrics.jsonl` holds what is the same in every run of a recipe, to the bit; wall-clock
//! figures go to `timings.jsonl`. A checkpoint remembers how long `metrics.jsonl` was, and a
//! resumed run cuts both there: what follows is written again. The event files of TensorBoard
//! are made from the lines, so they too show each step once.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::TrainError;
use crate::tensorboard::{self, EventFile};

/// The file of deterministic metrics.
pub const METRICS: &str = "metrics.jsonl";
/// The file of wall-clock figures.
pub const TIMINGS: &str = "timings.jsonl";
/// The directory of TensorBoard's event files.
pub const TENSORBOARD: &str = "tensorboard";

/// Scalars of one moment: `{"step": …, "split": …, …}`.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// Optimiser steps done.
    pub step: usize,
    /// What was measured: `train`, `eval`, `full_precision`, `post_training_quantized`, `start`.
    pub split: String,
    /// Named figures, in order.
    pub values: Vec<(String, f64)>,
}

impl Record {
    /// A record without figures.
    pub fn new(step: usize, split: &str) -> Self {
        Self { step, split: split.to_string(), values: Vec::new() }
    }

    /// Adds a figure.
    #[must_use]
    pub fn with(mut self, name: &str, value: f64) -> Self {
        self.values.push((name.to_string(), value));
        self
    }

    /// A figure by name.
    pub fn get(&self, name: &str) -> Option<f64> {
        self.values.iter().find(|(n, _)| n == name).map(|(_, v)| *v)
    }

    /// The record as a line of JSON, its end included.
    pub fn to_line(&self) -> String {
        let mut object = Map::new();
        object.insert("step".into(), self.step.into());
        object.insert("split".into(), self.split.clone().into());
        for (name, value) in &self.values {
            object.insert(name.clone(), (*value).into());
        }
        let mut line = Value::Object(object).to_string();
        line.push('\n');
        line
    }

    fn from_line(line: &str) -> Option<Self> {
        let object: Map<String, Value> = serde_json::from_str(line).ok()?;
        let values = object
            .iter()
            .filter(|(name, _)| !matches!(name.as_str(), "step" | "split"))
            .filter_map(|(name, value)| Some((name.clone(), value.as_f64()?)))
            .collect();
        Some(Self {
            step: object.get("step")?.as_u64()? as usize,
            split: object.get("split")?.as_str()?.to_string(),
            values,
        })
    }
}

/// Reads the records of a run directory.
///
/// # Errors
/// [`TrainError::Io`]; [`TrainError::Checkpoint`] naming the line.
pub fn read(run: &Path) -> Result<Vec<Record>, TrainError> {
    let path = run.join(METRICS);
    let text = std::fs::read_to_string(&path).map_err(TrainError::io("reading", &path))?;
    let parse = |(index, line)| {
        Record::from_line(line).ok_or_else(|| TrainError::Checkpoint {
            path: path.clone(),
            problem: format!("line {} is not a record", index + 1),
        })
    };
    text.lines().enumerate().map(parse).collect()
}

/// Reads the timings of a run directory.
///
/// # Errors
/// [`TrainError::Io`].
pub fn read_timings(run: &Path) -> Result<Vec<Record>, TrainError> {
    let path = run.join(TIMINGS);
    let text = std::fs::read_to_string(&path).map_err(TrainError::io("reading", &path))?;
    Ok(text.lines().filter_map(Record::from_line).collect())
}

/// Rewrites `timings.jsonl` without the steps after `last`, which will be taken again, and
/// without a line that was cut short. Returns what stays.
fn keep_timings(path: &Path, last: usize) -> Result<Vec<Record>, TrainError> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(TrainError::io("reading", path)(source)),
    };
    let mut kept: Vec<Record> = text.lines().filter_map(Record::from_line).collect();
    kept.retain(|record| record.step <= last);
    let lines: String = kept.iter().map(Record::to_line).collect();
    let partial = path.with_extension("tmp");
    std::fs::write(&partial, lines).map_err(TrainError::io("writing", &partial))?;
    std::fs::rename(&partial, path).map_err(TrainError::io("renaming", &partial))?;
    Ok(kept)
}

/// Writes metrics of a run directory.
pub struct MetricsLog {
    path: PathBuf,
    metrics: File,
    timings: File,
    bytes: u64,
    events: EventFile,
    events_path: PathBuf,
}

impl MetricsLog {
    /// Opens the log of `run` as it was when it held `bytes` bytes.
    ///
    /// # Errors
    /// [`TrainError::Io`].
    pub fn open(run: &Path, bytes: u64) -> Result<Self, TrainError> {
        let path = run.join(METRICS);
        let open = |path: &Path| {
            OpenOptions::new()
                .create(true)
                .append(true)
                .open(path)
                .map_err(TrainError::io("opening", path))
        };
        let metrics = open(&path)?;
        metrics.set_len(bytes).map_err(TrainError::io("truncating", &path))?;
        let events = run.join(TENSORBOARD);
        if events.exists() {
            std::fs::remove_dir_all(&events).map_err(TrainError::io("replacing", &events))?;
        }
        std::fs::create_dir_all(&events).map_err(TrainError::io("creating", &events))?;
        let records = read(run)?;
        let timings = run.join(TIMINGS);
        let last = records.last().map_or(0, |record| record.step);
        let kept = keep_timings(&timings, last)?;
        let mut log = Self {
            metrics,
            timings: open(&timings)?,
            bytes,
            events: EventFile::create(&events).map_err(TrainError::io("creating", &events))?,
            events_path: events.join(tensorboard::NAME),
            path,
        };
        for record in records.iter().chain(&kept) {
            log.mirror(record)?;
        }
        Ok(log)
    }

    /// Length of `metrics.jsonl`, for the checkpoint.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Appends a record.
    ///
    /// # Errors
    /// [`TrainError::Io`].
    pub fn write(&mut self, record: &Record) -> Result<(), TrainError> {
        let line = record.to_line();
        self.metrics.write_all(line.as_bytes()).map_err(TrainError::io("writing", &self.path))?;
        self.bytes += line.len() as u64;
        self.mirror(record)
    }

    /// Appends wall-clock figures.
    ///
    /// # Errors
    /// [`TrainError::Io`].
    pub fn write_timing(&mut self, record: &Record) -> Result<(), TrainError> {
        let written = self.timings.write_all(record.to_line().as_bytes());
        written.map_err(TrainError::io("writing", &self.path.with_file_name(TIMINGS)))?;
        self.mirror(record)
    }

    /// Makes what was written last a power cut.
    ///
    /// # Errors
    /// [`TrainError::Io`].
    pub fn sync(&mut self) -> Result<(), TrainError> {
        self.metrics.sync_data().map_err(TrainError::io("flushing", &self.path))
    }

    fn mirror(&mut self, record: &Record) -> Result<(), TrainError> {
        let written = record.values.iter().try_for_each(|(name, value)| {
            self.events.scalar(&format!("{}/{name}", record.split), *value as f32, record.step)
        });
        written
            .and_then(|()| self.events.flush())
            .map_err(TrainError::io("writing", &self.events_path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resumed_log_keeps_the_timings_up_to_its_checkpoint_and_no_others() {
        let run = tempfile::tempdir().expect("temp dir");
        let mut log = MetricsLog::open(run.path(), 0).expect("opens");
        let mut bytes = 0;
        for step in 1..=3 {
            log.write(&Record::new(step, "train").with("loss", 1.0)).expect("writes");
            log.write_timing(&Record::new(step, "timing").with("seconds", 2.0)).expect("writes");
            if step == 2 {
                bytes = log.bytes();
            }
        }
        drop(log);
        // Killed while it wrote.
        let timings = run.path().join(TIMINGS);
        let cut = std::fs::read_to_string(&timings).expect("timings") + "{\"step\":2,\"spl";
        std::fs::write(&timings, cut).expect("writes");

        let mut log = MetricsLog::open(run.path(), bytes).expect("opens again");
        log.write_timing(&Record::new(3, "timing").with("seconds", 4.0)).expect("writes");
        let lines = std::fs::read_to_string(&timings).expect("timings");
        let steps: Vec<usize> =
            lines.lines().map(|line| Record::from_line(line).expect("whole").step).collect();
        assert_eq!(steps, [1, 2, 3]);
    }
}
