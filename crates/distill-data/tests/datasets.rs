//! From files to batches: every format, every mistake, and the stream of documents.

use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;

use distill_data::{
    DataError, Dataset, PackingOptions, Part, Source, SourceOptions, SpecialTokens, SplitRule,
    TextTokenizer, documents, preview,
};
use parquet::basic::Compression;
use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;

fn tokenizer() -> TextTokenizer {
    let texts = ["the cat sat on the mat".to_owned()].into_iter().map(Ok);
    let special = SpecialTokens { pad: Some("<|pad|>".into()), ..SpecialTokens::default() };
    TextTokenizer::train(texts, 262, &special).unwrap()
}

fn read(spec: &Path, options: &SourceOptions) -> Result<Vec<String>, DataError> {
    documents(&Source::resolve(&spec.to_string_lossy(), options)?)?.collect()
}

/// A table with an `id`, a `text` and a nested column; `None` is a null text.
fn write_parquet(path: &Path, texts: &[Option<&str>], compression: Compression) {
    let schema = "message rows {
        required int64 id;
        optional binary text (STRING);
        required binary raw;
        optional group nested { optional binary inner (STRING); }
    }";
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let properties = WriterProperties::builder().set_compression(compression).build();
    let file = File::create(path).unwrap();
    let mut writer = SerializedFileWriter::new(file, schema, Arc::new(properties)).unwrap();
    // Two row groups, so that one ends within the file.
    for rows in texts.chunks(texts.len().div_ceil(2).max(1)) {
        let mut group = writer.next_row_group().unwrap();
        let ids: Vec<i64> = (0..rows.len() as i64).collect();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<Int64Type>().write_batch(&ids, None, None).unwrap();
        column.close().unwrap();
        let values: Vec<ByteArray> = rows.iter().flatten().map(|&text| text.into()).collect();
        let present: Vec<i16> = rows.iter().map(|text| i16::from(text.is_some())).collect();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<ByteArrayType>().write_batch(&values, Some(&present), None).unwrap();
        column.close().unwrap();
        let raw: Vec<ByteArray> = rows.iter().map(|_| vec![b'a', 0xff].into()).collect();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<ByteArrayType>().write_batch(&raw, None, None).unwrap();
        column.close().unwrap();
        let inner: Vec<ByteArray> = rows.iter().map(|_| "inner".into()).collect();
        let present = vec![2_i16; rows.len()];
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<ByteArrayType>().write_batch(&inner, Some(&present), None).unwrap();
        column.close().unwrap();
        group.close().unwrap();
    }
    writer.close().unwrap();
}

fn field(name: &str) -> SourceOptions {
    SourceOptions { text_field: name.into(), document_separator: None }
}

#[test]
fn a_parquet_column_reads_row_by_row_under_every_compression() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("rows.parquet");
    let long = "word ".repeat(5000);
    let texts = ["one", "zwei é", &long, "four", "five"];
    for compression in [
        Compression::UNCOMPRESSED,
        Compression::SNAPPY,
        Compression::ZSTD(Default::default()),
        Compression::LZ4_RAW,
        Compression::GZIP(Default::default()),
        Compression::BROTLI(Default::default()),
    ] {
        write_parquet(&path, &texts.map(Some), compression);
        assert_eq!(read(&path, &SourceOptions::default()).unwrap(), texts, "{compression}");
    }
}

#[test]
fn mistakes_in_a_parquet_file_are_named_with_row_and_field() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("rows.parquet");
    write_parquet(&path, &[Some("a"), Some("b"), None, Some("d")], Compression::SNAPPY);
    let error = |options: &SourceOptions| {
        let message = read(&path, options).unwrap_err().to_string();
        message.split_once("rows.parquet:").unwrap().1.trim().to_owned()
    };
    assert!(error(&field("text")).starts_with("row 3: field \"text\" is null, expected a string"));
    assert_eq!(
        error(&field("body")),
        "schema: no field \"body\"; the fields are \"id\", \"text\", \"raw\", \"nested\"; set `text_field`"
    );
    assert!(error(&field("id")).starts_with("schema: field \"id\" is a column of INT64"));
    assert!(error(&field("nested")).starts_with("schema: field \"nested\" is a nested column"));
    assert!(error(&field("raw")).starts_with("row 1: field \"raw\" is bytes that are not UTF-8"));
    fs::write(&path, "not a table").unwrap();
    assert!(error(&field("text")).starts_with("schema: not readable as Parquet"));
}

