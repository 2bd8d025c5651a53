//! Writing a file: whole, or not at all.

use std::borrow::Cow;
use std::collections::HashSet;
use std::error::Error;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::strings::put as put_string;
use crate::{Array, DEFAULT_ALIGNMENT, GgmlType, GgufError, Value};

/// The longest tensor name that ggml's readers accept, in bytes.
const LONGEST_NAME: usize = 63;

/// Where a tensor's bytes come from when [`GgufWriter::finish`] asks for them.
pub enum TensorSource<'a> {
    /// They are there already.
    Bytes(Cow<'a, [u8]>),
    /// They are made then, and written piece by piece, so that no more than a piece is in memory.
    Stream(Box<StreamFn<'a>>),
}

/// Writes all bytes of one tensor to what it is given.
type StreamFn<'a> = dyn FnOnce(&mut dyn Write) -> Result<(), Box<dyn Error + Send + Sync>> + 'a;

impl<'a> TensorSource<'a> {
    /// Bytes that `write` will produce.
    pub fn stream(
        write: impl FnOnce(&mut dyn Write) -> Result<(), Box<dyn Error + Send + Sync>> + 'a,
    ) -> Self {
        Self::Stream(Box::new(write))
    }
}

impl<'a> From<&'a [u8]> for TensorSource<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Self::Bytes(bytes.into())
    }
}

impl<'a> From<&'a Vec<u8>> for TensorSource<'a> {
    fn from(bytes: &'a Vec<u8>) -> Self {
        Self::Bytes(bytes.into())
    }
}

impl From<Vec<u8>> for TensorSource<'_> {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Bytes(bytes.into())
    }
}

/// Writes a GGUF file, version 3.
///
/// Keys and tensors are declared first, in the order they shall have; [`GgufWriter::finish`] then
/// writes everything to a temporary file beside the target, flushes it to the disk and renames it.
/// If anything fails, or the writer is dropped, the temporary file is removed and the target is as
/// it was.
pub struct GgufWriter<'a> {
    path: PathBuf,
    temporary: Temporary,
    file: File,
    entries: Vec<(String, Value)>,
    tensors: Vec<Pending<'a>>,
    names: HashSet<String>,
}

struct Pending<'a> {
    name: String,
    dims: Vec<u64>,
    ty: GgmlType,
    bytes: u64,
    source: TensorSource<'a>,
}

