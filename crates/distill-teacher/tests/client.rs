//! The client against a server that behaves badly in every way that servers do.

mod fake;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use distill_data::{Sequence, SpecialTokens, TextTokenizer};
use distill_teacher::protocol::{Name, Vocabulary, protocol};
use distill_teacher::{
    About, Asked, Cache, Choice, Client, ClientOptions, Key, Kind, Secret, Spec, TeacherError,
    Writer,
};
use fake::{Fault, Server, VOCABULARY};

const LENGTH: usize = 12;

fn spec() -> Spec {
    Spec { choice: Choice::TopK { k: 4 }, temperature: 1.0 }
}

fn about() -> About {
    About::new("fake".into(), "ids".into(), "numbers".into(), spec())
}

fn options(servers: &[&Server]) -> ClientOptions {
    ClientOptions {
        endpoints: servers.iter().map(|server| server.url()).collect(),
        pause: Duration::from_millis(5),
        timeout: Duration::from_millis(1500),
        ..ClientOptions::default()
    }
}

fn client(options: ClientOptions) -> Client {
    let text = std::iter::once(Ok("some words".to_owned()));
    let tokenizer = TextTokenizer::train(text, 260, &SpecialTokens::default()).unwrap();
    let vocabulary = Arc::new(Vocabulary::new(&tokenizer));
    let protocol = protocol(Name::Vllm, "m", vocabulary);
    Client::new(options, protocol, VOCABULARY).unwrap()
}

fn texts(count: usize) -> Vec<(Key, Sequence)> {
    let sequences = (0..count).map(|number| fake::sequence(number, LENGTH));
    sequences.map(|sequence| (Key::of(&sequence, Kind::TopK), sequence)).collect()
}

/// Asks about texts into a fresh cache.
fn fetch(
    client: &Client,
    count: usize,
    budget: Option<u64>,
) -> (Result<Asked, TeacherError>, Result<Cache, TeacherError>) {
    let home = tempfile::tempdir().unwrap();
    let texts = texts(count);
    let keys: Vec<Key> = texts.iter().map(|text| text.0).collect();
    let mut writer = Writer::open(home.path(), &about(), &keys).unwrap();
    let all = texts.clone().into_iter();
    let asked = client.fetch(&mut writer, all, &|_| spec(), budget, 0, &mut |_| true);
    (asked, writer.finish())
}

fn is_right(cache: &Cache, count: usize) {
    for (key, sequence) in texts(count) {
        let signal = cache.get(key).unwrap().expect("it was asked for");
        for position in 0..LENGTH {
            let said = fake::said(&sequence.input_ids[..=position], 4);
            let (tokens, values) = signal.at(position);
            assert!(tokens.iter().eq(said.iter().map(|(id, _)| id)));
            assert!(values.iter().zip(&said).all(|(a, b)| (a - b.1).abs() < 2e-3));
        }
    }
}

#[test]
fn every_text_is_asked_about_once_and_answers_are_kept() {
    let server = Server::start(|_| Fault::None);
    let (asked, cache) = fetch(&client(options(&[&server])), 300, None);
    let asked = asked.unwrap();
    assert_eq!((asked.texts, asked.of, asked.retries, asked.silent), (300, 300, 0, 0));
    assert_eq!(asked.tokens, 300 * (LENGTH as u64 + 1));
    is_right(&cache.unwrap(), 300);
    let answered = server.seen.answered.lock().unwrap();
    assert_eq!(answered.len(), answered.iter().collect::<HashSet<_>>().len());
    assert!(server.seen.most_at_work.load(Ordering::SeqCst) <= 8);
}

#[test]
fn what_passes_is_tried_again() {
    let server = Server::start(|number| match number % 13 {
        1 => Fault::Status(500, "", "internal"),
        3 => Fault::Drop,
        5 => Fault::Garbage("<html>Bad gateway</html>"),
        6 => Fault::Garbage("{\"choices\": ["),
        8 => Fault::Half,
        10 => Fault::Status(503, "retry-after: 0\r\n", "busy"),
        11 => Fault::Status(429, "", "slow down"),
        _ => Fault::None,
    });
    let options = ClientOptions { attempts: 20, ..options(&[&server]) };
    let (asked, cache) = fetch(&client(options), 400, None);
    let asked = asked.unwrap();
    assert!(asked.retries > 200, "{asked:?}");
    is_right(&cache.unwrap(), 400);
    assert_eq!(server.seen.answered.lock().unwrap().len(), 400);
}

#[test]
fn a_slow_answer_is_given_up_and_asked_for_again() {
    let slow = Duration::from_secs(4);
    let server = Server::start(move |n| if n == 2 { Fault::Slow(slow) } else { Fault::None });
    let (asked, cache) = fetch(&client(options(&[&server])), 30, None);
    assert_eq!(asked.unwrap().retries, 1);
    is_right(&cache.unwrap(), 30);
}

#[test]
fn retry_after_holds_back_all_that_goes_to_a_server() {
    let server = Server::start(|number| match number {
        4 => Fault::Status(429, "retry-after: 1\r\n", ""),
        _ => Fault::Slow(Duration::from_millis(20)),
    });
    let started = Instant::now();
    let (asked, _) = fetch(&client(options(&[&server])), 100, None);
    assert_eq!(asked.unwrap().retries, 1);
    assert!(started.elapsed() > Duration::from_secs(1));
    let times = server.seen.times.lock().unwrap();
    let gap = times.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap();
    assert!(gap > Duration::from_millis(800), "{gap:?}");
}

