//! Writes a checkpoint as a GGUF file, every matrix on one grid: `cargo run --release -p
//! distill-export --example gguf -- CHECKPOINT q8_0 model.gguf`.

use distill_export::{Activations, GgufOptions, Grid, export_gguf};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [checkpoint, grid, gguf] = &arguments[..] else {
        return Err("usage: gguf CHECKPOINT f32|q8_0|q4_0 MODEL.gguf".into());
    };
    let (grid, activations) = match grid.as_str() {
        "f32" => (Grid::F32, Activations::Float),
        "q8_0" => (Grid::Q8_0, Activations::Q8_0),
        "q4_0" => (Grid::Q4_0, Activations::Q8_0),
        other => return Err(format!("`{other}` is no grid; expected f32, q8_0 or q4_0").into()),
    };
    let name = "checkpoint".to_owned();
    let options = GgufOptions { linears: grid, embeddings: grid, activations, name };
    let summary = export_gguf(checkpoint.as_ref(), gguf.as_ref(), &options)?;
    println!("{gguf}: {} tensors, sha256 {}", summary.tensors, summary.sha256);
    Ok(())
}
