#!/usr/bin/env python3
"""Perplexity: `distill eval` against llama.cpp's `llama-perplexity`, on the same files.

    tests/peers/.venv/bin/python tests/peers/perplexity.py TEXT MODEL.gguf...

Both read the same windows and score the same tokens; for every file both figures are printed with their standard
errors, and the relative difference, which must be within 0.3 %. Exit code 1 otherwise. `--fixture FILE` writes what
llama.cpp says after every window, which `cargo test` then holds distill against.

Weights that are quantised meet activations of 8 bits in both programs, which round them differently (llama.cpp's scales
are in f16): a difference of a tenth of a percent is that noise.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from gguf_llama import sha256

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 0.003


def theirs(arguments, model: Path) -> tuple[list[float], float]:
    """llama.cpp's perplexity after every window, and its standard error after the last."""
    command = [arguments.llama_perplexity, "-m", model, "-f", arguments.text]
    command += ["-c", arguments.context, "--chunks", arguments.chunks, "-t", arguments.threads]
    # Four decimals of the running figure are all it prints.
    log = subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True)
    log = log.stdout + log.stderr
    running = [float(value) for value in re.findall(r"\[\d+\]([0-9.]+),", log)]
    final = re.search(r"Final estimate: PPL = ([0-9.]+) \+/- ([0-9.]+)", log)
    if final is None:
        raise SystemExit(log)
    return running, float(final[2])


def ours(arguments, model: Path, directory: Path) -> tuple[float, float]:
    """distill's perplexity and standard error."""
    out = directory / "eval.json"
    command = [arguments.distill, "eval", model, "--tasks", f"perplexity={arguments.text}", "--json", out]
    command += ["--context", arguments.context, "--chunks", arguments.chunks, "--threads", arguments.threads]
    subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)
    measured = json.loads(out.read_text())["tasks"][0]["model"]
    return measured["figures"][0]["value"], measured["standard_error"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("models", type=Path, nargs="+", help="GGUF files")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--chunks", type=int, default=60)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--fixture", type=Path, help="write llama.cpp's figures there")
    parser.add_argument("--distill", type=Path, default=ROOT / "target/release/distill")
    parser.add_argument("--llama-perplexity", type=Path, default=ROOT / "tests/peers/.venv/bin/llama-perplexity")
    arguments = parser.parse_args()
    fixture = {
        "made_by": "tests/peers/perplexity.py",
        "text_sha256": sha256(arguments.text),
        "context": arguments.context,
        "chunks": arguments.chunks,
        "models": {},
    }
    agree = True
    print(f"{'':32}{'distill':>20}{'llama.cpp':>20}{'apart':>10}")
    for model in arguments.models:
        running, their_error = theirs(arguments, model)
        with tempfile.TemporaryDirectory() as directory:
            value, error = ours(arguments, model, Path(directory))
        apart = value / running[-1] - 1.0
        agree &= abs(apart) <= LIMIT
        mine, other = f"{value:.4f} ± {error:.4f}", f"{running[-1]:.4f} ± {their_error:.4f}"
        print(f"{model.name:32}{mine:>20}{other:>20}{100 * apart:>+8.3f} %", flush=True)
        fixture["models"][model.stem] = {
            "sha256": sha256(model),
            "perplexity_after_each_chunk": running,
            "standard_error": their_error,
        }
    if arguments.fixture:
        arguments.fixture.write_text(json.dumps(fixture, indent=1) + "\n")
        print(arguments.fixture)
    print("agree" if agree else f"further apart than {100 * LIMIT} %")
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
