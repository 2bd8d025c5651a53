//! The self-test of a remote teacher against a server that is wrong in one way at a time.

#[allow(dead_code, reason = "other tests look at more of the server")]
mod fake;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use distill_data::{SpecialTokens, SplitMix64, TextTokenizer};
use distill_teacher::protocol::{Name, Vocabulary, protocol};
use distill_teacher::{Choice, Spec};
use distill_teacher::{
    Client, ClientOptions, PROBE_TEXT, ProbeReport, TeacherError, choose, probe,
};
use fake::{Fault, Server};
use serde_json::{Value, json};

/// What is wrong with the server.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Wrong {
    Nothing,
    /// Row i is that of token i + 1.
    Shifted,
    /// A beginning-of-sequence token is put before the text, and counted.
    BosCounted,
    /// Likewise, and nothing tells.
    BosHidden,
    /// Ids mean other tokens.
    OtherTokenizer,
    /// Sampling parameters are applied.
    Temperature(f32),
    /// Fewer tokens than were asked for.
    TruncatedK,
    /// The answer to the question before.
    Reordered,
    /// The first answer, for ever.
    Stale,
    /// Divided by the sum of the top-k.
    Renormalised,
    /// Probabilities, not their logarithms.
    Probabilities,
    /// Another answer each time.
    Noisy,
    /// Ids of a larger vocabulary.
    OtherVocabulary,
    /// Behind the address is another model.
    OtherModel,
}

/// A model that has read the probe's text and is as often right as it thinks.
struct Model {
    vocabulary: usize,
    bos: u32,
    follows: HashMap<(u32, u32), u32>,
}

impl Model {
    fn new(tokenizer: &TextTokenizer) -> Self {
        let text = tokenizer.encode(PROBE_TEXT, false).unwrap();
        let follows = text.windows(3).map(|three| ((three[0], three[1]), three[2]));
        let bos = tokenizer.bos().expect("it has one");
        Self { vocabulary: tokenizer.vocab_size(), bos, follows: follows.collect() }
    }

    /// Logits after a text: 0.6 on one token, which is the right one in six of ten places that it knows.
    fn logits(&self, tokens: &[u32], seed: u64) -> Vec<f32> {
        let last = tokens[tokens.len() - 1];
        let before = if tokens.len() > 1 { tokens[tokens.len() - 2] } else { last };
        let place = u64::from(before) << 32 | u64::from(last);
        let mut random = SplitMix64::new(place, seed);
        let guess = random.below(self.vocabulary as u64) as u32;
        let knows = random.below(10) < 6;
        let right = self.follows.get(&(before, last)).copied().filter(|_| knows);
        let begun = if tokens[0] == self.bos { 0.02 } else { 0.0 };
        let mut logits = vec![(0.4 / self.vocabulary as f32).ln(); self.vocabulary];
        for (rank, logit) in logits.iter_mut().enumerate() {
            // No two alike.
            *logit += 1e-4 * rank as f32;
        }
        logits[right.unwrap_or(guess) as usize] = (0.6_f32 + begun).ln();
        logits
    }

    /// vLLM's answer, wrong in one way.
    fn answer(&self, tokens: &[u32], k: usize, wrong: Wrong, random: &mut SplitMix64) -> Value {
        let mut text = tokens.to_vec();
        if matches!(wrong, Wrong::BosCounted | Wrong::BosHidden) {
            text.insert(0, self.bos);
        }
        if wrong == Wrong::OtherTokenizer {
            text.iter_mut().for_each(|id| *id = (*id * 7 + 3) % self.vocabulary as u32);
        }
        let extra = text.len() - tokens.len();
        let mut rows = vec![Value::Null];
        for position in 0..tokens.len() - 1 {
            let shift = usize::from(wrong == Wrong::Shifted && position + 2 < tokens.len());
            let seed = u64::from(wrong == Wrong::OtherModel);
            let mut logits = self.logits(&text[..=position + extra + shift], seed);
            match wrong {
                Wrong::Temperature(t) => logits.iter_mut().for_each(|z| *z /= t),
                Wrong::Noisy => logits.iter_mut().for_each(|z| *z += 3.0 * random.unit() as f32),
                _ => {}
            }
            let asked = if wrong == Wrong::TruncatedK { k - 2 } else { k };
            let spec = Spec { choice: Choice::TopK { k: asked }, temperature: 1.0 };
            let mut top = choose(&logits, &spec, 0, 0);
            let sum: f32 = top.iter().map(|entry| entry.1.exp()).sum();
            for (id, log_p) in &mut top {
                match wrong {
                    Wrong::Renormalised => *log_p -= sum.ln(),
                    Wrong::Probabilities => *log_p = log_p.exp(),
                    Wrong::OtherVocabulary if *id + 5 > self.vocabulary as u32 => *id += 1000,
                    _ => {}
                }
            }
            let all = Spec { choice: Choice::TopK { k: self.vocabulary }, temperature: 1.0 };
            let follows = tokens[position + 1];
            let mut all = choose(&logits, &all, 0, 0).into_iter();
            let own = all.find(|entry| entry.0 == follows).expect("every token").1;
            let mut row = serde_json::Map::new();
            for (rank, (id, log_p)) in top.into_iter().enumerate() {
                row.insert(id.to_string(), json!({"logprob": log_p, "rank": rank + 1}));
            }
            row.entry(follows.to_string()).or_insert(json!({"logprob": own, "rank": 999}));
            rows.push(Value::Object(row));
        }
        json!({
            "choices": [{"index": 0, "prompt_logprobs": rows}],
            "usage": {"prompt_tokens": tokens.len() + usize::from(wrong == Wrong::BosCounted)},
        })
    }
}

