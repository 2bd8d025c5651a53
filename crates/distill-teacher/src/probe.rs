//! The self-test of a remote teacher: whether its answers mean what they seem to, before any is paid
//! for.
//!
//! Every endpoint is asked about a text that it should know, twice, about the same tokens in disorder, and
//! about the text behind a beginning-of-sequence token. What each single answer must have (one row for each
//! token, the ids that were sent, probabilities of 1 or less together, as many tokens as were asked
//! for) is looked at whenever an answer is read; here answers are held against each other:
//!
//! | check | what it finds |
//! |---|---|
//! | the text is likelier than the same tokens in disorder | rows shifted by one, another tokenizer, answers to another's question |
//! | ln p of what follows is that of the same token among the likeliest | two lists that are not aligned |
//! | something is left for all other tokens | a top-k that was divided by its sum |
//! | as surprised as it expects to be | a temperature, logarithms to another base |
//! | the same answer twice | samples, noise, a cache of something else |
//! | a beginning-of-sequence token changes something, and only once | one that is added unasked |
//! | all endpoints agree | another model behind one of them |
//! | the local weights agree, where there are any | all of that |

use distill_data::TextTokenizer;

use crate::cache::Query;
use crate::client::Client;
use crate::error::TeacherError;
use crate::protocol::{Rows, Scored};
use crate::signal::{Choice, Spec};

/// A text that every teacher should know a little of, where there is none of its own field.
pub const TEXT: &str = "\
The sun rises in the east and sets in the west. There are seven days in a week: Monday, Tuesday, \
Wednesday, Thursday, Friday, Saturday and Sunday. One, two, three, four, five, six, seven, eight, nine, \
ten. We have to do what we can to make the world a better place for our children and for the people of \
this country. Water is made of hydrogen and oxygen. The capital of France is Paris, and the capital of \
England is London. He said that he would be there at the end of the day, and she said that she would not.";

/// Tokens that tell a known text from noise.
const SHORTEST: usize = 32;

/// Nats a token by which the text must be likelier than its tokens in disorder.
const LIKELIER: f64 = 0.4;
/// Nats a token between how surprised a teacher is and how surprised it expects to be.
const CALIBRATED: f64 = 1.2;
/// What two answers to the same question may differ in, where p is 0.01 or more.
const SAME: f64 = 0.1;
/// What answers may differ in from weights of the same model in other arithmetic.
const SAME_WEIGHTS: f64 = 0.25;
/// The share of positions at which two answers name the same token first.
const SAME_TOP: f64 = 0.9;
/// A probability of all other tokens below this is none.
const SOMETHING: f64 = 1e-5;

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// The endpoint.
    pub endpoint: String,
    /// What was looked at.
    pub check: &'static str,
    /// What was found, with figures.
    pub found: String,
    /// Whether that is as it should be.
    pub passed: bool,
}

/// What a probe has found.
#[derive(Clone, Debug, PartialEq)]
pub struct ProbeReport {
    /// Everything that was looked at.
    pub findings: Vec<Finding>,
    /// Which of a text server's rows belongs to a token.
    pub rows: Rows,
}

impl ProbeReport {
    /// What was not as it should be.
    pub fn failures(&self) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(|finding| !finding.passed)
    }

    /// An error if anything was not as it should be.
    ///
    /// # Errors
    /// [`TeacherError::Probe`] with all of that.
    pub fn into_result(self) -> Result<Self, TeacherError> {
        let line = |finding: &Finding| {
            format!("{}: {}: {}", finding.endpoint, finding.check, finding.found)
        };
        let failures: Vec<String> = self.failures().map(line).collect();
        match failures.is_empty() {
            true => Ok(self),
            false => Err(TeacherError::Probe { failures: failures.join("\n") }),
        }
    }
}

/// What weights that are at hand say of a text.
pub type Local<'a> = dyn Fn(&Query, &Spec) -> Result<Scored, TeacherError> + 'a;

