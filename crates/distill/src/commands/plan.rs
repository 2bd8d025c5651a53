//! `distill plan`, and the first thing that `distill run` prints.

use std::fmt::Write;

use burn::tensor::Device;
use distill_recipe::{Document, Engine, Recipe};
use distill_train::generate::GenerationPlan;
use distill_train::plan::{Asking, MemoryPlan, Shapes, Time};
use distill_train::{Generation, LocalPaths, Plan, TrainError, prepare};
use serde::Serialize;

use crate::budget::{self, DevicePlan, Reads};
use crate::failure::Failure;
use crate::output::{put, put_line};
use crate::progress::spinner;
use crate::{cli, hub, writer};

/// A plan of both sides.
#[derive(Clone, Debug, Serialize)]
pub struct WholePlan {
    /// The recipe's name.
    name: String,
    /// What training takes.
    #[serde(flatten)]
    training: Plan,
    /// What the text takes that a model writes.
    #[serde(skip_serializing_if = "Option::is_none")]
    generation: Option<GenerationPlan>,
    /// The parts of the text that have a weight of their own, if there are several.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    mix: Vec<Mixed>,
    /// What the device will do.
    device: DevicePlan,
}

/// A part of the text.
#[derive(Clone, Debug, Serialize)]
struct Mixed {
    /// Its source.
    name: String,
    /// Its share in what is trained on.
    share: f64,
    /// How often it is read, where its tokens were counted.
    epochs: Option<f64>,
}

/// The verb.
pub fn plan(args: &cli::Plan) -> Result<(), Failure> {
    // As in the run that is planned.
    distill_ops::memory::keep_what_is_freed();
    let (document, recipe) = Recipe::from_path(&args.recipe.recipe, &args.recipe.set)?;
    let device = prepare::device(recipe.backend).map_err(TrainError::from)?;
    let mut paths = hub::local_paths(&recipe)?;
    let generation = writer::open(&recipe, &mut paths)?;
    let (set, generation) = (&args.recipe.set, generation.as_ref());
    let plan = WholePlan::new(&recipe, &document, set, &paths, generation, &device)?;
    if args.json {
        let json = serde_json::to_string(&plan)
            .map_err(|error| Failure::Usage(format!("the plan has no JSON form: {error}")))?;
        return put_line!("{json}");
    }
    put!("{}", plan.text())
}

impl WholePlan {
    /// Holds the recipe against its device, then reads the text and times a part of a step.
    ///
    /// # Errors
    /// [`Failure::Budget`] before anything takes time; what reading can fail with.
    pub fn new(
        recipe: &Recipe,
        document: &Document,
        overrides: &[String],
        paths: &LocalPaths,
        generation: Option<&Generation>,
        device: &Device,
    ) -> Result<Self, Failure> {
        let shapes = Shapes::read(recipe, paths)?;
        budget::check(recipe, &shapes.student, document, overrides)?;
        let bar = spinner("planning");
        let training = Plan::new(recipe, paths, &shapes, device);
        let generation = generation.map(Generation::plan).transpose();
        bar.finish_and_clear();
        let training = training?;
        Ok(Self {
            name: recipe.name.clone(),
            generation: generation?,
            mix: mix(recipe, &training),
            training,
            device: DevicePlan::new(recipe, &shapes.student),
        })
    }

