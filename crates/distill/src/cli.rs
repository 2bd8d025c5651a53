//! What can be typed.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use distill_edge::{KernelChoice, KvType};
use distill_eval::evaluation::TaskFile;

/// Small language models for devices: distil, quantise, export, prove.
#[derive(Debug, Parser)]
#[command(name = "distill", version, about, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a recipe: train, export, verify, report.
    Run(Run),
    /// Check a recipe without running it, and print it with every default.
    Check(Recipe),
    /// Say what a recipe will need and what its student will do on the device.
    Plan(Plan),
    /// Print the JSON schema of recipes, for editors.
    Schema,
    /// Show the tokens and the loss mask of real samples.
    Preview(Preview),
    /// Ask a remote teacher, look into what it has said, or be one.
    #[command(subcommand)]
    Teacher(TeacherCommand),
    /// Export a run again.
    Export(RunDirectory),
    /// Put a finished model on the grid without training it.
    Quantize(Quantize),
    /// Hold the exported model of a run against its training graph.
    Verify(RunDirectory),
    /// Measure perplexity and tasks, with confidence intervals, of one model or of two.
    Eval(Eval),
    /// Continue a text with an exported model.
    Generate(Generate),
    /// Talk with an exported model.
    Chat(Chat),
    /// Measure the speed of an exported model.
    Bench(Bench),
}

/// A recipe and changes to it.
#[derive(Args, Debug)]
pub struct Recipe {
    /// The recipe, a TOML file.
    pub recipe: PathBuf,
    /// Change a key, e.g. `--set train.steps=100`; may be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

/// `distill run`.
#[derive(Args, Debug)]
pub struct Run {
    /// The recipe and changes to it.
    #[command(flatten)]
    pub recipe: Recipe,
    /// Continue the newest run of this recipe where it stopped.
    #[arg(long)]
    pub resume: bool,
    /// Measure time and bytes of every operator of the training, and write them to profile.json.
    #[arg(long)]
    pub profile: bool,
}

/// `distill plan`.
#[derive(Args, Debug)]
pub struct Plan {
    /// The recipe and changes to it.
    #[command(flatten)]
    pub recipe: Recipe,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// `distill preview`.
#[derive(Args, Debug)]
pub struct Preview {
    /// The recipe and changes to it.
    #[command(flatten)]
    pub recipe: Recipe,
    /// Samples to show.
    #[arg(long, default_value_t = 1)]
    pub samples: usize,
}

/// `distill teacher`.
#[derive(Debug, Subcommand)]
pub enum TeacherCommand {
    /// Look whether the servers of a recipe can be believed, before anything is paid for.
    Probe(Recipe),
    /// Ask about every sequence that a recipe will train on, without training.
    Cache(Recipe),
    /// Say what a cache holds and what it was made with.
    Inspect(CacheDirectory),
    /// Read a whole cache and hold it against its hashes.
    Verify(CacheDirectory),
    /// Take the signals of other caches into one, if they were made alike.
    Merge(Merge),
    /// Write a cache as Parquet: a row for each token of each position.
    Export(CacheExport),
    /// Serve a model to other machines: OpenAI's routes, and one for signals.
    Serve(Serve),
}

/// `distill teacher serve`.
#[derive(Args, Debug)]
pub struct Serve {
    /// The model: a `.gguf` file, a Hugging Face directory, or a hub id.
    pub model: String,
    /// What clients call it; by default as it is named here.
    #[arg(long)]
    pub name: Option<String>,
    /// Where to listen. Anything but a loopback address needs a key.
    #[arg(long, default_value = "127.0.0.1")]
    pub host: std::net::IpAddr,
    /// The port; 0 takes a free one.
    #[arg(long, default_value_t = 8000)]
    pub port: u16,
    /// The environment variable with the key that clients must send.
    #[arg(long, value_name = "VARIABLE")]
    pub api_key_env: Option<String>,
    /// Tokens of a text, with what is generated; 0 is the model's own context.
    #[arg(long, default_value_t = 2048, value_parser = tokens)]
    pub context: usize,
    /// Requests that may wait; who comes then is asked to come back.
    #[arg(long, default_value_t = 64, value_parser = count)]
    pub queue: usize,
    /// Seconds that a request may take, waiting included.
    #[arg(long, default_value_t = 300.0)]
    pub timeout_s: f64,
    /// The largest request, in megabytes.
    #[arg(long, default_value_t = 4, value_parser = count)]
    pub body_mb: usize,
    /// Threads.
    #[arg(long, default_value_t = crate::hardware::threads(), value_parser = threads)]
    pub threads: usize,
    /// What the linears read; by default what the file was trained for.
    #[arg(long, value_enum)]
    pub activations: Option<Activations>,
}

/// A cache of signals on disk.
#[derive(Args, Debug)]
pub struct CacheDirectory {
    /// Its directory, e.g. `checkpoints/teacher/0f3a…`.
    pub cache: PathBuf,
}

/// `distill teacher merge`.
#[derive(Args, Debug)]
pub struct Merge {
    /// The cache that grows.
    pub into: PathBuf,
    /// Caches whose signals are taken; they stay as they are.
    #[arg(required = true)]
    pub from: Vec<PathBuf>,
}

/// `distill teacher export`.
#[derive(Args, Debug)]
pub struct CacheExport {
    /// The cache.
    pub cache: PathBuf,
    /// The Parquet file.
    #[arg(long)]
    pub out: PathBuf,
}

/// A run on disk.
#[derive(Args, Debug)]
pub struct RunDirectory {
    /// Directory of the run, e.g. `checkpoints/quickstart/2026-11-22T20-15-00`.
    pub run: PathBuf,
}

/// `distill quantize`.
#[derive(Args, Debug)]
pub struct Quantize {
    /// The model: a Hugging Face directory, a `.gguf` file, or a hub id `owner/name`.
    pub model: String,
    /// Where to write: model.gguf, model.edge and checkpoint/.
    #[arg(long)]
    pub out: PathBuf,
    /// How weights come to 4 bits.
    #[arg(long, value_enum, default_value_t = Method::Gptq)]
    pub method: Method,
    /// Text such as the model will meet, for `search` and `gptq`; may be repeated.
    #[arg(long)]
    pub text: Vec<String>,
    /// How many sequences of it to look at.
    #[arg(long, default_value_t = 32, value_parser = sequences)]
    pub sequences: usize,
    /// Their length, in tokens.
    #[arg(long, default_value_t = 512, value_parser = sequences)]
    pub sequence_length: usize,
    /// The grid of the token embedding and the head.
    #[arg(long, value_enum, default_value_t = EmbeddingGrid::Q8_0)]
    pub embeddings: EmbeddingGrid,
    /// What the runtime's linears read.
    #[arg(long, value_enum, default_value_t = Activations::Q8_0)]
    pub activations: Activations,
}

/// How weights come to the grid.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Method {
    /// Each to the nearest code; the scale from the block's largest weight.
    Round,
    /// The scale with the least squared error of the block.
    Search,
    /// Searched scales, and errors fed back so that outputs stay near.
    Gptq,
}

impl Method {
    /// As it is typed.
    pub fn name(self) -> &'static str {
        match self {
            Self::Round => "round",
            Self::Search => "search",
            Self::Gptq => "gptq",
        }
    }
}

