//! Which files of a repository are needed.

use super::HubError;

pub(super) const CONFIG: &str = "config.json";
pub(super) const WEIGHTS: &str = "model.safetensors";
pub(super) const INDEX: &str = "model.safetensors.index.json";
pub(super) const TOKENIZER: &str = "tokenizer.json";
/// Taken along where the repository has them.
pub(super) const OPTIONAL: [&str; 4] =
    [TOKENIZER, "tokenizer_config.json", "chat_template.jinja", "generation_config.json"];

/// What is wanted of a repository of models.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Want<'a> {
    /// A model with its tokenizer.
    Model,
    /// The tokenizer alone.
    Tokenizer,
    /// One GGUF file by its path in the repository.
    File(&'a str),
}

/// What is to be fetched.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Choice {
    /// A Hugging Face directory: these files, and the shards if the index is among them.
    Directory(Vec<String>),
    /// One GGUF file.
    Gguf(String),
}

/// Chooses among the files of a repository.
pub(super) fn choose(id: &str, want: &Want<'_>, files: &[String]) -> Result<Choice, HubError> {
    let has = |name: &str| files.iter().any(|file| file == name);
    let optional = || OPTIONAL.iter().filter(|name| has(name)).map(|&name| name.to_owned());
    match want {
        Want::File(path) if has(path) => Ok(Choice::Gguf((*path).to_owned())),
        Want::File(path) => Err(HubError::NoSuchFile {
            id: id.to_owned(),
            path: (*path).to_owned(),
            has: ggufs(files),
        }),
        Want::Tokenizer if has(TOKENIZER) => Ok(Choice::Directory(
            optional().chain(has(CONFIG).then(|| CONFIG.to_owned())).collect(),
        )),
        Want::Model if has(CONFIG) && (has(WEIGHTS) || has(INDEX)) => {
            let weights = if has(WEIGHTS) { WEIGHTS } else { INDEX };
            // The weights last: a directory with weights has the rest.
            let first = [CONFIG.to_owned()].into_iter().chain(optional());
            Ok(Choice::Directory(first.chain([weights.to_owned()]).collect()))
        }
        Want::Model | Want::Tokenizer => match ggufs(files).as_slice() {
            [only] => Ok(Choice::Gguf(only.clone())),
            [] => {
                let (id, has) = (id.to_owned(), files.to_vec());
                Err(match want {
                    Want::Tokenizer => HubError::NoTokenizer { id, has },
                    _ => HubError::NoWeights { id, has },
                })
            }
            several => Err(HubError::Ambiguous { id: id.to_owned(), has: several.to_vec() }),
        },
    }
}

fn ggufs(files: &[String]) -> Vec<String> {
    files.iter().filter(|file| file.ends_with(".gguf")).cloned().collect()
}

/// The files with text: all of a data set, a folder of it, or one file.
pub(super) fn texts(
    id: &str,
    path: Option<&str>,
    files: &[String],
) -> Result<Vec<String>, HubError> {
    let path = path.map(|path| path.trim_end_matches('/'));
    let is_text = |file: &str| {
        [".parquet", ".jsonl", ".txt"].iter().any(|extension| file.ends_with(extension))
    };
    let mut texts: Vec<String> = match path {
        // A file that is named is taken, whatever its extension.
        Some(path) if files.iter().any(|file| file == path) => vec![path.to_owned()],
        Some(folder) => {
            let prefix = format!("{folder}/");
            let inside = files.iter().filter(|file| file.starts_with(&prefix) && is_text(file));
            inside.cloned().collect()
        }
        None => files.iter().filter(|file| is_text(file)).cloned().collect(),
    };
    // The order decides the order of the documents: the same on every machine.
    texts.sort();
    match (texts.is_empty(), path) {
        (false, _) => Ok(texts),
        (true, Some(path)) => Err(HubError::NoSuchFile {
            id: id.to_owned(),
            path: path.to_owned(),
            has: files.iter().filter(|file| is_text(file)).cloned().collect(),
        }),
        (true, None) => Err(HubError::NoText { id: id.to_owned(), has: files.to_vec() }),
    }
}
