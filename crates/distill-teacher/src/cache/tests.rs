use proptest::prelude::*;

use super::*;
use crate::signal::{Choice, Kind, Spec};

fn about() -> About {
    let signal = Spec { choice: Choice::TopK { k: 4 }, temperature: 1.0 };
    About::new("teacher".into(), "tokenizer".into(), "data".into(), signal)
}

fn key(n: usize) -> Key {
    let mut key = Key([0; 16]);
    key.0[..8].copy_from_slice(&(n as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    key
}

fn signal(n: usize) -> Signal {
    let mut signal = Signal::new(Kind::TopK);
    for position in 0..5 {
        signal.push((0..3).map(|i| ((n * 7 + position + i * 1000) as u32, -0.5 - i as f32)));
    }
    signal
}

/// The files of a cache by name, without the lock, and a hash of each.
fn files(path: &Path) -> BTreeMap<String, Key> {
    let entries = std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap());
    let files = entries.map(|e| (e.file_name().into_string().unwrap(), e.path()));
    files
        .filter(|(name, _)| name != "lock")
        .map(|(name, path)| (name, Key::of_bytes(&std::fs::read(path).unwrap())))
        .collect()
}

fn fill(path: &Path, keys: &[Key]) {
    let mut writer = Writer::open(path, &about(), keys).unwrap();
    for (n, key) in keys.iter().enumerate() {
        writer.put(*key, &signal(n)).unwrap();
    }
    writer.finish().unwrap();
}

const TEXTS: usize = 2 * SHARD + 40;

fn keys() -> Vec<Key> {
    (0..TEXTS).map(key).collect()
}

#[test]
fn what_was_put_is_found_again() {
    let home = tempfile::tempdir().unwrap();
    fill(home.path(), &keys());
    let cache = Cache::open(home.path(), &about()).unwrap();
    cache.require(&keys()).unwrap();
    for n in [0, 1, SHARD, TEXTS - 1] {
        let found = cache.get(key(n)).unwrap().unwrap();
        assert_eq!(found.at(2).0, signal(n).at(2).0);
    }
    assert_eq!(cache.get(key(TEXTS)).unwrap(), None);
    let all = cache.verify().unwrap();
    let (texts, positions) = (TEXTS, 5 * TEXTS as u64);
    assert_eq!(
        (all.shards, all.texts, all.positions, all.entries),
        (3, texts, positions, 3 * positions)
    );
    assert!(!home.path().join("journal").exists());
}

#[test]
fn a_text_that_is_not_there_is_an_error_that_counts() {
    let home = tempfile::tempdir().unwrap();
    fill(home.path(), &keys()[..10]);
    let cache = Cache::open(home.path(), &about()).unwrap();
    let error = cache.require(&keys()[..30]).unwrap_err().to_string();
    assert!(error.contains("20 of 30 sequences"), "{error}");
}

#[test]
fn another_order_of_answers_and_kills_give_the_same_bytes() {
    let (home, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fill(home.path(), &keys());
    // Answers come from behind, and the process is killed after every 100.
    let mut order: Vec<usize> = (0..TEXTS).rev().collect();
    order.rotate_left(130);
    let mut asked = 0;
    while asked < TEXTS {
        let mut writer = Writer::open(other.path(), &about(), &keys()).unwrap();
        assert_eq!(writer.missing(), TEXTS - asked, "nothing is asked twice");
        let lacking: Vec<usize> =
            order.iter().copied().filter(|&n| writer.lacks(key(n))).take(100).collect();
        for n in lacking {
            writer.put(key(n), &signal(n)).unwrap();
            asked += 1;
        }
        // Killed: no `finish`.
    }
    Writer::open(other.path(), &about(), &keys()).unwrap().finish().unwrap();
    assert_eq!(files(home.path()), files(other.path()));
}

#[test]
fn a_torn_journal_loses_its_last_text_only() {
    let home = tempfile::tempdir().unwrap();
    let mut writer = Writer::open(home.path(), &about(), &keys()).unwrap();
    for n in 0..20 {
        writer.put(key(n), &signal(n)).unwrap();
    }
    drop(writer);
    let path = home.path().join("journal");
    let bytes = std::fs::read(&path).unwrap();
    for (cut, lost) in [(1, 1), (200, 2), (bytes.len() - 10, 20), (bytes.len(), 20)] {
        std::fs::write(&path, &bytes[..bytes.len() - cut]).unwrap();
        let writer = Writer::open(home.path(), &about(), &keys()).unwrap();
        assert!(writer.missing() <= TEXTS - 20 + lost, "{cut}: {}", writer.missing());
        assert!(writer.missing() > TEXTS - 20);
    }
    let mut flipped = bytes.clone();
    flipped[60] ^= 1;
    std::fs::write(&path, flipped).unwrap();
    assert_eq!(Writer::open(home.path(), &about(), &keys()).unwrap().missing(), TEXTS);
}

#[test]
fn a_second_recipe_asks_only_for_what_the_first_did_not() {
    let home = tempfile::tempdir().unwrap();
    fill(home.path(), &keys()[..300]);
    let mixed: Vec<Key> = (200..400).rev().map(key).collect();
    let mut writer = Writer::open(home.path(), &about(), &mixed).unwrap();
    assert_eq!(writer.missing(), 100);
    for n in 300..400 {
        assert!(writer.lacks(key(n)));
        writer.put(key(n), &signal(n)).unwrap();
    }
    let cache = writer.finish().unwrap();
    cache.require(&keys()[..400]).unwrap();
}

#[test]
fn a_cache_made_otherwise_is_refused_by_what_differs() {
    let home = tempfile::tempdir().unwrap();
    fill(home.path(), &keys()[..3]);
    type Change = fn(&mut About);
    let changes: [(&str, Change); 5] = [
        ("another teacher: teacher, and the recipe has x", |a| a.teacher = "x".into()),
        ("another tokenizer", |a| a.tokenizer = "x".into()),
        ("another template: none, and", |a| a.template = Some("x".into())),
        ("another signal", |a| a.signal.temperature = 2.0),
        ("another signal", |a| a.signal.choice = Choice::TopK { k: 5 }),
    ];
    for (expected, change) in changes {
        let mut asked = about();
        change(&mut asked);
        assert_ne!(asked.name(), about().name());
        let error = Cache::open(home.path(), &asked).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let mut elsewhere = about();
    elsewhere.data = "another text".into();
    assert_eq!(elsewhere.name(), about().name());
    Cache::open(home.path(), &elsewhere).unwrap();
}

#[test]
fn one_run_writes_at_a_time() {
    let home = tempfile::tempdir().unwrap();
    let writer = Writer::open(home.path(), &about(), &keys()).unwrap();
    let error = Writer::open(home.path(), &about(), &keys()).unwrap_err().to_string();
    assert!(error.contains("another run is writing"), "{error}");
    drop(writer);
    Writer::open(home.path(), &about(), &keys()).unwrap();
}

#[test]
fn caches_made_alike_are_merged() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fill(a.path(), &keys()[..300]);
    fill(b.path(), &keys()[250..350]);
    let mut into = Cache::open_as_it_is(a.path()).unwrap();
    assert_eq!(into.merge(&Cache::open_as_it_is(b.path()).unwrap()).unwrap(), 50);
    let merged = Cache::open(a.path(), &about()).unwrap();
    merged.require(&keys()[..350]).unwrap();
    assert_eq!(merged.verify().unwrap().texts, 350);
}

#[test]
fn a_damaged_shard_is_named() {
    let home = tempfile::tempdir().unwrap();
    fill(home.path(), &keys()[..20]);
    let shard = shard_files(home.path()).unwrap().remove(0);
    let bytes = std::fs::read(&shard).unwrap();
    for at in (0..bytes.len()).step_by(37) {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x11;
        std::fs::write(&shard, damaged).unwrap();
        let opened = Cache::open_as_it_is(home.path());
        let error = opened.and_then(|cache| cache.verify()).unwrap_err().to_string();
        assert!(error.contains(".signals"), "{at}: {error}");
    }
    std::fs::write(&shard, &bytes[..bytes.len() / 2]).unwrap();
    let error = Cache::open_as_it_is(home.path()).unwrap_err().to_string();
    assert!(error.contains("not a whole shard") && error.contains("asked for again"), "{error}");
}

proptest! {
    #[test]
    fn arbitrary_shards_never_panic(bytes in proptest::collection::vec(any::<u8>(), 1..300)) {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("x.signals");
        std::fs::write(&path, bytes).unwrap();
        let _ = Shard::open(&path);
        std::fs::write(home.path().join("journal"), std::fs::read(&path).unwrap()).unwrap();
        let _ = Journal::open(home.path(), &about().name());
    }
}
