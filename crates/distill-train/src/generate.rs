//! Text that a model makes up: many sequences at a time through the edge runtime, kept on disk.
//!
//! Text n depends on the model, on what it begins with, on how it is drawn, and on the recipe's seed
//! and n: not on how many are written at a time, on threads, or on where an earlier run was cut
//! short. So a cut run goes on with the next shard, and what is there is never made again.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use distill_data::{
    SHARD, Sample, SampleCounts, SampleDirectory, SampleFilters, Source, SourceOptions, documents,
    hash_files,
};
use distill_edge::{BatchOptions, Generated, LoadOptions, Model, Request, SamplerOptions, Texts};
use distill_recipe::{Generate, Recipe};
use serde::Serialize;
use serde_json::json;

use crate::TrainError;
use crate::prepare::{LocalPaths, difference, named_tokenizer, read_tokenizer};

/// The version of what is drawn: it changes where the same recipe would give other texts.
const VERSION: u32 = 1;
/// Texts that are written at a time.
const SEQUENCES: usize = 32;
/// From so many texts on, a share of kept ones below [`HOPELESS`] is given up.
const TRIAL: u64 = 4 * SHARD;
const HOPELESS: f64 = 0.02;
/// Seconds that a probe of the speed takes.
const PROBE: f64 = 1.5;
/// What a token takes on disk: its number and its text.
const TOKEN_BYTES: u64 = 9;

/// The text of a recipe's `[data.generate]`.
#[derive(Debug)]
pub struct Generation {
    model: Model,
    generate: Generate,
    seed: u64,
    /// What texts begin with where the recipe does not say.
    begin_token: Option<u32>,
    prompts: Vec<String>,
    end: Vec<u32>,
    directory: SampleDirectory,
    /// What the directory's name stands for.
    drawn_by: serde_json::Value,
}

/// How far a generation has come.
#[derive(Clone, Copy, Debug)]
pub struct Written {
    /// Texts that are on disk.
    pub counts: SampleCounts,
    /// Tokens drawn for those that are not.
    pub in_the_making: u64,
}

/// What a generation will take.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct GenerationPlan {
    /// Tokens asked for.
    pub tokens: u64,
    /// Those that are there.
    pub there: u64,
    /// Tokens a second; `None` if nothing is left to do.
    pub tokens_per_second: Option<f64>,
    /// Bytes on disk, in all.
    pub bytes: u64,
}

impl GenerationPlan {
    /// Seconds until all are there, if every text passes the filters.
    pub fn seconds(&self) -> f64 {
        let left = self.tokens.saturating_sub(self.there) as f64;
        self.tokens_per_second.map_or(0.0, |speed| left / speed)
    }
}

impl Generation {
    /// Loads the model in `file`, which is the writer of `paths` as the edge runtime reads it. Texts
    /// are kept below `home`. `None` if the recipe generates no text.
    ///
    /// # Errors
    /// [`TrainError::Writer`] if the runtime cannot load it; [`TrainError::Generate`] if its tokens
    /// are not the student's, or texts cannot begin or end as the recipe says;
    /// [`TrainError::Data`] for prompts that cannot be read.
    pub fn open(
        recipe: &Recipe,
        paths: &LocalPaths,
        file: &Path,
        home: &Path,
    ) -> Result<Option<Self>, TrainError> {
        let (Some(generate), Some(writer)) = (&recipe.data.generate, &paths.writer) else {
            return Ok(None);
        };
        let refuse = |problem: String| Err(TrainError::Generate { problem });
        let theirs = read_tokenizer(writer)?;
        if let Some(problem) = difference(&named_tokenizer(recipe, paths)?, &theirs) {
            return refuse(format!("its model's tokenizer is not the student's: {problem}"));
        }
        let model = Model::load(file, &LoadOptions::default()).map_err(TrainError::Writer)?;
        let (tokenizer, positions) = (model.tokenizer(), model.config().context_length);
        let most = generate.max_tokens;
        if most > positions {
            return refuse(format!(
                "`max_tokens` is {most}, and its model is made for {positions} positions"
            ));
        }
        let begin_token = tokenizer.bos().or(tokenizer.eos()).filter(|_| generate.begin.is_empty());
        let mut end = Vec::new();
        for text in &generate.end {
            match tokenizer.encode(text, false)[..] {
                [id] => end.push(id),
                ref ids => {
                    return refuse(format!("`end` names {text:?}, which is {} tokens", ids.len()));
                }
            }
        }
        if end.is_empty() {
            end = (0..tokenizer.vocab_size() as u32).filter(|&id| tokenizer.is_eog(id)).collect();
        }
        let prompts = prompts(recipe, paths)?;
        let drawn_by = json!({
            "version": VERSION,
            "model": hash_files(&[file])?,
            "activations": format!("{:?}", model.activations()),
            "begin": generate.begin,
            "begin_token": begin_token,
            "prompts": prompts,
            "end": end,
            "max_tokens": most,
            "temperature": generate.temperature,
            "top_p": generate.top_p,
            "seed": recipe.seed,
        });
        let directory = SampleDirectory::of(home, &drawn_by);
        let (generate, seed) = (generate.clone(), recipe.seed);
        let found = Self { model, generate, seed, begin_token, prompts, end, directory, drawn_by };
        Ok(Some(found))
    }

