//! A GGUF file into the form that the edge runtime maps without touching it.

use std::path::Path;

use distill_edge::StoredVocabulary;
use distill_gguf::{GgmlType, GgufFile, GgufWriter, TensorSource, TensorView};
use distill_quant::packed::{Packed, ROWS};

use crate::{ExportError, Summary, sha256};

/// Alignment of tensors: a cache line.
const ALIGNMENT: u32 = 64;

/// Writes the GGUF file `gguf` again as `out`, with its Q4_0 and Q8_0 matrices in the order of
/// [`distill_quant::packed`], every tensor on a cache line, and the tables of its tokenizer for the
/// lists that they are made of. Codes, scales and all other metadata stay as they are, so both
/// files compute the same bits; only the runtime of this project reads the new one.
///
/// # Errors
/// If `gguf` or its tokenizer cannot be read, or the disk refuses; `out` is then as it was.
pub fn export_edge(gguf: &Path, out: &Path) -> Result<Summary, ExportError> {
    let file = GgufFile::open(gguf)?;
    // None where the file is a `model.edge` already; what it holds is then copied.
    let vocabulary = StoredVocabulary::of(&file)?;
    let mut writer = GgufWriter::create(out)?;
    let instead_of = vocabulary.as_ref().map_or(&[][..], |_| &StoredVocabulary::INSTEAD_OF);
    for (key, value) in file.metadata().iter().filter(|(key, _)| !instead_of.contains(key)) {
        writer.set(key, value.clone());
    }
    writer.set("general.alignment", ALIGNMENT);
    // Before the model's tensors: the only ones that are small, and read at every start.
    for StoredVocabulary { keys, tensors } in vocabulary.iter() {
        for (key, value) in keys {
            writer.set(*key, value.clone());
        }
        for tensor in tensors {
            writer.tensor(tensor.name, &tensor.dims, tensor.ty, &tensor.bytes[..])?;
        }
    }
    for info in file.tensors() {
        let view = file.require(&info.name)?;
        match packed(&view) {
            Some((packed, ty)) => {
                let rows = view.rows().next_multiple_of(ROWS) as u64;
                let source = TensorSource::stream(move |out| {
                    let columns = view.info.row_elements();
                    let mut group = vec![0; packed.group_bytes(columns)];
                    for rows in view.bytes.chunks(group.len()) {
                        packed.pack(rows, columns, &mut group);
                        out.write_all(&group)?;
                    }
                    Ok(())
                });
                writer.tensor(&info.name, &[info.dims[0], rows], ty, source)?;
            }
            None => {
                writer.tensor(&info.name, &info.dims, info.ty, view.bytes)?;
            }
        }
    }
    let bytes = writer.finish()?;
    let tensors = file.tensors().len() + vocabulary.as_ref().map_or(0, |v| v.tensors.len());
    Ok(Summary { tensors, bytes, sha256: sha256(out)? })
}

/// How a matrix is packed, if it can be.
fn packed(view: &TensorView<'_>) -> Option<(Packed, GgmlType)> {
    match view.info.ty {
        _ if view.info.dims.len() != 2 => None,
        GgmlType::Q4_0 => Some((Packed::Q4_0, GgmlType::Q4_0X16)),
        GgmlType::Q8_0 => Some((Packed::Q8_0, GgmlType::Q8_0X16)),
        _ => None,
    }
}
