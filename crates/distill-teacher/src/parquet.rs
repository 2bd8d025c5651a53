//! A cache as Parquet, for whatever else reads that.
//!
//! One row for each token that the teacher spoke of: `text` (the key in hexadecimal), `position`,
//! `rank` (from 0), `token`, and `value`: ln p, or the weight of a sample. What the cache says about
//! itself stands in the file's key–value metadata, as `distill`.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use parquet::basic::{Compression, ZstdLevel};
use parquet::data_type::{ByteArray, ByteArrayType, FloatType, Int32Type};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;

use crate::cache::{Cache, Key};
use crate::error::TeacherError;
use crate::signal::Signal;

const SCHEMA: &str = "message signals {
    required binary text (STRING);
    required int32 position;
    required int32 rank;
    required int32 token;
    required float value;
}";

/// Texts of a row group.
const GROUP: usize = 64;

/// Writes all of a cache, whole or not at all. Returns how many rows.
///
/// # Errors
/// [`TeacherError::Damaged`] of the cache; [`TeacherError::Parquet`].
pub fn export(cache: &Cache, path: &Path) -> Result<u64, TeacherError> {
    let partial = path.with_extension("parquet.tmp");
    let failed = |source| TeacherError::Parquet { path: path.to_path_buf(), source };
    let io = |source: std::io::Error| failed(ParquetError::from(source));
    let file = File::create(&partial).map_err(io)?;
    let about = serde_json::to_string(cache.about()).expect("plain data");
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_key_value_metadata(Some(vec![KeyValue::new("distill".to_owned(), about)]))
        .build();
    let schema = Arc::new(parse_message_type(SCHEMA).expect("a schema"));
    let mut writer =
        SerializedFileWriter::new(file, schema, Arc::new(properties)).map_err(failed)?;
    let keys: Vec<Key> = cache.keys().collect();
    let mut rows = 0;
    for keys in keys.chunks(GROUP) {
        let mut group = Columns::default();
        for &key in keys {
            if let Some(signal) = cache.get(key)? {
                group.add(key, &signal);
            }
        }
        rows += group.tokens.len() as u64;
        group.write(&mut writer).map_err(failed)?;
    }
    writer.close().map_err(failed)?;
    std::fs::rename(&partial, path).map_err(io)?;
    Ok(rows)
}

#[derive(Default)]
struct Columns {
    texts: Vec<ByteArray>,
    positions: Vec<i32>,
    ranks: Vec<i32>,
    tokens: Vec<i32>,
    values: Vec<f32>,
}

impl Columns {
    fn add(&mut self, key: Key, signal: &Signal) {
        let text = ByteArray::from(key.to_string().into_bytes());
        for position in 0..signal.positions() {
            let (tokens, values) = signal.at(position);
            for (rank, (&token, &value)) in tokens.iter().zip(values).enumerate() {
                self.texts.push(text.clone());
                self.positions.push(position as i32);
                self.ranks.push(rank as i32);
                self.tokens.push(token as i32);
                self.values.push(value);
            }
        }
    }

    fn write(&self, writer: &mut SerializedFileWriter<File>) -> Result<(), ParquetError> {
        let mut group = writer.next_row_group()?;
        let mut integers = [&self.positions, &self.ranks, &self.tokens].into_iter();
        let mut number = 0;
        while let Some(mut column) = group.next_column()? {
            match number {
                0 => drop(column.typed::<ByteArrayType>().write_batch(&self.texts, None, None)?),
                4 => drop(column.typed::<FloatType>().write_batch(&self.values, None, None)?),
                _ => {
                    let values = integers.next().map_or(&[][..], |values| values);
                    column.typed::<Int32Type>().write_batch(values, None, None)?;
                }
            }
            column.close()?;
            number += 1;
        }
        group.close()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use parquet::file::reader::{FileReader, SerializedFileReader};
    use parquet::record::RowAccessor;

    use super::*;
    use crate::cache::{About, Writer};
    use crate::signal::{Choice, Kind, Spec};

    #[test]
    fn every_token_is_a_row() {
        let home = tempfile::tempdir().unwrap();
        let spec = Spec { choice: Choice::TopK { k: 2 }, temperature: 1.0 };
        let about = About::new("t".into(), "v".into(), "d".into(), spec);
        let keys: Vec<Key> = (0..100).map(|n| Key([n; 16])).collect();
        let mut writer = Writer::open(home.path(), &about, &keys).unwrap();
        for (n, key) in keys.iter().enumerate() {
            let mut signal = Signal::new(Kind::TopK);
            signal.push([(n as u32, -0.5), (7, -1.5)]);
            signal.push([]);
            signal.push([(9, -0.25)]);
            writer.put(*key, &signal).unwrap();
        }
        let cache = writer.finish().unwrap();
        let path = home.path().join("out.parquet");
        assert_eq!(export(&cache, &path).unwrap(), 300);
        let reader = SerializedFileReader::new(File::open(&path).unwrap()).unwrap();
        let about = reader.metadata().file_metadata().key_value_metadata().unwrap();
        let about = about.iter().find(|pair| pair.key == "distill").unwrap();
        assert!(about.value.as_ref().unwrap().contains("top_k"));
        let rows: Vec<_> = reader.get_row_iter(None).unwrap().map(Result::unwrap).collect();
        assert_eq!(rows.len(), 300);
        let row = &rows[5 * 3 + 2];
        let integers = [1, 2, 3].map(|column| row.get_int(column).unwrap());
        assert_eq!((row.get_string(0).unwrap(), integers), (&"05".repeat(16), [2, 0, 9]));
        assert!((row.get_float(4).unwrap() + 0.25).abs() < 1e-3);
    }
}
