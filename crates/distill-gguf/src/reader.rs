//! Parsing a header, trusting nothing in it.

use std::collections::{BinaryHeap, HashMap};
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use crate::bytes::Content;
use crate::{
    Array, DEFAULT_ALIGNMENT, GgmlType, GgufError, Metadata, Strings, TensorInfo, TensorView,
    Value, ValueType,
};

/// Arrays may hold arrays this deep.
const DEEPEST_ARRAY: usize = 4;
/// A key's record: the length of its name, its type, a value of at least a byte.
const LEAST_KEY_BYTES: usize = 8 + 4 + 1;
/// A tensor's record: the length of its name, a count of dims, one dim, the type, the offset.
const LEAST_TENSOR_BYTES: usize = 8 + 4 + 8 + 4 + 8;

/// A parsed header: metadata and checked tensor records, apart from the bytes they describe.
#[derive(Clone, Debug)]
pub(crate) struct Header {
    version: u32,
    metadata: Metadata,
    tensors: Vec<TensorInfo>,
    index: HashMap<String, usize>,
}

impl Header {
    /// Parses the header of a whole file; `file` is its name in errors.
    ///
    /// # Errors
    /// If the bytes are no GGUF file, of a version or byte order that is not read, or damaged:
    /// each with the place and what was expected there.
    pub fn parse(content: &Arc<Content>, file: &Path) -> Result<Self, GgufError> {
        let bytes = &content[..];
        let mut reader = Reader { content, bytes, at: 0, file };
        let version = reader.preamble()?;
        let tensor_count = reader.count(format_args!("the tensor count"))?;
        let key_count = reader.count(format_args!("the metadata key count"))?;

        let metadata = reader.metadata(key_count)?;
        let alignment = alignment(&metadata)?;
        let (records, index) = reader.tensor_records(tensor_count)?;

        // An offset is only meaningful once the whole header has been read.
        let data_start = (reader.at as u64).next_multiple_of(alignment);
        let tensors = records
            .into_iter()
            .map(|record| record.placed(data_start, alignment, bytes.len(), file))
            .collect::<Result<Vec<_>, _>>()?;
        refuse_overlaps(&tensors, file)?;
        Ok(Self { version, metadata, tensors, index })
    }

    /// The container's version, 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The metadata.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// The tensors' records, in the order of the file.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The tensor `name` of the file whose bytes these are.
    ///
    /// # Panics
    /// If `bytes` is shorter than what was parsed.
    pub fn tensor<'a>(&'a self, bytes: &'a [u8], name: &str) -> Option<TensorView<'a>> {
        let info = &self.tensors[*self.index.get(name)?];
        Some(TensorView { info, bytes: &bytes[info.range.clone()], file: self.metadata.file() })
    }
}

/// `general.alignment`, checked, or the default.
fn alignment(metadata: &Metadata) -> Result<u64, GgufError> {
    let Some(value) = metadata.get("general.alignment") else {
        return Ok(DEFAULT_ALIGNMENT);
    };
    match value {
        &Value::U32(x) if x.is_power_of_two() && x >= 8 => Ok(x.into()),
        other => {
            Err(GgufError::Alignment { file: metadata.file().to_owned(), found: other.describe() })
        }
    }
}

/// Tensors that share bytes are refused: all of them together then have no more bytes than the
/// file, and what is made of them has a bound too.
fn refuse_overlaps(tensors: &[TensorInfo], file: &Path) -> Result<(), GgufError> {
    // The heap's sort is a tenth of `sort`'s code.
    let in_order: BinaryHeap<(usize, usize)> =
        tensors.iter().enumerate().map(|(i, tensor)| (tensor.range.start, i)).collect();
    let in_order = in_order.into_sorted_vec();
    let mut pairs = in_order.array_windows().map(|&[(_, a), (_, b)]| [&tensors[a], &tensors[b]]);
    match pairs.find(|[first, next]| next.range.start < first.range.end) {
        Some([first, next]) => Err(GgufError::Overlap {
            file: file.to_owned(),
            tensor: next.name.clone(),
            offset: next.offset,
            other: first.name.clone(),
            other_offset: first.offset,
            other_bytes: first.range.len(),
        }),
        None => Ok(()),
    }
}

