//! A teacher that is asked once: computed here, or by `distill teacher serve`, on both of its routes.

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use common::{TEACHER, command, distill, done, json, only_run, stderr, words, write};
use distill_teacher::Cache;

/// A server that ends with the test.
struct Server {
    process: Child,
    url: String,
}

impl Server {
    fn start(at: &Path, model: &Path, more: &[&str]) -> Self {
        let model = model.to_str().expect("a path");
        let mut process = command(at, &["teacher", "serve", model, "--name", "t", "--port", "0"])
            .args(more)
            .env("TEACHER_KEY", "sesame")
            .stderr(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("the program starts");
        let mut lines = BufReader::new(process.stderr.take().expect("piped")).lines();
        let url = lines.by_ref().find_map(|line| {
            let line = line.expect("text");
            let address = line.split_once("http://")?.1.split(',').next()?.to_owned();
            Some(format!("http://{address}"))
        });
        // Whatever it says later has somewhere to go.
        std::thread::spawn(move || lines.for_each(drop));
        Self { process, url: url.expect("it says where it listens") }
    }

    /// Sends a request; returns the status line and the body.
    fn ask(&self, method: &str, path: &str, headers: &str, body: &str) -> (String, String) {
        let address = self.url.trim_start_matches("http://");
        let mut stream = TcpStream::connect(address).expect("it listens");
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\
             content-type: application/json\r\ncontent-length: {length}\r\n{headers}\r\n"
        );
        // A server may answer before it has read all of a request that it refuses.
        let _ = stream.write_all(&[head.as_bytes(), body.as_bytes()].concat());
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        (head.lines().next().unwrap_or_default().to_owned(), body.to_owned())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A directory with text and the checkpoint of a teacher that has read it.
fn teacher(at: &Path) -> PathBuf {
    write(at, "text.txt", &words(9000));
    write(at, "teacher.toml", TEACHER);
    done(&distill(at, &["run", "teacher.toml"]));
    only_run(at, "teacher").join("step-40")
}

/// A recipe whose student learns from these tables.
fn student(name: &str, checkpoint: &Path, tables: &str) -> String {
    let head = format!("name = {name:?}\n[student]\nfrom = {checkpoint:?}\n");
    let rest = TEACHER.split_once("[data]").expect("a table").1;
    format!("{head}[data]{}\n{tables}\n", rest.replace("steps = 40", "steps = 6"))
}

/// The only cache below an output directory.
fn cache(output: &Path) -> Cache {
    let homes = std::fs::read_dir(output.join("teacher")).expect("a cache");
    let home = homes.map(|home| home.expect("an entry").path()).next().expect("one");
    Cache::open_as_it_is(&home).expect("a sound cache")
}

/// The share of positions with the same first token, and the largest difference of ln p where p is at
/// least 0.01.
fn agreement(a: &Cache, b: &Cache) -> (f64, f32) {
    let (mut positions, mut same, mut largest) = (0, 0, 0.0_f32);
    for key in a.keys() {
        let (a, b) = (a.get(key).unwrap().unwrap(), b.get(key).unwrap().expect("the same texts"));
        for position in 0..a.positions() {
            let ((ids, log_p), (other_ids, other_log_p)) = (a.at(position), b.at(position));
            assert_eq!(ids.is_empty(), other_ids.is_empty());
            let Some(first) = ids.first() else { continue };
            positions += 1;
            same += usize::from(first == &other_ids[0]);
            for (id, log_p) in ids.iter().zip(log_p).filter(|entry| *entry.1 > 0.01_f32.ln()) {
                if let Some(there) = other_ids.iter().position(|other| other == id) {
                    largest = largest.max((log_p - other_log_p[there]).abs());
                }
            }
        }
    }
    (f64::from(same as u32) / f64::from(positions as u32), largest)
}

#[test]
fn what_is_served_is_what_the_weights_say_here_on_both_routes() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let at = directory.path();
    let checkpoint = teacher(at);
    let local = format!("[teacher.local]\nfrom = {checkpoint:?}\n[teacher.signal]\ntop_k = 20\n");
    write(at, "local.toml", &student("local", &checkpoint, &local));
    done(&distill(at, &["run", "local.toml", "--set", "output=by-local"]));
    let here = cache(&at.join("by-local"));

    let key = ["--api-key-env", "TEACHER_KEY"];
    let server = Server::start(at, &checkpoint, &key);
    for protocol in ["distill", "vllm"] {
        let remote = format!(
            "[teacher.remote]\nprotocol = {protocol:?}\nendpoints = [{:?}]\nmodel = \"t\"\n\
             tokenizer = {checkpoint:?}\napi_key_env = \"TEACHER_KEY\"\n",
            server.url
        );
        let (file, output) = (format!("{protocol}.toml"), format!("by-{protocol}"));
        write(at, &file, &student(protocol, &checkpoint, &remote));
        let set = format!("output={output}");
        let run = |more: &[&str]| {
            let arguments = [&["run", &file, "--set", &set], more].concat();
            let out = command(at, &arguments).env("TEACHER_KEY", "sesame").output();
            done(&out.expect("the program starts"))
        };
        run(&[]);
        let (same, largest) = agreement(&here, &cache(&at.join(&output)));
        assert!(same >= 0.995 && largest <= 0.02, "{protocol}: {same} {largest}");
        let runs = at.join(&output).join(protocol);
        let run_of = std::fs::read_dir(runs).unwrap().next().unwrap().unwrap().path();
        let report = json(&run_of.join("report.json"));
        let rows = report["rows"].as_array().expect("rows");
        assert!(rows.iter().any(|row| row["kl"].as_f64().is_some_and(|kl| kl < 0.5)), "{rows:?}");
    }

    // Without the key nothing is said, and the recipe's error says what is missing.
    let out = distill(at, &["teacher", "probe", "vllm.toml"]);
    assert!(stderr(&out).contains("TEACHER_KEY is not set"), "{}", stderr(&out));
    let (status, body) = server.ask("POST", "/v1/completions", "", "{\"prompt\": [1]}");
    assert!(status.contains("401") && body.contains("API key"), "{status} {body}");
    let (status, _) = server.ask("GET", "/health", "", "");
    assert!(status.contains("200"), "{status}");

    // With it, the probe says what it looked at.
    let out = command(at, &["teacher", "probe", "vllm.toml"]).env("TEACHER_KEY", "sesame").output();
    let out = out.expect("the program starts");
    let found = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(found.contains("the same answer twice"), "{found}");
}

#[test]
fn requests_that_cannot_be_met_are_refused_in_words() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let at = directory.path();
    let checkpoint = teacher(at);
    let server = Server::start(at, &checkpoint, &["--body-mb", "1", "--context", "64"]);
    let post = |path: &str, body: &str| server.ask("POST", path, "", body);
    let long = format!("{{\"prompt\": {:?}}}", [1_u32; 80]);
    for (path, body, status, expected) in [
        ("/v1/completions", "{\"prompt\": []}", "400", "the prompt is empty"),
        ("/v1/completions", "{\"prompt\": [99999]}", "400", "no token 99999"),
        ("/v1/completions", long.as_str(), "400", "more than the context of 64"),
        ("/v1/completions", "{\"prompt\": \"a\", \"model\": \"x\"}", "404", "this is \\\"t\\\""),
        ("/v1/completions", "{\"prompt\": \"a\", \"n\": 3}", "400", "`n` must be 1"),
        ("/v1/completions", "{\"prompt\": \"a\", \"temperature\": -1}", "400", "`temperature`"),
        ("/v1/completions", "{\"prompt\"", "400", ""),
        ("/v1/chat/completions", "{\"messages\": []}", "400", "no chat template"),
        ("/v1/signals", "{\"model\": \"t\"}", "422", ""),
        ("/v1/nothing", "{}", "404", ""),
    ] {
        let (line, answer) = post(path, body);
        assert!(line.contains(status) && answer.contains(expected), "{body}: {line} {answer}");
    }
    let (line, _) =
        post("/v1/completions", &format!("{{\"prompt\": \"{}\"}}", "a".repeat(2 << 20)));
    assert!(line.contains("413"), "{line}");

    let (_, greedy) = post(
        "/v1/completions",
        "{\"prompt\": [1, 2, 3], \"max_tokens\": 4, \"temperature\": 0, \"logprobs\": 2, \"echo\": true}",
    );
    let answer: serde_json::Value = serde_json::from_str(&greedy).expect("JSON");
    let found = &answer["choices"][0]["logprobs"];
    assert_eq!(found["tokens"].as_array().map(Vec::len), Some(3 + 4), "{answer}");
    assert!(found["top_logprobs"][0].is_null() && found["token_logprobs"][1].is_number());

    let out = distill(at, &["teacher", "serve", "x", "--host", "0.0.0.0", "--port", "0"]);
    assert_eq!(out.status.code(), Some(2), "{}", stderr(&out));
    let open = command(at, &["teacher", "serve", checkpoint.to_str().expect("a path")])
        .args(["--host", "0.0.0.0", "--port", "0"])
        .output()
        .expect("the program starts");
    assert!(stderr(&open).contains("there is no API key"), "{}", stderr(&open));
}
