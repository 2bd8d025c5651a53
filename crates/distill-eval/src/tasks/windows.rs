//! A text cut into windows as llama.cpp's `llama-perplexity` cuts it.
//!
//! The whole file is one text; a newline at its end is dropped; special tokens spelt out in it are
//! text. Its ids, with the beginning-of-sequence token before them if the tokenizer puts one there,
//! are cut into windows of `context` tokens, one behind the other; what remains at the end is left
//! out. Where there is such a token, it takes the place of each window's first. Scored are the
//! tokens that positions `context / 2 .. context - 1` predict, so that each has half a window
//! before it: 255 of 512.

use std::io::ErrorKind;
use std::ops::Range;
use std::path::Path;

use distill_data::DataError;

use crate::{EvalError, LanguageModel};

/// Windows over a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Windows {
    tokens: Vec<u32>,
    context: usize,
    begin: Option<u32>,
}

impl Windows {
    /// Reads a text file and cuts at most `limit` windows of it.
    ///
    /// # Errors
    /// [`EvalError::Io`], [`EvalError::NotUtf8`], and as [`Windows::cut`].
    pub fn read(
        model: &dyn LanguageModel,
        path: &Path,
        context: usize,
        limit: usize,
    ) -> Result<Self, EvalError> {
        Self::cut(model, path, &Self::text(path)?, context, limit)
    }

    /// Reads a text file.
    ///
    /// # Errors
    /// [`EvalError::Io`], [`EvalError::NotUtf8`].
    pub fn text(path: &Path) -> Result<String, EvalError> {
        let io = |source: std::io::Error| match source.kind() {
            ErrorKind::NotFound => DataError::NotFound { path: path.to_path_buf() }.into(),
            _ => EvalError::Io { action: "reading", path: path.to_path_buf(), source },
        };
        String::from_utf8(std::fs::read(path).map_err(io)?).map_err(|error| {
            let offset = error.utf8_error().valid_up_to();
            EvalError::NotUtf8 { path: path.to_path_buf(), offset }
        })
    }

    /// Cuts at most `limit` windows of a text; `path` names it in errors.
    ///
    /// # Errors
    /// [`EvalError::TooShort`] if there is not one window, [`EvalError::Context`] if the model was
    /// not made for windows so long, [`EvalError::Window`] if no position of it would be scored.
    pub fn cut(
        model: &dyn LanguageModel,
        path: &Path,
        text: &str,
        context: usize,
        limit: usize,
    ) -> Result<Self, EvalError> {
        if context < 3 {
            return Err(EvalError::Window { context });
        }
        if context > model.context() {
            return Err(EvalError::Context { tokens: context, context: model.context() });
        }
        let begin = model.begin();
        let mut tokens = Vec::from_iter(begin);
        tokens.extend(model.encode_plain(text.strip_suffix('\n').unwrap_or(text))?);
        if tokens.len() < context {
            let path = path.to_path_buf();
            return Err(EvalError::TooShort { path, tokens: tokens.len(), context });
        }
        let count = (tokens.len() / context).min(limit.max(1));
        tokens.truncate(count * context);
        Ok(Self { tokens, context, begin })
    }

    /// Number of windows.
    #[allow(clippy::len_without_is_empty, reason = "there is at least one")]
    pub fn len(&self) -> usize {
        self.tokens.len() / self.context
    }

    /// Tokens of a window.
    pub fn context(&self) -> usize {
        self.context
    }

    /// The positions whose next tokens are scored, in every window.
    pub fn positions(&self) -> Range<usize> {
        self.context / 2..self.context - 1
    }

    /// The windows' tokens as they are read, in order.
    pub fn iter(&self) -> impl Iterator<Item = Vec<u32>> {
        self.tokens.chunks_exact(self.context).map(|window| {
            let mut window = window.to_vec();
            if let Some(begin) = self.begin {
                window[0] = begin;
            }
            window
        })
    }

    /// The first place where two texts' tokens differ.
    pub fn difference(&self, other: &Self) -> Option<usize> {
        let pairs = self.tokens.iter().zip(&other.tokens);
        let lengths = self.tokens.len() != other.tokens.len();
        let common = self.tokens.len().min(other.tokens.len());
        pairs.clone().position(|(a, b)| a != b).or(lengths.then_some(common))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::language_model::bigram::Bigram;

    fn cut(model: &Bigram, text: &str, context: usize) -> Result<Windows, EvalError> {
        Windows::cut(model, Path::new("t.txt"), text, context, 60)
    }

    #[test]
    fn of_512_tokens_the_last_255_are_scored() {
        let model = Bigram { context: 512, ..Bigram::default() };
        let windows = cut(&model, &"b".repeat(1500), 512).unwrap();
        assert_eq!((windows.len(), windows.positions()), (2, 256..511));
    }

    #[test]
    fn each_window_begins_with_the_token_that_begins_a_text() {
        let model = Bigram { begins: true, ..Bigram::default() };
        let windows: Vec<_> = cut(&model, "bcdbcdb", 4).unwrap().iter().collect();
        // The ids of "^bcd bcdb": the second window's first token gives way.
        assert_eq!(windows, [[7, 1, 2, 6], [7, 2, 6, 1]]);
        let without = cut(&Bigram::default(), "bcdbcdb", 4).unwrap();
        assert_eq!(without.iter().collect::<Vec<_>>(), [[1, 2, 6, 1]]);
    }

    #[test]
    fn one_newline_at_the_end_is_no_text_and_special_tokens_are() {
        let windows = cut(&Bigram::default(), "a^b\n", 3).unwrap();
        assert_eq!(windows.iter().collect::<Vec<_>>(), [[0, 2, 1]]);
    }

    #[test]
    fn no_more_windows_are_cut_than_asked_for() {
        let windows = Windows::cut(&Bigram::default(), Path::new(""), "bbbbbbbbb", 3, 2).unwrap();
        assert_eq!(windows.len(), 2);
    }

    #[test]
    fn what_cannot_be_cut_says_why() {
        let error = |text: &str, context| cut(&Bigram::default(), text, context).unwrap_err();
        assert_eq!(
            error("bb", 4).to_string(),
            "t.txt: 2 tokens are less than one window of 4; give more text or a shorter context"
        );
        assert!(matches!(error("bb", 2), EvalError::Window { context: 2 }));
        assert!(matches!(error("bb", 65), EvalError::Context { tokens: 65, context: 64 }));
    }

    #[test]
    fn texts_differ_at_the_first_token_that_does() {
        let of = |text| cut(&Bigram::default(), text, 3).unwrap();
        assert_eq!(of("bbc").difference(&of("bbd")), Some(2));
        assert_eq!(of("bbcbbc").difference(&of("bbc")), Some(3));
        assert_eq!(of("bbc").difference(&of("bbcb")), None);
    }
}
