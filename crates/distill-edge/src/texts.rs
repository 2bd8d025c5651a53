//! Generating many texts at a time: as soon as one ends, the next takes its place.

use crate::{Batch, BatchOptions, EdgeError, Model, Sampler, SamplerOptions, StopReason};

/// A text to generate.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// What it begins with, at least one token.
    pub prompt: Vec<u32>,
    /// The most new tokens, at least one.
    pub max_new: usize,
    /// Tokens that end it.
    pub end: Vec<u32>,
    /// How to draw.
    pub sampler: SamplerOptions,
}

/// A text that was generated.
#[derive(Clone, Debug, PartialEq)]
pub struct Generated {
    /// What its request was called.
    pub index: u64,
    /// The new tokens, with the one that ended it.
    pub tokens: Vec<u32>,
    /// The sum of their [`log_prob`](crate::Choice::log_prob)s.
    pub log_prob: f64,
    /// Why it ended.
    pub stop: StopReason,
}

/// Texts in the making, one in each sequence of a [`Batch`].
///
/// A text depends on the model and on its request alone, not on those that are generated with it,
/// nor on the number of threads.
///
/// ```no_run
/// # use distill_edge::{BatchOptions, EdgeError, LoadOptions, Model, Request, SamplerOptions, Texts};
/// # fn main() -> Result<(), EdgeError> {
/// let model = Model::load("model.gguf".as_ref(), &LoadOptions::default())?;
/// let mut texts = Texts::new(&model, &BatchOptions { context: 512, ..BatchOptions::default() })?;
/// let prompt = model.tokenizer().encode("Once upon a time", true);
/// let mut requests = (0..1000).map(|seed| Request {
///     prompt: prompt.clone(),
///     max_new: 256,
///     end: vec![],
///     sampler: SamplerOptions { temperature: 1.0, seed, ..SamplerOptions::default() },
/// });
/// let mut indices = 0..;
/// loop {
///     while texts.free() > 0 && let Some(request) = requests.next() {
///         texts.begin(indices.next().unwrap(), request)?;
///     }
///     if texts.live() == 0 {
///         break;
///     }
///     for text in texts.step()? {
///         println!("{}: {}", text.index, model.tokenizer().decode(&text.tokens));
///     }
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Texts {
    batch: Batch,
    /// One place for each sequence.
    live: Vec<Option<Text>>,
    /// Those of the next step.
    next: Vec<(usize, u32)>,
}

#[derive(Debug)]
struct Text {
    index: u64,
    /// Drawn, or the prompt's last, and not in the sequence yet.
    next: u32,
    tokens: Vec<u32>,
    log_prob: f64,
    max_new: usize,
    end: Vec<u32>,
}

impl Texts {
    /// Opens a batch.
    ///
    /// # Errors
    /// As [`Batch::new`].
    ///
    /// # Panics
    /// Likewise.
    pub fn new(model: &Model, options: &BatchOptions) -> Result<Self, EdgeError> {
        let batch = Batch::new(model, options)?;
        let live = (0..options.sequences).map(|_| None).collect();
        Ok(Self { batch, live, next: Vec::with_capacity(options.sequences) })
    }

    /// Texts in the making.
    pub fn live(&self) -> usize {
        self.live.iter().flatten().count()
    }

    /// Texts that can begin before one ends.
    pub fn free(&self) -> usize {
        self.live.len() - self.live()
    }

    /// The sequences.
    pub fn batch(&self) -> &Batch {
        &self.batch
    }

    /// Reads a prompt, all but its last token, which goes with the next [step](Texts::step).
    /// `index` is what the text will be called.
    ///
    /// # Errors
    /// If the prompt is empty, holds an unknown id, or does not fit into the context.
    ///
    /// # Panics
    /// If no sequence is [free](Texts::free).
    pub fn begin(&mut self, index: u64, request: Request) -> Result<(), EdgeError> {
        let Request { prompt, max_new, end, sampler } = request;
        let sequence = self.live.iter().position(Option::is_none).expect("a free sequence");
        let (&next, before) = prompt.split_last().ok_or(EdgeError::NoTokens)?;
        self.batch.reset(sequence);
        self.batch.check(sequence, &prompt)?;
        self.batch.read(sequence, before)?;
        self.batch.set_sampler(sequence, Some(Sampler::new(sampler)));
        let tokens = Vec::with_capacity(max_new.min(self.batch.context()));
        self.live[sequence] = Some(Text { index, next, tokens, log_prob: 0.0, max_new, end });
        Ok(())
    }

    /// Adds a token to each text and returns those that have ended with it.
    ///
    /// # Errors
    /// None that a text which has begun can bring about.
    pub fn step(&mut self) -> Result<Vec<Generated>, EdgeError> {
        self.next.clear();
        let texts = self.live.iter().enumerate();
        self.next.extend(texts.filter_map(|(s, text)| text.as_ref().map(|text| (s, text.next))));
        self.batch.decode_and_draw(&self.next)?;
        let mut ended = Vec::new();
        for (sequence, place) in self.live.iter_mut().enumerate() {
            let Some(text) = place else { continue };
            let full = self.batch.position(sequence) == self.batch.context();
            let choice = self.batch.choice(sequence);
            text.next = choice.token;
            text.tokens.push(choice.token);
            text.log_prob += f64::from(choice.log_prob);
            let stop = if text.end.contains(&choice.token) {
                StopReason::EndOfGeneration
            } else if text.tokens.len() >= text.max_new {
                StopReason::MaxTokens
            } else if full {
                StopReason::ContextFull
            } else {
                continue;
            };
            let Some(Text { index, tokens, log_prob, .. }) = place.take() else { continue };
            ended.push(Generated { index, tokens, log_prob, stop });
        }
        Ok(ended)
    }
}