impl From<Method> for distill_recipe::Method {
    fn from(method: Method) -> Self {
        match method {
            Method::Round => Self::Round,
            Method::Search => Self::Search,
            Method::Gptq => Self::Gptq,
        }
    }
}

/// A grid for embedding and head.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum EmbeddingGrid {
    /// 4 bits.
    #[value(name = "q4_0")]
    Q4_0,
    /// 8 bits.
    #[value(name = "q8_0")]
    Q8_0,
}

/// How the runtime runs a model.
#[derive(Args, Debug)]
pub struct Runtime {
    /// The model, a `.gguf` file.
    pub model: PathBuf,
    /// Threads.
    #[arg(long, default_value_t = crate::hardware::threads(), value_parser = threads)]
    pub threads: usize,
    /// Longest context, in tokens.
    #[arg(long, default_value_t = 2048)]
    pub context: usize,
    /// What the linears read; by default what the file was trained for.
    #[arg(long, value_enum)]
    pub activations: Option<Activations>,
    /// How keys and values are kept.
    #[arg(long, value_enum, default_value_t = Kv::F16)]
    pub kv: Kv,
}

/// What the linears read.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Activations {
    /// f32: the exact path.
    Float,
    /// Q8_0 blocks: the integer path.
    #[value(name = "q8_0")]
    Q8_0,
}

/// How keys and values are kept.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Kv {
    /// Half the memory.
    F16,
    /// Exact.
    F32,
    /// A quarter of the memory, rounded to 8-bit codes.
    #[value(name = "q8_0")]
    Q8_0,
}

impl From<Activations> for distill_edge::Activations {
    fn from(activations: Activations) -> Self {
        match activations {
            Activations::Float => Self::Float,
            Activations::Q8_0 => Self::Q8_0,
        }
    }
}

impl From<Kv> for KvType {
    fn from(kv: Kv) -> Self {
        match kv {
            Kv::F16 => Self::F16,
            Kv::F32 => Self::F32,
            Kv::Q8_0 => Self::Q8_0,
        }
    }
}

