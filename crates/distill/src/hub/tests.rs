//! Against a hub of a few lines, on a port of this machine.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hf_hub::Cache;
use sha2::{Digest, Sha256};

use super::download::Hub;
use super::{HubError, Models, Want};
use distill_recipe::ModelRef;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What the mock hub serves, and how badly.
#[derive(Default)]
struct Served {
    files: BTreeMap<String, Vec<u8>>,
    /// Names that are listed and not served.
    listed_only: Vec<String>,
    /// Status of every answer about the repository.
    refuse_list: Option<u16>,
    /// Status of every answer about a file.
    refuse_files: Option<u16>,
    /// Bodies stop after so many bytes, this many times.
    cut: Option<(usize, usize)>,
    /// Bodies end with the connection, so that a short one looks like an end.
    no_length: bool,
    /// Every body is whole, whatever range was asked for.
    ignore_range: bool,
    /// The hash announced is not that of the bytes.
    wrong_hash: bool,
    /// What was asked: `path range authorization`.
    requests: Vec<String>,
}

struct MockHub {
    endpoint: String,
    served: Arc<Mutex<Served>>,
}

impl MockHub {
    fn new(files: &[(&str, &[u8])]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let files = files.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.to_vec()));
        let served = Arc::new(Mutex::new(Served { files: files.collect(), ..Served::default() }));
        let shared = Arc::clone(&served);
        // It ends with the test process.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // A client that hangs up is part of some tests.
                let _ = answer(stream, &shared);
            }
        });
        Self { endpoint, served }
    }

    fn change(&self, change: impl FnOnce(&mut Served)) {
        change(&mut self.served.lock().unwrap());
    }

    fn requests(&self) -> Vec<String> {
        std::mem::take(&mut self.served.lock().unwrap().requests)
    }
}

fn answer(mut stream: TcpStream, served: &Mutex<Served>) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let request = lines.next().transpose()?.unwrap_or_default();
    let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
    let (mut range, mut authorization) = (String::new(), String::new());
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(": ") else { break };
        match name.to_lowercase().as_str() {
            "range" => range = value.to_owned(),
            "authorization" => authorization = value.to_owned(),
            _ => {}
        }
    }
    let mut served = served.lock().unwrap();
    served.requests.push(format!("{path} {range} {authorization}"));
    let (status, headers, body, sent) = response(&path, &range, &mut served);
    let length = match served.no_length {
        true => String::new(),
        false => format!("Content-Length: {}\r\n", body.len()),
    };
    drop(served);
    write!(stream, "HTTP/1.1 {status} x\r\nConnection: close\r\n{length}{headers}\r\n")?;
    stream.write_all(&body[..sent])
}

/// Status, headers, body, and how much of the body is really sent.
fn response(path: &str, range: &str, served: &mut Served) -> (u16, String, Vec<u8>, usize) {
    let whole = |status, body: Vec<u8>| {
        let length = body.len();
        (status, String::new(), body, length)
    };
    if path.starts_with("/api/") {
        if let Some(status) = served.refuse_list {
            return whole(status, b"{}".to_vec());
        }
        let names = served.files.keys().chain(&served.listed_only);
        let siblings: Vec<_> = names.map(|name| serde_json::json!({"rfilename": name})).collect();
        let info = serde_json::json!({"sha": COMMIT, "siblings": siblings});
        return whole(200, info.to_string().into_bytes());
    }
    let file = path.split_once(&format!("/resolve/{COMMIT}/")).map(|(_, file)| file);
    let Some(bytes) = file.and_then(|file| served.files.get(file)).cloned() else {
        return whole(404, Vec::new());
    };
    if let Some(status) = served.refuse_files {
        return whole(status, Vec::new());
    }
    let bounds = range.strip_prefix("bytes=").unwrap_or("0-");
    let (start, end) = bounds.split_once('-').unwrap();
    let start: usize = start.parse().unwrap();
    let probe = !end.is_empty();
    if start >= bytes.len() {
        return whole(416, Vec::new());
    }
    let end = end.parse::<usize>().map_or(bytes.len(), |end| end + 1);
    let hash = if served.wrong_hash { Sha256::digest(b"other") } else { Sha256::digest(&bytes) };
    let headers = format!(
        "ETag: \"{hash:x}\"\r\nX-Repo-Commit: {COMMIT}\r\nContent-Range: bytes {start}-{}/{}\r\n",
        end - 1,
        bytes.len()
    );
    if served.ignore_range && !probe {
        let length = bytes.len();
        return (200, headers, bytes, length);
    }
    let body = bytes[start..end].to_vec();
    let mut sent = body.len();
    if let (Some((limit, times)), false) = (&mut served.cut, probe)
        && *times > 0
    {
        *times -= 1;
        sent = sent.min(*limit);
    }
    (206, headers, body, sent)
}

