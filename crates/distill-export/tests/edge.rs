//! `model.edge`: the same model, in the runtime's order.

mod tiny;

use distill_edge::{StoredVocabulary, Tokenizer};
use distill_export::{Activations, GgufOptions, Grid, export_edge, export_gguf};
use distill_gguf::{GgmlType, GgufFile};
use distill_quant::packed::{Packed, ROWS};
use tiny::Tiny;

#[test]
fn every_row_of_the_edge_file_is_the_row_of_the_gguf() {
    let directory = tempfile::tempdir().unwrap();
    let mut tiny = Tiny::new(false, 24);
    // Its own merges join letters that are no tokens, which no runtime would read.
    tiny.tokenizer["model"]["merges"] = serde_json::json!(["2 3"]);
    tiny.tokenizer["model"]["vocab"]["23"] = 75.into();
    tiny.write(directory.path());
    let (gguf, edge) = (directory.path().join("model.gguf"), directory.path().join("model.edge"));
    let options = GgufOptions {
        linears: Grid::Q4_0,
        embeddings: Grid::Q8_0,
        activations: Activations::Q8_0,
        name: "tiny".into(),
    };
    export_gguf(directory.path(), &gguf, &options).unwrap();
    let summary = export_edge(&gguf, &edge).unwrap();
    let (plain, packed) = (GgufFile::open(&gguf).unwrap(), GgufFile::open(&edge).unwrap());
    let vocabulary = StoredVocabulary::of(&plain).unwrap().unwrap();
    assert_eq!(summary.tensors, plain.tensors().len() + vocabulary.tensors.len());
    for (key, value) in plain.metadata().iter().filter(|(key, _)| *key != "general.alignment") {
        let kept = packed.metadata().get(key);
        match StoredVocabulary::INSTEAD_OF.contains(&key) {
            true => assert_eq!(kept, None, "{key}"),
            false => assert_eq!(kept, Some(value), "{key}"),
        }
    }
    for tensor in &vocabulary.tensors {
        assert_eq!(packed.require(tensor.name).unwrap().bytes, &tensor.bytes[..]);
    }
    let [mine, theirs] = [&plain, &packed].map(|file| Tokenizer::from_gguf(file).unwrap());
    assert_eq!(mine.encode("a cab\n b", true), theirs.encode("a cab\n b", true));
    // What is packed is packed once.
    let again = directory.path().join("again.edge");
    assert_eq!(export_edge(&edge, &again).unwrap(), summary);
    assert_eq!(std::fs::read(&edge).unwrap(), std::fs::read(&again).unwrap());
    assert_eq!(packed.metadata().u32("general.alignment").unwrap(), 64);
    let mut matrices = 0;
    for info in plain.tensors() {
        let (from, to) = (plain.require(&info.name).unwrap(), packed.require(&info.name).unwrap());
        let grid = match to.info.ty {
            GgmlType::Q4_0X16 => Packed::Q4_0,
            GgmlType::Q8_0X16 => Packed::Q8_0,
            ty => {
                assert_eq!((ty, to.bytes), (info.ty, from.bytes), "{}", info.name);
                continue;
            }
        };
        matrices += 1;
        assert!(to.info.range.start.is_multiple_of(64));
        let columns = info.row_elements();
        let want = from.dequantize().unwrap();
        let bytes = grid.group_bytes(columns);
        for (r, want) in want.chunks_exact(columns).enumerate() {
            let mut row = vec![f32::NAN; columns];
            grid.dequantize_row(&to.bytes[r / ROWS * bytes..][..bytes], r % ROWS, &mut row);
            assert_eq!(row, want, "{} row {r}", info.name);
        }
    }
    assert_eq!(matrices, 2 + 2 * 7);
}
