//! Everything that can go wrong between a file of text and a batch of tokens.

use std::path::PathBuf;

use distill_gguf::GgufError;

/// A failure of this crate: the value, what was expected, the place, and the way out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// No source was given at all.
    #[error("no data sources are given; name at least one text, JSONL or Parquet file")]
    NoSources,

    /// A path that should exist does not.
    #[error(
        "{path}: no such file or directory; check the path (relative paths start at the current directory)"
    )]
    NotFound {
        /// The path as given.
        path: PathBuf,
    },

    /// A pattern with `*` or `?` matched nothing.
    #[error("{pattern}: the pattern matches no .txt, .jsonl or .parquet file")]
    NothingMatches {
        /// The pattern as given.
        pattern: String,
    },

    /// A directory without a single file of a known format.
    #[error("{path}: the directory holds no .txt, .jsonl or .parquet file")]
    EmptyDirectory {
        /// The directory.
        path: PathBuf,
    },

    /// A file whose extension names no format that is read here.
    #[error(
        "{path}: {found} is not a format that is read; expected .txt, .md, .jsonl, .ndjson or .parquet"
    )]
    UnknownFormat {
        /// The file.
        path: PathBuf,
        /// The extension found, or "no extension".
        found: String,
    },

    /// Directories nested too deeply (a loop of links, usually).
    #[error(
        "{path}: nested more than {limit} directories deep; is there a link that points back to a parent?"
    )]
    TooDeep {
        /// The directory at which the walk stopped.
        path: PathBuf,
        /// The deepest nesting followed.
        limit: usize,
    },

    /// The operating system refused.
    #[error("{path}: cannot {action}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What was being done, as a verb.
        action: &'static str,
        /// The system's reason.
        source: std::io::Error,
    },

    /// Bytes that are not UTF-8.
    #[error(
        "{path}:{line}: invalid UTF-8 at byte {offset} of the file; convert it first, e.g. `iconv -f latin1 -t utf8`"
    )]
    InvalidUtf8 {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: u64,
        /// Byte offset in the file, from 0.
        offset: u64,
    },

    /// A document separator that separates nothing.
    #[error("the document separator is empty; leave it out to read each text file as one document")]
    EmptySeparator,

    /// A line of a JSONL file that is not a JSON object.
    #[error("{path}:{line}: not a JSON object: {reason}; JSONL holds one object a line")]
    Json {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: u64,
        /// The parser's reason.
        reason: String,
    },

    /// A part of a mix cannot be used by itself.
    #[error("{name}, which has a weight of its own: {source}")]
    Part {
        /// The part.
        name: String,
        /// What is wrong with it.
        source: Box<DataError>,
    },

    /// A line of generated text that was not written so.
    #[error(
        "{path}:{place}: not as it was written: {reason}; remove the file to generate it again"
    )]
    Sample {
        /// The file.
        path: PathBuf,
        /// The line.
        place: Place,
        /// What is wrong.
        reason: String,
    },

    /// The text field is missing; what there is instead is listed.
    #[error("{path}:{place}: no field {field:?}; the fields are {}; set `text_field`", list(.found))]
    FieldMissing {
        /// The file.
        path: PathBuf,
        /// Where in the file.
        place: Place,
        /// The field asked for.
        field: String,
        /// The fields that are there.
        found: Vec<String>,
    },

    /// The text field holds something else than text.
    #[error(
        "{path}:{place}: field {field:?} is {found}, expected a string; clean the row or set `text_field`"
    )]
    FieldType {
        /// The file.
        path: PathBuf,
        /// Where in the file.
        place: Place,
        /// The field.
        field: String,
        /// What it holds.
        found: String,
    },

    /// A line of a JSONL file that is an object, and not the one expected.
    #[error("{path}:{line}: {problem}; expected {form}")]
    Record {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: u64,
        /// What is wrong, with the key.
        problem: String,
        /// What a line holds.
        form: &'static str,
    },

    /// A Parquet file that cannot be read.
    #[error("{path}:{place}: not readable as Parquet: {reason}; is the file complete?")]
    Parquet {
        /// The file.
        path: PathBuf,
        /// Where in the file.
        place: Place,
        /// The reader's reason.
        reason: String,
    },

    /// There is no text in any of the sources.
    #[error("the data is empty: {files} file(s) hold no text (first: {first})")]
    NoText {
        /// Number of files read.
        files: usize,
        /// The first of them.
        first: PathBuf,
    },

    /// The text is there, but no position of it can be trained on.
    #[error(
        "the data has {tokens} token(s) in {documents} document(s) and no position to learn from; give more text"
    )]
    NoValidTokens {
        /// Tokens in all documents.
        tokens: usize,
        /// Number of documents.
        documents: usize,
    },

    /// The held-out fraction leaves nothing to train on, or nothing to hold out.
    #[error(
        "{sequences} sequence(s) of {sequence_length} tokens cannot be split with held_out = {fraction}: \
         both sides need at least one; give more text, a shorter sequence_length or another held_out"
    )]
    CannotSplit {
        /// Sequences in all.
        sequences: usize,
        /// Tokens a sequence.
        sequence_length: usize,
        /// The fraction asked for.
        fraction: f64,
    },

    /// A fraction outside `[0, 1)`.
    #[error("held_out = {fraction}: expected a fraction of at least 0 and below 1")]
    HeldOutFraction {
        /// The value given.
        fraction: f64,
    },

    /// A sequence too short to hold a token and its label, or absurdly long.
    #[error("sequence_length = {value}: expected 2 to {limit}")]
    SequenceLength {
        /// The value given.
        value: usize,
        /// The largest allowed.
        limit: usize,
    },

    /// A saved cursor belongs to other data.
    #[error(
        "the saved cursor belongs to other data (it says {saved}, this split is {actual}); \
         resume with the sources, tokenizer, sequence_length, held_out and seed of the first run"
    )]
    CursorMismatch {
        /// Fingerprint in the cursor.
        saved: String,
        /// Fingerprint of the split.
        actual: String,
    },

    /// The directory has no `tokenizer.json`.
    #[error("{path}: no tokenizer.json; expected a Hugging Face directory (or a .gguf file)")]
    NoTokenizer {
        /// The directory.
        path: PathBuf,
    },

    /// A tokenizer file that cannot be used.
    #[error("{path}: {problem}")]
    TokenizerFile {
        /// The file.
        path: PathBuf,
        /// What is wrong and what was expected.
        problem: String,
    },

    /// A special token that the vocabulary does not hold.
    #[error("{path}: {key} is {token:?}, which is not in the vocabulary of {vocab_size} tokens")]
    UnknownSpecialToken {
        /// The file that names the token.
        path: PathBuf,
        /// Its key, e.g. `eos_token`.
        key: &'static str,
        /// The token.
        token: String,
        /// Tokens in the vocabulary.
        vocab_size: usize,
    },

    /// Documents must end with an end-of-sequence token and there is none.
    #[error(
        "the tokenizer has no end-of-sequence token to end documents with; set eos_token in tokenizer_config.json"
    )]
    NoEos,

    /// Reading the GGUF file failed.
    #[error(transparent)]
    Gguf(#[from] GgufError),

    /// A GGUF vocabulary of a kind that is not supported.
    #[error("{path}: {key} = {found:?} is not supported; expected one of {}", list(.expected))]
    UnsupportedVocabulary {
        /// The file.
        path: PathBuf,
        /// The metadata key.
        key: &'static str,
        /// Its value.
        found: String,
        /// The supported values.
        expected: Vec<String>,
    },

    /// A GGUF vocabulary that contradicts itself.
    #[error("{path}: {key}: {problem}")]
    GgufVocabulary {
        /// The file.
        path: PathBuf,
        /// The metadata key.
        key: &'static str,
        /// What is wrong, with the index.
        problem: String,
    },

    /// The vocabulary cannot even hold the bytes and special tokens.
    #[error("a byte-level vocabulary of {vocab_size} tokens is too small: 256 bytes and {special} special token(s) need at least {}", 256 + .special)]
    VocabularyTooSmall {
        /// The size asked for.
        vocab_size: usize,
        /// Number of special tokens.
        special: usize,
    },

    /// A vocabulary is to be learnt from nothing.
    #[error("there is no text to train a vocabulary on; give data sources that hold text")]
    NoTrainingText,

    /// The tokenizer library refused.
    #[error("cannot {action}: {source}")]
    Tokenizer {
        /// What was being done, as a verb.
        action: &'static str,
        /// The library's reason.
        source: Box<dyn std::error::Error + Send + Sync>,
    },

    /// Two vocabularies give the same id to different tokens.
    #[error(
        "the vocabularies differ at id {id}: {ours} here, {theirs} there; \
         distillation needs one vocabulary for teacher and student (padding at the end may differ)"
    )]
    VocabularyMismatch {
        /// The first id that differs.
        id: u32,
        /// This tokenizer's token, quoted, or "nothing".
        ours: String,
        /// The other's.
        theirs: String,
    },

    /// Two vocabularies hold the same tokens and split words differently.
    #[error(
        "the vocabularies hold the same tokens but merge them differently, first at merge {rank}: {ours} here, {theirs} there; use one tokenizer for teacher and student"
    )]
    MergeMismatch {
        /// The first rank that differs.
        rank: usize,
        /// This tokenizer's merge, quoted, or "nothing".
        ours: String,
        /// The other's.
        theirs: String,
    },

    /// The tokenizer comes without a chat template.
    #[error(
        "the tokenizer has no chat template; expected chat_template in tokenizer_config.json or tokenizer.chat_template in the GGUF"
    )]
    NoChatTemplate,

    /// A chat template that does not parse or render.
    #[error("chat template, line {line}: {reason}")]
    ChatTemplate {
        /// Line in the template, from 1; 0 where unknown.
        line: usize,
        /// What Jinja says.
        reason: String,
    },
}

/// Where in a data file: a line of text, or a row of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Line, from 1.
    Line(u64),
    /// Row, from 1.
    Row(u64),
    /// The file's schema or footer.
    Schema,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Line(line) => write!(f, "{line}"),
            Self::Row(row) => write!(f, " row {row}"),
            Self::Schema => write!(f, " schema"),
        }
    }
}

/// At most a dozen names, quoted: hostile files can hold any number of them.
pub(crate) fn list(names: &[String]) -> String {
    const SHOWN: usize = 12;
    let mut shown: Vec<String> = names.iter().take(SHOWN).map(|name| format!("{name:?}")).collect();
    if names.len() > SHOWN {
        shown.push(format!("… ({} in all)", names.len()));
    }
    if shown.is_empty() { "(none)".into() } else { shown.join(", ") }
}