/// Looks whether every endpoint of `client` can be believed, and sets which rows it reads.
///
/// `known` is text of the kind that is learned from, at least 32 tokens; else [`TEXT`] is taken.
/// `local` are the teacher's own weights, where they are at hand.
///
/// # Errors
/// Those of asking. What is not as it should be is in the report.
pub fn probe(
    client: &mut Client,
    tokenizer: &TextTokenizer,
    known: Vec<u32>,
    local: Option<&Local<'_>>,
) -> Result<ProbeReport, TeacherError> {
    let spec = Spec { choice: Choice::TopK { k: 5 }, temperature: 1.0 };
    let known = match known.len() < SHORTEST {
        false => known,
        true => {
            let text = |error: distill_data::DataError| error.to_string();
            let tokens = tokenizer.encode(TEXT, false).map_err(text);
            tokens.map_err(|problem| TeacherError::Text { problem })?
        }
    };
    let texts = Texts::new(known, tokenizer.bos());
    let mut report = ProbeReport { findings: Vec::new(), rows: Rows::BeforeToken };
    if client.may_be_shifted() {
        report.rows = rows(client, &texts, &spec)?;
        client.set_rows(report.rows);
    }
    let local = local.map(|local| local(&texts.known, &spec)).transpose()?;
    let mut first: Option<Scored> = None;
    let addresses: Vec<String> = client.addresses().map(str::to_owned).collect();
    for (number, address) in addresses.iter().enumerate() {
        let mut note = |check, (passed, found): (bool, String)| {
            let endpoint = address.clone();
            report.findings.push(Finding { endpoint, check, found, passed });
        };
        let ask = |query: &Query| client.ask_at(number, query, &spec, 0);
        let known = match ask(&texts.known) {
            Ok(known) => known,
            Err(TeacherError::Misread { problem, .. }) => {
                note("the form of its answers", (false, problem));
                continue;
            }
            Err(error) => return Err(error),
        };
        let (again, disorder) = (ask(&texts.known)?, ask(&texts.disorder)?);
        note("the text is likelier than its tokens in disorder", order(&known, &disorder));
        note("ln p of what follows is that among the likeliest", aligned(&known, &texts.known));
        note("something is left for all other tokens", left(&known));
        note("as surprised as it expects to be", calibrated(&known));
        note("the same answer twice", same(&known, &again, SAME));
        if let Some(behind) = &texts.behind_bos {
            note("a beginning-of-sequence token is added only by us", bos(&known, &ask(behind)?));
        }
        if let Some(first) = &first {
            note("it agrees with the first endpoint", same(first, &known, SAME_WEIGHTS));
        }
        if let Some(local) = &local {
            note("it agrees with the local weights", same(local, &known, SAME_WEIGHTS));
        }
        first.get_or_insert(known);
    }
    Ok(report)
}

/// What is asked about.
struct Texts {
    known: Query,
    disorder: Query,
    behind_bos: Option<Query>,
}

impl Texts {
    fn new(known: Vec<u32>, bos: Option<u32>) -> Self {
        // Far from each other, and each once: n and the step have no common divisor.
        let n = known.len();
        let divides =
            |step: usize| (2..=step).any(|d| n.is_multiple_of(d) && step.is_multiple_of(d));
        let step = (n / 3..n).find(|&step| step > 1 && !divides(step)).unwrap_or(1);
        let disorder = (0..n).map(|i| known[i * step % n]).collect();
        let behind = bos.map(|bos| [&[bos], &known[..]].concat());
        Self { known: query(known), disorder: query(disorder), behind_bos: behind.map(query) }
    }
}

fn query(tokens: Vec<u32>) -> Query {
    let wanted = vec![true; tokens.len() - 1];
    Query { start: 0, tokens, wanted }
}

