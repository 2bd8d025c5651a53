//! Progress on stderr.

use std::path::Path;
use std::time::{Duration, Instant};

use distill_teacher::Asked;
use distill_train::generate::Written;
use distill_train::{Observer, Record};
use indicatif::{ProgressBar, ProgressStyle};

/// Where there is no terminal, a bar writes a line this often.
const LINE: Duration = Duration::from_secs(30);

/// A line that says what is being done.
pub fn spinner(message: &str) -> ProgressBar {
    let bar = ProgressBar::new_spinner().with_message(message.to_string());
    bar.set_style(style("{spinner} {msg}"));
    bar.enable_steady_tick(Duration::from_millis(120));
    if bar.is_hidden() {
        eprintln!("{message}");
    }
    bar
}

/// A bar over chunks or items, gone when it is dropped.
pub struct ItemBar {
    bar: ProgressBar,
    name: String,
}

impl ItemBar {
    /// A bar with a name; it learns of how many later.
    pub fn new(name: &str) -> Self {
        let bar = ProgressBar::new(0).with_message(name.to_string());
        bar.set_style(style("{msg} {bar:32} {pos}/{len} {eta} left"));
        Self { bar, name: name.to_string() }
    }

    /// So many of so many are done.
    pub fn set(&self, done: usize, all: usize) {
        self.bar.set_length(all as u64);
        self.bar.set_position(done as u64);
        let every = (all / 10).max(1);
        if self.bar.is_hidden() && done.is_multiple_of(every) {
            eprintln!("{}: {done}/{all}", self.name);
        }
    }
}

impl Drop for ItemBar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// The bar of the training loop: loss, tokens a second, time left.
pub struct TrainingBar {
    bar: ProgressBar,
    steps: usize,
}

impl TrainingBar {
    /// A bar for `steps` steps.
    pub fn new(steps: usize) -> Self {
        let bar = ProgressBar::new(steps as u64);
        bar.set_style(style("training {bar:32} {pos}/{len} {msg} {eta} left"));
        Self { bar, steps }
    }

    /// A line above the bar, or plain where there is no terminal.
    fn say(&self, line: &str) {
        if self.bar.is_hidden() { eprintln!("{line}") } else { self.bar.println(line) }
    }
}

impl Observer for TrainingBar {
    fn record(&mut self, record: &Record, tokens_per_second: Option<f64>) {
        let figure = |name: &str| record.get(name).unwrap_or(f64::NAN);
        if record.split == "train" {
            let speed = tokens_per_second.unwrap_or(0.0);
            let message = format!("loss {:.4} · {speed:.0} tok/s ·", figure("loss"));
            self.bar.set_position(record.step as u64);
            let every = (self.steps / 20).max(1);
            if self.bar.is_hidden() && record.step.is_multiple_of(every) {
                eprintln!("step {}/{} {message}", record.step, self.steps);
            }
            self.bar.set_message(message);
        } else {
            let kl = record.get("kl").map_or(String::new(), |kl| format!(", KL {kl:.4}"));
            let name = record.split.replace('_', " ");
            let perplexity = figure("perplexity");
            self.say(&format!("step {}: {name}: perplexity {perplexity:.2}{kl}", record.step));
        }
    }

    fn quantized(&mut self, layers: usize, of: usize) {
        self.bar.set_message(format!("layer {layers} of {of} comes to the grid ·"));
        if self.bar.is_hidden() && layers.is_multiple_of(of.div_ceil(5)) {
            eprintln!("{layers} of {of} layers on the grid");
        }
    }

    fn checkpoint(&mut self, path: &Path) {
        self.say(&format!("checkpoint {}", path.display()));
    }
}

impl Drop for TrainingBar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// The bar of asking a teacher: sequences, tokens a second, what went wrong, time left.
pub struct TeachingBar {
    bar: ProgressBar,
    begun: Instant,
    line: Instant,
    /// Tokens that earlier runs had sent.
    before: Option<u64>,
}

impl TeachingBar {
    /// A bar that learns of how many sequences later.
    pub fn new() -> Self {
        let bar = ProgressBar::new(0);
        bar.set_style(style("asking the teacher {bar:32} {pos}/{len} {msg} {eta} left"));
        let now = Instant::now();
        Self { bar, begun: now, line: now, before: None }
    }

    /// So far it has come.
    pub fn show(&mut self, asked: &Asked) {
        let before = *self.before.get_or_insert(asked.tokens);
        let speed = (asked.tokens - before) as f64 / self.begun.elapsed().as_secs_f64().max(1e-3);
        let again = match asked.retries {
            0 => String::new(),
            retries => format!(" · {retries} tried again"),
        };
        let message = format!("{speed:.0} tok/s{again} ·");
        self.bar.set_length(asked.of as u64);
        self.bar.set_position(asked.texts as u64);
        if self.bar.is_hidden() && self.line.elapsed() > LINE {
            eprintln!("asking the teacher: {}/{} {message}", asked.texts, asked.of);
            self.line = Instant::now();
        }
        self.bar.set_message(message);
    }
}

impl Drop for TeachingBar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// The bar of generated text: tokens, tokens a second, time left.
pub struct GenerationBar {
    bar: ProgressBar,
    tokens: u64,
    begun: Instant,
    /// Tokens that were there at the beginning.
    there: Option<u64>,
    /// When a line was last written, where there is no terminal.
    line: Instant,
}

impl GenerationBar {
    /// A bar for `tokens` tokens.
    pub fn new(tokens: u64) -> Self {
        let bar = ProgressBar::new(tokens);
        bar.set_style(style("writing {bar:32} {human_pos}/{human_len} tokens {msg} {eta} left"));
        Self { bar, tokens, begun: Instant::now(), there: None, line: Instant::now() }
    }

    /// Moves on.
    pub fn show(&mut self, written: &Written) {
        let position = (written.counts.tokens + written.in_the_making).min(self.tokens);
        let drawn = position - *self.there.get_or_insert(written.counts.tokens.min(position));
        let speed = drawn as f64 / self.begun.elapsed().as_secs_f64();
        self.bar.set_message(format!("· {speed:.0} tok/s ·"));
        self.bar.set_position(position);
        if self.bar.is_hidden() && self.line.elapsed() > LINE {
            self.line = Instant::now();
            eprintln!("{position} of {} tokens, {speed:.0} tok/s", self.tokens);
        }
    }
}

impl Drop for GenerationBar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("the template is a constant of this file")
}
