//! A GGUF file into the form that the edge runtime maps without touching it.

use std::path::Path;

use distill_gguf::{GgmlType, GgufFile, GgufWriter, TensorSource, TensorView};
use distill_quant::packed::{Packed, ROWS};

use crate::{ExportError, Summary, sha256};

/// Alignment of tensors: a cache line.
const ALIGNMENT: u32 = 64;

/// Writes the GGUF file `gguf` again as `out`, with its Q4_0 and Q8_0 matrices in the order of
/// [`distill_quant::packed`] and every tensor on a cache line. Codes, scales and metadata stay as
/// they are, so both files compute the same bits; only the runtime of this project reads the new
/// one.
///
/// # Errors
/// If `gguf` cannot be read or the disk refuses; `out` is then as it was.
pub fn export_edge(gguf: &Path, out: &Path) -> Result<Summary, ExportError> {
    let file = GgufFile::open(gguf)?;
    let mut writer = GgufWriter::create(out)?;
    for (key, value) in file.metadata().iter() {
        writer.set(key, value.clone());
    }
    writer.set("general.alignment", ALIGNMENT);
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
    Ok(Summary { tensors: file.tensors().len(), bytes, sha256: sha256(out)? })
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
