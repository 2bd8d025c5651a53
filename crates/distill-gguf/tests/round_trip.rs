//! What is written is read; what a peer wrote is read; what fails leaves nothing behind.

use std::path::Path;

use distill_gguf::{Array, GgmlType, GgufError, GgufFile, GgufWriter, TensorSource, Value};

fn names_in(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// One value of every type, and one array of every type.
fn every_value() -> Vec<(String, Value)> {
    let values: Vec<Value> = vec![
        200u8.into(),
        (-100i8).into(),
        60_000u16.into(),
        (-30_000i16).into(),
        4_000_000_000u32.into(),
        (-2_000_000_000i32).into(),
        1.5f32.into(),
        true.into(),
        "naïve ✓".into(),
        u64::MAX.into(),
        i64::MIN.into(),
        1e300f64.into(),
        vec![1u8, 2].into(),
        vec![-1i8].into(),
        vec![1u16, 2, 3].into(),
        vec![-1i16].into(),
        vec![7u32; 5].into(),
        vec![-7i32; 5].into(),
        vec![0.5f32, -0.0].into(),
        vec![true, false].into(),
        vec![String::new(), "Ġthe".to_owned()].into(),
        vec![u64::MAX].into(),
        vec![i64::MIN].into(),
        vec![-1e300f64].into(),
        vec![Array::U8(vec![]), Array::U8(vec![1, 2])].into(),
        Vec::<String>::new().into(),
    ];
    values.into_iter().enumerate().map(|(i, value)| (format!("test.{i}"), value)).collect()
}

#[test]
#[cfg_attr(miri, ignore = "Miri maps no files")]
fn every_value_and_every_tensor_type_comes_back_as_it_was_written() {
    for alignment in [None, Some(8u32), Some(256)] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("model.gguf");
        let mut writer = GgufWriter::create(&path).unwrap();
        for (key, value) in every_value() {
            writer.set(key, value);
        }
        if let Some(alignment) = alignment {
            writer.set("general.alignment", alignment);
        }
        let data = |ty: GgmlType| -> Vec<u8> {
            let bytes = ty.tensor_bytes(&[256, 3]).unwrap();
            (0..bytes).map(|i| (i * 7 + u64::from(ty.id())) as u8 & 0x3F).collect()
        };
        for ty in GgmlType::ALL {
            writer.tensor(ty.name(), &[256, 3], ty, data(ty)).unwrap();
        }
        writer.tensor("odd", &[3, 1, 1, 1], GgmlType::I8, vec![1, 2, 3]).unwrap();
        let bytes = writer.finish().unwrap();
        assert_eq!(bytes, std::fs::metadata(&path).unwrap().len());
        assert_eq!(names_in(directory.path()), ["model.gguf"]);

        let file = GgufFile::open(&path).unwrap();
        let expected = every_value();
        for ((key, value), (found_key, found)) in expected.iter().zip(file.metadata().iter()) {
            assert_eq!((key.as_str(), value), (found_key, found));
        }
        assert_eq!(file.tensors().len(), GgmlType::ALL.len() + 1);
        for ty in GgmlType::ALL {
            let tensor = file.tensor(ty.name()).unwrap();
            assert_eq!(tensor.bytes, data(ty));
            assert_eq!((tensor.rows(), tensor.info.row_elements()), (3, 256));
            assert_eq!(tensor.row(2), &data(ty)[2 * tensor.row_bytes()..]);
            assert_eq!(tensor.info.range.start as u64 % u64::from(alignment.unwrap_or(32)), 0);
            match tensor.dequantize() {
                Ok(values) => assert_eq!(values.len(), 768),
                Err(GgufError::NotDequantizable { ty: found, .. }) => assert_eq!(found, ty),
                Err(error) => panic!("{error}"),
            }
        }
        assert_eq!(file.tensor("odd").unwrap().bytes, [1, 2, 3]);
        assert_eq!(
            file.require("gone").unwrap_err().to_string(),
            format!(
                "{}: tensor `gone` is missing among the {} tensors of the file",
                path.display(),
                GgmlType::ALL.len() + 1
            )
        );
    }
}

