#!/usr/bin/env python3
"""Writes a GGUF file again with Q4_0 linears and a Q8_0 embedding, as distill exports them: for measuring speed.

    tests/peers/.venv/bin/python tests/peers/requantize_q4_0.py MODEL.gguf OUT.gguf

Nothing is trained: the text of a model that had finer weights gets worse. The SmolLM2 that setup.sh fetches is Q4_1,
which the runtime does not read.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from gguf_llama import GgufLlama


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a GGUF file")
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    GgufLlama(arguments.model).write_q4_0(arguments.out)
    print(arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
