#!/usr/bin/env python3
"""Logits of an imported GGUF model, by transformers, as a fixture for distill's import test.

    tests/peers/.venv/bin/python tests/peers/import_logits.py SmolLM2-135M-Instruct.Q4_1.gguf

Dequantises the file with the `gguf` package, runs eight prompts through transformers' Llama in float32 (eager
attention) and writes tests/fixtures/smollm2-135m-instruct-logits.json: for each prompt the token ids and, at two
positions, the 64 largest logits and those of 64 fixed pseudo-random ids. The whole vocabulary at those positions
is cross-checked with llama.cpp on an F32 conversion of the same file (float32 KV cache): the script fails if the
two implementations are further apart than the tolerance that distill is held to.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np

from gguf_llama import GgufLlama, sha256

ROOT = Path(__file__).resolve().parents[2]
TOLERANCE = 1e-3
TOP = 64
SAMPLED = 64
SEED = 20261122

# From one token to a few hundred, so that late RoPE positions count; chat markup, code and other scripts too.
PROMPTS = [
    "The",
    "The capital of France is",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return",
    "In 1863 there were 34 states; by 1912, 48.",
    "<|im_start|>user\nWhat is the largest planet?<|im_end|>\n<|im_start|>assistant\n",
    "Être ou ne pas être, telle est la question. 東京は日本の首都です。 Привет, мир! 🙂",
    "Once upon a time, in a small village by the sea, there lived an old clockmaker who had never once been late.",
    "Four score and seven years ago our fathers brought forth on this continent, a new nation, conceived in Liberty, "
    "and dedicated to the proposition that all men are created equal.\n\nNow we are engaged in a great civil war, "
    "testing whether that nation, or any nation so conceived and so dedicated, can long endure. We are met on a "
    "great battle-field of that war. We have come to dedicate a portion of that field, as a final resting place for "
    "those who here gave their lives that that nation might live. It is altogether fitting and proper that we "
    "should do this.\n\nBut, in a larger sense, we can not dedicate -- we can not consecrate -- we can not hallow "
    "-- this ground. The brave men, living and dead, who struggled here, have consecrated it, far above our poor "
    "power to add or detract. The world will little note, nor long remember what we say here, but it can never "
    "forget what they did here. It is for us the living, rather, to be dedicated here to the unfinished work which "
    "they who fought here have thus far so nobly advanced. It is rather for us to be here dedicated to the great "
    "task remaining before us -- that from these honored dead we take increased devotion to that cause for which "
    "they gave the last full measure of devotion -- that we here highly resolve that these dead shall not have died "
    "in vain -- that this nation, under God, shall have a new birth of freedom -- and that government of the people, "
    "by the people, for the people,",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="GGUF file, architecture llama")
    parser.add_argument("--out", type=Path, default=ROOT / "tests/fixtures/smollm2-135m-instruct-logits.json")
    arguments = parser.parse_args()

    source = GgufLlama(arguments.model)
    tokenizer = source.tokenizer()
    prompt_ids = [tokenizer.encode(prompt).ids for prompt in PROMPTS]
    positions = [sorted({len(ids) // 2, len(ids) - 1}) for ids in prompt_ids]

    transformers_logits, double_logits = run_transformers(source, prompt_ids)
    llama_cpp_logits = run_llama_cpp(source, prompt_ids)

    def furthest(a, b) -> float:
        return max(
            float(np.abs(x[p].astype(np.float64) - y[p].astype(np.float64)).max())
            for x, y, at in zip(a, b, positions)
            for p in at
        )

    from_double = furthest(transformers_logits, double_logits)
    from_llama_cpp = furthest(transformers_logits, llama_cpp_logits)
    print(f"transformers float32 against its own float64 run: max |difference| {from_double:.2e}")
    print(f"transformers float32 against llama.cpp on F32:    max |difference| {from_llama_cpp:.2e}")

    vocabulary = transformers_logits[0].shape[1]
    sampled = np.sort(np.random.default_rng(SEED).choice(vocabulary, SAMPLED, replace=False))
    fixture = {
        "about": "Logits of the dequantised model by transformers, float32; made by tests/peers/import_logits.py",
        "model": {"file": arguments.model.name, "sha256": sha256(arguments.model), "vocabulary": vocabulary},
        "tolerance": TOLERANCE,
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers", "gguf", "tokenizers", "numpy")},
            "llama-cpp-python": version("llama-cpp-python"),
        },
        "max_difference_from_float64": from_double,
        "max_difference_from_llama_cpp_f32": from_llama_cpp,
        "prompts": [
            {
                "text": text,
                "ids": ids,
                "positions": [describe(p, logits[p], sampled) for p in at],
            }
            for text, ids, at, logits in zip(PROMPTS, prompt_ids, positions, transformers_logits)
        ],
    }
    arguments.out.write_text(as_json(fixture), encoding="utf-8")
    print(f"{arguments.out}: {arguments.out.stat().st_size} bytes")
    if max(from_double, from_llama_cpp) > TOLERANCE:
        raise SystemExit(f"the references differ by more than {TOLERANCE}: do not commit this fixture")


def describe(position: int, logits: np.ndarray, sampled: np.ndarray) -> dict:
    top = np.argsort(-logits, kind="stable")[:TOP]
    return {
        "position": position,
        "top_ids": top.tolist(),
        "top_logits": [shortest(v) for v in logits[top]],
        "sampled_ids": sampled.tolist(),
        "sampled_logits": [shortest(v) for v in logits[sampled]],
    }


def shortest(value: np.float32) -> float:
    """The shortest decimal that reads back as the same float32."""
    return float(np.format_float_positional(value, unique=True, trim="0"))


def as_json(fixture: dict) -> str:
    """JSON with one line a list of numbers, so that the file can be read and diffed."""
    import re

    text = json.dumps(fixture, indent=1, ensure_ascii=True)
    return re.sub(r"\[\s+((?:-?[\d.e+-]+,?\s+)+)\]", lambda m: "[" + " ".join(m[1].split()) + "]", text) + "\n"


def run_transformers(source: GgufLlama, prompts: list[list[int]]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Logits [positions, vocabulary] of each prompt, in float32 and in float64."""
    import torch

    model = source.hugging_face_model()
    with torch.inference_mode():
        single = [model(torch.tensor([ids])).logits[0].numpy() for ids in prompts]
        model = model.double()
        double = [model(torch.tensor([ids])).logits[0].numpy() for ids in prompts]
    return single, double


def run_llama_cpp(source: GgufLlama, prompts: list[list[int]]) -> list[np.ndarray]:
    """The same by llama.cpp, on an F32 conversion with a float32 KV cache."""
    import llama_cpp

    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "f32.gguf"
        source.write_f32(path)
        longest = max(len(ids) for ids in prompts)
        llm = llama_cpp.Llama(
            str(path),
            n_ctx=longest,
            n_batch=longest,
            logits_all=True,
            flash_attn=False,
            type_k=llama_cpp.GGML_TYPE_F32,
            type_v=llama_cpp.GGML_TYPE_F32,
            verbose=False,
        )
        logits = []
        for ids in prompts:
            llm.reset()
            llm.eval(ids)
            logits.append(np.array(llm.scores[: len(ids)], dtype=np.float32))
        llm.close()
    return logits


if __name__ == "__main__":
    main()
