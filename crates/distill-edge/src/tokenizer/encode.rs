//! One call of `encode`: pieces, symbols, merging, and a memory of the pieces already merged.

use super::Tokenizer;
use super::bpe::{Merger, MergesView};
use super::hash::FastMap;
use super::symbols::Symbols;
use super::texts::IndexView;

/// Texts shorter than this, in bytes, repeat too few words for remembering them to pay.
const REMEMBER_FROM: usize = 2048;
/// Longer pieces, in bytes, hardly come again.
const REMEMBER_PIECE: usize = 48;
/// So many pieces are remembered: about 6 MB, and more than a language's common words.
const REMEMBER_PIECES: usize = 1 << 16;

/// The state of one call; dropped with it, so that a tokenizer stays immutable.
pub(super) struct Encoder<'t> {
    tokenizer: &'t Tokenizer,
    merges: MergesView<'t>,
    whole_pieces: Option<IndexView<'t>>,
    symbols: Vec<u32>,
    merger: Merger,
    /// Where in `remembered_ids` the ids of a piece are.
    remembered: FastMap<Box<str>, (u32, u32)>,
    remembered_ids: Vec<u32>,
    remembers: bool,
}

impl<'t> Encoder<'t> {
    /// For a text of `bytes` bytes.
    pub(super) fn new(tokenizer: &'t Tokenizer, bytes: usize) -> Self {
        Self {
            tokenizer,
            merges: tokenizer.merges.view(),
            whole_pieces: tokenizer
                .whole_pieces
                .as_ref()
                .map(|index| index.view(tokenizer.vocabulary.pieces())),
            symbols: Vec::new(),
            merger: Merger::default(),
            remembered: FastMap::default(),
            remembered_ids: Vec::new(),
            remembers: bytes >= REMEMBER_FROM,
        }
    }

    /// Appends the ids of a stretch of text without special tokens.
    pub(super) fn text(&mut self, text: &str, ids: &mut Vec<u32>) {
        match &self.tokenizer.symbols {
            Symbols::Bytes { pre, .. } => pre.split(text, &mut |piece| self.piece(piece, ids)),
            Symbols::Characters { spaces, .. } => {
                spaces.split(&spaces.mark(text), &mut |piece| self.piece(piece, ids));
            }
        }
    }

    fn piece(&mut self, piece: &str, ids: &mut Vec<u32>) {
        let tokenizer = self.tokenizer;
        if let Some(pieces) = &self.whole_pieces
            && let Some(id) = pieces.get(piece.as_bytes())
        {
            ids.push(id);
            return;
        }
        let remembers = self.remembers && (2..=REMEMBER_PIECE).contains(&piece.len());
        if remembers && let Some(&(from, to)) = self.remembered.get(piece) {
            ids.extend_from_slice(&self.remembered_ids[from as usize..to as usize]);
            return;
        }
        let first = ids.len();
        self.symbols.clear();
        tokenizer.symbols.push(piece, tokenizer.unknown, &mut self.symbols);
        self.merger.merge_into(self.merges, &mut self.symbols, ids);
        if remembers && self.remembered.len() < REMEMBER_PIECES {
            let from = self.remembered_ids.len() as u32;
            self.remembered_ids.extend_from_slice(&ids[first..]);
            self.remembered.insert(piece.into(), (from, self.remembered_ids.len() as u32));
        }
    }
}
