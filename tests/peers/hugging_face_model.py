#!/usr/bin/env python3
"""Writes a GGUF file as a Hugging Face directory: float32 weights and the tokenizer, by transformers.

    tests/peers/.venv/bin/python tests/peers/hugging_face_model.py MODEL.gguf DIRECTORY

What another program evaluates, which reads directories (`lm_eval_choices.py`), is then the file that we have.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from gguf_llama import GgufLlama


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a GGUF file")
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    gguf = GgufLlama(arguments.model)
    gguf.hugging_face_model().save_pretrained(arguments.out)
    tokens = gguf.metadata["tokenizer.ggml.tokens"]
    spelt = {
        name: tokens[gguf.metadata[f"tokenizer.ggml.{key}_token_id"]]
        for name, key in (("bos_token", "bos"), ("eos_token", "eos"))
        if f"tokenizer.ggml.{key}_token_id" in gguf.metadata
    }
    PreTrainedTokenizerFast(tokenizer_object=gguf.tokenizer(), **spelt).save_pretrained(arguments.out)
    print(arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
