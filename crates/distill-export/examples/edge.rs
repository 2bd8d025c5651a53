//! Writes a GGUF file again in the order in which the edge runtime computes: `cargo run --release
//! -p distill-export --example edge -- model.gguf model.edge`.

use distill_export::export_edge;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(gguf), Some(edge), None) = (arguments.next(), arguments.next(), arguments.next())
    else {
        return Err("usage: edge MODEL.gguf MODEL.edge".into());
    };
    let summary = export_edge(gguf.as_ref(), edge.as_ref())?;
    println!(
        "{edge}: {} tensors, {} bytes, sha256 {}",
        summary.tensors, summary.bytes, summary.sha256
    );
    Ok(())
}