/// A tensor's record as it stands, its offset not yet checked.
struct Record {
    name: String,
    dims: Vec<u64>,
    ty: GgmlType,
    offset: u64,
}

impl Record {
    fn placed(
        self,
        data_start: u64,
        alignment: u64,
        file_bytes: usize,
        file: &Path,
    ) -> Result<TensorInfo, GgufError> {
        let Self { name, dims, ty, offset } = self;
        let Some(needed) = ty.tensor_bytes(&dims) else {
            return Err(GgufError::TensorSize { file: file.to_owned(), tensor: name, dims, ty });
        };
        if !offset.is_multiple_of(alignment) {
            let file = file.to_owned();
            return Err(GgufError::Misaligned { file, tensor: name, offset, alignment });
        }
        let start = data_start.checked_add(offset);
        let end = start.and_then(|start| start.checked_add(needed));
        let range = match (start, end) {
            (Some(start), Some(end)) if end <= file_bytes as u64 => start as usize..end as usize,
            _ => {
                return Err(GgufError::TensorOutOfFile {
                    file: file.to_owned(),
                    tensor: name,
                    offset,
                    needed,
                    data_start,
                    file_bytes: file_bytes as u64,
                });
            }
        };
        Ok(TensorInfo { name, dims, ty, offset, range })
    }
}

/// A position in the bytes of a file.
///
/// What is being read is described by [`fmt::Arguments`], which become text in an error only: a
/// description holds the name of its key or tensor, and a file may have a name of a megabyte with a
/// million values behind it.
struct Reader<'a> {
    content: &'a Arc<Content>,
    bytes: &'a [u8],
    at: usize,
    file: &'a Path,
}

impl<'a> Reader<'a> {
    /// Magic and version; leaves the position behind them.
    fn preamble(&mut self) -> Result<u32, GgufError> {
        let magic = self.array::<4>(format_args!("the magic"))?;
        if &magic != b"GGUF" {
            return Err(GgufError::Magic { file: self.file.to_owned(), found: magic });
        }
        let version = u32::from_le_bytes(self.array(format_args!("the version"))?);
        match version {
            2 | 3 => Ok(version),
            // A version below 2¹⁶ in the upper half of the number: the bytes are the other way
            // round.
            _ if version & 0xFFFF == 0 && version != 0 => Err(GgufError::BigEndian {
                file: self.file.to_owned(),
                version: version.swap_bytes(),
            }),
            _ => Err(GgufError::Version { file: self.file.to_owned(), version }),
        }
    }

    fn metadata(&mut self, count: u64) -> Result<Metadata, GgufError> {
        self.check_count(count, LEAST_KEY_BYTES, format_args!("the metadata"))?;
        let mut metadata = Metadata::new(self.file);
        for i in 0..count {
            let start = self.at as u64;
            let key = self.string(format_args!("the name of metadata key {i}"))?;
            let value_type = self.value_type(key)?;
            let value = self.value(value_type, key)?;
            if !metadata.insert(key.to_owned(), value) {
                let (file, key) = (self.file.to_owned(), key.to_owned());
                return Err(GgufError::DuplicateKey { file, key, offset: start });
            }
        }
        Ok(metadata)
    }

    fn tensor_records(
        &mut self,
        count: u64,
    ) -> Result<(Vec<Record>, HashMap<String, usize>), GgufError> {
        self.check_count(count, LEAST_TENSOR_BYTES, format_args!("the tensor records"))?;
        let mut records = Vec::with_capacity(count as usize);
        let mut index = HashMap::with_capacity(count as usize);
        for i in 0..count {
            let start = self.at as u64;
            let record = self.tensor_record(i)?;
            if index.insert(record.name.clone(), records.len()).is_some() {
                return Err(GgufError::DuplicateTensor {
                    file: self.file.to_owned(),
                    tensor: record.name,
                    offset: start,
                });
            }
            records.push(record);
        }
        Ok((records, index))
    }