/// A temporary file that is removed unless it was renamed.
struct Temporary {
    path: PathBuf,
    keep: bool,
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.keep {
            // Nothing can be done about a failure here, and the error that led here matters more.
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl<'a> GgufWriter<'a> {
    /// Begins the file that shall stand at `path`.
    ///
    /// # Errors
    /// If no file can be created in that directory.
    pub fn create(path: &Path) -> Result<Self, GgufError> {
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}.tmp", std::process::id()));
        let temporary = path.with_file_name(name);
        let file = File::create(&temporary).map_err(|source| GgufError::Write {
            file: path.to_owned(),
            action: "create",
            source,
        })?;
        Ok(Self {
            path: path.to_owned(),
            temporary: Temporary { path: temporary, keep: false },
            file,
            entries: Vec::new(),
            tensors: Vec::new(),
            names: HashSet::new(),
        })
    }

    /// Sets `key`; a key set before keeps its place and takes the new value.
    ///
    /// `general.alignment` also decides where tensors begin.
    pub fn set(&mut self, key: impl Into<String>, value: impl Into<Value>) -> &mut Self {
        let (key, value) = (key.into(), value.into());
        match self.entries.iter_mut().find(|(existing, _)| *existing == key) {
            Some(entry) => entry.1 = value,
            None => self.entries.push((key, value)),
        }
        self
    }

    /// Declares a tensor: `dims[0]` is the length of a row.
    ///
    /// # Errors
    /// If the name is taken or too long, or dims and type do not make a tensor.
    pub fn tensor(
        &mut self,
        name: impl Into<String>,
        dims: &[u64],
        ty: GgmlType,
        source: impl Into<TensorSource<'a>>,
    ) -> Result<&mut Self, GgufError> {
        let (name, file) = (name.into(), self.path.clone());
        if name.len() > LONGEST_NAME {
            return Err(GgufError::NameTooLong { file, tensor: name });
        }
        let shaped = (1..=4).contains(&dims.len()) && !dims.contains(&0);
        let Some(bytes) = ty.tensor_bytes(dims).filter(|_| shaped) else {
            return Err(GgufError::TensorSize { file, tensor: name, dims: dims.to_vec(), ty });
        };
        if !self.names.insert(name.clone()) {
            return Err(GgufError::DeclaredTwice { file, tensor: name });
        }
        let (dims, source) = (dims.to_vec(), source.into());
        self.tensors.push(Pending { name, dims, ty, bytes, source });
        Ok(self)
    }

    /// Writes everything, and gives the file its name. Returns its size in bytes.
    ///
    /// # Errors
    /// If a source fails or gives another number of bytes, or the disk does.
    pub fn finish(self) -> Result<u64, GgufError> {
        let Self { path, mut temporary, file, entries, tensors, .. } = self;
        let alignment = alignment(&path, &entries)?;
        let header = header(&entries, &tensors, alignment);
        let total = total_bytes(&path, &header, &tensors, alignment)?;
        let failed = |action| {
            let path = &path;
            move |source| write_error(path, action, total, source)
        };

        let mut out = BufWriter::with_capacity(1 << 20, file);
        out.write_all(&header).map_err(failed("write"))?;
        for tensor in tensors {
            write_tensor(&mut out, tensor, &path, total, alignment)?;
        }
        let file = out.into_inner().map_err(|error| failed("write")(error.into_error()))?;
        file.sync_all().map_err(failed("flush"))?;
        drop(file);
        fs::rename(&temporary.path, &path).map_err(failed("rename"))?;
        temporary.keep = true;
        sync_directory(&path).map_err(failed("flush the directory of"))?;
        Ok(total)
    }
}

/// Makes the new name itself survive a loss of power.
#[cfg(unix)]
fn sync_directory(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
}

/// Directories cannot be flushed here; the rename is as durable as the system makes it.
#[cfg(not(unix))]
fn sync_directory(_: &Path) -> io::Result<()> {
    Ok(())
}

fn alignment(path: &Path, entries: &[(String, Value)]) -> Result<u64, GgufError> {
    match entries.iter().find(|(key, _)| key == "general.alignment").map(|(_, value)| value) {
        None => Ok(DEFAULT_ALIGNMENT),
        Some(&Value::U32(x)) if x.is_power_of_two() && x >= 8 => Ok(x.into()),
        Some(other) => Err(GgufError::Alignment { file: path.to_owned(), found: other.describe() }),
    }
}

/// The header with its padding: what stands before the data.
fn header(entries: &[(String, Value)], tensors: &[Pending<'_>], alignment: u64) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend(b"GGUF");
    out.extend(3u32.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((entries.len() as u64).to_le_bytes());
    for (key, value) in entries {
        put_string(&mut out, key);
        out.extend((value.value_type() as u32).to_le_bytes());
        put_value(&mut out, value);
    }
    let mut offset = 0u64;
    for tensor in tensors {
        put_string(&mut out, &tensor.name);
        out.extend((tensor.dims.len() as u32).to_le_bytes());
        out.extend(tensor.dims.iter().flat_map(|dim| dim.to_le_bytes()));
        out.extend(tensor.ty.id().to_le_bytes());
        out.extend(offset.to_le_bytes());
        // Sums that do not fit are found by `total_bytes` before anything is written.
        offset = padded(offset.saturating_add(tensor.bytes), alignment).unwrap_or(u64::MAX);
    }
    out.resize((out.len() as u64).next_multiple_of(alignment) as usize, 0);
    out
}

fn padded(bytes: u64, alignment: u64) -> Option<u64> {
    bytes.checked_next_multiple_of(alignment)
}

fn total_bytes(
    path: &Path,
    header: &[u8],
    tensors: &[Pending<'_>],
    alignment: u64,
) -> Result<u64, GgufError> {
    let mut total = header.len() as u64;
    for tensor in tensors {
        total = padded(tensor.bytes, alignment)
            .and_then(|bytes| total.checked_add(bytes))
            .ok_or_else(|| GgufError::TensorSize {
                file: path.to_owned(),
                tensor: tensor.name.clone(),
                dims: tensor.dims.clone(),
                ty: tensor.ty,
            })?;
    }
    Ok(total)
}

fn write_tensor(
    out: &mut impl Write,
    tensor: Pending<'_>,
    path: &Path,
    total: u64,
    alignment: u64,
) -> Result<(), GgufError> {
    let Pending { name, bytes: expected, source, .. } = tensor;
    let mut counted = Counted { out, written: 0, limit: expected, failure: None };
    let outcome = match source {
        TensorSource::Bytes(bytes) => counted.write_all(&bytes).map_err(Into::into),
        TensorSource::Stream(write) => write(&mut counted),
    };
    let Counted { written, failure, .. } = counted;
    // What the disk said comes first: a source can only report it in its own words.
    match failure {
        Some(Failure::TooLong { found }) => {
            let file = path.to_owned();
            return Err(GgufError::SourceLength { file, tensor: name, expected, found });
        }
        Some(Failure::Io(source)) => return Err(write_error(path, "write", total, source)),
        None => {}
    }
    if let Err(source) = outcome {
        return Err(GgufError::Source { file: path.to_owned(), tensor: name, source });
    }
    if written != expected {
        let file = path.to_owned();
        return Err(GgufError::SourceLength { file, tensor: name, expected, found: written });
    }
    let padding = expected.next_multiple_of(alignment) - expected;
    io::copy(&mut io::Read::take(io::repeat(0), padding), out)
        .map_err(|source| write_error(path, "write", total, source))?;
    Ok(())
}

/// Passes bytes on, up to a limit, and remembers why it stopped.
struct Counted<'a, W> {
    out: &'a mut W,
    written: u64,
    limit: u64,
    failure: Option<Failure>,
}

enum Failure {
    TooLong { found: u64 },
    Io(io::Error),
}

impl<W: Write> Write for Counted<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let found = self.written + bytes.len() as u64;
        if found > self.limit {
            self.failure = Some(Failure::TooLong { found });
            return Err(io::Error::other("more bytes than the tensor has"));
        }
        match self.out.write(bytes) {
            Ok(n) => {
                self.written += n as u64;
                Ok(n)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Err(error),
            Err(error) => {
                let again = io::Error::new(error.kind(), error.to_string());
                self.failure = Some(Failure::Io(error));
                Err(again)
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn write_error(path: &Path, action: &'static str, total: u64, source: io::Error) -> GgufError {
    let file = path.to_owned();
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            GgufError::DiskFull { file, needed: total }
        }
        _ => GgufError::Write { file, action, source },
    }
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::U8(x) => out.extend(x.to_le_bytes()),
        Value::I8(x) => out.extend(x.to_le_bytes()),
        Value::U16(x) => out.extend(x.to_le_bytes()),
        Value::I16(x) => out.extend(x.to_le_bytes()),
        Value::U32(x) => out.extend(x.to_le_bytes()),
        Value::I32(x) => out.extend(x.to_le_bytes()),
        Value::F32(x) => out.extend(x.to_le_bytes()),
        Value::Bool(x) => out.push(u8::from(*x)),
        Value::String(x) => put_string(out, x),
        Value::Array(x) => put_array(out, x),
        Value::U64(x) => out.extend(x.to_le_bytes()),
        Value::I64(x) => out.extend(x.to_le_bytes()),
        Value::F64(x) => out.extend(x.to_le_bytes()),
    }
}

fn put_array(out: &mut Vec<u8>, array: &Array) {
    out.extend((array.element_type() as u32).to_le_bytes());
    out.extend((array.len() as u64).to_le_bytes());
    match array {
        Array::U8(x) => out.extend(x),
        Array::I8(x) => out.extend(x.iter().flat_map(|x| x.to_le_bytes())),
        Array::U16(x) => out.extend(x.iter().flat_map(|x| x.to_le_bytes())),
        Array::I16(x) => out.extend(x.iter().flat_map(|x| x.to_le_bytes())),
        Array::U32(x) => out.extend(x.iter().flat_map(|x| x.to_le_bytes())),
        Array::I32(x) => out.extend(x.iter().flat_map(|x| x.to_le_bytes())),
        Array::F32(x) => out.extend(x.iter().flat_map(|x| x.to_le_bytes())),
        Array::Bool(x) => out.extend(x.iter().map(|&x| u8::from(x))),
        Array::String(x) => x.iter().for_each(|x| put_string(out, x)),
        Array::Array(x) => x.iter().for_each(|x| put_array(out, x)),
        Array::U64(x) => out.extend(x.iter().flat_map(|x| x.to_le_bytes())),
        Array::I64(x) => out.extend(x.iter().flat_map(|x| x.to_le_bytes())),
        Array::F64(x) => out.extend(x.iter().flat_map(|x| x.to_le_bytes())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_named_with_the_bytes_needed() {
        let full = io::Error::from(io::ErrorKind::StorageFull);
        assert_eq!(
            write_error(Path::new("out/m.gguf"), "write", 1_234_567, full).to_string(),
            "out/m.gguf: no space left: the file needs 1234567 bytes; free some or write \
             elsewhere (nothing partial was left behind)"
        );
    }

    /// A disk that takes `0` bytes more.
    struct FullAfter(usize);

    impl Write for FullAfter {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let taken = bytes.len().min(self.0);
            self.0 -= taken;
            if taken == 0 { Err(io::ErrorKind::StorageFull.into()) } else { Ok(taken) }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_disk_that_fills_up_within_a_tensor_is_noticed_even_if_its_source_is_silent() {
        for room in 0..64 {
            let source = TensorSource::stream(|out| {
                for piece in [[7u8; 5]; 7] {
                    let _ = out.write_all(&piece);
                }
                Ok(())
            });
            let pending =
                Pending { name: "x".into(), dims: vec![35], ty: GgmlType::I8, bytes: 35, source };
            let outcome = write_tensor(&mut FullAfter(room), pending, Path::new("m"), 64, 32);
            assert!(matches!(outcome, Err(GgufError::DiskFull { needed: 64, .. })), "{room}");
        }
    }
}
