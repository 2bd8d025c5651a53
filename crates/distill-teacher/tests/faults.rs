//! Client and server are killed at random moments, and the server misbehaves in between: nothing is
//! lost, nothing is asked twice that was answered, and the cache is that of an undisturbed run, to the
//! bit.

#![cfg(unix)]

#[allow(dead_code, reason = "another test looks at what the server has seen")]
mod fake;

use std::collections::HashMap;
use std::io::Write;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use distill_data::{Sequence, SpecialTokens, SplitMix64, TextTokenizer};
use distill_teacher::protocol::{Name, Vocabulary, protocol};
use distill_teacher::{About, Choice, Client, ClientOptions, Key, Kind, Spec, Writer};
use fake::{Fault, Server, VOCABULARY};

const TEXTS: usize = 2000;
const LENGTH: usize = 12;
const CONCURRENCY: usize = 8;

fn spec() -> Spec {
    Spec { choice: Choice::TopK { k: 4 }, temperature: 1.0 }
}

fn texts() -> Vec<(Key, Sequence)> {
    let sequences = (0..TEXTS).map(|number| fake::sequence(number, LENGTH));
    sequences.map(|sequence| (Key::of(&sequence, Kind::TopK), sequence)).collect()
}

/// Asks about all texts; returns once the cache is whole.
fn ask(url: &str, path: &Path) {
    let text = std::iter::once(Ok("some words".to_owned()));
    let tokenizer = TextTokenizer::train(text, 260, &SpecialTokens::default()).unwrap();
    let vocabulary = Arc::new(Vocabulary::new(&tokenizer));
    let protocol = protocol(Name::Vllm, "m", vocabulary);
    let options = ClientOptions {
        endpoints: vec![url.to_owned()],
        concurrency: CONCURRENCY,
        pause: Duration::from_millis(10),
        timeout: Duration::from_secs(2),
        attempts: 1000,
        ..ClientOptions::default()
    };
    let client = Client::new(options, protocol, VOCABULARY).unwrap();
    let about = About::new("fake".into(), "ids".into(), "numbers".into(), spec());
    let texts = texts();
    let keys: Vec<Key> = texts.iter().map(|text| text.0).collect();
    let mut writer = Writer::open(path, &about, &keys).unwrap();
    let lacking: Vec<_> = texts.into_iter().filter(|text| writer.lacks(text.0)).collect();
    let mut go_on = |_| true;
    client.fetch(&mut writer, lacking.into_iter(), &|_| spec(), None, 0, &mut go_on).unwrap();
    writer.finish().unwrap();
}

/// What a process of this test does when it is started as one of the two.
#[test]
fn role() {
    let variable = |name: &str| std::env::var(name).ok();
    match variable("DISTILL_FAULTS_ROLE").as_deref() {
        Some("client") => {
            let path = variable("DISTILL_FAULTS_CACHE").unwrap();
            ask(&variable("DISTILL_FAULTS_URL").unwrap(), Path::new(&path));
        }
        Some("server") => {
            let log = variable("DISTILL_FAULTS_LOG").unwrap();
            let log = std::fs::OpenOptions::new().append(true).create(true).open(log).unwrap();
            let (log, random) = (Mutex::new(log), Mutex::new(SplitMix64::new(1, 0)));
            let fault = move |_| match random.lock().unwrap().below(40) {
                0 => Fault::Status(500, "", "internal"),
                1 => Fault::Drop,
                2 => Fault::Half,
                3 => Fault::Garbage("<html>"),
                4 => Fault::Slow(Duration::from_millis(60)),
                _ => Fault::Slow(Duration::from_millis(12)),
            };
            let answered = move |tokens: &[u32]| {
                writeln!(log.lock().unwrap(), "{tokens:?}").unwrap();
            };
            let _server =
                Server::start_at(&variable("DISTILL_FAULTS_ADDRESS").unwrap(), fault, answered);
            std::thread::sleep(Duration::from_secs(600));
        }
        _ => {}
    }
}

fn start(role: &str, variables: &[(&str, &str)]) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["role", "--exact", "--nocapture"])
        .env("DISTILL_FAULTS_ROLE", role)
        .envs(variables.iter().map(|(name, value)| (format!("DISTILL_FAULTS_{name}"), value)))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// `Child::kill` is SIGKILL.
fn kill(child: &mut Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

fn files(path: &Path) -> HashMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap());
    let files = entries.map(|e| (e.file_name().into_string().unwrap(), e.path()));
    files
        .filter(|(name, _)| name != "lock")
        .map(|(name, path)| (name, std::fs::read(path).unwrap()))
        .collect()
}

#[test]
fn kills_and_faults_lose_nothing_and_ask_nothing_twice() {
    let home = tempfile::tempdir().unwrap();
    let undisturbed = home.path().join("undisturbed");
    ask(&Server::start(|_| Fault::None).url(), &undisturbed);

    let (cache, log) = (home.path().join("cache"), home.path().join("answers"));
    // A port that nobody else has, found by having it.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let url = format!("http://{address}");
    let server = || start("server", &[("ADDRESS", &address), ("LOG", log.to_str().unwrap())]);
    let client = || start("client", &[("URL", &url), ("CACHE", cache.to_str().unwrap())]);
    let mut random = SplitMix64::new(std::process::id().into(), 0);
    let (mut serving, mut asking) = (server(), client());
    let (mut kills, mut restarts, mut ends) = (0, 0, false);
    while !ends {
        std::thread::sleep(Duration::from_millis(40 + random.below(160)));
        ends = match asking.try_wait().unwrap() {
            Some(status) => {
                assert!(status.success(), "the client failed");
                true
            }
            None => false,
        };
        if !ends && random.below(2) == 0 {
            kill(&mut asking);
            asking = client();
            kills += 1;
        } else if !ends {
            kill(&mut serving);
            serving = server();
            restarts += 1;
        }
    }
    kill(&mut serving);

    let answered = std::fs::read_to_string(&log).unwrap();
    let mut times: HashMap<&str, usize> = HashMap::new();
    for text in answered.lines() {
        *times.entry(text).or_default() += 1;
    }
    let again = answered.lines().count() - times.len();
    println!("{kills} kills of the client, {again} answers that a kill met on their way");
    assert!(kills > 3, "the run was over before it could be disturbed");
    // A server that is killed may have answered what it has not noted yet.
    assert!(times.len() <= TEXTS && times.len() + restarts * CONCURRENCY >= TEXTS);
    // What was on its way when the client was killed had not been received.
    assert!(again <= kills * 2 * CONCURRENCY, "{again} answers came twice, after {kills} kills");
    let (expected, found) = (files(&undisturbed), files(&cache));
    let names = |files: &HashMap<String, Vec<u8>>| {
        let mut names: Vec<String> = files.keys().cloned().collect();
        names.sort();
        names
    };
    assert_eq!(names(&expected), names(&found));
    assert!(expected == found, "the caches differ");
}
