//! The tables of a vocabulary in `model.edge`: tensors beside the model's, used where they lie.
//!
//! | tensor | type, shape | holds |
//! |---|---|---|
//! | `tokenizer.pieces` | I8 `[bytes]` | the bytes of all tokens, one after another |
//! | `tokenizer.piece_ends` | I32 `[tokens]` | where each ends |
//! | `tokenizer.kinds` | I8 `[tokens]` | the type code of each |
//! | `tokenizer.merges` | I32 `[4, slots]` | a table of left, right, rank and token |
//! | `tokenizer.whole_pieces` | I32 `[2, slots]` | a table of hash and token, where pieces are taken whole |
//! | `tokenizer.bytes` | I32 `[256]` | the token of each byte, or −1 |
//! | `tokenizer.characters` | I32 `[2, slots]` | a table of character and token, in SentencePiece's |
//! | `tokenizer.glued` | I32 `[characters]` | those that some token joins to a space behind them, if any |
//!
//! [`VERSION_KEY`] says that they are there, [`SEED_KEY`] how they were hashed. No number in them is
//! believed: an id that is no token's is none, a text that is not there is empty, and a look-up
//! ends after a few slots, so that nothing has to be read before it is used.

use std::path::Path;

use distill_gguf::{Bytes, GgmlType, GgufFile, Value};

use super::PreTokenizer;
use super::bpe::Merges;
use super::hash::Seed;
use super::parts::Tables;
use super::sentence_piece::Spaces;
use super::symbols::{ByteTokens, Characters, Symbols};
use super::table::{REACH, Table};
use super::texts::{Index, Texts};
use super::vocabulary::Vocabulary;
use crate::EdgeError;

/// The version of the tables and of the hash.
const VERSION_KEY: &str = "distill.tokenizer.version";
const VERSION: u32 = 1;
const SEED_KEY: &str = "distill.tokenizer.seed";

const PIECES: &str = "tokenizer.pieces";
const PIECE_ENDS: &str = "tokenizer.piece_ends";
const KINDS: &str = "tokenizer.kinds";
const MERGES: &str = "tokenizer.merges";
const WHOLE_PIECES: &str = "tokenizer.whole_pieces";
const BYTES: &str = "tokenizer.bytes";
const CHARACTERS: &str = "tokenizer.characters";
const GLUED: &str = "tokenizer.glued";

/// All tensors that are not the model's.
pub(crate) const NAMES: [&str; 8] =
    [PIECES, PIECE_ENDS, KINDS, MERGES, WHOLE_PIECES, BYTES, CHARACTERS, GLUED];