#[test]
#[cfg_attr(miri, ignore = "Miri maps no files")]
fn a_file_of_the_gguf_package_is_read_as_it_was_meant() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/peer.gguf");
    let file = GgufFile::open(&path).unwrap();
    let metadata = file.metadata();
    assert_eq!(metadata.string("general.architecture").unwrap(), "llama");
    assert_eq!(metadata.u32("llama.context_length").unwrap(), 2048);
    assert_eq!(metadata.f32("llama.rope.freq_base").unwrap(), 10000.0);
    assert!(metadata.strings("tokenizer.ggml.tokens").unwrap().iter().eq(["a", "Ġb", "日本"]));
    assert_eq!(metadata.i32s("tokenizer.ggml.token_type").unwrap(), [1, 3, 4]);
    assert!(metadata.bool("tokenizer.ggml.add_bos_token").unwrap());

    let ramp: Vec<f32> = (-48..48).map(|x| x as f32).collect();
    let tensor = file.tensor("ramp").unwrap();
    assert_eq!(tensor.info.dims, [32, 3]);
    assert_eq!(tensor.info.range.start % 64, 0);
    assert_eq!(tensor.dequantize().unwrap(), ramp);
    for (name, step) in [("ramp.Q8_0", 48.0 / 127.0), ("ramp.Q5_1", 1.0)] {
        let values = file.tensor(name).unwrap().dequantize().unwrap();
        for (x, y) in ramp.iter().zip(values) {
            assert!((x - y).abs() <= step * 0.55, "{name}: {x} became {y}");
        }
    }
    // A middle row by itself.
    let mut row = [0.0; 32];
    tensor.dequantize_rows(1, &mut row).unwrap();
    assert_eq!(row, ramp[32..64]);
}

#[test]
fn a_streamed_tensor_equals_the_same_bytes_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let data: Vec<u8> = (0..=255).cycle().take(400).collect();
    let write = |name: &str, source: TensorSource<'_>| {
        let path = directory.path().join(name);
        let mut writer = GgufWriter::create(&path).unwrap();
        writer.tensor("x", &[100], GgmlType::F32, source).unwrap();
        writer.tensor("y", &[4], GgmlType::I8, &data[..4]).unwrap();
        writer.finish().unwrap();
        std::fs::read(path).unwrap()
    };
    let pieces = TensorSource::stream(|out| {
        for piece in data.chunks(7) {
            out.write_all(piece)?;
        }
        Ok(())
    });
    assert_eq!(write("streamed", pieces), write("whole", data.as_slice().into()));
}

#[test]
fn a_failed_write_leaves_the_old_file_and_no_partial_one() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.gguf");
    std::fs::write(&path, "the old one").unwrap();
    let fail = |source: TensorSource<'static>| {
        let mut writer = GgufWriter::create(&path).unwrap();
        writer.tensor("x", &[4], GgmlType::I8, source).unwrap();
        let error = writer.finish().unwrap_err();
        assert_eq!(std::fs::read(&path).unwrap(), b"the old one");
        assert_eq!(names_in(directory.path()), ["model.gguf"]);
        error
    };
    let shown = path.display();
    assert_eq!(
        fail(vec![1, 2, 3].into()).to_string(),
        format!("{shown}: tensor `x` was given 3 bytes, expected 4")
    );
    assert_eq!(
        fail(vec![0; 5].into()).to_string(),
        format!("{shown}: tensor `x` was given 5 bytes, expected 4")
    );
    // Too many in small pieces, and a source that goes on after being told.
    let stubborn = TensorSource::stream(|out| {
        for _ in 0..3 {
            let _ = out.write_all(&[0; 2]);
        }
        Ok(())
    });
    assert!(matches!(fail(stubborn), GgufError::SourceLength { found: 6, .. }));
    let broken = TensorSource::stream(|_| Err("the checkpoint vanished".into()));
    assert_eq!(
        fail(broken).to_string(),
        format!("{shown}: cannot store tensor `x`: the checkpoint vanished")
    );
    drop(GgufWriter::create(&path).unwrap());
    assert_eq!(names_in(directory.path()), ["model.gguf"]);
}