/// In which of the two ways the text is likelier.
fn rows(client: &mut Client, texts: &Texts, spec: &Spec) -> Result<Rows, TeacherError> {
    let mut likelihood = |rows| {
        client.set_rows(rows);
        Ok(mean(&surprise(&client.ask(&texts.known, spec, 0)?)))
    };
    let (before, after) = (likelihood(Rows::BeforeToken)?, likelihood(Rows::AfterToken)?);
    Ok(if before <= after { Rows::BeforeToken } else { Rows::AfterToken })
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// −ln p of what follows, at each position of which something is known. Of a token that is not among
/// the likeliest, the least of what it can be.
fn surprise(scored: &Scored) -> Vec<f64> {
    let rows = scored.positions.iter().zip(&scored.followed);
    let rows = rows.filter(|(row, _)| !row.is_empty());
    rows.map(|(row, followed)| match followed {
        Some(log_p) => -f64::from(*log_p),
        None => -f64::from(row[row.len() - 1].1).min(tail(row).max(1e-9).ln()),
    })
    .collect()
}

/// What is left for other tokens.
fn tail(row: &[(u32, f32)]) -> f64 {
    1.0 - row.iter().map(|entry| f64::from(entry.1).exp()).sum::<f64>()
}

fn order(known: &Scored, disorder: &Scored) -> (bool, String) {
    let (known, disorder) = (mean(&surprise(known)), mean(&surprise(disorder)));
    let found = format!("{known:.2} nats a token, {disorder:.2} in disorder");
    (disorder - known >= LIKELIER, found)
}

fn aligned(scored: &Scored, query: &Query) -> (bool, String) {
    let rows = scored.positions.iter().zip(&scored.followed).zip(&query.tokens[1..]);
    let (mut looked, mut wrong) = (0, 0);
    for ((row, followed), &follows) in rows {
        let Some(followed) = followed else { continue };
        let Some(least) = row.last() else { continue };
        looked += 1;
        wrong += usize::from(match row.iter().find(|entry| entry.0 == follows) {
            Some((_, among)) => (among - followed).abs() > 0.02,
            None => *followed > least.1 + 0.02,
        });
    }
    (wrong * 20 <= looked, format!("otherwise at {wrong} of {looked} positions"))
}

fn left(scored: &Scored) -> (bool, String) {
    let rows: Vec<f64> =
        scored.positions.iter().filter(|row| !row.is_empty()).map(|r| tail(r)).collect();
    let nothing = rows.iter().filter(|&&tail| tail < SOMETHING).count();
    let found =
        format!("{:.3} in the mean, none at {nothing} of {} positions", mean(&rows), rows.len());
    (nothing * 2 < rows.len(), found)
}

fn calibrated(scored: &Scored) -> (bool, String) {
    // Of the likeliest tokens and of one that stands for the others: on both sides alike.
    let (mut expected, mut found) = (0.0, 0.0);
    let rows = scored.positions.iter().zip(&scored.followed);
    let rows: Vec<_> = rows.filter(|(row, _)| !row.is_empty()).collect();
    for (row, followed) in &rows {
        let tail = tail(row).max(1e-9);
        let entropy = |log_p: f64| -log_p.exp() * log_p;
        expected += row.iter().map(|entry| entropy(f64::from(entry.1))).sum::<f64>();
        expected += entropy(tail.ln());
        let least = row[row.len() - 1].1;
        found -= match followed {
            Some(log_p) if *log_p >= least => f64::from(*log_p),
            _ => tail.ln(),
        };
    }
    let n = rows.len().max(1) as f64;
    let (expected, found) = (expected / n, found / n);
    let text = format!("{found:.2} nats a token, expected {expected:.2}");
    ((found - expected).abs() <= CALIBRATED, text)
}

fn same(a: &Scored, b: &Scored, allowed: f64) -> (bool, String) {
    let (mut looked, mut top, mut largest) = (0, 0, 0.0_f64);
    for (a, b) in a.positions.iter().zip(&b.positions) {
        let (Some(first), Some(other)) = (a.first(), b.first()) else { continue };
        looked += 1;
        top += usize::from(first.0 == other.0);
        for (token, log_p) in a.iter().filter(|entry| entry.1 > 0.01_f32.ln()) {
            let there = b.iter().find(|entry| entry.0 == *token).map(|entry| entry.1);
            // Where it is not among the others' likeliest, it is less likely than all of these.
            let there = there.unwrap_or(b[b.len() - 1].1.min(*log_p));
            largest = largest.max(f64::from((there - log_p).abs()));
        }
    }
    let found = format!("first token the same at {top} of {looked}, ln p within {largest:.3}");
    (top as f64 >= SAME_TOP * looked as f64 && largest <= allowed && looked > 0, found)
}

fn bos(known: &Scored, behind: &Scored) -> (bool, String) {
    // After the same tokens, once with our own token before them and once without.
    let pairs = known.positions.iter().zip(&behind.positions[1..]).take(8);
    let differs = |a: &[(u32, f32)], b: &[(u32, f32)]| {
        let far = |(a, b): (&(u32, f32), &(u32, f32))| a.0 != b.0 || (a.1 - b.1).abs() > 1e-4;
        a.iter().zip(b).any(far)
    };
    let both = pairs.filter(|(a, b)| !a.is_empty() && !b.is_empty());
    let (mut looked, mut changed) = (0, 0);
    for (a, b) in both {
        looked += 1;
        changed += usize::from(differs(a, b));
    }
    let found = format!("with ours before the text, {changed} of {looked} answers change");
    (changed > 0 || looked == 0, found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_in_disorder_has_the_same_tokens() {
        for n in [7, 30, 97, 120] {
            let known: Vec<u32> = (0..n).collect();
            let texts = Texts::new(known.clone(), Some(99));
            let mut sorted = texts.disorder.tokens.clone();
            let next = |pair: &&[u32]| pair[1] == pair[0] + 1;
            assert!(texts.disorder.tokens.windows(2).filter(next).count() < 2);
            sorted.sort_unstable();
            assert_eq!(sorted, known);
            assert_eq!(texts.behind_bos.unwrap().tokens.len(), known.len() + 1);
        }
    }
}