#[test]
fn what_a_user_must_mend_ends_at_once_and_says_how() {
    for (status, expected) in [
        (401, "api_key_env"),
        (404, "teacher.remote.protocol"),
        (400, "--max-logprobs"),
        (413, "data.sequence_length"),
    ] {
        let server = Server::start(move |_| Fault::Status(status, "", "{\"error\": \"no\"}"));
        let (asked, _) = fetch(&client(options(&[&server])), 50, None);
        let error = asked.unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains("{\"error\": \"no\"}"), "{error}");
        assert!(error.contains(&server.url()), "{error}");
        assert!(server.seen.requests.load(Ordering::SeqCst) <= 16);
    }
}

#[test]
fn an_answer_about_another_text_ends_the_asking_and_is_not_kept() {
    let server = Server::start(|_| {
        Fault::Garbage(r#"{"choices": [{"prompt_logprobs": [null, {"1": {"logprob": -1.0}}]}]}"#)
    });
    let (asked, cache) = fetch(&client(options(&[&server])), 50, None);
    let error = asked.unwrap_err().to_string();
    assert!(error.contains("2 tokens of a text of 13") && error.contains("probe"), "{error}");
    assert_eq!(cache.unwrap().keys().count(), 0);
}

#[test]
fn others_take_over_from_an_endpoint_that_is_gone() {
    let (good, bad) = (Server::start(|_| Fault::None), Server::start(|_| Fault::Drop));
    let (asked, cache) = fetch(&client(options(&[&bad, &good])), 200, None);
    assert_eq!(asked.unwrap().texts, 200);
    is_right(&cache.unwrap(), 200);
    let (asked, _) = fetch(&client(options(&[&bad])), 20, None);
    let error = asked.unwrap_err().to_string();
    assert!(error.contains("no answer after 6 attempts") && error.contains(&bad.url()), "{error}");
}

#[test]
fn a_budget_ends_the_asking_without_an_error() {
    let server = Server::start(|_| Fault::None);
    let each = LENGTH as u64 + 1;
    let (asked, _) = fetch(&client(options(&[&server])), 100, Some(40 * each + 5));
    let asked = asked.unwrap();
    assert!(asked.budget_spent);
    assert_eq!((asked.texts, asked.tokens), (40, 40 * each));
    assert_eq!(server.seen.answered.lock().unwrap().len(), 40);
}

#[test]
fn limits_of_a_minute_are_kept() {
    let server = Server::start(|_| Fault::None);
    let limits = ClientOptions { requests_per_minute: Some(600.0), ..options(&[&server]) };
    let started = Instant::now();
    fetch(&client(limits), 30, None).0.unwrap();
    // Ten a second, of which a second's worth may come at once.
    assert!(started.elapsed() > Duration::from_millis(1800), "{:?}", started.elapsed());
}

#[test]
fn a_key_is_sent_and_never_shown() {
    let leak = |_| Fault::Status(403, "", "wrong key: sesame");
    let server = Server::start(leak);
    let key = Some(Secret::new("sesame"));
    let options = ClientOptions { key, ..options(&[&server]) };
    assert!(!format!("{options:?}").contains("sesame"));
    let (asked, _) = fetch(&client(options), 5, None);
    let error = asked.unwrap_err().to_string();
    assert!(error.contains("wrong key: …") && !error.contains("sesame"), "{error}");
    assert!(server.seen.with_key.load(Ordering::SeqCst) > 0);
    let error = Secret::from_env("DISTILL_TEST_NO_SUCH_KEY").unwrap_err().to_string();
    assert!(error.contains("DISTILL_TEST_NO_SUCH_KEY is not set"), "{error}");
}

#[test]
fn an_asking_that_is_stopped_goes_on_where_it_was() {
    let server = Server::start(|_| Fault::Slow(Duration::from_millis(3)));
    let (client, home) = (client(options(&[&server])), tempfile::tempdir().unwrap());
    let texts = texts(120);
    let keys: Vec<Key> = texts.iter().map(|text| text.0).collect();
    let mut stops = 0;
    loop {
        let mut writer = Writer::open(home.path(), &about(), &keys).unwrap();
        let lacking: Vec<_> = texts.iter().filter(|text| writer.lacks(text.0)).cloned().collect();
        let mut enough = |asked: Asked| asked.texts < 17;
        let done =
            client.fetch(&mut writer, lacking.into_iter(), &|_| spec(), None, 0, &mut enough);
        let cache = writer.finish().unwrap();
        match done {
            Ok(_) => {
                is_right(&cache, 120);
                break;
            }
            Err(TeacherError::Stopped) => stops += 1,
            Err(error) => panic!("{error}"),
        }
    }
    assert!(stops > 2);
    assert_eq!(server.seen.answered.lock().unwrap().len(), 120, "nothing was asked twice");
}

/// With answers that take 50 ms, the allowed number of requests is on its way, and no more.
#[test]
fn the_allowed_concurrency_is_kept_busy() {
    let server = Server::start(|_| Fault::Slow(Duration::from_millis(50)));
    let options = ClientOptions { concurrency: 32, ..options(&[&server]) };
    let started = Instant::now();
    let asked = fetch(&client(options), 640, None).0.unwrap();
    let share = asked.busy_seconds / (32.0 * started.elapsed().as_secs_f64());
    println!("busy {:.1} %", 100.0 * share);
    // How busy depends on the machine; that all are on their way at once does not.
    assert_eq!(server.seen.most_at_work.load(Ordering::SeqCst), 32);
}
