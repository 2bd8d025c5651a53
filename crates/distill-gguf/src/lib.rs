//! The GGUF container: hostile-safe reading, writing, and the tensor-name tables
