//! Hashes as they are printed and compared.

use std::fmt::Write;

/// The first 128 bits of a hash as hexadecimal digits: enough to tell data apart, short enough
/// for an error message.
pub(crate) fn hex(hash: &[u8]) -> String {
    hash.iter().take(16).fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