fn models(hub: &MockHub, home: &Path) -> Models {
    Models {
        hub: Some(Hub {
            endpoint: hub.endpoint.clone(),
            cache: Cache::new(home.join("hub")),
            token: None,
            offline: false,
            pause: Duration::from_millis(1),
        }),
    }
}

fn offline(hub: &MockHub, home: &Path) -> Models {
    let mut models = models(hub, home);
    models.hub.as_mut().unwrap().offline = true;
    models
}

/// A hub that nobody answers for.
fn unreachable(home: &Path) -> Models {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut models = models(&MockHub::new(&[]), home);
    let hub = models.hub.as_mut().unwrap();
    hub.endpoint = format!("http://{}", listener.local_addr().unwrap());
    models
}

fn home() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn at(place: &str) -> ModelRef {
    ModelRef { from: place.to_owned(), revision: "main".to_owned() }
}

/// Bytes that do not repeat, so that a part in the wrong place is seen.
fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i * 31 + i / 251) as u8).collect()
}

const TINY: [(&str, &[u8]); 5] = [
    ("README.md", b"# tiny"),
    ("config.json", b"{}"),
    ("tokenizer.json", b"{\"t\":1}"),
    ("chat_template.jinja", b"{{ x }}"),
    ("model.safetensors", b"weights"),
];

#[test]
fn a_local_path_is_itself_and_asks_nobody() {
    let (hub, home) = (MockHub::new(&TINY), home());
    let place = home.path().to_str().unwrap();
    let path = models(&hub, home.path()).model(&at(place), Want::Model).unwrap();
    assert_eq!(path, home.path());
    assert!(hub.requests().is_empty());
}

#[test]
fn a_name_that_is_neither_path_nor_id_is_refused_without_asking() {
    let (hub, home) = (MockHub::new(&TINY), home());
    for place in ["models/tiny.gguf", "/no/such/place", "tiny", "a/b/c", "../x/y", "a b/c", "a/b/"]
    {
        let error = models(&hub, home.path()).model(&at(place), Want::Model).unwrap_err();
        assert!(matches!(&error, HubError::NotFound { place: named } if named == place), "{error}");
        assert!(error.is_input());
    }
    assert!(hub.requests().is_empty());
}

#[test]
fn a_model_is_downloaded_once_and_only_what_is_needed() {
    let (hub, home) = (MockHub::new(&TINY), home());
    let path = models(&hub, home.path()).model(&at("o/tiny"), Want::Model).unwrap();
    assert!(hub.requests().len() > 1);
    assert_eq!(fs::read(path.join("model.safetensors")).unwrap(), b"weights");
    assert_eq!(fs::read(path.join("chat_template.jinja")).unwrap(), b"{{ x }}");
    assert!(!path.join("README.md").exists());
    let again = models(&hub, home.path()).model(&at("o/tiny"), Want::Model).unwrap();
    assert_eq!((again, hub.requests().len()), (path.clone(), 0));
    let without_network = offline(&hub, home.path()).model(&at("o/tiny"), Want::Model).unwrap();
    assert_eq!(without_network, path);
}

#[test]
fn the_token_goes_with_every_request() {
    let (hub, home) = (MockHub::new(&TINY), home());
    let mut models = models(&hub, home.path());
    models.hub.as_mut().unwrap().token = Some("hf_secret".to_owned());
    models.model(&at("o/tiny"), Want::Model).unwrap();
    let requests = hub.requests();
    assert!(requests.iter().all(|request| request.ends_with(" Bearer hf_secret")), "{requests:?}");
}

