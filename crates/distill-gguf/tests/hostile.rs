//! Damaged and malicious files: an error that names the file and the place, never a panic, never
//! memory by a count that the file does not back.

use std::path::Path;
use std::sync::LazyLock;

use distill_gguf::{GgufError, GgufFile, GgufWriter};
use proptest::prelude::*;

/// Builds headers byte by byte, valid or not.
#[derive(Clone, Default)]
struct Bytes(Vec<u8>);

impl Bytes {
    fn header(version: u32, tensors: u64, keys: u64) -> Self {
        Self(b"GGUF".to_vec()).u32(version).u64(tensors).u64(keys)
    }
    fn u32(mut self, x: u32) -> Self {
        self.0.extend(x.to_le_bytes());
        self
    }
    fn u64(mut self, x: u64) -> Self {
        self.0.extend(x.to_le_bytes());
        self
    }
    fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }
    fn string(self, text: &str) -> Self {
        self.u64(text.len() as u64).raw(text.as_bytes())
    }
    fn tensor(self, name: &str, dims: &[u64], ty: u32, offset: u64) -> Self {
        let mut out = self.string(name).u32(dims.len() as u32);
        for &dim in dims {
            out = out.u64(dim);
        }
        out.u32(ty).u64(offset)
    }
    fn data(mut self, alignment: usize, bytes: usize) -> Self {
        let start = self.0.len().next_multiple_of(alignment);
        self.0.resize(start + bytes, 0);
        self
    }
    fn error(&self) -> String {
        parse(&self.0).unwrap_err().to_string()
    }
}

fn parse(bytes: &[u8]) -> Result<GgufFile, GgufError> {
    GgufFile::from_bytes(bytes.to_vec(), Path::new("m.gguf"))
}

/// A small file with every kind of thing in it.
fn valid() -> Vec<u8> {
    Bytes::header(3, 2, 5)
        .string("general.alignment")
        .u32(4)
        .u32(32)
        .string("name")
        .u32(8)
        .string("täst")
        .string("tokens")
        .u32(9)
        .u32(8)
        .u64(2)
        .string("a")
        .string("bc")
        .string("flag")
        .u32(7)
        .raw(&[1])
        .string("nested")
        .u32(9)
        .u32(9)
        .u64(1)
        .u32(5)
        .u64(2)
        .u32(1)
        .u32(2)
        .tensor("w", &[32, 2], 2, 0)
        .tensor("v", &[3], 0, 64)
        .data(32, 64 + 12)
        .0
}

#[test]
fn the_example_is_valid_in_both_versions() {
    let mut bytes = valid();
    for version in [2, 3] {
        bytes[4] = version;
        let gguf = parse(&bytes).unwrap();
        assert_eq!(gguf.version(), u32::from(version));
        assert_eq!(gguf.metadata().string("name").unwrap(), "täst");
        assert_eq!(gguf.tensor("w").unwrap().dequantize().unwrap(), vec![0.0; 64]);
        assert_eq!(gguf.tensor("v").unwrap().dequantize().unwrap(), vec![0.0; 3]);
    }
}

#[test]
#[cfg_attr(miri, ignore = "Miri maps no files")]
fn a_file_cut_at_any_byte_says_so_and_where() {
    let bytes = valid();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("cut.gguf");
    for len in 0..bytes.len() {
        let from_memory = parse(&bytes[..len]).unwrap_err();
        assert!(
            matches!(from_memory, GgufError::Truncated { .. } | GgufError::TensorOutOfFile { .. }),
            "{len}: {from_memory}"
        );
        let text = from_memory.to_string();
        assert!(text.starts_with("m.gguf: ") && text.contains(" byte"), "{text}");

        std::fs::write(&path, &bytes[..len]).unwrap();
        let from_file = GgufFile::open(&path).unwrap_err().to_string();
        assert_eq!(from_file, text.replace("m.gguf", &path.display().to_string()));
    }
}

#[test]
fn what_is_no_gguf_file_is_called_so() {
    let path = Path::new("no-such-directory/m.gguf");
    let error = GgufFile::open(path).unwrap_err().to_string();
    assert!(error.starts_with("no-such-directory/m.gguf: cannot open the model file: "), "{error}");
    let directory = tempfile::tempdir().unwrap();
    assert!(matches!(GgufFile::open(directory.path()), Err(GgufError::NotAFile { .. })));
    assert_eq!(
        parse(b"PK\x03\x04rest").unwrap_err().to_string(),
        r#"m.gguf: not a GGUF file: it begins with "PK\x03\x04", expected "GGUF""#
    );
    assert_eq!(
        parse(b"").unwrap_err().to_string(),
        "m.gguf: the file ends early: the magic at byte 0 needs 4 bytes, and 0 are left; it is \
         truncated or damaged, so fetch or convert it again"
    );
}