#[test]
fn a_place_that_cannot_be_written_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("missing/model.gguf");
    let error = GgufWriter::create(&path).err().unwrap().to_string();
    assert!(error.starts_with(&format!("{}: cannot create the model file: ", path.display())));

    // The name is taken by a directory: found at the rename, and nothing is left.
    let path = directory.path().join("taken");
    std::fs::create_dir(&path).unwrap();
    std::fs::write(path.join("something"), "").unwrap();
    let error = GgufWriter::create(&path).unwrap().finish().unwrap_err().to_string();
    assert!(error.starts_with(&format!("{}: cannot rename the model file: ", path.display())));
    assert_eq!(names_in(directory.path()), ["taken"]);
}

#[test]
fn tensors_that_make_no_sense_are_refused_when_declared() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.gguf");
    let mut writer = GgufWriter::create(&path).unwrap();
    let mut declare = |name: &str, dims: &[u64], ty| {
        writer.tensor(name, dims, ty, vec![]).err().map(|error| error.to_string())
    };
    let shown = path.display();
    assert_eq!(declare("x", &[32], GgmlType::Q4_0), None);
    assert_eq!(
        declare("x", &[32], GgmlType::Q4_0).unwrap(),
        format!("{shown}: tensor `x` was declared twice")
    );
    assert_eq!(
        declare("y", &[33, 2], GgmlType::Q4_0).unwrap(),
        format!(
            "{shown}: tensor `y` cannot have dims [33, 2] in Q4_0: expected 1 to 4 dims, none \
             zero, rows that are multiples of 32, and a size below 2^64 bytes"
        )
    );
    for dims in [&[] as &[u64], &[1; 5], &[4, 0], &[u64::MAX, 8]] {
        assert!(declare("y", dims, GgmlType::F32).unwrap().contains("cannot have dims"));
    }
    assert_eq!(
        declare(&"n".repeat(64), &[1], GgmlType::F32).unwrap(),
        format!("{shown}: tensor name `{}` is longer than 63 bytes", "n".repeat(64))
    );
    // Two tensors whose sizes fit one by one, but not together.
    for name in ["huge", "huger"] {
        assert_eq!(declare(name, &[u64::MAX - 31], GgmlType::I8), None);
    }
    assert!(matches!(writer.finish(), Err(GgufError::TensorSize { .. })));
}

/// Bytes of this process's memory that map `path`.
#[cfg(target_os = "linux")]
fn resident(path: &std::path::Path) -> usize {
    let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mut lines = maps.lines().skip_while(|line| !line.ends_with(path.to_str().unwrap()));
    let line = lines.find(|line| line.starts_with("Rss:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() << 10
}

#[test]
#[cfg(target_os = "linux")]
#[cfg_attr(miri, ignore = "Miri maps no files")]
fn released_bytes_leave_memory_and_are_read_as_before() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("large.gguf");
    let data: Vec<u8> = (0..8 << 20).map(|i: u32| (i / 4096) as u8 ^ i as u8).collect();
    let mut writer = GgufWriter::create(&path).unwrap();
    writer.tensor("x", &[data.len() as u64], GgmlType::I8, &data).unwrap();
    writer.finish().unwrap();
    let file = GgufFile::open(&path).unwrap();
    assert_eq!(file.require("x").unwrap().bytes, data);
    assert!(resident(&path) >= data.len());
    file.release(file.require("x").unwrap().info.range.clone());
    assert!(resident(&path) <= 64 << 10, "{}", resident(&path));
    assert_eq!(file.require("x").unwrap().bytes, data);
    file.release(0..0);
    GgufFile::from_bytes(std::fs::read(&path).unwrap(), &path).unwrap().release(7..4096);
}
