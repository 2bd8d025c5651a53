#!/usr/bin/env python3
"""TensorBoard's own reader against metrics.jsonl and timings.jsonl.

    tests/peers/.venv/bin/python tests/peers/tensorboard_scalars.py checkpoints/<name>/<run>

Reads the run's event files with the EventAccumulator of PyPI `tensorboard` (no TensorFlow) and compares every
scalar with the line of metrics.jsonl of the same step: the tag is `split/field`, the value the float32 of the
number in the line. Exit code 1 if a scalar is missing on either side or differs.

Wall-clock figures come from timings.jsonl. A resumed run writes the event files anew without the timings before it,
so there a scalar may be missing from the event files, but none may be there that no line of timings.jsonl has.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

# Fields that say where a line belongs, not what was measured.
KEYS = ("step", "split")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the run directory")
    arguments = parser.parse_args()

    expected = {
        tag: {step: values[-1] for step, values in steps.items()}
        for tag, steps in read_lines(arguments.run / "metrics.jsonl").items()
    }
    timings = read_lines(arguments.run / "timings.jsonl")
    found = read_events(arguments.run)
    problems = []
    timed = 0
    for tag in sorted(timings.keys() - expected.keys()):
        for step, value in found.pop(tag, {}).items():
            timed += 1
            if not any(same(ours, value) for ours in timings[tag].get(step, [])):
                problems.append(f"{tag}: step {step}: {value!r} is in no line of timings.jsonl")
    print(f"{'tag':<36} {'scalars':>8} {'first':>8} {'last':>8} {'largest difference':>20}")
    for tag in sorted(expected.keys() | found.keys()):
        ours, theirs = expected.get(tag, {}), found.get(tag, {})
        for step in sorted(ours.keys() - theirs.keys()):
            problems.append(f"{tag}: step {step} is in metrics.jsonl, not in the event files")
        for step in sorted(theirs.keys() - ours.keys()):
            problems.append(f"{tag}: step {step} is in the event files, not in metrics.jsonl")
        shared = sorted(ours.keys() & theirs.keys())
        furthest = 0.0
        for step in shared:
            if not same(ours[step], theirs[step]):
                problems.append(f"{tag}: step {step}: metrics.jsonl {ours[step]!r}, event files {theirs[step]!r}")
            if math.isfinite(ours[step]) and math.isfinite(theirs[step]):
                furthest = max(furthest, abs(float(np.float32(ours[step])) - theirs[step]))
        first, last = (shared[0], shared[-1]) if shared else ("-", "-")
        print(f"{tag:<36} {len(shared):>8} {first:>8} {last:>8} {furthest:>20.3g}")

    compared = sum(len(expected[tag].keys() & found.get(tag, {}).keys()) for tag in expected)
    print(f"\n{compared} scalars and {timed} timings compared, {len(problems)} problems")
    for problem in problems[:20]:
        print(f"  {problem}")
    if compared == 0:
        print("  nothing to compare: is this a run directory with event files?")
    return 1 if problems or compared == 0 else 0


def read_lines(path: Path) -> dict[str, dict[int, list[float]]]:
    """tag -> step -> values, from every numeric field of every line; nothing if there is no such file."""
    scalars: dict[str, dict[int, list[float]]] = {}
    if not path.exists():
        return scalars
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            entry = json.loads(line)
            for name, value in entry.items():
                if name in KEYS or isinstance(value, bool) or not isinstance(value, (int, float)):
                    continue
                steps = scalars.setdefault(f"{entry['split']}/{name}", {})
                steps.setdefault(entry["step"], []).append(float(value))
    return scalars


def read_events(run: Path) -> dict[str, dict[int, float]]:
    """The same from every directory below the run that holds event files."""
    scalars: dict[str, dict[int, float]] = {}
    for directory in sorted({file.parent for file in run.rglob("*tfevents*")}):
        accumulator = EventAccumulator(str(directory), size_guidance={SCALARS: 0})
        accumulator.Reload()
        for tag in accumulator.Tags()["scalars"]:
            for event in accumulator.Scalars(tag):
                scalars.setdefault(tag, {})[event.step] = event.value
    return scalars


def same(ours: float, theirs: float) -> bool:
    """Equal as float32, which is what an event file stores."""
    if math.isnan(ours) or math.isnan(theirs):
        return math.isnan(ours) and math.isnan(theirs)
    return np.float32(ours) == np.float32(theirs)


if __name__ == "__main__":
    sys.exit(main())