#[test]
fn other_versions_and_byte_orders_are_refused_by_name() {
    for version in [0, 1, 4, 0xFFFF] {
        let error = Bytes::header(version, 0, 0).error();
        assert!(error.contains(&format!("GGUF version {version} at byte 4, expected 2 or 3")));
    }
    let error = Bytes::header(3u32.swap_bytes(), 0, 0).error();
    assert!(
        error.contains("a big-endian GGUF file (version 3 with its bytes reversed)"),
        "{error}"
    );
}

#[test]
fn absurd_counts_are_refused_before_anything_is_allocated() {
    for count in [1 << 20, 1 << 40, u64::MAX / 32, u64::MAX] {
        for bytes in [
            Bytes::header(3, count, 0),
            Bytes::header(3, 0, count),
            Bytes::header(3, 0, 1).u64(count),
            Bytes::header(3, 0, 1).string("k").u32(8).u64(count),
            Bytes::header(3, 0, 1).string("k").u32(9).u32(0).u64(count),
            Bytes::header(3, 0, 1).string("k").u32(9).u32(8).u64(count),
            Bytes::header(3, 0, 1).string("k").u32(9).u32(9).u64(count),
            Bytes::header(3, 0, 1).string("k").u32(9).u32(12).u64(count),
            Bytes::header(3, 1, 0).u64(count),
        ] {
            let error = bytes.raw(&[0; 40]).error();
            assert!(error.contains("the file ends early"), "{error}");
        }
    }
    let huge = [
        (vec![u64::MAX], 0, "cannot have dims"),
        (vec![1 << 32, 1 << 32], 0, "cannot have dims"),
        (vec![1 << 62], 24, "needs 4611686018427387904 bytes at data offset 0"),
        (vec![33], 2, "rows that are multiples of 32"),
        (vec![576], 14, "rows that are multiples of 256"),
    ];
    for (dims, ty, expected) in huge {
        let error = Bytes::header(3, 1, 0).tensor("x", &dims, ty, 0).data(32, 64).error();
        assert!(error.contains(expected) && error.contains("tensor `x`"), "{error}");
    }
    for offset in [64, 1 << 40, u64::MAX - 31] {
        let error = Bytes::header(3, 1, 0).tensor("x", &[4], 0, offset).data(32, 64).error();
        assert!(error.contains(&format!("needs 16 bytes at data offset {offset}")), "{error}");
    }
}

#[test]
fn tensors_that_share_bytes_are_refused() {
    let apart = |first: u64, second: u64| {
        Bytes::header(3, 2, 0)
            .tensor("x", &[12], 0, first)
            .tensor("y", &[8], 0, second)
            .data(32, 128)
    };
    for (first, second) in [(0, 64), (32, 0), (64, 0)] {
        assert!(parse(&apart(first, second).0).is_ok());
    }
    assert_eq!(
        apart(0, 32).error(),
        "m.gguf: tensor `y` begins at data offset 32, inside tensor `x`, which has 48 bytes at \
         data offset 0; expected tensors that do not overlap"
    );
    for (first, second) in [(0, 0), (32, 64), (64, 64)] {
        let error = apart(first, second).error();
        assert!(error.contains("expected tensors that do not overlap"), "{error}");
    }
}

#[test]
fn a_long_key_is_not_copied_for_every_value_behind_it() {
    // Each value once had a description of its own, key included: this took hours.
    let values = if cfg!(miri) { 1 << 6 } else { 1 << 16 };
    let key = "k".repeat(64 * values);
    let array =
        |element: u32| Bytes::header(3, 0, 1).string(&key).u32(9).u32(element).u64(values as u64);
    let flags = array(7).raw(&vec![1; values]);
    assert_eq!(parse(&flags.0).unwrap().metadata().len(), 1);
    let nested = array(9).raw(&vec![0; 12 * values]);
    assert_eq!(parse(&nested.0).unwrap().metadata().len(), 1);
}

#[test]
fn a_file_in_memory_is_read_as_one_on_the_disk() {
    static VALID: LazyLock<Vec<u8>> = LazyLock::new(valid);
    let bytes: &'static [u8] = &VALID;
    let borrowed = GgufFile::from_bytes(bytes, Path::new("m.gguf")).unwrap();
    assert_eq!(borrowed.bytes().as_ptr(), bytes.as_ptr(), "not copied");
    let owned = GgufFile::from_bytes(bytes.to_vec(), Path::new("m.gguf")).unwrap();
    for file in [borrowed, owned] {
        assert_eq!(file.path(), Path::new("m.gguf"));
        assert_eq!(file.require("w").unwrap().dequantize().unwrap(), vec![0.0; 64]);
    }
    let error = GgufFile::from_bytes(&bytes[..40], Path::new("m.gguf")).unwrap_err().to_string();
    assert!(error.starts_with("m.gguf: the file ends early"), "{error}");
}

