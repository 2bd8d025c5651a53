//! The byte-level alphabet of GPT-2 and the streaming UTF-8 decoder.
//!
//! Vocabularies of this family are JSON text, so every byte is written as a printable character:
//! the 188 printable Latin-1 bytes as themselves, the other 68 as U+0100, U+0101, … in order.

/// The character that stands for each byte in a byte-level vocabulary.
pub(super) fn alphabet() -> [char; 256] {
    let mut next = 0x100_u32;
    std::array::from_fn(|byte| match byte as u8 {
        b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF => char::from(byte as u8),
        _ => {
            next += 1;
            // 0x100..0x144 holds no surrogate, so the conversion never fails.
            char::from_u32(next - 1).unwrap_or(char::REPLACEMENT_CHARACTER)
        }
    })
}

/// The byte a vocabulary character stands for, the inverse of [`alphabet`].
pub(super) fn byte_of(c: char) -> Option<u8> {
    match c as u32 {
        code @ (0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF) => Some(code as u8),
        code @ 0x100..=0x120 => Some((code - 0x100) as u8),
        code @ 0x121..=0x142 => Some((code - 0x121 + 0x7F) as u8),
        0x143 => Some(0xAD),
        _ => None,
    }
}

/// Turns token pieces, which may end inside a character, into text as early as possible.
///
/// An incomplete character waits for the next piece; bytes that can never become one are
/// replaced by U+FFFD, as `String::from_utf8_lossy` does.
#[derive(Clone, Debug, Default)]
pub struct Utf8Stream {
    pending: Vec<u8>,
}

impl Utf8Stream {
    /// Adds `bytes` and appends to `text` all that is now certain.
    pub fn push(&mut self, bytes: &[u8], text: &mut String) {
        self.pending.extend_from_slice(bytes);
        let mut done = 0;
        for chunk in self.pending.utf8_chunks() {
            text.push_str(chunk.valid());
            done += chunk.valid().len();
            let invalid = chunk.invalid();
            if invalid.is_empty() {
                continue;
            }
            let at_the_end = done + invalid.len() == self.pending.len();
            if at_the_end && std::str::from_utf8(invalid).is_err_and(|e| e.error_len().is_none()) {
                break;
            }
            text.push(char::REPLACEMENT_CHARACTER);
            done += invalid.len();
        }
        self.pending.drain(..done);
    }

    /// Ends the stream: an incomplete character becomes U+FFFD.
    pub fn finish(&mut self, text: &mut String) {
        text.push_str(&String::from_utf8_lossy(&self.pending));
        self.pending.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_alphabet_and_its_inverse_agree() {
        let alphabet = alphabet();
        for (byte, &c) in alphabet.iter().enumerate() {
            assert_eq!(byte_of(c), Some(byte as u8), "byte {byte}");
        }
        assert_eq!(
            (alphabet[b' ' as usize], alphabet[b'\n' as usize], alphabet[b'a' as usize]),
            ('Ġ', 'Ċ', 'a')
        );
        assert_eq!((byte_of(' '), byte_of('\u{144}'), byte_of('语')), (None, None, None));
    }

    #[test]
    fn a_character_split_over_pieces_appears_when_complete() {
        let (mut stream, mut text) = (Utf8Stream::default(), String::new());
        stream.push(b"a\xe8\xaf", &mut text);
        assert_eq!(text, "a");
        stream.push(b"\xadb", &mut text);
        assert_eq!(text, "a语b");
        stream.push(b"\xff\xe8", &mut text);
        assert_eq!(text, "a语b\u{fffd}");
        stream.finish(&mut text);
        assert_eq!(text, "a语b\u{fffd}\u{fffd}");
    }

    proptest::proptest! {
        #[test]
        fn streaming_equals_lossy_decoding_of_the_whole(bytes: Vec<u8>, cut: u8) {
            let (mut stream, mut text) = (Utf8Stream::default(), String::new());
            for piece in bytes.chunks(usize::from(cut % 7) + 1) {
                stream.push(piece, &mut text);
            }
            stream.finish(&mut text);
            proptest::prop_assert_eq!(text, String::from_utf8_lossy(&bytes));
        }
    }
}
