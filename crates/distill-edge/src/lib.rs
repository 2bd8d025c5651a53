//! The edge runtime: kernels, forward pass, KV cache, tokenizer, sampler
