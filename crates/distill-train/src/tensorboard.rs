//! TensorBoard's event files, through the record format of `tensorboard-rs`.
//!
//! That crate's own writer runs in a thread that panics where a write fails. A full disk must end
//! a run with an error and nothing worse, so records are written here, and errors come back.

use std::fs::File;
use std::io::{self, BufWriter};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use protobuf::Message;
use tensorboard_proto::event::Event;
use tensorboard_rs::record_writer::RecordWriter;
use tensorboard_rs::summary::scalar;

/// One event file.
pub(crate) struct EventFile {
    records: RecordWriter<BufWriter<File>>,
}

/// TensorBoard reads every file of a directory whose name contains `tfevents`.
pub(crate) const NAME: &str = "events.out.tfevents.1.distill";

impl EventFile {
    /// Begins the event file of a directory.
    pub fn create(directory: &Path) -> io::Result<Self> {
        let file = BufWriter::new(File::create(directory.join(NAME))?);
        let mut events = Self { records: RecordWriter::new(file) };
        let mut version = event();
        version.set_file_version("brain.Event:2".to_string());
        events.write(&version)?;
        events.flush()?;
        Ok(events)
    }

    /// Adds a scalar. TensorBoard keeps them in f32.
    pub fn scalar(&mut self, tag: &str, value: f32, step: usize) -> io::Result<()> {
        let mut event = event();
        event.set_step(step as i64);
        event.set_summary(scalar(tag, value));
        self.write(&event)
    }

    /// Hands everything to the system.
    pub fn flush(&mut self) -> io::Result<()> {
        self.records.flush()
    }

    fn write(&mut self, event: &Event) -> io::Result<()> {
        let bytes = event.write_to_bytes().map_err(io::Error::other)?;
        self.records.write(&bytes)
    }
}

/// An event of this moment.
fn event() -> Event {
    let mut event = Event::new();
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    event.set_wall_time(now.map_or(0.0, |now| now.as_secs_f64()));
    event
}