#[test]
fn a_parquet_file_damaged_anywhere_is_an_error_and_never_a_panic() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("rows.parquet");
    write_parquet(&path, &[Some("a"), Some("bcd"), Some("e"), Some("f")], Compression::SNAPPY);
    let whole = fs::read(&path).unwrap();
    let damaged = directory.path().join("damaged.parquet");
    for length in 0..whole.len() {
        fs::write(&damaged, &whole[..length]).unwrap();
        assert!(read(&damaged, &field("text")).is_err(), "cut at {length}");
    }
    for at in 0..whole.len() {
        for value in [0xff, whole[at] ^ 1] {
            let mut bytes = whole.clone();
            bytes[at] = value;
            fs::write(&damaged, bytes).unwrap();
            let _ = read(&damaged, &field("text"));
        }
    }
}

#[test]
fn a_directory_of_all_formats_is_one_stream_in_the_order_of_its_names() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    fs::write(path("a.txt"), "one|two| \n|").unwrap();
    fs::write(path("b.jsonl"), "{\"text\":\"three\"}\n{\"text\":\"\"}\n").unwrap();
    write_parquet(
        &path("c.parquet"),
        &[Some("four"), Some("\n")],
        Compression::ZSTD(Default::default()),
    );
    fs::write(path("README.md"), "about").unwrap();
    fs::write(path("z.TXT"), "five").unwrap();
    let options = SourceOptions { document_separator: Some("|".into()), ..Default::default() };
    let read = |spec: &str| read(&path(spec), &options);
    assert_eq!(read("").unwrap(), ["one", "two", "three", "four", "five"]);
    assert_eq!(read("README.md").unwrap(), ["about"]);
    assert_eq!(read("*.txt").unwrap(), ["one", "two"]);
    assert!(read("none.txt").unwrap_err().to_string().contains("no such file"));
}

#[test]
fn unreadable_sources_are_refused_before_any_work() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("data.csv");
    fs::write(&path, "a,b").unwrap();
    let error = read(&path, &SourceOptions::default()).unwrap_err().to_string();
    assert!(error.contains("data.csv: .csv is not a format that is read"), "{error}");
    let empty = SourceOptions { document_separator: Some(String::new()), ..Default::default() };
    assert!(matches!(read(&path, &empty), Err(DataError::EmptySeparator)));
    assert!(matches!(documents(&[]), Err(DataError::NoSources)));
}

#[test]
fn files_become_two_splits_and_say_how() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.txt");
    let lines: Vec<String> =
        (0..60).map(|n| format!("the cat number {n} sat on the mat")).collect();
    fs::write(&path, lines.join("\n")).unwrap();
    let tokenizer = tokenizer();
    let options = PackingOptions { sequence_length: 32, held_out_fraction: 0.1, seed: 7 };
    let prepare = |separator: Option<&str>| {
        let separator = separator.map(str::to_owned);
        let source = SourceOptions { document_separator: separator, ..Default::default() };
        let sources = Source::resolve(&path.to_string_lossy(), &source).unwrap();
        let mut last = None;
        let dataset =
            Dataset::prepare_with_progress(&tokenizer, &sources, &options, &mut |p| last = Some(p));
        let dataset = dataset.unwrap();
        assert_eq!(last, Some(dataset.read));
        dataset
    };
    let by_line = prepare(Some("\n"));
    assert_eq!((by_line.rule, by_line.read.documents), (SplitRule::Documents, 60));
    let whole = prepare(None);
    assert_eq!((whole.rule, whole.read.documents), (SplitRule::Blocks, 1));
    assert_eq!(prepare(Some("\n")).train.fingerprint(), by_line.train.fingerprint());

    // The first document, as the tokenizer alone sees it, ended by the end-of-sequence token.
    let first = by_line.train.sequence(0);
    let text = tokenizer.decode(&first.input_ids);
    let first_line = text.split("<|endoftext|>").next().unwrap();
    assert!(lines.contains(&first_line.to_owned()), "{text:?}");
    let end = first.input_ids.iter().position(|&id| Some(id) == tokenizer.eos()).unwrap();
    assert_eq!(first.input_ids[..end], tokenizer.encode(first_line, false).unwrap());
    assert!(!first.loss_mask[end] && first.loss_mask[..end].iter().all(|&counts| counts));
}