/// A vocabulary as `model.edge` holds it.
#[derive(Clone, Debug)]
pub struct StoredVocabulary {
    /// Keys to be set.
    pub keys: Vec<(&'static str, Value)>,
    /// Tensors to be added, on a cache line each.
    pub tensors: Vec<StoredTensor>,
}

/// A tensor of a [`StoredVocabulary`].
#[derive(Clone, Debug)]
pub struct StoredTensor {
    /// Its name.
    pub name: &'static str,
    /// Its type.
    pub ty: GgmlType,
    /// Its dims, the row length first.
    pub dims: Vec<u64>,
    /// Its bytes.
    pub bytes: Bytes,
}

/// Whether a file holds tables.
pub(crate) fn are_in(file: &GgufFile) -> Result<bool, EdgeError> {
    match file.metadata().optional_u32(VERSION_KEY)? {
        None => Ok(false),
        Some(VERSION) => Ok(true),
        Some(other) => Err(config(
            file.path(),
            VERSION_KEY,
            other.to_string(),
            "1: export the model again with the release that runs it",
        )),
    }
}

/// How many tokens the tables are for.
pub(crate) fn tokens(file: &GgufFile) -> Result<usize, EdgeError> {
    Ok(find(file, KINDS, GgmlType::I8, 0)?.len())
}

/// The tables of a file that holds them. `pre` is the rule that cuts text, in byte-level
/// vocabularies, and `space_prefix` SentencePiece's.
pub(super) fn tables(
    file: &GgufFile,
    pre: Option<PreTokenizer>,
    space_prefix: bool,
) -> Result<Tables, EdgeError> {
    let seed = Seed::new(file.metadata().u64(SEED_KEY)?);
    let kinds = find(file, KINDS, GgmlType::I8, 0)?;
    let count = kinds.len();
    let ends = find(file, PIECE_ENDS, GgmlType::I32, count)?;
    let pieces = Texts::new(find(file, PIECES, GgmlType::I8, 0)?, ends);
    let symbols = match pre {
        Some(pre) => Symbols::Bytes { pre, tokens: byte_tokens(file, count)? },
        None => {
            let glued = match file.tensor(GLUED) {
                Some(_) => find(file, GLUED, GgmlType::I32, 0)?,
                None => Vec::new().into(),
            };
            let glued = glued.as_chunks().0.iter().filter_map(|c| char::from_u32(word(c)));
            Symbols::Characters {
                spaces: Spaces::of_list(space_prefix, glued),
                tokens: Characters::of_table(table(file, CHARACTERS, count)?, seed),
                bytes: byte_tokens(file, count)?,
            }
        }
    };
    let whole_pieces = match symbols.takes_whole_pieces() {
        true => Some(Index::of_table(table(file, WHOLE_PIECES, count)?, seed)),
        false => None,
    };
    let vocabulary = Vocabulary::of_tables(pieces, kinds);
    let merges = Merges::of_table(table(file, MERGES, count)?, seed);
    Ok(Tables { seed, vocabulary, symbols, merges, whole_pieces })
}

fn word(bytes: &[u8; 4]) -> u32 {
    u32::from_le_bytes(*bytes)
}

/// A tensor's bytes; `row` is what its rows have to be long, or 0.
fn find(file: &GgufFile, tensor: &str, ty: GgmlType, row: usize) -> Result<Bytes, EdgeError> {
    let (path, expected) = (file.path(), vec![row as u64]);
    let Some(view) = file.tensor(tensor) else {
        let (file, tensor) = (path.to_owned(), tensor.to_owned());
        return Err(EdgeError::MissingTensor { file, tensor, expected });
    };
    let info = view.info;
    if info.ty != ty {
        let (file, tensor, found) = (path.to_owned(), tensor.to_owned(), info.ty.name());
        return Err(EdgeError::Type { file, tensor, expected: ty.name(), found });
    }
    if row != 0 && info.dims[0] != row as u64 {
        let (file, tensor, found) = (path.to_owned(), tensor.to_owned(), info.dims.clone());
        return Err(EdgeError::Shape { file, tensor, expected, found });
    }
    Ok(file.share(info.range.clone()))
}

fn table<const N: usize>(
    file: &GgufFile,
    tensor: &str,
    tokens: usize,
) -> Result<Table<N>, EdgeError> {
    let bytes = find(file, tensor, GgmlType::I32, N)?;
    let slots = bytes.len() / (4 * N);
    Table::new(bytes, tokens as u32).ok_or_else(|| EdgeError::Shape {
        file: file.path().to_owned(),
        tensor: tensor.to_owned(),
        expected: vec![N as u64, REACH as u64],
        found: vec![N as u64, slots as u64],
    })
}

fn byte_tokens(file: &GgufFile, tokens: usize) -> Result<ByteTokens, EdgeError> {
    let bytes = find(file, BYTES, GgmlType::I32, 256)?;
    let ids = bytes.as_chunks().0;
    // Ids that are no token's are none.
    let token = |byte: usize| Some(word(&ids[byte])).filter(|&id| (id as usize) < tokens);
    Ok(Box::new(std::array::from_fn(token)))
}

fn config(file: &Path, key: &str, found: String, expected: &str) -> EdgeError {
    let (key, expected) = (key.to_owned(), expected.to_owned());
    EdgeError::Config { file: file.to_owned(), key, found, expected }
}

impl From<&Tables> for StoredVocabulary {
    fn from(tables: &Tables) -> Self {
        let Tables { seed, vocabulary, symbols, merges, whole_pieces } = tables;
        let mut tensors = Vec::new();
        let mut add = |name, ty, row: usize, bytes: &Bytes| {
            let size = if ty == GgmlType::I8 { 1 } else { 4 };
            let elements = bytes.len() / size;
            let dims = if row == 1 { vec![elements] } else { vec![row, elements / row] };
            let dims = dims.into_iter().map(|dim| dim as u64).collect();
            tensors.push(StoredTensor { name, ty, dims, bytes: bytes.clone() });
        };
        let pieces = vocabulary.pieces();
        match pieces.bytes() {
            // No tensor is empty; a byte behind the last token belongs to none.
            bytes if bytes.is_empty() => add(PIECES, GgmlType::I8, 1, &vec![0].into()),
            bytes => add(PIECES, GgmlType::I8, 1, bytes),
        }
        add(PIECE_ENDS, GgmlType::I32, 1, pieces.ends());
        add(KINDS, GgmlType::I8, 1, vocabulary.codes());
        add(MERGES, GgmlType::I32, 4, merges.table().bytes());
        if let Some(index) = whole_pieces {
            add(WHOLE_PIECES, GgmlType::I32, 2, index.table().bytes());
        }
        let words = |ids: &mut dyn Iterator<Item = u32>| -> Bytes {
            ids.flat_map(u32::to_le_bytes).collect::<Vec<u8>>().into()
        };
        let (Symbols::Bytes { tokens: bytes, .. } | Symbols::Characters { bytes, .. }) = symbols;
        let ids = words(&mut bytes.iter().map(|id| id.unwrap_or(u32::MAX)));
        add(BYTES, GgmlType::I32, 1, &ids);
        if let Symbols::Characters { spaces, tokens, .. } = symbols {
            add(CHARACTERS, GgmlType::I32, 2, tokens.table().bytes());
            let glued = words(&mut spaces.glued().into_iter().map(u32::from));
            if !glued.is_empty() {
                add(GLUED, GgmlType::I32, 1, &glued);
            }
        }
        let keys = vec![(VERSION_KEY, VERSION.into()), (SEED_KEY, seed.value().into())];
        Self { keys, tensors }
    }
}