#[test]
fn the_environment_names_cache_endpoint_token_and_offline() {
    let home = home();
    fs::write(home.path().join("token"), "hf_of_file\n").unwrap();
    let directory = home.path().to_str().unwrap();
    let hub = |token: &'static str, offline: &'static str| {
        let variable = |name: &str| match name {
            "HF_HOME" => Some(directory.to_owned()),
            "HF_ENDPOINT" => Some("http://mirror/".to_owned()),
            "HF_TOKEN" => Some(token.to_owned()),
            "HF_HUB_OFFLINE" => Some(offline.to_owned()),
            _ => None,
        };
        Hub::from_variables(variable).unwrap()
    };
    let set = hub("hf_of_environment", "1");
    assert_eq!((set.endpoint.as_str(), set.offline), ("http://mirror", true));
    assert_eq!(set.token.as_deref(), Some("hf_of_environment"));
    assert_eq!(set.cache.path(), &home.path().join("hub"));
    let unset = hub("", "0");
    assert_eq!((unset.token.as_deref(), unset.offline), (Some("hf_of_file"), false));
}

#[test]
fn a_sharded_model_is_whole_with_its_last_shard() {
    let index = br#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}"#;
    let files: [(&str, &[u8]); 5] = [
        ("config.json", b"{}"),
        ("tokenizer.json", b"{}"),
        ("model.safetensors.index.json", index),
        ("model-1.safetensors", b"one"),
        ("model-2.safetensors", b"two"),
    ];
    let (hub, home) = (MockHub::new(&files), home());
    let path = models(&hub, home.path()).model(&at("o/big"), Want::Model).unwrap();
    assert_eq!(fs::read(path.join("model-2.safetensors")).unwrap(), b"two");
    fs::remove_file(path.join("model-2.safetensors")).unwrap();
    let error = offline(&hub, home.path()).model(&at("o/big"), Want::Model).unwrap_err();
    assert!(matches!(error, HubError::Offline { .. }), "{error}");
}

#[test]
fn an_index_that_leaves_the_directory_is_refused() {
    let files: [(&str, &[u8]); 2] = [
        ("config.json", b"{}"),
        ("model.safetensors.index.json", br#"{"weight_map": {"a": "../../x.safetensors"}}"#),
    ];
    let (hub, home) = (MockHub::new(&files), home());
    let error = models(&hub, home.path()).model(&at("o/big"), Want::Model).unwrap_err();
    assert!(matches!(error, HubError::Index { .. }), "{error}");
}

#[test]
fn a_repository_of_one_gguf_is_that_file() {
    let (hub, home) = (MockHub::new(&[("README.md", b"x"), ("m.q4.gguf", b"GGUF")]), home());
    let path = models(&hub, home.path()).model(&at("o/m"), Want::Model).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"GGUF");
    assert_eq!(path.extension().unwrap(), "gguf");
    assert_eq!(offline(&hub, home.path()).model(&at("o/m"), Want::Model).unwrap(), path);
}

#[test]
fn several_ggufs_are_ambiguous_until_one_is_named() {
    let (hub, home) = (MockHub::new(&[("a.gguf", b"A"), ("b.gguf", b"B")]), home());
    let error = models(&hub, home.path()).model(&at("o/m"), Want::Model).unwrap_err();
    assert!(error.is_input());
    assert_eq!(
        error.to_string(),
        "o/m has several .gguf files: name one, as in \"o/m/a.gguf\"; it has: a.gguf, b.gguf"
    );
    let path = models(&hub, home.path()).model(&at("o/m/b.gguf"), Want::Model).unwrap();
    assert_eq!(fs::read(path).unwrap(), b"B");
    let error = models(&hub, home.path()).model(&at("o/m/c.gguf"), Want::Model).unwrap_err();
    assert!(matches!(error, HubError::NoSuchFile { .. }), "{error}");
}

