#!/usr/bin/env python3
"""Writes a GGUF file of the shape of Llama 3.2 1B with random Q4_0 weights: for measuring speed, not for text.

    tests/peers/.venv/bin/python tests/peers/random_llama.py target/llama-1b-shape.gguf

Linears are Q4_0, the embedding (which is the head too) Q8_0. The vocabulary is 128,256 fillers.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import gguf
import numpy as np

LAYERS, HIDDEN, INNER, HEADS, KV_HEADS, VOCABULARY = 16, 2048, 8192, 32, 8, 128256


def quantized(rng: np.random.Generator, rows: int, columns: int, codes: int) -> np.ndarray:
    """Blocks of 32 weights: a small binary16 scale, then random codes."""
    blocks = rows * columns // 32
    data = np.empty((blocks, 2 + codes), dtype=np.uint8)
    data[:, :2] = np.frombuffer(np.float16(2e-3).tobytes(), dtype=np.uint8)
    data[:, 2:] = rng.integers(0, 256, (blocks, codes), dtype=np.uint8)
    if codes == 16:
        data[:, 2] &= 0xF0  # the code -8, which a quantiser gives the largest weight of each block
    return data.reshape(rows, columns // 32 * (2 + codes))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(arguments.out, "llama")
    writer.add_name("llama-1b-shape")
    writer.add_context_length(8192)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_rope_freq_base(500000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(VOCABULARY)
    writer.add_file_type(2)
    tokens = [chr(ord("a") + i) if i < 26 else f"filler{i}" for i in range(VOCABULARY)]
    tokens[28] = "ab"  # what the only merge makes
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.NORMAL] * VOCABULARY)
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(26)
    writer.add_eos_token_id(27)

    def matrix(name: str, rows: int, columns: int, codes: int = 16) -> None:
        kind = gguf.GGMLQuantizationType.Q4_0 if codes == 16 else gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(name, quantized(rng, rows, columns, codes), raw_dtype=kind)

    ones = np.ones(HIDDEN, dtype=np.float32)
    kv = HIDDEN // HEADS * KV_HEADS
    matrix("token_embd.weight", VOCABULARY, HIDDEN, 32)
    for layer in range(LAYERS):
        part = f"blk.{layer}."
        writer.add_tensor(part + "attn_norm.weight", ones)
        matrix(part + "attn_q.weight", HIDDEN, HIDDEN)
        matrix(part + "attn_k.weight", kv, HIDDEN)
        matrix(part + "attn_v.weight", kv, HIDDEN)
        matrix(part + "attn_output.weight", HIDDEN, HIDDEN)
        writer.add_tensor(part + "ffn_norm.weight", ones)
        matrix(part + "ffn_gate.weight", INNER, HIDDEN)
        matrix(part + "ffn_up.weight", INNER, HIDDEN)
        matrix(part + "ffn_down.weight", HIDDEN, INNER)
    writer.add_tensor("output_norm.weight", ones)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
