//! Hashes as they are printed and compared.

use std::fmt::Write;
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::error::DataError;

/// The first 128 bits of a hash as hexadecimal digits: enough to tell data apart, short enough
/// for an error message.
pub(crate) fn hex(hash: &[u8]) -> String {
    hash.iter().take(16).fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// A hash of the files' contents, in order.
///
/// # Errors
/// [`DataError::NotFound`], [`DataError::Io`].
pub fn hash_files<P: AsRef<Path>>(files: &[P]) -> Result<String, DataError> {
    let mut hash = Sha256::new();
    for path in files {
        let path = path.as_ref();
        let mut file = crate::source::open_file(path)?;
        let bytes = std::io::copy(&mut file, &mut hash).map_err(|source| DataError::Io {
            path: path.to_path_buf(),
            action: "read",
            source,
        })?;
        hash.update(bytes.to_le_bytes());
    }
    Ok(hex(&hash.finalize()))
}
