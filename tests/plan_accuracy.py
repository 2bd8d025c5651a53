#!/usr/bin/env python3
"""How far `distill plan` is from what a run does: peak memory and time of a step, on recipes of several shapes.

    python3 datasets/fetch.py smollm2
    cargo build --release -p distill
    python3 tests/plan_accuracy.py                      # the five recipes of docs/RECORDS.md
    python3 tests/plan_accuracy.py --set other NAME…    # those that the constants were looked up on, or some of them

Each recipe is planned (`distill plan --json`) and then run for a few steps, one after the other, each in a process of its
own. Memory is the process's largest resident set, from `wait4`; the time of a step is the median of all but the first. The
weights are random, the tokenizer is SmolLM2's, so that the vocabulary has its 49,152 tokens. Exit code 1 if a peak is off by
more than 10 % or a step by more than 20 %. On a machine that other work keeps busy, times mean little: run it under
`nice -n -15`, or look at memory alone (`--memory`).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "datasets/downloads/SmolLM2-135M-Instruct.Q4_1.gguf"

# hidden, intermediate, layers, heads, key and value heads
SHAPES = {
    "10M": (128, 384, 12, 4, 2),
    "30M": (320, 896, 12, 5, 5),
    "60M": (512, 1408, 14, 8, 2),
    "135M": (576, 1536, 30, 9, 3),
    "360M": (960, 2560, 32, 15, 5),
}
Q4 = {"linears": "q4_0", "embeddings": "q8_0", "activations": "q8_0"}
Q4_FLOAT = {"linears": "q4_0", "embeddings": "q4_0", "activations": "float"}

# Those of the record, which nothing was looked up on.
RECORD = {
    "30M-float": dict(shape="30M", batch=4, sequence=256),
    "30M-taught": dict(shape="30M", batch=4, sequence=128, grid=Q4, teacher="forward_kl"),
    "135M-accumulated": dict(shape="135M", batch=1, sequence=512, grid=Q4, accumulation=2),
    "135M-jsd": dict(shape="135M", batch=2, sequence=256, grid=Q4_FLOAT, teacher="jsd"),
    "360M-checkpointing": dict(shape="360M", batch=1, sequence=1024, grid=Q4, checkpointing=True),
}
OTHER = {
    "10M-float": dict(shape="10M", batch=2, sequence=512),
    "60M-long": dict(shape="60M", batch=2, sequence=1024, grid=Q4),
    "60M-checkpointing": dict(shape="60M", batch=4, sequence=512, checkpointing=True),
    "60M-taught": dict(shape="60M", batch=2, sequence=256, grid=Q4, teacher="forward_kl", accumulation=2),
    "135M-float": dict(shape="135M", batch=1, sequence=256),
    "135M-verified": dict(shape="135M", batch=1, sequence=128, grid=Q4, verified=True),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="some of the recipes; all of them")
    parser.add_argument("--set", choices=["record", "other"], default="record")
    parser.add_argument("--distill", type=Path, default=ROOT / "target/release/distill")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--memory", action="store_true", help="judge memory alone")
    arguments = parser.parse_args()
    recipes = RECORD if arguments.set == "record" else OTHER
    chosen = {name: recipes[name] for name in arguments.names} or recipes
    print(f"{'':22}{'peak, MB: plan':>16}{'run':>8}{'off by':>8}{'step, s: plan':>16}{'run':>8}{'off by':>8}")
    failed = False
    for name, options in chosen.items():
        with tempfile.TemporaryDirectory() as directory:
            peak, step = compare(name, options, Path(directory), arguments)
        off = [planned / found - 1 for planned, found in (peak, step)]
        failed |= abs(off[0]) > 0.10 or (abs(off[1]) > 0.20 and not arguments.memory)
        print(
            f"{name:22}{peak[0] / 1e6:16,.0f}{peak[1] / 1e6:8,.0f}{off[0]:8.1%}"
            f"{step[0]:16.2f}{step[1]:8.2f}{off[1]:8.1%}",
            flush=True,
        )
    return int(failed)


def compare(name: str, options: dict, directory: Path, arguments: argparse.Namespace) -> tuple:
    path = directory / f"{name}.toml"
    path.write_text(recipe(name, directory, arguments.steps, **options))
    plan = json.loads(subprocess.check_output([arguments.distill, "plan", path, "--json"], cwd=ROOT, stderr=subprocess.PIPE))
    with open(directory / "log", "w") as log:
        pid = subprocess.Popen([arguments.distill, "run", path], cwd=ROOT, stdout=log, stderr=log).pid
        _, status, usage = os.wait4(pid, 0)
    if status != 0:
        sys.exit(f"{name}: {(directory / 'log').read_text()}")
    (timings,) = directory.glob(f"runs/{name}/*/timings.jsonl")
    records = [json.loads(line) for line in timings.read_text().splitlines()]
    seconds = [record["seconds"] for record in records if record["split"] == "timing"]
    peak = (plan["memory"]["peak"], usage.ru_maxrss * 1024)
    return peak, (plan["time"]["step"], statistics.median(seconds[1:]))


def recipe(
    name: str,
    directory: Path,
    steps: int,
    shape: str,
    batch: int,
    sequence: int,
    accumulation: int = 1,
    checkpointing: bool = False,
    grid: dict | None = None,
    teacher: str | None = None,
    verified: bool = False,
) -> str:
    hidden, inner, layers, heads, kv_heads = SHAPES[shape]
    tables = {
        "student": {"tokenizer": str(MODEL)},
        "student.config": {
            "hidden_size": hidden,
            "intermediate_size": inner,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
        },
        "data": {
            "sources": ["datasets/state-of-the-union.txt"],
            "document_separator": "\n----\n",
            "sequence_length": sequence,
        },
        "train": {
            "steps": steps,
            "batch_size": batch,
            "gradient_accumulation": accumulation,
            "activation_checkpointing": checkpointing,
            "learning_rate": 1e-4,
            "eval_every": 1000,
        },
        "eval": {"sequences": 1, "prompts": []},
        "export": {"gguf": verified, "huggingface": False, "parity_positions": sequence},
    }
    if grid:
        tables["quantize"] = grid
    if teacher:
        tables["teacher.local"] = {"from": str(MODEL)}
        tables["distill"] = {"loss": teacher}
    top = {"name": name, "output": str(directory / "runs")}
    lines = [f"{key} = {json.dumps(value)}" for key, value in top.items()]
    for table, keys in tables.items():
        lines += [f"[{table}]", *(f"{key} = {json.dumps(value)}" for key, value in keys.items())]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