    /// Where the texts are.
    pub fn directory(&self) -> &SampleDirectory {
        &self.directory
    }

    /// The model that writes.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// What is there.
    ///
    /// # Errors
    /// [`TrainError::Data`].
    pub fn counts(&self) -> Result<SampleCounts, TrainError> {
        Ok(self.directory.choose(&filters(&self.generate), self.generate.tokens, |_| {})?)
    }

    /// Writes texts until there are enough, or so many shards.
    ///
    /// # Errors
    /// [`TrainError::Writer`], [`TrainError::Data`]; [`TrainError::Generate`] if the filters let
    /// next to nothing pass, or a prompt leaves no room.
    pub fn write(
        &self,
        shards: u64,
        progress: &mut dyn FnMut(Written),
    ) -> Result<SampleCounts, TrainError> {
        let mut counts = self.counts()?;
        let mut shard = self.directory.shards();
        if self.done(&counts, shard, shards)? {
            return Ok(counts);
        }
        self.directory.describe(&self.drawn_by)?;
        let mut texts = self.texts()?;
        let (mut begun, mut in_the_making) = (shard * SHARD, 0);
        let mut waiting: BTreeMap<u64, Sample> = BTreeMap::new();
        loop {
            self.fill(&mut texts, &mut begun)?;
            in_the_making += texts.live() as u64;
            for text in texts.step().map_err(TrainError::Writer)? {
                waiting.insert(text.index, self.sample(text)?);
            }
            let end = (shard + 1) * SHARD;
            if (waiting.range(..end).count() as u64) < SHARD {
                progress(Written { counts, in_the_making });
                continue;
            }
            let later = waiting.split_off(&end);
            let whole: Vec<Sample> = std::mem::replace(&mut waiting, later).into_values().collect();
            self.directory.write(shard, &whole)?;
            shard += 1;
            in_the_making = waiting.values().map(|sample| sample.ids.len() as u64).sum();
            for sample in whole {
                if counts.tokens < self.generate.tokens {
                    counts.add(&filters(&self.generate), sample, |_| {});
                }
            }
            progress(Written { counts, in_the_making });
            if self.done(&counts, shard, shards)? {
                return Ok(counts);
            }
        }
    }

    /// Whether that is enough; an error where it never will be.
    fn done(&self, counts: &SampleCounts, shard: u64, shards: u64) -> Result<bool, TrainError> {
        if counts.tokens >= self.generate.tokens || shard >= shards {
            return Ok(true);
        }
        let texts = counts.texts();
        if texts < TRIAL || counts.kept as f64 >= HOPELESS * texts as f64 {
            return Ok(false);
        }
        let SampleCounts { kept, short, repetitive, likelihood, .. } = counts;
        let problem = format!(
            "of {texts} texts {kept} pass the filters: {short} have fewer tokens than `min_tokens`, \
             {repetitive} repeat themselves more than `max_repetition`, {likelihood} are outside \
             `min_log_prob` and `max_log_prob`; look at them in {}, and loosen a filter or change \
             `begin` or `temperature`",
            self.directory.path().display()
        );
        Err(TrainError::Generate { problem })
    }

    fn texts(&self) -> Result<Texts, TrainError> {
        let context = self.generate.max_tokens;
        let options = BatchOptions { sequences: SEQUENCES, context, ..BatchOptions::default() };
        Texts::new(&self.model, &options).map_err(TrainError::Writer)
    }