#[test]
fn a_repository_without_weights_lists_what_it_has() {
    let (hub, home) =
        (MockHub::new(&[("config.json", b"{}"), ("pytorch_model.bin", b"x")]), home());
    let error = models(&hub, home.path()).model(&at("o/old"), Want::Model).unwrap_err();
    assert!(error.is_input());
    assert!(error.to_string().ends_with("it has: config.json, pytorch_model.bin"), "{error}");
}

#[test]
fn a_tokenizer_is_taken_without_the_weights() {
    let (hub, home) = (MockHub::new(&TINY), home());
    let path = models(&hub, home.path()).model(&at("o/tiny"), Want::Tokenizer).unwrap();
    assert!(path.join("tokenizer.json").exists() && !path.join("model.safetensors").exists());
    // The directory is known now, and must not pass for the model.
    let path = models(&hub, home.path()).model(&at("o/tiny"), Want::Model).unwrap();
    assert!(path.join("model.safetensors").exists());
}

#[test]
fn an_unknown_or_gated_model_is_the_users_to_change() {
    let (hub, home) = (MockHub::new(&TINY), home());
    hub.change(|served| served.refuse_list = Some(404));
    let error = models(&hub, home.path()).model(&at("o/typo"), Want::Model).unwrap_err();
    assert!(matches!(error, HubError::NoSuchRepo { status: 404, .. }), "{error}");
    assert!(error.is_input());
    hub.change(|served| (served.refuse_list, served.refuse_files) = (None, Some(403)));
    let error = models(&hub, home.path()).model(&at("o/gated"), Want::Model).unwrap_err();
    assert!(matches!(error, HubError::NoSuchRepo { status: 403, .. }), "{error}");
    hub.change(|served| served.refuse_list = Some(500));
    let error = models(&hub, home.path()).model(&at("o/tiny"), Want::Model).unwrap_err();
    assert!(
        matches!(error, HubError::HubFailed { status: 500, .. }) && !error.is_input(),
        "{error}"
    );
}

#[test]
fn offline_without_a_copy_says_what_is_missing_and_the_ways_out() {
    let (hub, home) = (MockHub::new(&TINY), home());
    let error = offline(&hub, home.path()).model(&at("o/tiny"), Want::Model).unwrap_err();
    assert!(error.is_input());
    let message = error.to_string().replace(home.path().to_str().unwrap(), "HOME");
    assert_eq!(
        message,
        "there is no local path o/tiny, o/tiny (revision main) is not whole in the cache HOME/hub, and \
         HF_HUB_OFFLINE forbids to download it: unset HF_HUB_OFFLINE, or run `hf download o/tiny --revision main` where \
         there is a network and copy the cache, or put the path of a local copy into the recipe"
    );
    assert!(hub.requests().is_empty());
}

#[test]
fn a_hub_that_does_not_answer_is_no_fault_of_the_user() {
    let home = home();
    let error = unreachable(home.path()).model(&at("o/tiny"), Want::Model).unwrap_err();
    assert!(matches!(error, HubError::Unreachable { .. }), "{error}");
    assert!(!error.is_input());
    assert!(error.to_string().contains("o/tiny"));
}

#[test]
fn a_copy_without_tokenizer_is_used_when_the_hub_does_not_answer() {
    let files: [(&str, &[u8]); 2] = [("config.json", b"{}"), ("model.safetensors", b"w")];
    let (hub, home) = (MockHub::new(&files), home());
    let path = models(&hub, home.path()).model(&at("o/bare"), Want::Model).unwrap();
    assert_eq!(unreachable(home.path()).model(&at("o/bare"), Want::Model).unwrap(), path);
}

#[test]
fn a_download_that_breaks_off_goes_on_where_it_stopped() {
    let weights = bytes(50_000);
    let files: [(&str, &[u8]); 2] = [("config.json", b"{}"), ("model.safetensors", &weights)];
    let (hub, home) = (MockHub::new(&files), home());
    hub.change(|served| served.cut = Some((20_000, 3)));
    let path = models(&hub, home.path()).model(&at("o/tiny"), Want::Model).unwrap();
    assert_eq!(fs::read(path.join("model.safetensors")).unwrap(), weights);
    let requests = hub.requests();
    assert!(requests.iter().any(|request| request.contains("bytes=20000-")), "{requests:?}");
}

