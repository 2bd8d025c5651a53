//! Perplexity, KL, the parity gate and the report
