//! Asking the teacher before training: every sequence that a run will see, once.
//!
//! The signals lie in a cache that is found by what they depend on, so that a second run, another
//! seed, or a recipe with another student asks only for what is new. A local teacher is asked in the
//! same way: training then needs neither its weights nor its time.

use std::collections::HashSet;
use std::path::PathBuf;

use burn::tensor::{Device, Tensor};
use distill_data::{Batch, Dataset, Sequence, TextTokenizer};
use distill_models::parameters;
use distill_recipe::{Protocol, Recipe, RemoteTeacher, Teacher as Written, TeacherSignal};
use distill_teacher::protocol::{Name, Vocabulary, protocol};
use distill_teacher::{
    About, Asked, Cache, Choice, Client, ClientOptions, Key, Kind, ProbeReport, Secret,
    Signal as Said, Spec, TeacherError, Writer, choose, queries, tokens_of,
};
use rayon::prelude::*;

use crate::TrainError;
use crate::prepare::{LocalPaths, TeacherModel};
use crate::teacher::{Signal, Teacher};

/// Below the directory of all runs.
const HOME: &str = "teacher";
/// What held-out sequences are measured against, where training has samples.
const HELD_OUT_TOP_K: usize = 64;
/// Held-out sequences among which the longest text is probed with, and the most of it.
const PROBED: usize = 8;
const PROBE_TOKENS: usize = 192;
/// Positions whose logits exist at a time.
const TILE: usize = 128;

/// A teacher whose signals are kept, and what is needed of it.
pub struct Teaching<'a> {
    recipe: &'a Recipe,
    paths: &'a LocalPaths,
    teacher: &'a Written,
    tokenizer: &'a TextTokenizer,
    dataset: &'a Dataset,
    /// What training asks for.
    spec: Spec,
    about: About,
}

impl<'a> Teaching<'a> {
    /// That of a recipe; `None` if its teacher is computed in every step, or there is none.
    ///
    /// # Errors
    /// [`TrainError::Data`] if the teacher's files cannot be read.
    pub fn of(
        recipe: &'a Recipe,
        paths: &'a LocalPaths,
        tokenizer: &'a TextTokenizer,
        dataset: &'a Dataset,
    ) -> Result<Option<Self>, TrainError> {
        let Some((teacher, signal)) =
            recipe.teacher.as_ref().and_then(|teacher| Some((teacher, teacher.signal?)))
        else {
            return Ok(None);
        };
        let choice = match signal {
            TeacherSignal::TopK { top_k } => Choice::TopK { k: top_k.min(tokenizer.vocab_size()) },
            TeacherSignal::Sampled { draws, power } => Choice::Sampled { draws, power },
        };
        let temperature = recipe.distill.as_ref().map_or(1.0, |distill| distill.temperature);
        let spec = Spec { choice, temperature };
        let name = match (teacher.remote(), &paths.teacher) {
            (Some(remote), _) => format!("{} by {}", remote.model, remote.protocol.name()),
            (None, Some(path)) => fingerprint(path, teacher)?,
            (None, None) => String::new(),
        };
        let data = dataset.train.fingerprint().to_owned();
        let about = About::new(name, tokenizer.fingerprint().to_owned(), data, spec.clone());
        Ok(Some(Self { recipe, paths, teacher, tokenizer, dataset, spec, about }))
    }

    /// What the signals depend on.
    pub fn about(&self) -> &About {
        &self.about
    }

    /// Which tokens training hears of.
    pub fn kind(&self) -> Kind {
        self.spec.choice.kind()
    }

    /// The tokenizer that ids are of.
    pub fn tokenizer(&self) -> &TextTokenizer {
        self.tokenizer
    }

    /// The directory of the signals.
    pub fn path(&self) -> PathBuf {
        match &self.teacher.cache {
            Some(cache) => cache.path.clone(),
            None => self.recipe.output.join(HOME).join(self.about.name()),
        }
    }