    /// The plan as a table.
    pub fn text(&self) -> String {
        let mut rows = Rows::default();
        let plan = &self.training;
        rows.add("student", format!("{} parameters", count(plan.student_parameters)));
        let tokens = count(plan.steps * plan.step_tokens);
        let parameters = plan.teacher_parameters.map(|n| format!("{} parameters, ", count(n)));
        let parameters = parameters.unwrap_or_default();
        if let Some(asking) = &plan.asking {
            rows.asking(asking, &parameters);
        } else if plan.teacher_parameters.is_some() {
            let place = match plan.teacher_engine {
                Some(Engine::Runtime) => "the edge runtime",
                _ => "this process",
            };
            rows.add("teacher", format!("{parameters}reads {tokens} tokens in {place}"));
        }
        let text = &plan.text;
        let how = match text.counted {
            true => "counted".to_owned(),
            false => format!("estimated by the first {}", bytes(text.sample_bytes)),
        };
        if text.bytes > 0 {
            let read = count(text.tokens - text.generated);
            rows.add("text", format!("{read} tokens ({how}) in {}", bytes(text.bytes)));
        }
        if let Some(generation) = &self.generation {
            rows.generation(generation);
        }
        for part in &self.mix {
            let epochs = part.epochs.map_or(String::new(), |n| format!(", read {n:.1} times"));
            rows.part(&part.name, format!("{:>3.0} % of training{epochs}", 100.0 * part.share));
        }
        rows.add(
            "training",
            format!(
                "{} steps of {} tokens: {} tokens, {:.1} times the text",
                plan.steps,
                grouped(plan.step_tokens),
                count(plan.steps * plan.step_tokens),
                plan.epochs
            ),
        );
        match &plan.memory {
            Some(memory) => rows.memory(memory),
            None => rows.add("memory", "not predicted on this backend".into()),
        }
        match &plan.time {
            Some(time) => rows.time(time, plan),
            None => rows.add("time", "not predicted on this backend".into()),
        }
        let disk = &plan.disk;
        rows.add(
            "disk",
            format!(
                "{}: {} × {} of checkpoints, {} of exports",
                bytes(disk.total),
                disk.checkpoints_kept,
                bytes(disk.checkpoint),
                bytes(disk.export)
            ),
        );
        rows.device(&self.device);
        format!("plan of {}\n\n{}\n", self.name, rows.0)
    }
}

/// The parts of a recipe's text and what becomes of them.
fn mix(recipe: &Recipe, plan: &Plan) -> Vec<Mixed> {
    let (data, names) = (&recipe.data, prepare::part_names(recipe));
    if names.len() < 2 {
        return Vec::new();
    }
    let mut weights = data.weights.clone().unwrap_or_else(|| vec![1.0]);
    weights.extend(data.generate.as_ref().and_then(|generate| generate.weight));
    let total: f64 = weights.iter().sum();
    let (text, trained) = (&plan.text, (plan.steps * plan.step_tokens) as f64);
    let sources = names.len() - usize::from(data.generate.is_some());
    let parts = names.into_iter().zip(weights).enumerate();
    let mixed = parts.map(|(n, (name, weight))| {
        // The tokens of several sources were counted together.
        let tokens = match n {
            _ if n == sources => Some(text.generated),
            _ if sources == 1 => Some(text.tokens - text.generated),
            _ => None,
        };
        let share = weight / total;
        let epochs = tokens.map(|tokens| share * trained / (tokens as f64 * (1.0 - data.held_out)));
        Mixed { name, share, epochs }
    });
    mixed.collect()
}

/// Lines of a name and what is to be said of it.
#[derive(Default)]
struct Rows(String);

impl Rows {
    fn add(&mut self, name: &str, value: String) {
        let _ = writeln!(self.0, "  {name:<12} {value}");
    }

    fn part(&mut self, name: &str, value: String) {
        let _ = writeln!(self.0, "    {name:<22} {value}");
    }

    fn generation(&mut self, generation: &GenerationPlan) {
        let time = match generation.tokens_per_second {
            Some(speed) => format!(
                "{} at {speed:.0} tokens/s, {} of them there",
                duration(generation.seconds()),
                count(generation.there)
            ),
            None => "all of them there".to_owned(),
        };
        let (tokens, disk) = (count(generation.tokens), bytes(generation.bytes));
        self.add("generated", format!("{tokens} tokens: {time}; about {disk} on disk"));
    }

    fn asking(&mut self, asking: &Asking, parameters: &str) {
        let tokens = count(asking.tokens);
        let cost = asking.cost.map_or(String::new(), |cost| format!(", costs {cost:.2}"));
        let budget = match asking.budget {
            Some(budget) if budget < asking.tokens => {
                format!("; the budget ends at {} tokens", count(budget))
            }
            _ => String::new(),
        };
        let disk = bytes(asking.bytes);
        self.add(
            "teacher",
            format!("{parameters}asked once about {tokens} tokens at most{cost}{budget}; about {disk} on disk"),
        );
    }

