//! A server that speaks vLLM's protocol over plain sockets, with faults on demand.
//!
//! What it says of a text depends on the text alone: after each token some tokens that follow from the
//! tokens so far. So whoever asks, and however often, a signal has one right value.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use distill_data::{Sequence, SplitMix64};
use serde_json::{Value, json};

pub const VOCABULARY: usize = 1000;

/// What to do with a request.
#[derive(Clone, Debug, PartialEq)]
pub enum Fault {
    /// Answer.
    None,
    /// This status, these headers and this body.
    Status(u16, &'static str, &'static str),
    /// Close the connection without a word.
    Drop,
    /// Close it in the middle of the answer.
    Half,
    /// Say that all is well and send this.
    Garbage(&'static str),
    /// Answer after a while.
    Slow(Duration),
}

/// What it has seen.
#[derive(Debug, Default)]
pub struct Seen {
    /// Requests.
    pub requests: AtomicUsize,
    /// Of them, those with the right key.
    pub with_key: AtomicUsize,
    /// Answers that were written whole, by text.
    pub answered: Mutex<Vec<Vec<u32>>>,
    /// Requests at work now, and the most there were.
    pub at_work: AtomicUsize,
    pub most_at_work: AtomicUsize,
    /// When each came.
    pub times: Mutex<Vec<Instant>>,
}

pub struct Server {
    pub address: SocketAddr,
    pub seen: Arc<Seen>,
}

impl Server {
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Serves until the process ends. `fault` decides by the number of the request.
    pub fn start(fault: impl Fn(usize) -> Fault + Send + Sync + 'static) -> Self {
        Self::start_at("127.0.0.1:0", fault, |_| {})
    }

    /// Likewise on an address; `answered` hears of every text whose answer was written.
    pub fn start_at(
        address: &str,
        fault: impl Fn(usize) -> Fault + Send + Sync + 'static,
        answered: impl Fn(&[u32]) + Send + Sync + 'static,
    ) -> Self {
        Self::answering(address, fault, answered, |request| {
            let tokens: Vec<u32> = serde_json::from_value(request["prompt"].clone()).expect("ids");
            reply(&tokens, request["prompt_logprobs"].as_u64().expect("a number") as usize)
        })
    }

    /// Likewise, with answers of one's own.
    pub fn answering(
        address: &str,
        fault: impl Fn(usize) -> Fault + Send + Sync + 'static,
        answered: impl Fn(&[u32]) + Send + Sync + 'static,
        answer: impl Fn(&Value) -> Value + Send + Sync + 'static,
    ) -> Self {
        let answer = Arc::new(answer);
        let listener = TcpListener::bind(address).expect("an address");
        let address = listener.local_addr().expect("bound");
        let seen = Arc::new(Seen::default());
        let (fault, answered) = (Arc::new(fault), Arc::new(answered));
        let server = Self { address, seen: seen.clone() };
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (seen, fault, answered) = (seen.clone(), fault.clone(), answered.clone());
                let answer = answer.clone();
                std::thread::spawn(move || {
                    let _ = serve(stream, &seen, &*fault, &*answered, &*answer);
                });
            }
        });
        server
    }
}

fn serve(
    stream: TcpStream,
    seen: &Seen,
    fault: &dyn Fn(usize) -> Fault,
    answered: &dyn Fn(&[u32]),
    answer: &dyn Fn(&Value) -> Value,
) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut out = stream.try_clone()?;
    let mut input = BufReader::new(stream);
    loop {
        let (mut length, mut key) = (0, false);
        let mut line = String::new();
        if input.read_line(&mut line)? == 0 {
            return Ok(());
        }
        loop {
            line.clear();
            input.read_line(&mut line)?;
            let lower = line.to_lowercase();
            if let Some(value) = lower.strip_prefix("content-length:") {
                length = value.trim().parse().expect("a length");
            }
            key |= line.trim() == "authorization: Bearer sesame";
            if line.trim().is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        input.read_exact(&mut body)?;
        let number = seen.requests.fetch_add(1, Ordering::SeqCst);
        seen.with_key.fetch_add(usize::from(key), Ordering::SeqCst);
        seen.times.lock().unwrap().push(Instant::now());
        let at_work = seen.at_work.fetch_add(1, Ordering::SeqCst) + 1;
        seen.most_at_work.fetch_max(at_work, Ordering::SeqCst);
        let done = respond(&mut out, &body, fault(number), seen, answered, answer);
        seen.at_work.fetch_sub(1, Ordering::SeqCst);
        if !done? {
            return Ok(());
        }
    }
}

