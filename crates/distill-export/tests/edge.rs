//! `model.edge`: the same model, in the runtime's order.

mod tiny;

use distill_export::{Activations, GgufOptions, Grid, export_edge, export_gguf};
use distill_gguf::{GgmlType, GgufFile};
use distill_quant::packed::{Packed, ROWS};
use tiny::Tiny;

#[test]
fn every_row_of_the_edge_file_is_the_row_of_the_gguf() {
    let directory = tempfile::tempdir().unwrap();
    Tiny::new(false, 24).write(directory.path());
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
    assert_eq!(summary.tensors, plain.tensors().len());
    for (key, value) in plain.metadata().iter().filter(|(key, _)| *key != "general.alignment") {
        assert_eq!(packed.metadata().get(key), Some(value), "{key}");
    }
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
