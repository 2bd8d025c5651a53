//! Writes the seeds of the targets that read bytes: `cargo run --example seeds` in this
//! folder.

use std::fs;
use std::path::Path;

use distill_fuzz::container::{
    self, BLOCKS, Container, F16, F32, Q4_0, Q4_0X16, Q8_0, Q8_0X16, SMALLEST,
};
use distill_fuzz::states;

fn main() -> std::io::Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let (containers, saved) = (folder.join("container"), folder.join("state"));
    fs::create_dir_all(&containers)?;
    fs::create_dir_all(&saved)?;
    for (i, ty) in [F32, F16, Q4_0, Q8_0, Q4_0X16, Q8_0X16].into_iter().enumerate() {
        let shape = if ty < 2 { SMALLEST } else { BLOCKS };
        let mut file: Container =
            container::model(shape, &container::tokens(), ty, |count| vec![0x3C; count]);
        container::set_tokenizer(&mut file, ["gpt2", "llama", "gemma4"][i % 3]);
        fs::write(containers.join(format!("seed-{ty}.gguf")), file.bytes())?;
        container::store_vocabulary(&mut file);
        fs::write(containers.join(format!("seed-{ty}.edge")), file.bytes())?;
    }
    for (i, mut session) in states::sessions().into_iter().enumerate() {
        for tokens in [0, 1, 17] {
            if tokens > 0 {
                session.reset();
                session.prefill(&vec![1; tokens]).expect("tokens of the vocabulary");
            }
            session.save_to(fs::File::create(saved.join(format!("seed-{i}-{tokens}")))?)?;
        }
    }
    Ok(())
}