    fn tensor_record(&mut self, i: u64) -> Result<Record, GgufError> {
        let start = self.at as u64;
        let name = self.string(format_args!("the name of tensor {i}"))?.to_owned();
        let count =
            u32::from_le_bytes(self.array(format_args!("the dim count of tensor `{name}`"))?);
        let bad_dims = |dims: &[u64], file: &Path| GgufError::Dims {
            file: file.to_owned(),
            tensor: name.clone(),
            dims: dims.to_vec(),
            count,
            offset: start,
        };
        if !(1..=4).contains(&count) {
            return Err(bad_dims(&[], self.file));
        }
        let mut dims = Vec::with_capacity(count as usize);
        for _ in 0..count {
            let dim = self.array(format_args!("the dims of tensor `{name}`"))?;
            dims.push(u64::from_le_bytes(dim));
        }
        if dims.contains(&0) {
            return Err(bad_dims(&dims, self.file));
        }
        let type_at = self.at as u64;
        let id = u32::from_le_bytes(self.array(format_args!("the type of tensor `{name}`"))?);
        let offset = u64::from_le_bytes(self.array(format_args!("the offset of tensor `{name}`"))?);
        let Some(ty) = GgmlType::from_id(id) else {
            return Err(GgufError::UnknownTensorType {
                file: self.file.to_owned(),
                tensor: name,
                found: id,
                offset: type_at,
            });
        };
        Ok(Record { name, dims, ty, offset })
    }

    fn value_type(&mut self, key: &str) -> Result<ValueType, GgufError> {
        let offset = self.at as u64;
        let found = u32::from_le_bytes(self.array(format_args!("the type of key `{key}`"))?);
        ValueType::from_id(found).ok_or_else(|| GgufError::UnknownValueType {
            file: self.file.to_owned(),
            key: key.to_owned(),
            found,
            offset,
        })
    }

    fn value(&mut self, ty: ValueType, key: &str) -> Result<Value, GgufError> {
        let what = format_args!("the value of key `{key}`");
        Ok(match ty {
            ValueType::U8 => Value::U8(u8::from_le_bytes(self.array(what)?)),
            ValueType::I8 => Value::I8(i8::from_le_bytes(self.array(what)?)),
            ValueType::U16 => Value::U16(u16::from_le_bytes(self.array(what)?)),
            ValueType::I16 => Value::I16(i16::from_le_bytes(self.array(what)?)),
            ValueType::U32 => Value::U32(u32::from_le_bytes(self.array(what)?)),
            ValueType::I32 => Value::I32(i32::from_le_bytes(self.array(what)?)),
            ValueType::F32 => Value::F32(f32::from_le_bytes(self.array(what)?)),
            ValueType::U64 => Value::U64(u64::from_le_bytes(self.array(what)?)),
            ValueType::I64 => Value::I64(i64::from_le_bytes(self.array(what)?)),
            ValueType::F64 => Value::F64(f64::from_le_bytes(self.array(what)?)),
            ValueType::Bool => Value::Bool(self.bool(key)?),
            ValueType::String => Value::String(self.string(what)?.to_owned()),
            ValueType::Array => Value::Array(self.value_array(key, 1)?),
        })
    }

    fn value_array(&mut self, key: &str, depth: usize) -> Result<Array, GgufError> {
        if depth > DEEPEST_ARRAY {
            return Err(GgufError::NestedTooDeep {
                file: self.file.to_owned(),
                key: key.to_owned(),
                limit: DEEPEST_ARRAY,
                offset: self.at as u64,
            });
        }
        let ty = self.value_type(key)?;
        let what = format_args!("the array of key `{key}`");
        let count = self.count(what)?;
        let len = self.check_count(count, ty.least_bytes(), what)?;
        Ok(match ty {
            ValueType::U8 => Array::U8(self.numbers(len, what, u8::from_le_bytes)?),
            ValueType::I8 => Array::I8(self.numbers(len, what, i8::from_le_bytes)?),
            ValueType::U16 => Array::U16(self.numbers(len, what, u16::from_le_bytes)?),
            ValueType::I16 => Array::I16(self.numbers(len, what, i16::from_le_bytes)?),
            ValueType::U32 => Array::U32(self.numbers(len, what, u32::from_le_bytes)?),
            ValueType::I32 => Array::I32(self.numbers(len, what, i32::from_le_bytes)?),
            ValueType::F32 => Array::F32(self.numbers(len, what, f32::from_le_bytes)?),
            ValueType::U64 => Array::U64(self.numbers(len, what, u64::from_le_bytes)?),
            ValueType::I64 => Array::I64(self.numbers(len, what, i64::from_le_bytes)?),
            ValueType::F64 => Array::F64(self.numbers(len, what, f64::from_le_bytes)?),
            ValueType::Bool => Array::Bool(self.many(len, |reader| reader.bool(key))?),
            ValueType::String => {
                let start = self.at;
                for _ in 0..len {
                    self.string(what)?;
                }
                Array::String(Strings::new(self.content, start, len))
            }
            ValueType::Array => {
                Array::Array(self.many(len, |reader| reader.value_array(key, depth + 1))?)
            }
        })
    }

