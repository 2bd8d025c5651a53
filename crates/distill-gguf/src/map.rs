//! The one place where a file becomes memory.
#![allow(unsafe_code)]

use std::fs::File;
use std::ops::Range;
use std::path::Path;

use memmap2::Mmap;

use crate::GgufError;

/// Maps the whole of `file` for reading.
///
/// The file must not be shortened while it is mapped: the operating system would end the process
/// at the next read. Whoever replaces a file in use writes a new one and renames it over the old
/// one, as [`crate::GgufWriter`] does; the old bytes then live as long as the map.
///
/// # Errors
/// The system's.
pub fn map_file(file: &File) -> std::io::Result<Mmap> {
    // SAFETY: the map is read-only and private to this process's view, and `Mmap` keeps it alive
    // for every slice taken of it. A concurrent writer could change bytes under us; every value
    // that decides an address was copied out of the map and checked when the header was parsed,
    // or is checked whenever it is read (`Strings`, the shards of signals), and all other reads are
    // of plain numbers, for which any bytes are valid.
    unsafe { Mmap::map(file) }
}

/// Maps the whole of a model file.
pub(crate) fn map(path: &Path) -> Result<Mmap, GgufError> {
    let open_error = |source| GgufError::Open { file: path.to_owned(), source };
    let file = File::open(path).map_err(open_error)?;
    if !file.metadata().map_err(open_error)?.is_file() {
        return Err(GgufError::NotAFile { file: path.to_owned() });
    }
    map_file(&file).map_err(open_error)
}

/// Takes the pages of `range` out of memory, where the system can do that. What is read of them
/// again comes from the file again.
pub(crate) fn release(map: &Mmap, range: Range<usize>) {
    #[cfg(all(unix, not(miri)))]
    {
        use memmap2::UncheckedAdvice::DontNeed;
        // SAFETY: the map is a shared one of a file and never written to, so that what a page holds
        // is in the file: every slice of it stays valid, and reads what it read before.
        // A system that refuses keeps the pages, and all goes on.
        let _ = unsafe { map.unchecked_advise_range(DontNeed, range.start, range.len()) };
    }
    #[cfg(not(all(unix, not(miri))))]
    let _ = (map, range);
}