/// Whether the connection stays.
fn respond(
    out: &mut TcpStream,
    body: &[u8],
    fault: Fault,
    seen: &Seen,
    answered: &dyn Fn(&[u32]),
    answer: &dyn Fn(&Value) -> Value,
) -> std::io::Result<bool> {
    let mut send = |status: u16, headers: &str, body: &[u8]| {
        let length = body.len();
        let head = format!("HTTP/1.1 {status} x\r\ncontent-length: {length}\r\n{headers}\r\n");
        out.write_all(&[head.as_bytes(), body].concat())
    };
    match fault {
        Fault::Drop => return Ok(false),
        Fault::Status(status, headers, body) => {
            send(status, headers, body.as_bytes())?;
            return Ok(true);
        }
        Fault::Garbage(text) => {
            send(200, "", text.as_bytes())?;
            return Ok(true);
        }
        Fault::Slow(pause) => std::thread::sleep(pause),
        Fault::None | Fault::Half => {}
    }
    let request: Value = serde_json::from_slice(body).expect("a client sends JSON");
    let tokens: Vec<u32> = serde_json::from_value(request["prompt"].clone()).expect("ids");
    let reply = serde_json::to_vec(&answer(&request)).expect("JSON");
    if fault == Fault::Half {
        let head = format!("HTTP/1.1 200 x\r\ncontent-length: {}\r\n\r\n", reply.len());
        out.write_all(&[head.as_bytes(), &reply[..reply.len() / 2]].concat())?;
        return Ok(false);
    }
    send(200, "", &reply)?;
    answered(&tokens);
    seen.answered.lock().unwrap().push(tokens);
    Ok(true)
}

/// vLLM's answer.
pub fn reply(tokens: &[u32], k: usize) -> Value {
    let mut rows = vec![Value::Null];
    for position in 0..tokens.len() - 1 {
        let mut row = serde_json::Map::new();
        for (rank, (id, log_p)) in said(&tokens[..=position], k).into_iter().enumerate() {
            row.insert(id.to_string(), json!({"logprob": log_p, "rank": rank + 1}));
        }
        let follows = tokens[position + 1].to_string();
        row.entry(follows).or_insert(json!({"logprob": -9.0, "rank": k + 40}));
        rows.push(Value::Object(row));
    }
    json!({"choices": [{"index": 0, "prompt_logprobs": rows, "prompt_token_ids": tokens}]})
}

/// What follows a text, the likeliest first.
pub fn said(tokens: &[u32], k: usize) -> Vec<(u32, f32)> {
    let seed = tokens.iter().fold(7_u64, |seed, &t| seed.wrapping_mul(31).wrapping_add(t.into()));
    let mut random = SplitMix64::new(seed, 0);
    let first = random.below(VOCABULARY as u64) as u32;
    let id = |rank: usize| (first + 7 * rank as u32) % VOCABULARY as u32;
    (0..k).map(|rank| (id(rank), -0.8 - 0.9 * rank as f32)).collect()
}

/// A packed sequence of one document.
pub fn sequence(number: usize, length: usize) -> Sequence {
    let mut random = SplitMix64::new(number as u64, 5);
    let tokens: Vec<u32> = (0..=length).map(|_| random.below(VOCABULARY as u64) as u32).collect();
    Sequence {
        input_ids: tokens[..length].to_vec(),
        labels: tokens[1..].to_vec(),
        loss_mask: vec![true; length],
        document_ids: vec![0; length],
        position_ids: (0..length as u32).collect(),
    }
}