/// `distill eval`.
#[derive(Args, Debug)]
pub struct Eval {
    /// What to measure: a `.gguf` or `.edge` file, a run (what it exported), or a Hugging Face directory.
    pub model: PathBuf,
    /// Another model, measured on the same records: differences are printed, with intervals.
    #[arg(long, value_name = "MODEL")]
    pub reference: Option<PathBuf>,
    /// perplexity=TEXT, choice=JSONL, last_word=JSONL; several with commas, or repeated.
    #[arg(long, required = true, value_name = "TASK=FILE", value_delimiter = ',')]
    pub tasks: Vec<TaskFile>,
    /// Measure through the training graph, a run at the checkpoint that it exports.
    #[arg(long, conflicts_with_all = ["activations", "kv"])]
    pub graph: bool,
    /// Tokens of a window of text; half of it is scored.
    #[arg(long, default_value_t = 512, value_parser = window)]
    pub context: usize,
    /// The most windows of a text.
    #[arg(long, default_value_t = 60, value_parser = count)]
    pub chunks: usize,
    /// The most items of a JSONL file; by default all of them.
    #[arg(long, value_parser = count)]
    pub limit: Option<usize>,
    /// Write all figures, and the records they are made of, to this file.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Draws of the bootstrap that makes the intervals.
    #[arg(long, default_value_t = 10_000, value_parser = count)]
    pub resamples: usize,
    /// Seed of the draws.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Threads of the runtime.
    #[arg(long, default_value_t = crate::hardware::threads(), value_parser = threads)]
    pub threads: usize,
    /// What the linears read; by default what the file was trained for.
    #[arg(long, value_enum)]
    pub activations: Option<Activations>,
    /// How keys and values are kept.
    #[arg(long, value_enum, default_value_t = Kv::F16)]
    pub kv: Kv,
}

/// How the next token is chosen.
#[derive(Args, Clone, Debug)]
pub struct Sampling {
    /// Longest answer, in tokens.
    #[arg(long, default_value_t = 128)]
    pub max_tokens: usize,
    /// 0 takes the likeliest token; higher is more varied.
    #[arg(long, default_value_t = 0.8)]
    pub temperature: f32,
    /// Choose among the k likeliest tokens only; 0 is all of them.
    #[arg(long, default_value_t = 0)]
    pub top_k: usize,
    /// Choose among the likeliest tokens that hold this share of the probability.
    #[arg(long, default_value_t = 0.95)]
    pub top_p: f32,
    /// Leave out tokens less likely than this share of the likeliest.
    #[arg(long, default_value_t = 0.0)]
    pub min_p: f32,
    /// Seed of the choice.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
}

/// `distill generate`.
#[derive(Args, Debug)]
pub struct Generate {
    /// The model and how it runs.
    #[command(flatten)]
    pub runtime: Runtime,
    /// The text to continue.
    #[arg(long, short)]
    pub prompt: String,
    /// How to choose.
    #[command(flatten)]
    pub sampling: Sampling,
    /// Print one JSON object with ids and text instead of streaming.
    #[arg(long)]
    pub json: bool,
}

/// `distill chat`.
#[derive(Args, Debug)]
pub struct Chat {
    /// The model and how it runs.
    #[command(flatten)]
    pub runtime: Runtime,
    /// What the model is told first.
    #[arg(long)]
    pub system: Option<String>,
    /// How to choose.
    #[command(flatten)]
    pub sampling: Sampling,
}

/// `distill bench`.
#[derive(Args, Debug)]
pub struct Bench {
    /// The model, a `.gguf` or `.edge` file.
    pub model: PathBuf,
    /// Threads; several numbers are measured one after another.
    #[arg(long, value_delimiter = ',', default_values_t = [crate::hardware::threads()], value_parser = threads)]
    pub threads: Vec<usize>,
    /// Tokens of the prompt.
    #[arg(long, default_value_t = 512, value_parser = tokens)]
    pub prompt: usize,
    /// Tokens to decode.
    #[arg(long, default_value_t = 128, value_parser = tokens)]
    pub generate: usize,
    /// Tokens in the cache before decoding; several are measured one after another.
    #[arg(long, value_delimiter = ',', default_values_t = [0])]
    pub depth: Vec<usize>,
    /// How keys and values are kept.
    #[arg(long, value_enum, default_value_t = Kv::F16)]
    pub kv: Kv,
    /// Repetitions; the median is reported, and the largest distance from it.
    #[arg(long, default_value_t = 5)]
    pub repeat: usize,
    /// best, or as a CPU with less would run: avx2, neon, dotprod, scalar.
    #[arg(long, default_value = "best")]
    pub kernels: KernelChoice,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// A number of threads that a machine may have.
fn threads(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count @ 1..=1024) => Ok(count),
        _ => Err("expected a whole number from 1 to 1024".into()),
    }
}

/// A number of sequences or of their tokens.
fn sequences(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count @ 2..=65_536) => Ok(count),
        _ => Err("expected a whole number from 2 to 65536".into()),
    }
}

/// A number of tokens that a context may have.
fn tokens(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count @ 0..=16_777_216) => Ok(count),
        _ => Err("expected a whole number up to 16777216".into()),
    }
}

/// Tokens of a window that has something to score.
fn window(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count @ 3..=16_777_216) => Ok(count),
        _ => Err("expected a whole number from 3 to 16777216".into()),
    }
}

/// How many of something, at least one.
fn count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count @ 1..=16_777_216) => Ok(count),
        _ => Err("expected a whole number from 1 to 16777216".into()),
    }
}