#[test]
fn each_defect_is_named_with_its_place() {
    let one_key = |key: &str, ty: u32| Bytes::header(3, 0, 1).string(key).u32(ty);
    let cases = [
        (
            one_key("k", 13).raw(&[0; 8]),
            "metadata key `k` has the value type 13 at byte 33, expected 0 to 12",
        ),
        (
            one_key("k", 7).raw(&[2]),
            "metadata key `k` has the boolean 2 at byte 37, expected 0 or 1",
        ),
        (
            one_key("k", 8).u64(2).raw(&[0xFF, 0xFE]),
            "the value of key `k` at byte 45 is not valid UTF-8",
        ),
        (
            Bytes::header(3, 0, 1).u64(1).raw(&[0xFF]).u32(0).raw(&[0; 4]),
            "the name of metadata key 0 at byte 32 is not valid UTF-8",
        ),
        (
            (0..5).fold(one_key("k", 9), |bytes, _| bytes.u32(9).u64(1)).raw(&[0; 20]),
            "metadata key `k` nests arrays more than 4 deep at byte 85",
        ),
        (
            Bytes::header(3, 0, 2).string("k").u32(0).raw(&[1]).string("k").u32(0).raw(&[1]),
            "metadata key `k` appears again at byte 38",
        ),
        (
            one_key("general.alignment", 4).u32(24),
            "general.alignment is U32 24, expected a power of two of at least 8",
        ),
        (
            one_key("general.alignment", 4).u32(0),
            "general.alignment is U32 0, expected a power of two of at least 8",
        ),
        (
            one_key("general.alignment", 8).string("x"),
            "general.alignment is the string \"x\", expected a power of two of at least 8",
        ),
        (
            Bytes::header(3, 1, 0).tensor("x", &[0, 4], 0, 0),
            "tensor `x`, record at byte 24: dims [0, 4] (count 2), expected 1 to 4 dims, none of \
             them zero",
        ),
        (
            Bytes::header(3, 1, 0).tensor("x", &[1; 5], 0, 0),
            "tensor `x`, record at byte 24: dims [] (count 5), expected 1 to 4 dims, none of \
             them zero",
        ),
        (
            Bytes::header(3, 1, 0).tensor("x", &[256], 10, 0).data(32, 256),
            "tensor `x` has the type 10 (Q2_K) at byte 45; supported: F32, F16, BF16, Q4_0, Q4_1, \
             Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K; use another quantisation of this model",
        ),
        (
            Bytes::header(3, 1, 0).tensor("x", &[1], 0, 8).data(32, 64),
            "tensor `x` begins at data offset 8, expected a multiple of 32",
        ),
        (
            Bytes::header(3, 2, 0).tensor("x", &[1], 0, 0).tensor("x", &[1], 0, 0).data(32, 64),
            "tensor `x` appears again at byte 57",
        ),
    ];
    for (bytes, expected) in cases {
        assert_eq!(bytes.error(), format!("m.gguf: {expected}"));
    }
}

/// Uses everything a header gives, so that nothing unchecked stays unnoticed.
fn use_all(bytes: &[u8]) {
    let Ok(gguf) = parse(bytes) else { return };
    for (key, value) in gguf.metadata().iter() {
        let _ = gguf.metadata().u32(key);
        let _ = gguf.metadata().strings(key);
        let _ = format!("{value:?}");
    }
    for info in gguf.tensors() {
        let tensor = gguf.tensor(&info.name).unwrap();
        assert_eq!(tensor.rows() * tensor.row_bytes(), tensor.bytes.len());
        assert_eq!(tensor.rows() * info.row_elements(), info.elements());
        if let Ok(values) = tensor.dequantize() {
            assert_eq!(values.len() as u64, info.dims.iter().product::<u64>());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 8 } else { 4000 }))]

    #[test]
    fn changed_bytes_never_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut bytes = valid();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        use_all(&bytes);
    }

    #[test]
    fn an_absurd_number_anywhere_never_panics(
        at in any::<prop::sample::Index>(),
        number in prop_oneof![
            Just(u64::MAX), Just(u64::MAX - 31), Just(1 << 63), Just(1 << 32), Just(0), any::<u64>(),
        ],
        cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = valid();
        let at = at.index(bytes.len() - 8);
        bytes[at..at + 8].copy_from_slice(&number.to_le_bytes());
        use_all(&bytes);
        bytes.truncate(cut.index(bytes.len()));
        use_all(&bytes);
    }

    #[test]
    fn arbitrary_bytes_after_the_magic_never_panic(
        rest in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        use_all(&Bytes::header(3, 1, 1).raw(&rest).0);
    }
}

#[test]
#[cfg_attr(miri, ignore = "Miri maps no files")]
fn a_file_with_neither_keys_nor_tensors_is_valid() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("empty.gguf");
    GgufWriter::create(&path).unwrap().finish().unwrap();
    let file = GgufFile::open(&path).unwrap();
    assert!(file.tensors().is_empty() && file.metadata().is_empty());
}
