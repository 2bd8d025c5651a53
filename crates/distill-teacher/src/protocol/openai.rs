//! `/v1/completions` with `echo` and `logprobs`, as OpenAI once had it: tokens come as text.
//!
//! A text is sent and comes back with its tokens spelt out, and of each position a map from a token's
//! text to ln p. Tokens are found again by their text. One that is a part of a character has none of its
//! own, and comes as nothing or as U+FFFD; so do special tokens. Several tokens may have the same text,
//! and a map has one entry for all: what is not one token's alone is left to the bucket of others.
//!
//! A server cuts the text by itself. Where it cuts otherwise than the text is packed, at the latest where
//! a piece of a document ends within a word, positions have no signal from there on; one that does so
//! early reads another language, and is refused.
//!
//! llama-cpp-python takes a leading beginning-of-sequence token out of the list of tokens and not out of
//! the list of rows. With one, row i stands before token i, as it should; without one, it stands after
//! it, and the row of the first token, which is then a good one, is null ([`Rows`]).

use std::collections::HashMap;
use std::sync::Arc;

use distill_data::TextTokenizer;
use serde::Deserialize;
use serde_json::json;

use super::{Misread, Protocol, Request, Scored, only, parse, ranked, top_k};
use crate::cache::Query;
use crate::signal::Spec;

/// What a row of an answer is the distribution of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rows {
    /// The token that it stands with: the first has none.
    BeforeToken,
    /// The token behind that.
    AfterToken,
}

/// The texts of tokens, and the tokens of texts.
#[derive(Debug)]
pub struct Vocabulary {
    tokenizer: TextTokenizer,
    /// Those of single tokens; bytes that are no character are [`LOST`].
    texts: Vec<String>,
    /// `None` where several tokens have the same text.
    ids: HashMap<String, Option<u32>>,
}

impl Vocabulary {
    /// That of a tokenizer.
    #[must_use]
    pub fn new(tokenizer: &TextTokenizer) -> Self {
        let texts: Vec<_> =
            (0..tokenizer.vocab_size() as u32).map(|id| tokenizer.decode(&[id])).collect();
        let mut ids = HashMap::new();
        for (id, text) in texts.iter().enumerate() {
            if !text.is_empty() && !text.contains(LOST) {
                let several = ids.contains_key(text);
                ids.insert(text.clone(), (!several).then_some(id as u32));
            }
        }
        Self { tokenizer: tokenizer.clone(), texts, ids }
    }

    /// Tokens.
    #[must_use]
    pub fn size(&self) -> usize {
        self.texts.len()
    }

    /// The tokenizer.
    #[must_use]
    pub fn tokenizer(&self) -> &TextTokenizer {
        &self.tokenizer
    }

    fn id(&self, text: &str) -> Option<u32> {
        self.ids.get(text).copied().flatten()
    }

    /// Whether a server may spell a token so.
    fn is_spelt(&self, id: u32, text: &str) -> bool {
        let own = self.texts.get(id as usize).map_or("", String::as_str);
        text.is_empty() || own == text || own.replace(LOST, "") == text
    }
}

/// A server that cuts the first tokens of a text otherwise is not one for this text.
const MUST_AGREE: usize = 8;

/// What stands for bytes that are no character.
const LOST: char = '\u{fffd}';

pub(super) struct OpenAi {
    model: String,
    vocabulary: Arc<Vocabulary>,
    may_be_shifted: bool,
    rows: Rows,
}

impl OpenAi {
    pub(super) fn new(model: String, vocabulary: Arc<Vocabulary>, may_be_shifted: bool) -> Self {
        Self { model, vocabulary, may_be_shifted, rows: Rows::BeforeToken }
    }
}

#[derive(Deserialize)]
struct Reply {
    choices: Vec<Choice>,
}

#[derive(Deserialize)]
struct Choice {
    logprobs: Option<LogProbs>,
}

#[derive(Deserialize)]
struct LogProbs {
    tokens: Vec<String>,
    token_logprobs: Vec<Option<f32>>,
    top_logprobs: Vec<Option<HashMap<String, f32>>>,
}

impl Protocol for OpenAi {
    fn requests(&self, query: &Query, spec: &Spec, _: u64) -> Vec<Request> {
        let body = json!({
            "model": self.model,
            "prompt": self.vocabulary.tokenizer.decode(&query.tokens),
            "echo": true,
            "logprobs": top_k(spec),
            "max_tokens": 1,
            "temperature": 1.0,
        });
        vec![Request { path: "/v1/completions", body }]
    }

    fn read(&self, query: &Query, spec: &Spec, replies: &[Vec<u8>]) -> Result<Scored, Misread> {
        let reply: Reply = parse(only(replies)?)?;
        let [choice] = <[Choice; 1]>::try_from(reply.choices)
            .map_err(|choices| format!("it has {} choices, not one", choices.len()))?;
        let found = choice.logprobs.ok_or("it has no `logprobs`")?;
        // Behind the text there may be a token that was generated.
        let rows = found.tokens.len().min(found.top_logprobs.len());
        if rows == 0 || found.token_logprobs.len() < rows {
            return Err("its `logprobs` have no rows".into());
        }
        let pairs = query.tokens.iter().zip(&found.tokens[..rows]);
        let read = pairs.take_while(|(id, text)| self.vocabulary.is_spelt(**id, text)).count();
        if read < query.tokens.len().min(MUST_AGREE) {
            let expected = self.vocabulary.tokenizer.decode(&query.tokens[read..=read]);
            let text = found.tokens.get(read).map_or("nothing", String::as_str);
            return Err(format!(
                "it has read {text:?} where {expected:?} was sent, at token {read}: its tokenizer \
                 cuts the text otherwise, or it has put something before it"
            )
            .into());
        }
        if found.top_logprobs[0].is_some() {
            return Err(
                "the first token has log-probabilities, though nothing stands before it".into()
            );
        }
        let first = match self.rows {
            Rows::BeforeToken => 1,
            Rows::AfterToken => 0,
        };
        let mut scored = Scored::default();
        for position in 0..query.positions() {
            // The token that follows belongs to what was read, or the text went on otherwise.
            let row = found.top_logprobs.get(position + first).filter(|_| position + 1 < read);
            let row = row.and_then(Option::as_ref);
            let entries = row
                .into_iter()
                .flatten()
                .filter_map(|(text, &log_p)| self.vocabulary.id(text).map(|id| (None, id, log_p)));
            let entries: Vec<_> = entries.collect();
            let follows = query.tokens[position + 1];
            let among = entries.iter().find(|entry| entry.1 == follows).map(|entry| entry.2);
            scored.followed.push(match self.rows {
                Rows::BeforeToken if row.is_some() => found.token_logprobs[position + 1].or(among),
                _ => among,
            });
            scored.positions.push(ranked(entries, top_k(spec)));
        }
        Ok(scored)
    }

    fn is_complete(&self) -> bool {
        false
    }

    fn may_be_shifted(&self) -> bool {
        self.may_be_shifted
    }

    fn set_rows(&mut self, rows: Rows) {
        self.rows = rows;
    }
}
