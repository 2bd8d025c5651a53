#!/usr/bin/env python3
"""Multiple choice and last words: `distill eval` against EleutherAI's lm-evaluation-harness, item by item.

    tests/peers/.venv/bin/python tests/peers/lm_eval_choices.py DIRECTORY --choice ARC.jsonl --last-word LAMBADA.jsonl

DIRECTORY is a Hugging Face directory; both compute it in float32 on the CPU. `--choice` may be repeated. Of every file
the first `--limit` items are answered (200). Every answer's log-likelihood must agree within 1e-3 nats for each of its
tokens, whether it is greedy exactly, and so must the verdicts acc, acc_norm and acc_bytes of every item, but for those
whose two best answers are closer than the two programs. Exit code 1 otherwise.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Largest difference of a log-likelihood, nats a token: two orders of summation in float32.
TOLERANCE = 1e-3
METRICS = ("acc", "acc_norm", "acc_bytes")


def ours(arguments, directory: Path) -> list[dict]:
    """The tasks of distill's JSON."""
    tasks = [f"choice={file}" for file in arguments.choice] + [f"last_word={file}" for file in arguments.last_word]
    out = directory / "eval.json"
    command = [arguments.distill, "eval", arguments.model, "--graph", "--limit", arguments.limit, "--json", out]
    command += [part for task in tasks for part in ("--tasks", task)]
    subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)
    return json.loads(out.read_text())["tasks"]


def theirs(arguments) -> list[list[dict]]:
    """Samples of lm-eval for every file, in the same order."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    model = HFLM(pretrained=str(arguments.model), device="cpu", dtype="float32", batch_size=8)
    found = []
    for file in arguments.choice + arguments.last_word:
        config = {
            "task": file.stem,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(file.resolve())}},
            "test_split": "test",
            "metadata": {"version": 0},
        }
        if file in arguments.choice:
            config |= {
                "output_type": "multiple_choice",
                "doc_to_text": "{{query}}",
                "doc_to_choice": "{{choices}}",
                "doc_to_target": "{{gold}}",
                "metric_list": [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in METRICS],
            }
        else:
            config |= {
                "output_type": "loglikelihood",
                "doc_to_text": "{{context}}",
                # As its own LAMBADA task has it: no delimiter stands before such a target.
                "doc_to_target": "{{' ' + continuation}}",
                "metric_list": [
                    {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
                    {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
                ],
            }
        results = lm_eval.simple_evaluate(
            model=model, tasks=[config], limit=arguments.limit, log_samples=True, bootstrap_iters=0
        )
        found.append(sorted(results["samples"][file.stem], key=lambda sample: sample["doc_id"]))
    return found


def compare(task: dict, samples: list[dict]) -> list[str]:
    """Prints a row; returns what differs."""
    problems, largest, verdicts, ties = [], 0.0, 0, 0
    items = task["model"]["items"]
    if len(items) != len(samples):
        return [f"{task['file']}: {len(items)} items, lm-eval has {len(samples)}"]
    for item, sample in zip(items, samples):
        # A response is [(log-likelihood, is greedy)] for every choice.
        responses = [response[0] for response in sample["resps"]]
        answers = item.get("choices", [item])
        apart = 0.0
        for answer, (log_likelihood, greedy) in zip(answers, responses, strict=True):
            difference = abs(answer["log_likelihood"] - float(log_likelihood))
            apart = max(apart, difference)
            if difference > TOLERANCE * answer["tokens"]:
                problems.append(f"line {item['line']}: {answer['log_likelihood']} here, {log_likelihood} there")
            if answer["greedy"] != bool(greedy):
                problems.append(f"line {item['line']}: greedy {answer['greedy']} here, {greedy} there")
        largest = max(largest, apart)
        if "choices" not in item:
            verdicts += 1
            continue
        for name, length in (("acc", None), ("acc_norm", "characters"), ("acc_bytes", "bytes")):
            worth = [a["log_likelihood"] / (a[length] if length else 1) for a in answers]
            verdict = float(worth.index(max(worth)) == item["gold"])
            verdicts += 1
            if verdict != sample[name]:
                first, second = sorted(worth, reverse=True)[:2]
                if first - second <= 2 * apart:
                    ties += 1
                else:
                    problems.append(f"line {item['line']}: {name} {verdict} here, {sample[name]} there")
    figures = ", ".join(f"{figure['figure']} {figure['value']:.4f}" for figure in task["model"]["figures"])
    print(f"{task['file']}: {len(items)} items, {verdicts} verdicts, {ties} of them ties, largest difference {largest:.2e} nats")
    print(f"  {figures}")
    return [f"{task['file']}: {problem}" for problem in problems]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a Hugging Face directory")
    parser.add_argument("--choice", type=Path, action="append", default=[], help="questions, JSONL")
    parser.add_argument("--last-word", type=Path, action="append", default=[], help="passages, JSONL")
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--distill", type=Path, default=ROOT / "target/release/distill")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        tasks = ours(arguments, Path(directory))
    problems = []
    for task, samples in zip(tasks, theirs(arguments), strict=True):
        problems += compare(task, samples)
    for problem in problems[:20]:
        print(f"DIFFERS {problem}")
    print("agree" if not problems else f"{len(problems)} differences")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