fn tokenizer() -> TextTokenizer {
    let special = SpecialTokens { bos: Some("<s>".to_owned()), ..SpecialTokens::default() };
    TextTokenizer::train(std::iter::once(Ok(PROBE_TEXT.repeat(3))), 400, &special).unwrap()
}

fn server(wrong: Wrong) -> Server {
    let model = Model::new(&tokenizer());
    let (first, before) = (Mutex::new(None), Mutex::new(None));
    let random = Mutex::new(SplitMix64::new(1, 0));
    Server::answering(
        "127.0.0.1:0",
        |_| Fault::None,
        |_| {},
        move |request| {
            let tokens: Vec<u32> = serde_json::from_value(request["prompt"].clone()).unwrap();
            let k = request["prompt_logprobs"].as_u64().unwrap() as usize;
            let answer = model.answer(&tokens, k, wrong, &mut random.lock().unwrap());
            match wrong {
                Wrong::Stale => first.lock().unwrap().get_or_insert(answer).clone(),
                Wrong::Reordered => {
                    let mut before = before.lock().unwrap();
                    before.replace(answer.clone()).unwrap_or(answer)
                }
                _ => answer,
            }
        },
    )
}

fn look(servers: &[&Server]) -> Result<ProbeReport, TeacherError> {
    let tokenizer = tokenizer();
    let vocabulary = Arc::new(Vocabulary::new(&tokenizer));
    let size = vocabulary.size();
    let options = ClientOptions {
        endpoints: servers.iter().map(|server| server.url()).collect(),
        pause: Duration::from_millis(1),
        ..ClientOptions::default()
    };
    let mut client = Client::new(options, protocol(Name::Vllm, "m", vocabulary), size)?;
    probe(&mut client, &tokenizer, Vec::new(), None)
}

#[test]
fn an_honest_server_passes_everything() {
    let (one, other) = (server(Wrong::Nothing), server(Wrong::Nothing));
    let report = look(&[&one, &other]).unwrap();
    let failures: Vec<_> = report.failures().collect();
    assert!(failures.is_empty(), "{failures:#?}");
    assert_eq!(report.findings.len(), 6 + 7, "and the second is held against the first");
}

/// Whether it fails in a report or in the form of an answer, nothing is asked of such a server.
fn complaint(servers: &[&Server]) -> String {
    match look(servers).and_then(ProbeReport::into_result) {
        Ok(report) => panic!("it passes: {report:#?}"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn every_planted_fault_is_found_by_name() {
    for (wrong, expected) in [
        (Wrong::Shifted, "likelier than its tokens in disorder"),
        (Wrong::BosCounted, "a beginning-of-sequence token was added"),
        (Wrong::BosHidden, "added only by us"),
        (Wrong::OtherTokenizer, "likelier than its tokens in disorder"),
        (Wrong::Temperature(2.0), "as surprised as it expects"),
        (Wrong::Temperature(0.5), "as surprised as it expects"),
        (Wrong::TruncatedK, "it has 3 tokens, and 5 were asked for"),
        (Wrong::Reordered, "another position or another text"),
        (Wrong::Stale, "another position or another text"),
        (Wrong::Renormalised, "left for all other tokens"),
        (Wrong::Probabilities, "the log-probability of token"),
        (Wrong::Noisy, "the same answer twice"),
        (Wrong::OtherVocabulary, "among the student's"),
    ] {
        let error = complaint(&[&server(wrong)]);
        assert!(error.contains(expected), "{wrong:?}: {error}");
    }
    let (one, other) = (server(Wrong::Nothing), server(Wrong::OtherModel));
    let error = complaint(&[&one, &other]);
    assert!(error.contains("agrees with the first endpoint"), "{error}");
    assert!(error.contains(&other.url()) && !error.contains(&one.url()), "{error}");
}
