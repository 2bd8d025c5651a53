//! A recipe as text: the file and the `--set` overrides, read into one tree whose every span says
//! which of the texts it lies in.

use std::fs;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use miette::{LabeledSpan, NamedSource};
use toml::Spanned;
use toml::de::{DeArray, DeString, DeTable, DeValue};

use crate::error::{Problem, RecipeError};
use crate::problem::ProblemKind;

/// The most that is read as a recipe.
const LIMIT_BYTES: u64 = 1 << 20;

/// A recipe as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// Where it was read from.
    pub path: PathBuf,
    /// The text of the file, without the overrides.
    pub text: String,
}

impl Document {
    /// Reads a recipe from disk.
    ///
    /// # Errors
    ///
    /// Nothing at the path, a directory, a file that is not text or far too large.
    pub fn read(path: &Path) -> Result<Self, RecipeError> {
        let unreadable = |source| RecipeError::Unreadable { path: path.to_owned(), source };
        let metadata = fs::metadata(path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => {
                RecipeError::NotFound { path: path.to_owned(), similar: similar_recipes(path) }
            }
            _ => unreadable(error),
        })?;
        if metadata.is_dir() {
            return Err(RecipeError::IsDirectory {
                path: path.to_owned(),
                recipes: recipes_in(path),
            });
        }
        let mut bytes = Vec::new();
        fs::File::open(path)
            .and_then(|file| file.take(LIMIT_BYTES + 1).read_to_end(&mut bytes))
            .map_err(unreadable)?;
        if bytes.len() as u64 > LIMIT_BYTES {
            return Err(RecipeError::TooLarge { path: path.to_owned(), limit_bytes: LIMIT_BYTES });
        }
        let text = String::from_utf8(bytes).map_err(|error| {
            let offset = error.utf8_error().valid_up_to();
            let bytes = error.as_bytes();
            RecipeError::NotUtf8 {
                path: path.to_owned(),
                offset,
                line: 1 + bytes[..offset].iter().filter(|&&byte| byte == b'\n').count(),
                byte: bytes[offset],
            }
        })?;
        Ok(Self { path: path.to_owned(), text })
    }
}

impl Document {
    /// An error that points at keys of the recipe, dotted, for what is found out later than here.
    pub fn error(&self, overrides: &[String], problems: Vec<(String, ProblemKind)>) -> RecipeError {
        let problems = match parse(self, overrides) {
            Err(problems) => problems,
            Ok(tree) => problems
                .into_iter()
                .map(|(key, kind)| tree.sources.problem(kind, tree.place_of(&key), &[]))
                .collect(),
        };
        RecipeError::Invalid { path: self.path.clone(), problems }
    }
}

fn recipes_in(directory: &Path) -> Vec<PathBuf> {
    let mut recipes: Vec<PathBuf> = fs::read_dir(directory)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
        .collect();
    recipes.sort();
    recipes
}

fn similar_recipes(path: &Path) -> Vec<PathBuf> {
    let wanted = path.file_stem().unwrap_or_default().to_string_lossy();
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut recipes = recipes_in(directory);
    recipes.retain(|recipe| {
        let stem = recipe.file_stem().unwrap_or_default().to_string_lossy();
        strsim::jaro_winkler(&wanted, &stem) > 0.8
    });
    recipes
}

/// The texts that a recipe is made of. Spans count through all of them, one after the other.
pub(crate) struct Sources {
    texts: Vec<(usize, Arc<NamedSource<String>>)>,
    end: usize,
}

impl Sources {
    fn new() -> Self {
        Self { texts: Vec::new(), end: 0 }
    }

    /// Adds a text; returns where its spans begin.
    fn add(&mut self, name: &str, text: &str) -> usize {
        let base = self.end;
        let source = NamedSource::new(name, text.to_owned());
        self.texts.push((base, Arc::new(source)));
        // One apart, so that a place at the very end of a text is not the next one's beginning.
        self.end = base + text.len() + 1;
        base
    }

    /// A problem at `primary`; `others` are shown as well where they stand in the same text.
    pub(crate) fn problem(
        &self,
        kind: ProblemKind,
        primary: Range<usize>,
        others: &[(Range<usize>, &str)],
    ) -> Problem {
        let index =
            self.texts.partition_point(|(base, _)| *base <= primary.start).saturating_sub(1);
        let (base, text) = &self.texts[index];
        let end = base + text.inner().len();
        let label = |words: &str, span: &Range<usize>| {
            let start = span.start.min(end) - base;
            let length = span.end.clamp(span.start, end.max(span.start)) - span.start;
            LabeledSpan::new(Some(words.to_owned()), start, length)
        };
        // There is nothing to show of a text without text.
        let mut labels = Vec::new();
        if !text.inner().trim().is_empty() {
            labels.push(label(kind.label(), &primary));
        }
        for (span, words) in others {
            if (*base..=end).contains(&span.start) {
                labels.push(label(words, span));
            }
        }
        Problem { kind, place: primary.start, text: Arc::clone(text), labels }
    }
}

/// A recipe as a tree, overrides applied.
pub(crate) struct Tree<'a> {
    pub(crate) root: Spanned<DeTable<'a>>,
    pub(crate) sources: Sources,
}