#[test]
fn a_short_file_that_looks_like_an_end_is_continued() {
    let weights = bytes(50_000);
    let files: [(&str, &[u8]); 2] = [("config.json", b"{}"), ("model.safetensors", &weights)];
    let (hub, home) = (MockHub::new(&files), home());
    hub.change(|served| (served.cut, served.no_length) = (Some((20_000, 2)), true));
    let path = models(&hub, home.path()).model(&at("o/tiny"), Want::Model).unwrap();
    assert_eq!(fs::read(path.join("model.safetensors")).unwrap(), weights);
    let requests = hub.requests();
    assert!(requests.iter().any(|request| request.contains("bytes=20000-")), "{requests:?}");
}

#[test]
fn an_interrupted_download_leaves_nothing_that_looks_whole_and_resumes_later() {
    let weights = bytes(50_000);
    let files: [(&str, &[u8]); 3] =
        [("config.json", b"{}"), ("tokenizer.json", b"{}"), ("model.safetensors", &weights)];
    let (hub, home) = (MockHub::new(&files), home());
    hub.change(|served| served.cut = Some((7_000, usize::MAX)));
    let error = models(&hub, home.path()).model(&at("o/tiny"), Want::Model).unwrap_err();
    assert!(matches!(error, HubError::Interrupted { .. }) && !error.is_input(), "{error}");
    let error = offline(&hub, home.path()).model(&at("o/tiny"), Want::Model).unwrap_err();
    assert!(matches!(error, HubError::Offline { .. }), "{error}");

    hub.change(|served| served.cut = None);
    hub.requests();
    let path = models(&hub, home.path()).model(&at("o/tiny"), Want::Model).unwrap();
    assert_eq!(fs::read(path.join("model.safetensors")).unwrap(), weights);
    let requests = hub.requests();
    assert!(requests.iter().any(|request| request.contains("bytes=21000-")), "{requests:?}");
}

#[test]
fn a_part_that_was_complete_when_the_process_died_is_used() {
    let weights = bytes(9_000);
    let files: [(&str, &[u8]); 2] = [("config.json", b"{}"), ("model.safetensors", &weights)];
    let (hub, home) = (MockHub::new(&files), home());
    let blobs = home.path().join("hub/models--o--tiny/blobs");
    fs::create_dir_all(&blobs).unwrap();
    let part = blobs.join(format!("{:x}.part", Sha256::digest(&weights)));
    fs::write(&part, &weights).unwrap();
    let path = models(&hub, home.path()).model(&at("o/tiny"), Want::Model).unwrap();
    assert_eq!(fs::read(path.join("model.safetensors")).unwrap(), weights);
    let requests = hub.requests();
    assert!(requests.iter().any(|request| request.contains("bytes=8999-")), "{requests:?}");
}

#[test]
fn a_file_with_another_hash_is_deleted() {
    let (hub, home) = (MockHub::new(&TINY), home());
    hub.change(|served| served.wrong_hash = true);
    let error = models(&hub, home.path()).model(&at("o/tiny"), Want::Model).unwrap_err();
    assert!(matches!(error, HubError::Damaged { property: "sha256", .. }), "{error}");
    hub.change(|served| served.wrong_hash = false);
    models(&hub, home.path()).model(&at("o/tiny"), Want::Model).unwrap();
}

#[test]
fn a_hub_that_ignores_ranges_never_yields_a_wrong_file() {
    let weights = bytes(50_000);
    let files: [(&str, &[u8]); 2] = [("config.json", b"{}"), ("model.safetensors", &weights)];
    let (hub, home) = (MockHub::new(&files), home());
    hub.change(|served| served.cut = Some((7_000, usize::MAX)));
    models(&hub, home.path()).model(&at("o/tiny"), Want::Model).unwrap_err();
    hub.change(|served| (served.cut, served.ignore_range) = (None, true));
    let error = models(&hub, home.path()).model(&at("o/tiny"), Want::Model).unwrap_err();
    assert!(matches!(error, HubError::Damaged { property: "size", .. }), "{error}");
    let path = models(&hub, home.path()).model(&at("o/tiny"), Want::Model).unwrap();
    assert_eq!(fs::read(path.join("model.safetensors")).unwrap(), weights);
}