    /// `len` elements, whose least size has been checked against the bytes left.
    fn many<T>(
        &mut self,
        len: usize,
        mut read: impl FnMut(&mut Self) -> Result<T, GgufError>,
    ) -> Result<Vec<T>, GgufError> {
        let mut values = Vec::with_capacity(len);
        for _ in 0..len {
            values.push(read(self)?);
        }
        Ok(values)
    }

    /// `len` numbers of `N` bytes, whose size has been checked against the bytes left.
    fn numbers<T, const N: usize>(
        &mut self,
        len: usize,
        what: fmt::Arguments<'_>,
        convert: fn([u8; N]) -> T,
    ) -> Result<Vec<T>, GgufError> {
        let bytes = self.take(len as u64 * N as u64, what)?;
        Ok(bytes.as_chunks::<N>().0.iter().map(|bytes| convert(*bytes)).collect())
    }

    fn bool(&mut self, key: &str) -> Result<bool, GgufError> {
        let offset = self.at as u64;
        match self.array(format_args!("the boolean of key `{key}`"))? {
            [0] => Ok(false),
            [1] => Ok(true),
            [found] => Err(GgufError::BadBool {
                file: self.file.to_owned(),
                key: key.to_owned(),
                found,
                offset,
            }),
        }
    }

    fn string(&mut self, what: fmt::Arguments<'_>) -> Result<&'a str, GgufError> {
        let len = self.count(what)?;
        let offset = self.at as u64;
        let bytes = self.take(len, what)?;
        std::str::from_utf8(bytes).map_err(|_| GgufError::Utf8 {
            file: self.file.to_owned(),
            what: what.to_string(),
            offset,
        })
    }

    fn count(&mut self, what: fmt::Arguments<'_>) -> Result<u64, GgufError> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// `count`, if so many elements of `least` bytes can still follow.
    fn check_count(
        &self,
        count: u64,
        least: usize,
        what: fmt::Arguments<'_>,
    ) -> Result<usize, GgufError> {
        let needed = count.saturating_mul(least as u64);
        if needed <= (self.bytes.len() - self.at) as u64 {
            Ok(count as usize)
        } else {
            Err(self.truncated(what, needed))
        }
    }

    fn array<const N: usize>(&mut self, what: fmt::Arguments<'_>) -> Result<[u8; N], GgufError> {
        match self.bytes[self.at..].first_chunk::<N>() {
            Some(bytes) => {
                self.at += N;
                Ok(*bytes)
            }
            None => Err(self.truncated(what, N as u64)),
        }
    }

    fn take(&mut self, len: u64, what: fmt::Arguments<'_>) -> Result<&'a [u8], GgufError> {
        let rest = &self.bytes[self.at..];
        match usize::try_from(len).ok().and_then(|len| rest.get(..len)) {
            Some(bytes) => {
                self.at += bytes.len();
                Ok(bytes)
            }
            None => Err(self.truncated(what, len)),
        }
    }

    fn truncated(&self, what: fmt::Arguments<'_>, needed: u64) -> GgufError {
        GgufError::Truncated {
            file: self.file.to_owned(),
            what: what.to_string(),
            offset: self.at as u64,
            needed,
            available: (self.bytes.len() - self.at) as u64,
        }
    }
}