impl Tree<'_> {
    /// Where the value of a dotted key stands; the beginning if it is not there.
    fn place_of(&self, key: &str) -> Range<usize> {
        let mut table = self.root.get_ref();
        let mut place = 0..0;
        for name in key.split('.') {
            let Some(value) = table.get(name) else { break };
            place = value.span();
            match value.get_ref() {
                DeValue::Table(inner) => table = inner,
                _ => break,
            }
        }
        place
    }
}

/// Parses the file and the overrides, and applies these to that.
pub(crate) fn parse<'a>(
    document: &'a Document,
    overrides: &'a [String],
) -> Result<Tree<'a>, Vec<Problem>> {
    let mut sources = Sources::new();
    let mut problems = Vec::new();
    sources.add(&document.path.display().to_string(), &document.text);
    let (mut root, errors) = DeTable::parse_recoverable(&document.text);
    for error in first_of_each_line(errors, &document.text) {
        let span = error.span().unwrap_or(0..0);
        let message = error.message().to_owned();
        problems.push(sources.problem(ProblemKind::Syntax { message }, span, &[]));
    }
    for text in overrides {
        let base = sources.add("--set", text);
        match parse_override(text) {
            Ok((path, value)) => set(root.get_mut(), &path, shifted(value, base), base),
            Err(kind) => {
                let key = text.split('=').next().map_or(0, str::len);
                problems.push(sources.problem(kind, base..base + key, &[]));
            }
        }
    }
    if problems.is_empty() { Ok(Tree { root, sources }) } else { Err(problems) }
}

/// The leftmost error of every line: what follows it is mostly its consequence.
fn first_of_each_line(mut errors: Vec<toml::de::Error>, text: &str) -> Vec<toml::de::Error> {
    let start = |error: &toml::de::Error| error.span().map_or(0, |span| span.start);
    errors.sort_by_key(start);
    errors.dedup_by_key(|error| {
        let before = text.as_bytes().iter().take(start(error));
        before.filter(|&&byte| byte == b'\n').count()
    });
    errors
}

type OverridePath = Vec<Spanned<String>>;

/// `a.b=c` as the keys a, b and the value c, which is TOML or else a string as it stands.
fn parse_override(text: &str) -> Result<(OverridePath, Spanned<DeValue<'_>>), ProblemKind> {
    let Some((key, value)) = text.split_once('=') else {
        let text = text.to_owned();
        return Err(ProblemKind::OverrideWithoutValue { text });
    };
    let path = parse_key(key)
        .map_err(|message| ProblemKind::OverrideKey { text: text.to_owned(), message })?;
    let start = text.len() - value.trim_start().len();
    let value = value.trim();
    let value = match DeValue::parse(value) {
        Ok(parsed) => shifted(parsed, start),
        Err(_) => {
            let span = start..start + value.len();
            Spanned::new(span, DeValue::String(DeString::Borrowed(value)))
        }
    };
    Ok((path, value))
}

/// A dotted TOML key, by itself.
fn parse_key(key: &str) -> Result<OverridePath, String> {
    // A header or a second line would parse, and would not be a key.
    if key.trim_start().starts_with('[') || key.contains('\n') {
        return Err("expected a key".to_owned());
    }
    let line = format!("{key}=0");
    let table = DeTable::parse(&line).map_err(|error| error.message().to_owned())?;
    let mut path = OverridePath::new();
    let mut table = table.get_ref();
    while let Some((key, value)) = table.iter().next() {
        path.push(Spanned::new(key.span(), key.get_ref().clone().into_owned()));
        match value.get_ref() {
            DeValue::Table(inner) => table = inner,
            _ => return Ok(path),
        }
    }
    Err("expected a key".to_owned())
}

/// Writes one value into the tree, over what stands there.
fn set<'a>(
    table: &mut DeTable<'a>,
    path: &[Spanned<String>],
    value: Spanned<DeValue<'a>>,
    base: usize,
) {
    let [key, rest @ ..] = path else { return };
    let span = moved(&key.span(), base);
    let name = DeString::Owned(key.get_ref().clone());
    let key = Spanned::new(span.clone(), name);
    if rest.is_empty() {
        // The old key goes too: what is wrong with the new value is wrong in the override.
        table.remove(&key);
        table.insert(key, value);
        return;
    }
    if !matches!(table.get(&key).map(Spanned::get_ref), Some(DeValue::Table(_))) {
        table.remove(&key);
        table.insert(key.clone(), Spanned::new(span, DeValue::Table(DeTable::new())));
    }
    if let Some(DeValue::Table(inner)) = table.get_mut(&key).map(Spanned::get_mut) {
        set(inner, rest, value, base);
    }
}

fn moved(span: &Range<usize>, base: usize) -> Range<usize> {
    span.start + base..span.end + base
}

/// The same value, its spans moved by `base`.
fn shifted(value: Spanned<DeValue<'_>>, base: usize) -> Spanned<DeValue<'_>> {
    let span = moved(&value.span(), base);
    let value = match value.into_inner() {
        DeValue::Table(table) => {
            let entries = table.into_iter().map(|(key, value)| {
                let span = moved(&key.span(), base);
                (Spanned::new(span, key.into_inner()), shifted(value, base))
            });
            DeValue::Table(entries.collect())
        }
        DeValue::Array(items) => {
            let mut array = DeArray::new();
            for item in items {
                array.push(shifted(item, base));
            }
            DeValue::Array(array)
        }
        scalar => scalar,
    };
    Spanned::new(span, value)
}