    fn memory(&mut self, memory: &MemoryPlan) {
        let available =
            memory.available.map_or(String::new(), |a| format!("; this machine has {}", bytes(a)));
        let peak = bytes(memory.peak);
        self.add("memory", format!("{peak}, {}{available}", memory.at.words()));
        for (name, size) in memory.parts.parts().into_iter().filter(|(_, size)| *size > 0) {
            self.part(name, format!("{:>9}", bytes(size)));
        }
        if memory.available.is_some_and(|available| memory.peak > available) {
            self.add("", "more than this machine has".into());
        }
        for advice in &memory.advice {
            self.add("", format!("with {}: {}", advice.set, bytes(advice.peak)));
        }
    }

    fn time(&mut self, time: &Time, plan: &Plan) {
        self.add(
            "time",
            format!(
                "{} besides export and verification: {} a step ({:.0} tokens/s), {} an evaluation",
                duration(time.total()),
                duration(time.step),
                time.tokens_per_second,
                duration(time.evaluation)
            ),
        );
        let mut parts = vec![("layers", time.layers), ("head and loss", time.ends)];
        if plan.teacher_parameters.is_some() {
            parts.push(("teacher", time.teacher));
        }
        parts.push(("rounding, update", time.update));
        for (name, seconds) in parts {
            let share = 100.0 * seconds / time.step;
            self.part(name, format!("{:>9} {share:>3.0} %", duration(seconds)));
        }
    }

    fn device(&mut self, device: &DevicePlan) {
        let speed = |reads: &Reads| {
            let speed = reads.tokens_per_second.map(|speed| {
                format!(", {speed:.digits$} tokens/s", digits = usize::from(speed < 100.0))
            });
            format!("{}{}", bytes(reads.bytes), speed.unwrap_or_default())
        };
        self.add("device", format!("{} of weights", bytes(device.weight_bytes)));
        for decode in &device.decode {
            let q8_0 = match &decode.q8_0 {
                Some(reads) if decode.depth > 0 => format!(" · q8_0 cache {}", speed(reads)),
                _ => String::new(),
            };
            let f16 = if decode.depth > 0 { "f16 cache " } else { "" };
            self.part(
                &format!("a token at {}", grouped(decode.depth as u64)),
                format!("{f16}{}{q8_0}", speed(&decode.f16)),
            );
        }
        let operations = device.prompt_operations as f64 / 1e9;
        let first = device.first_token_ms.map_or(String::new(), |ms| format!(", {ms:.0} ms"));
        self.part(
            &format!("first, after {}", grouped(device.prompt_tokens as u64)),
            format!("{operations:.1} · 10⁹ operations{first}"),
        );
        let ram = &device.ram;
        self.part(
            &format!("memory for {}", grouped(ram.context as u64)),
            format!(
                "{}: weights {}, cache {}, else {}",
                bytes(ram.total()),
                bytes(ram.weights),
                bytes(ram.cache),
                bytes(ram.other)
            ),
        );
    }
}

/// Bytes in powers of ten.
fn bytes(bytes: u64) -> String {
    let bytes = bytes as f64;
    match bytes {
        1e9.. => format!("{:.2} GB", bytes / 1e9),
        1e6.. => format!("{:.1} MB", bytes / 1e6),
        _ => format!("{:.1} kB", bytes / 1e3),
    }
}

/// A number of parameters or tokens.
fn count(number: u64) -> String {
    let value = number as f64;
    match value {
        1e9.. => format!("{:.2} G", value / 1e9),
        1e6.. => format!("{:.1} M", value / 1e6),
        _ => grouped(number),
    }
}

/// Digits in threes.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Seconds as a person says them.
fn duration(seconds: f64) -> String {
    match seconds {
        7200.0.. => format!("{:.1} h", seconds / 3600.0),
        120.0.. => format!("{:.0} min", seconds / 60.0),
        10.0.. => format!("{seconds:.0} s"),
        1.0.. => format!("{seconds:.1} s"),
        _ => format!("{:.0} ms", 1e3 * seconds),
    }
}