    /// Every sequence that the run will see, each once, in that order; then the held-out ones.
    pub fn sequences(&self) -> impl Iterator<Item = (Key, Sequence)> + Send + 'a {
        let (recipe, dataset, kind) = (self.recipe, self.dataset, self.kind());
        let train = &recipe.train;
        let mut cursor = dataset.train.cursor(recipe.seed);
        let steps = train.steps * train.gradient_accumulation;
        let trained = (0..steps).flat_map(move |_| {
            let batch = dataset.train.next_batch(&mut cursor, train.batch_size);
            (0..batch.batch).map(|row| batch.row(row)).collect::<Vec<_>>()
        });
        let trained = trained.map(move |sequence| (Key::of(&sequence, kind), sequence));
        let count = recipe.eval.sequences.min(dataset.held_out.len());
        let held_out = (0..count).map(|index| dataset.held_out.batch(&[index]).row(0));
        let held_out = held_out.map(|sequence| (Key::of(&sequence, Kind::TopK), sequence));
        let mut seen = HashSet::new();
        trained.chain(held_out).filter(move |(key, _)| seen.insert(*key))
    }

    /// What a sequence is asked about: training as the recipe has it, held-out ones always the
    /// likeliest tokens.
    fn spec_of(&self, held_out: bool) -> Spec {
        match (&self.spec.choice, held_out) {
            (Choice::Sampled { .. }, true) => Spec {
                choice: Choice::TopK { k: HELD_OUT_TOP_K.min(self.tokenizer.vocab_size()) },
                ..self.spec.clone()
            },
            _ => self.spec.clone(),
        }
    }

    /// The cache with all that the run needs, asking for what it lacks.
    ///
    /// `progress` is told how far the asking is.
    ///
    /// # Errors
    /// [`TrainError::Teacher`]; of a budget that ended first, [`TeacherError::Budget`].
    pub fn cache(
        &self,
        device: &Device,
        progress: &mut dyn FnMut(Asked),
    ) -> Result<Cache, TrainError> {
        let path = self.path();
        let keys: Vec<Key> = self.sequences().map(|(key, _)| key).collect();
        let cache = Cache::open(&path, &self.about)?;
        if cache.require(&keys).is_ok() {
            return Ok(cache);
        }
        drop(cache);
        let mut writer = Writer::open(&path, &self.about, &keys)?;
        let asked = match self.teacher.remote() {
            Some(remote) => self.ask(remote, &mut writer, progress),
            None => self.compute(&mut writer, device, progress),
        };
        // What has come is kept, whatever has ended the asking.
        let cache = writer.finish()?;
        let asked = asked?;
        if asked.budget_spent {
            let (texts, of) = (asked.texts, asked.of);
            return Err(TeacherError::Budget { path, tokens: asked.tokens, texts, of }.into());
        }
        cache.require(&keys)?;
        Ok(cache)
    }

    fn ask(
        &self,
        remote: &RemoteTeacher,
        writer: &mut Writer,
        progress: &mut dyn FnMut(Asked),
    ) -> Result<Asked, TrainError> {
        let mut client = client(remote, self.tokenizer)?;
        self.probe(&mut client)?.into_result()?;
        let held_out: HashSet<Key> = self.held_out_keys();
        let spec = |key: Key| self.spec_of(held_out.contains(&key));
        let (mut spent, mut lacking) = (0, HashSet::new());
        for (key, sequence) in self.sequences() {
            match writer.lacks(key) {
                true => drop(lacking.insert(key)),
                false => spent += tokens_of(&sequence),
            }
        }
        let texts = self.sequences().filter(|(key, _)| lacking.contains(key));
        let mut show = |asked| {
            progress(asked);
            true
        };
        Ok(client.fetch(writer, texts, &spec, budget(remote), spent, &mut show)?)
    }

    /// Looks whether the recipe's servers can be believed, on held-out text.
    ///
    /// # Errors
    /// [`TrainError::Teacher`]. What is not as it should be is in the report.
    pub fn probe(&self, client: &mut Client) -> Result<ProbeReport, TrainError> {
        let held_out = &self.dataset.held_out;
        let rows = (0..held_out.len().min(PROBED)).map(|index| held_out.batch(&[index]).row(0));
        let texts = rows.flat_map(|row| queries(&row).collect::<Vec<_>>());
        let longest = texts.map(|query| query.tokens).max_by_key(Vec::len);
        let mut known = longest.unwrap_or_default();
        known.truncate(PROBE_TOKENS);
        Ok(distill_teacher::probe(client, self.tokenizer, known, None)?)
    }

    fn held_out_keys(&self) -> HashSet<Key> {
        let count = self.recipe.eval.sequences.min(self.dataset.held_out.len());
        let row = |index| self.dataset.held_out.batch(&[index]).row(0);
        (0..count).map(|index| Key::of(&row(index), Kind::TopK)).collect()
    }

    /// Lets a local teacher say what it has to say.
    fn compute(
        &self,
        writer: &mut Writer,
        device: &Device,
        progress: &mut dyn FnMut(Asked),
    ) -> Result<Asked, TrainError> {
        let (Some(local), Some(path)) = (self.teacher.local(), &self.paths.teacher) else {
            return Ok(Asked::default());
        };
        let model = TeacherModel::load(path, local.engine, device)?;
        let (vocabulary, length) = (self.tokenizer.vocab_size(), self.recipe.data.sequence_length);
        let teacher = model.teacher(vocabulary, length, device)?;
        let held_out = self.held_out_keys();
        let mut asked = Asked { of: writer.missing(), ..Asked::default() };
        for (key, sequence) in self.sequences() {
            if !writer.lacks(key) {
                continue;
            }
            let spec = self.spec_of(held_out.contains(&key));
            let tokens = tokens_of(&sequence);
            writer.put(key, &said(&*teacher, sequence, key, &spec)?)?;
            asked.texts += 1;
            asked.tokens += tokens;
            progress(asked);
        }
        Ok(asked)
    }
}