    /// Begins as many texts as there is room for.
    fn fill(&self, texts: &mut Texts, begun: &mut u64) -> Result<(), TrainError> {
        while texts.free() > 0 {
            texts.begin(*begun, self.request(*begun)?).map_err(TrainError::Writer)?;
            *begun += 1;
        }
        Ok(())
    }

    fn request(&self, index: u64) -> Result<Request, TrainError> {
        let turn = |texts: &[String]| match texts {
            [] => String::new(),
            _ => texts[(index % texts.len() as u64) as usize].clone(),
        };
        let text = turn(&self.generate.begin) + &turn(&self.prompts);
        let mut prompt = self.model.tokenizer().encode(&text, false);
        prompt.splice(0..0, self.begin_token);
        let (tokens, most) = (prompt.len(), self.generate.max_tokens);
        if tokens == 0 || tokens >= most {
            let problem = format!(
                "text {index} begins with {tokens} tokens, and `max_tokens` is {most}: set `begin`, \
                 shorten the prompt, or raise `max_tokens`"
            );
            return Err(TrainError::Generate { problem });
        }
        Ok(Request {
            prompt,
            max_new: most - tokens,
            end: self.end.clone(),
            sampler: SamplerOptions {
                temperature: self.generate.temperature as f32,
                top_p: self.generate.top_p as f32,
                // Times an odd number, so that texts of neighbouring seeds differ.
                seed: self.seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(index),
                ..SamplerOptions::default()
            },
        })
    }

    fn sample(&self, text: Generated) -> Result<Sample, TrainError> {
        let mut ids = self.request(text.index)?.prompt;
        let (begin, drawn) = (ids.len(), text.tokens.len().max(1));
        ids.extend(text.tokens);
        Ok(Sample {
            index: text.index,
            begin,
            log_prob: (text.log_prob / drawn as f64) as f32,
            text: self.model.tokenizer().decode(&ids),
            ids,
        })
    }

    /// Draws for a moment, to say how long the rest will take.
    ///
    /// # Errors
    /// As [`Generation::write`].
    pub fn plan(&self) -> Result<GenerationPlan, TrainError> {
        let tokens = self.generate.tokens;
        let there = self.counts()?.tokens.min(tokens);
        let tokens_per_second = if there < tokens { Some(self.probe()?) } else { None };
        Ok(GenerationPlan { tokens, there, tokens_per_second, bytes: TOKEN_BYTES * tokens })
    }

    /// Tokens a second.
    fn probe(&self) -> Result<f64, TrainError> {
        let mut texts = self.texts()?;
        let (mut begun, mut drawn) = (0, 0);
        // The first step touches all memory for the first time.
        self.fill(&mut texts, &mut begun)?;
        texts.step().map_err(TrainError::Writer)?;
        let start = Instant::now();
        loop {
            self.fill(&mut texts, &mut begun)?;
            drawn += texts.live();
            texts.step().map_err(TrainError::Writer)?;
            let seconds = start.elapsed().as_secs_f64();
            if seconds > PROBE {
                return Ok(drawn as f64 / seconds);
            }
        }
    }
}

/// The filters of a recipe.
pub fn filters(generate: &Generate) -> SampleFilters {
    SampleFilters {
        min_tokens: generate.min_tokens,
        max_repetition: generate.max_repetition,
        min_log_prob: generate.min_log_prob,
        max_log_prob: generate.max_log_prob,
    }
}

/// All prompts; of a text file each line is one.
fn prompts(recipe: &Recipe, paths: &LocalPaths) -> Result<Vec<String>, TrainError> {
    let options = SourceOptions {
        text_field: recipe.data.text_field.clone(),
        document_separator: Some("\n".into()),
    };
    let mut sources = Vec::new();
    for spec in &paths.prompts {
        sources.extend(Source::resolve(spec, &options)?);
    }
    if sources.is_empty() {
        return Ok(Vec::new());
    }
    let prompts = documents(&sources)?.collect::<Result<Vec<String>, _>>()?;
    match prompts.is_empty() {
        true => Err(TrainError::Generate { problem: "`prompts` holds no text".into() }),
        false => Ok(prompts),
    }
}
