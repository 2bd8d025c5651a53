#!/usr/bin/env python3
"""A GGUF file of architecture `llama` as a 4-bit model for onnxruntime-genai: the peer of `edge_speed.py --onnx`.

    tests/peers/.venv/bin/python tests/peers/onnx_model.py MODEL.gguf OUT

The weights go the way that onnxruntime-genai documents: a Hugging Face directory, then its own model builder. Chosen
is what is fastest on CPUs without changing the weights: blocks of 32 as in Q4_0, activations in 8 bits
(`accuracy_level=4`), logits of the last position only, and the builder's default rounding, which finds the codes and
scales of a Q4_0 file again (`rtn` makes every scale 16/15 of what it was). The head has 8 bits as the file's has;
`--head int4` halves its bytes for a comparison.

Prints how far the weights of the result are from the file's. An OUT that is there already is kept.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from gguf_llama import GgufLlama


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a GGUF file")
    parser.add_argument("out", type=Path, help="the directory to make")
    parser.add_argument("--head", choices=["int8", "int4"], default="int8", help="bits of the head")
    arguments = parser.parse_args()
    if arguments.out.exists():
        print(f"{arguments.out}: there already")
        return 0

    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    source = GgufLlama(arguments.model)
    # Beside OUT, so that the finished directory takes its name in one step.
    with tempfile.TemporaryDirectory(dir=arguments.out.parent) as directory:
        masters, built = Path(directory) / "masters", Path(directory) / "built"
        source.hugging_face_model().save_pretrained(masters)
        # The builder wants a tokenizer. What is measured are fixed numbers, so any will do.
        nothing = Tokenizer(models.WordLevel({"a": 0}))
        PreTrainedTokenizerFast(tokenizer_object=nothing).save_pretrained(masters)
        build(masters, built, Path(directory) / "cache", arguments.head)
        found = errors(source, built)
        for what, error in found.items():
            print(f"{what}: {error:.4f} of the weights' root mean square away from {arguments.model.name}")
        if not found["linears"] < 1e-3:
            raise SystemExit("the linears are not the file's; are they Q4_0 there? Nothing was kept.")
        built.rename(arguments.out)
    print(arguments.out)
    return 0


def build(masters: Path, out: Path, cache: Path, head: str) -> None:
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-p", "int4", "-e", "cpu"]
    command += ["-i", str(masters), "-o", str(out), "-c", str(cache), "--extra_options"]
    command += ["accuracy_level=4", "block_size=32", "is_symmetric=true", "algo_config=default"]
    # Shared with a head of 8 bits, the embedding of builder 0.18 names a tensor that does not exist.
    command += [f"matmul_mixed_precision=last_matmul:{head}", "shared_embeddings=false", "prune_lm_head=true"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}\nended with {done.returncode}:\n{done.stderr}")


def errors(source: GgufLlama, built: Path) -> dict[str, float]:
    """Root mean square of the difference to the file's weights, over that of the weights: linears, head."""
    import onnx
    from onnx import numpy_helper

    stored = {t.name: t for t in onnx.load(built / "model.onnx").graph.initializer}
    state = source.hugging_face_state()
    state.setdefault("lm_head.weight", state["model.embed_tokens.weight"])
    sums = {"linears": np.zeros(2), "head": np.zeros(2)}
    for name in stored:
        if not name.endswith((".weight_Q4", ".weight_Q8")):
            continue
        linear = name.split(".MatMul.")[0]
        codes = numpy_helper.to_array(stored[name])
        scales = numpy_helper.to_array(stored[f"{linear}.MatMul.weight_scales"])
        found = dequantized(codes, scales, int(name[-1]))
        expected = expected_weights(state, linear)
        sums["head" if linear == "lm_head" else "linears"] += [
            np.square(found - expected).sum(dtype=np.float64),
            np.square(expected).sum(dtype=np.float64),
        ]
    return {what: float(np.sqrt(difference / whole)) for what, (difference, whole) in sums.items()}


def dequantized(codes: np.ndarray, scales: np.ndarray, bits: int) -> np.ndarray:
    """`codes` [rows, blocks, bytes], the even weight of a pair in the low half of a byte."""
    rows, blocks, _ = codes.shape
    if bits == 4:
        codes = np.stack([codes & 15, codes >> 4], axis=-1).reshape(rows, blocks, -1)
    values = codes.astype(np.float32) - (1 << (bits - 1))
    return (values * scales.reshape(rows, blocks, 1)).reshape(rows, -1)


def expected_weights(state: dict[str, np.ndarray], linear: str) -> np.ndarray:
    """The file's weights of an ONNX linear; the builder makes one of q, k and v."""
    if linear == "lm_head":
        return state["lm_head.weight"]
    name = linear.replace(".attn.", ".self_attn.")
    if name.endswith(".qkv_proj"):
        return np.concatenate([state[name.replace("qkv_proj", f"{part}_proj.weight")] for part in "qkv"])
    return state[f"{name}.weight"]


if __name__ == "__main__":
    sys.exit(main())
