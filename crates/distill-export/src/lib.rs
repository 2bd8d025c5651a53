//! Checkpoint to GGUF: file to file, no Burn
