//! What the loss sees, for the terminal.

use std::fmt::Write;

use crate::batch::Sequence;
use crate::tokenizer::TextTokenizer;

/// Columns of text that a line of running text takes at most.
const WIDTH: usize = 88;

/// A sequence as lines of text: its documents one behind the other, each token between bars and
/// the tokens whose successor the loss does not count in brackets. Readable without colour.
///
/// ```text
/// document 0 · positions 0–5 · 5 of 6 counted
///   |Hello|,| world|.|\n|[<|endoftext|>]
/// document 1 · …
/// ```
///
/// Every position of the sequence appears once; line ends and tabs are escaped.
#[must_use]
pub fn preview(tokenizer: &TextTokenizer, sequence: &Sequence) -> String {
    let mut text = String::new();
    let positions = sequence.input_ids.len();
    let mut start = 0;
    while start < positions {
        let document = sequence.document_ids[start];
        let length = sequence.document_ids[start..].iter().take_while(|&&d| d == document).count();
        document_lines(tokenizer, sequence, start..start + length, &mut text);
        start += length;
    }
    let counted = sequence.loss_mask.iter().filter(|&&counts| counts).count();
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{counted} of {positions} positions are counted");
    text
}

fn document_lines(
    tokenizer: &TextTokenizer,
    sequence: &Sequence,
    positions: std::ops::Range<usize>,
    text: &mut String,
) {
    let counted = sequence.loss_mask[positions.clone()].iter().filter(|&&counts| counts).count();
    let _ = writeln!(
        text,
        "document {} · positions {}–{} · {counted} of {} counted",
        sequence.document_ids[positions.start],
        positions.start,
        positions.end - 1,
        positions.len(),
    );
    let mut line = String::from("  |");
    let mut columns = line.len();
    for position in positions {
        let token = escape(&tokenizer.decode(&sequence.input_ids[position..=position]));
        let token = if sequence.loss_mask[position] { token } else { format!("[{token}]") };
        let width = token.chars().count() + 1;
        if columns > 3 && columns + width > WIDTH {
            let _ = writeln!(text, "{line}");
            line.truncate(3);
            columns = 3;
        }
        line.push_str(&token);
        line.push('|');
        columns += width;
    }
    let _ = writeln!(text, "{line}");
}

/// Text that stays on its line: control characters would move the cursor, or worse.
fn escape(text: &str) -> String {
    let mut escaped = String::new();
    for c in text.chars() {
        if c.is_control() {
            escaped.extend(c.escape_default());
        } else {
            escaped.push(c);
        }
    }
    escaped
}