#[test]
fn a_full_or_forbidden_disk_is_told_from_a_bad_network() {
    let (hub, home) = (MockHub::new(&TINY), home());
    fs::write(home.path().join("hub"), b"a file where the cache should be").unwrap();
    let error = models(&hub, home.path()).model(&at("o/tiny"), Want::Model).unwrap_err();
    assert!(matches!(error, HubError::Cache { .. }), "{error}");
}

#[test]
fn a_data_set_is_all_of_its_text_in_the_order_of_its_names() {
    let files: [(&str, &[u8]); 5] = [
        ("README.md", b"x"),
        ("data/b.jsonl", b"{}"),
        ("data/a.parquet", b"p"),
        ("notes.txt", b"n"),
        ("image.png", b"i"),
    ];
    let (hub, home) = (MockHub::new(&files), home());
    let names = |models: &Models, place: &str| -> Vec<String> {
        let paths = models.dataset(&format!("hf:{place}"), place).unwrap();
        let name = |path: &String| path.rsplit('/').next().unwrap().to_owned();
        paths.iter().map(name).collect()
    };
    let online = models(&hub, home.path());
    assert_eq!(names(&online, "o/d"), ["a.parquet", "b.jsonl", "notes.txt"]);
    assert_eq!(names(&online, "o/d/data"), ["a.parquet", "b.jsonl"]);
    assert_eq!(names(&online, "o/d/image.png"), ["image.png"]);
    assert_eq!(names(&offline(&hub, home.path()), "o/d/data/"), ["a.parquet", "b.jsonl"]);
    let error = online.dataset("hf:o/d/nothing", "o/d/nothing").unwrap_err();
    assert!(matches!(error, HubError::NoSuchFile { .. }), "{error}");
    let error = online.dataset("hf:wikitext", "wikitext").unwrap_err();
    assert!(matches!(error, HubError::NotADataset { .. }), "{error}");
}

#[test]
fn a_listed_name_that_leaves_the_cache_is_refused() {
    for name in ["../../evil.txt", "/etc/evil.txt", "a/../../evil.txt", "c:\\evil.txt"] {
        let (hub, home) = (MockHub::new(&[]), home());
        hub.change(|served| served.listed_only = vec![name.to_owned()]);
        let error = models(&hub, home.path()).dataset("hf:o/d", "o/d").unwrap_err();
        assert!(matches!(error, HubError::UnsafeName { .. }), "{error}");
    }
}

#[test]
fn a_recipe_gets_a_path_for_everything_it_names() {
    let (hub, home) = (MockHub::new(&TINY), home());
    hub.change(|served| {
        served.files.insert("train.txt".to_owned(), b"text".to_vec());
    });
    let document = distill_recipe::Document {
        path: "tiny.toml".into(),
        text: "name = \"tiny\"\n[student]\nkeep_layers = [0]\ntokenizer = \"o/t\"\n\
               [teacher.local]\nfrom = \"o/tiny\"\n[data]\nsources = [\"x/*.txt\", \"hf:o/d\"]\n\
               [train]\nsteps = 1\nlearning_rate = 1e-3\n"
            .to_owned(),
    };
    let recipe = distill_recipe::Recipe::from_document(&document, &[]).unwrap();
    let paths = models(&hub, home.path()).local_paths(&recipe).unwrap();
    assert_eq!(paths.student, None);
    assert!(paths.teacher.unwrap().join("model.safetensors").exists());
    assert!(paths.tokenizer.unwrap().join("tokenizer.json").exists());
    assert_eq!(paths.sources[0], ["x/*.txt"]);
    assert_eq!(fs::read(&paths.sources[1][0]).unwrap(), b"text");
}