/// What a local teacher says of a sequence, where the loss counts.
fn said(
    teacher: &dyn Teacher,
    sequence: Sequence,
    key: Key,
    spec: &Spec,
) -> Result<Said, TrainError> {
    let length = sequence.input_ids.len();
    // Of each position the query that it belongs to: what is drawn depends on that alone.
    let mut streams = vec![None; length];
    for query in queries(&sequence) {
        for (i, &wanted) in query.wanted.iter().enumerate() {
            streams[query.start + i] = wanted.then_some((query.seed(key), i as u64));
        }
    }
    let batch = Batch::of(sequence);
    let Signal::Dense(dense) = teacher.signal(&batch)? else {
        unreachable!("a local teacher says everything");
    };
    let mut all = Said::new(spec.choice.kind());
    for start in (0..length).step_by(TILE) {
        let tile = start..(start + TILE).min(length);
        let logits: Tensor<2> = dense.logits(tile.clone());
        let vocabulary = logits.dims()[1];
        let logits = parameters::values(logits);
        let rows: Vec<Vec<(u32, f32)>> = tile
            .into_par_iter()
            .zip(logits.par_chunks(vocabulary))
            .map(|(position, logits)| match streams[position] {
                Some((seed, stream)) => choose(logits, spec, seed, stream),
                None => Vec::new(),
            })
            .collect();
        rows.into_iter().for_each(|row| all.push(row));
    }
    Ok(all)
}

/// A client for the servers of a teacher.
///
/// # Errors
/// [`TeacherError`]: no key, an address that is none.
pub fn client(remote: &RemoteTeacher, tokenizer: &TextTokenizer) -> Result<Client, TeacherError> {
    let name = match remote.protocol {
        Protocol::Distill => Name::Distill,
        Protocol::Vllm => Name::Vllm,
        Protocol::Sglang => Name::Sglang,
        Protocol::Trl => Name::Trl,
        Protocol::LlamaServer => Name::LlamaServer,
        Protocol::Openai => Name::Openai,
        Protocol::LlamaCppPython => Name::LlamaCppPython,
    };
    let vocabulary = Vocabulary::new(tokenizer);
    let options = ClientOptions {
        endpoints: remote.endpoints.clone(),
        key: remote.api_key_env.as_deref().map(Secret::from_env).transpose()?,
        concurrency: remote.concurrency,
        timeout: std::time::Duration::from_secs_f64(remote.timeout_s),
        attempts: remote.attempts,
        requests_per_minute: remote.requests_per_minute,
        tokens_per_minute: remote.tokens_per_minute,
        ..ClientOptions::default()
    };
    let size = vocabulary.size();
    Client::new(options, protocol(name, &remote.model, vocabulary.into()), size)
}

/// The most tokens that may be sent: the tighter of the two limits.
pub fn budget(remote: &RemoteTeacher) -> Option<u64> {
    let by_cost = remote
        .max_cost
        .zip(remote.price_per_million_tokens)
        .map(|(cost, price)| (cost / price * 1e6) as u64);
    match (remote.max_tokens, by_cost) {
        (Some(tokens), Some(by_cost)) => Some(tokens.min(by_cost)),
        (tokens, by_cost) => tokens.or(by_cost),
    }
}

/// A hash of a local teacher's weights, and how they are computed.
fn fingerprint(path: &std::path::Path, teacher: &Written) -> Result<String, TrainError> {
    let mut files = vec![path.to_path_buf()];
    if path.is_dir() {
        let entries = std::fs::read_dir(path).map_err(|source| TrainError::Io {
            action: "reading",
            path: path.to_path_buf(),
            source,
        })?;
        files = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        files.retain(|file| {
            let is = |name: &str| file.file_name().is_some_and(|n| n == name);
            file.extension().is_some_and(|e| e == "safetensors") || is("config.json")
        });
        files.sort();
    }
    let hash = distill_data::hash_files(&files)?;
    let engine = teacher.local().map(|local| format!("{:?}", local.engine)).unwrap_or_default();
    Ok(format!("{hash} in the {}", engine.to_lowercase()))
}