#[test]
fn empty_data_is_refused_with_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.txt");
    fs::write(&path, " \n\n").unwrap();
    let sources = Source::resolve(&path.to_string_lossy(), &SourceOptions::default()).unwrap();
    let options = PackingOptions { sequence_length: 8, held_out_fraction: 0.1, seed: 0 };
    let error = Dataset::prepare(&tokenizer(), &sources, &options).unwrap_err().to_string();
    assert!(error.contains("the data is empty") && error.contains("a.txt"), "{error}");
}

#[test]
fn a_preview_shows_every_token_and_what_is_not_counted() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.txt");
    fs::write(&path, "a b\n;c\u{1b}").unwrap();
    let options = SourceOptions { document_separator: Some(";".into()), ..Default::default() };
    let sources = Source::resolve(&path.to_string_lossy(), &options).unwrap();
    let options = PackingOptions { sequence_length: 9, held_out_fraction: 0.0, seed: 0 };
    let tokenizer = tokenizer();
    let dataset = Dataset::prepare(&tokenizer, &sources, &options).unwrap();
    assert_eq!(
        preview(&tokenizer, &dataset.train.sequence(0)),
        "document 0 · positions 0–4 · 4 of 5 counted\n  \
           |a| |b|\\n|[<|endoftext|>]|\n\
         document 1 · positions 5–7 · 2 of 3 counted\n  \
           |c|\\u{1b}|[<|endoftext|>]|\n\
         document 2 · positions 8–8 · 0 of 1 counted\n  \
           |[<|pad|>]|\n\
         6 of 9 positions are counted\n"
    );
}

#[test]
fn each_part_is_split_by_itself_and_tokens_stay_as_they_are() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("lines.txt");
    let words = ["cat", "mat", "sat", "the", "on"];
    let line = |i: usize| (0..8).map(|j| words[(i + i * i * j) % 5].to_owned() + " ").collect();
    fs::write(&path, (0..60).map(line).collect::<Vec<String>>().join("\n")).unwrap();
    let tokenizer = tokenizer();
    let options = SourceOptions { document_separator: Some("\n".into()), ..Default::default() };
    let sources = Source::resolve(&path.to_string_lossy(), &options).unwrap();
    // Documents that no tokenizer would make of a text, and that end with no particular token.
    let documents: Vec<Vec<u32>> = (0..40).map(|i| vec![5 + i % 3, 5, 6, 7, 8 + i]).collect();
    let parts = |weights: [f64; 2]| {
        let text = Part {
            name: "text".into(),
            sources: sources.clone(),
            weight: weights[0],
            ..Part::default()
        };
        let drawn = Part {
            name: "drawn".into(),
            documents: documents.clone(),
            weight: weights[1],
            ..Part::default()
        };
        vec![text, drawn]
    };
    let packing = PackingOptions { sequence_length: 10, held_out_fraction: 0.2, seed: 3 };
    let dataset = Dataset::mixed(&tokenizer, parts([1.0, 3.0]), &packing, &mut |_| {}).unwrap();
    assert_eq!(dataset.read.documents, 100);
    let [(_, text), (drawn, of_epoch)] = dataset.train.parts()[..] else { panic!("two parts") };
    // 32 of 40 documents of 5 tokens.
    assert_eq!((drawn, text + of_epoch), (16, dataset.train.len()));
    assert!((3 * text).abs_diff(of_epoch) <= 3, "{text} and {of_epoch}");
    // Held out of both: of the drawn all 4 sequences, and of the text one for three of them.
    assert_eq!(dataset.held_out.len(), 6);
    let held: Vec<u32> = dataset.held_out.batch(&[0, 1, 2, 3, 4, 5]).input_ids;
    let drawn: Vec<&[u32]> = held.chunks(10).filter(|row| row[1..4] == [5, 6, 7]).collect();
    assert_eq!(drawn.len(), 4, "{held:?}");
    assert!(drawn.iter().all(|row| documents.iter().any(|document| document[..] == row[..5])));

    let mut short = parts([1.0, 1.0]);
    short[1].documents.truncate(1);
    let error = Dataset::mixed(&tokenizer, short, &packing, &mut |_| {}).unwrap_err().to_string();
    assert!(error.starts_with("drawn, which has a weight of its own: "), "{error}");
}
