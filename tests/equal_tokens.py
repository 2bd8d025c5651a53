#!/usr/bin/env python3
"""What a teacher and a grid in training are worth: the quickstart's student, made in several ways from the same tokens.

    python3 datasets/fetch.py sotu
    cargo build --release -p distill
    python3 tests/equal_tokens.py                  # seeds 2 to 6, twenty minutes

Every student has the shape, the steps and the batches of recipes/quickstart.toml, with half its learning rate, at which
learning from text alone is stable too; all of its matrices ship in Q4_0, the embedding as well: so small a model loses little
otherwise. It learns from the text alone or from the teacher, in full precision or for
the last tenth of the steps on the grid; where it was trained in full precision, `distill quantize` then puts it on the same
grid. All are measured through the runtime on the addresses since 1989, which no model has seen, the teacher
included: cross-entropy, the logarithm of perplexity, and KL divergence from the teacher, both in nats.

A figure is the mean over the seeds with its 95 % interval (Student's t). Then come the differences of KD + QAT from every
other way to a file of this size, seed by seed, with the interval of their mean. Exit code 1 if one of these does not lie
below zero, but for GPTQ after KD, which is a second method and not a control.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
QUICKSTART = ROOT / "recipes/quickstart.toml"
ADDRESSES = ROOT / "datasets/downloads/sotu.txt"

# The 97.5th percentile of Student's t, by degrees of freedom.
STUDENT_T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}

OURS = "KD + QAT"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[2, 3, 4, 5, 6], help="seed 1 was used to choose rate and grid")
    parser.add_argument("--distill", type=Path, default=ROOT / "target/release/distill")
    parser.add_argument("--json", type=Path, help="keep the figures in this file")
    arguments = parser.parse_args()
    if not 2 <= len(arguments.seeds) <= len(STUDENT_T) + 1:
        parser.error(f"two to {len(STUDENT_T) + 1} seeds")
    figures: dict[str, list[dict]] = {}
    with tempfile.TemporaryDirectory() as directory:
        workshop = Workshop(arguments.distill.resolve(), Path(directory))
        for seed in arguments.seeds:
            for name, model in workshop.students(seed):
                found = workshop.measure(model)
                figures.setdefault(name, []).append(found)
                print(f"seed {seed}  {name:32}{found['cross_entropy']:9.4f}{found['kl']:9.4f}", file=sys.stderr, flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps({"seeds": arguments.seeds, "figures": figures}, indent=1))
    return report(figures)


class Workshop:
    """Makes the students of a seed, in a directory of its own."""

    def __init__(self, distill: Path, directory: Path):
        self.distill, self.directory = distill, directory
        self.recipe = tomllib.loads(QUICKSTART.read_text())
        steps = self.recipe["train"]["steps"]
        self.recipe["train"]["learning_rate"] /= 2
        self.recipe["quantize"] |= {"embeddings": "q4_0", "start_step": steps - steps // 10}
        self.teacher = ROOT / self.recipe["teacher"]["local"]["from"]
        self.unseen = directory / "unseen.txt"
        self.unseen.write_text(unseen(ROOT / self.recipe["data"]["sources"][0], self.recipe["data"]["document_separator"]))

    def students(self, seed: int):
        """Names and models, each as soon as it is made."""
        for taught, source in ((False, "text alone"), (True, "KD")):
            yield f"{source} + QAT", self.train(seed, taught, grid=True) / "export/model.gguf"
            run = self.train(seed, taught, grid=False)
            yield f"{source}, full precision", run / "export/model.gguf"
            for method in ("round", "gptq"):
                out = run / method
                text = ["--text", self.recipe["data"]["sources"][0], "--sequence-length", "256"]
                grid = ["--method", method, "--embeddings", "q4_0"]
                self.call("quantize", run / "export/huggingface", *grid, *text, "--out", out)
                yield f"{source}, then {'rounded' if method == 'round' else 'GPTQ'}", out / "model.gguf"

    def train(self, seed: int, taught: bool, grid: bool) -> Path:
        recipe = dict(self.recipe, name=f"{seed}-{taught}-{grid}", seed=seed, output=str(self.directory))
        if not taught:
            # The tokenizer and the beginning are the same; what teaches is the next token.
            recipe = {key: value for key, value in recipe.items() if key not in ("teacher", "distill")}
            recipe["student"] = dict(recipe["student"], tokenizer=str(self.teacher))
        if not grid:
            del recipe["quantize"]
        path = self.directory / f"{recipe['name']}.toml"
        path.write_text("\n".join(toml(recipe)))
        self.call("run", path)
        (run,) = (self.directory / recipe["name"]).iterdir()
        return run

    def measure(self, model: Path) -> dict:
        path = self.directory / "evaluation.json"
        task = f"perplexity={self.unseen}"
        options = ["--tasks", task, "--reference", self.teacher, "--context", "256", "--chunks", "200", "--json", path]
        self.call("eval", model, *options)
        (task,) = json.loads(path.read_text())["tasks"]
        figure = {each["figure"]: each["value"] for each in task["model"]["figures"] + task["divergence"]["figures"]}
        return {"cross_entropy": math.log(figure["perplexity"]), "kl": figure["kl"]}

    def call(self, *arguments) -> None:
        done = subprocess.run([self.distill, *arguments], cwd=ROOT, capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"distill {' '.join(map(str, arguments))}\n{done.stdout}{done.stderr}")


def unseen(text: Path, separator: str) -> str:
    """The addresses that were held after the last one of a text."""
    last = text.read_text().rstrip().split(separator)[-1]
    addresses = ADDRESSES.read_text()
    assert addresses.count(last) == 1
    return addresses[addresses.index(last) + len(last) :].lstrip()


def toml(table: dict, above: str = "") -> list[str]:
    """Lines of a table: its values, then the tables in it."""
    lines = [f"[{above}]"] if above else []
    lines += [f"{key} = {json.dumps(value)}" for key, value in table.items() if not isinstance(value, dict)]
    for key, value in table.items():
        if isinstance(value, dict):
            lines += toml(value, f"{above}.{key}" if above else key)
    return lines


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and half the width of its 95 % interval."""
    return statistics.mean(values), STUDENT_T[len(values) - 1] * statistics.stdev(values) / math.sqrt(len(values))


def report(figures: dict[str, list[dict]]) -> int:
    of = {name: {key: [seed[key] for seed in seeds] for key in seeds[0]} for name, seeds in figures.items()}
    print(f"{'':32}{'perplexity':>12}{'cross-entropy, nats':>24}{'KL, nats':>20}")
    for name, values in of.items():
        (loss, by), (kl, kl_by) = interval(values["cross_entropy"]), interval(values["kl"])
        print(f"{name:32}{math.exp(loss):12.2f}{loss:14.4f} ± {by:.4f}{kl:13.4f} ± {kl_by:.4f}")
    print(f"\n{OURS} less the others, at the same size of file")
    beaten = True
    for name, values in of.items():
        if name == OURS or name.endswith("full precision"):
            continue
        line = f"{name:32}{'':12}"
        for key in ("cross_entropy", "kl"):
            difference, by = interval([ours - other for ours, other in zip(of[OURS][key], values[key])])
            beaten &= difference + by < 0 or name == "KD, then GPTQ"
            line += f"{difference:+14.4f} ± {by:.4f}"
        print(line)
    return 0 if beaten else 1


if __name__ == "__main__":
    sys.exit(main())
