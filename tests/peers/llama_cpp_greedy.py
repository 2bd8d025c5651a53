#!/usr/bin/env python3
"""Greedy decoding of an exported GGUF: llama.cpp against `distill generate`.

    tests/peers/.venv/bin/python tests/peers/llama_cpp_greedy.py checkpoints/<name>/<run>/export/model.gguf

For ten prompts both tools must see the same prompt tokens and then decode the same 64 tokens: raw completion, no
chat template, temperature 0. Where llama.cpp would have taken another token, its two best logits are shown; they,
and the token that distill took, must lie within 0.05 of each other. llama.cpp then goes on from distill's token, so
that every position is compared and not only those before the first parting. Exit code 1 if anything else differs.

llama.cpp rounds the activations of quantised weights to 8 bits. Rounding turns differences in the last bit of a sum
into differences of a whole code, and a deep model spreads them over all codes, so that two programs that are both
right differ by the whole noise of the rounding. `--floor` shows how far llama.cpp parts from itself when only the
type of its KV cache changes. `--activations float` takes that noise out: llama.cpp runs the same weights as F32, and
distill its float path on the file as it is.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import llama_cpp
import numpy as np

from gguf_llama import GgufLlama

ROOT = Path(__file__).resolve().parents[2]

PROMPTS = [
    "The capital of France is",
    "Once upon a time there was a",
    "Fellow citizens of the Senate and House of Representatives,",
    "The three primary colours are",
    "def fibonacci(n):\n",
    "Water boils at",
    "Dear Sir,\n\nI write to you about",
    "Q: What is 12 + 30?\nA:",
    "In the year 1865, the President said that",
    "The difference between a virus and a bacterium is that",
]


@dataclass
class Parting:
    """A position where llama.cpp's best token is not the one that distill took."""

    position: int
    ours: int
    ours_logit: float
    best: int
    best_logit: float
    second: int
    second_logit: float

    @property
    def gap(self) -> float:
        return self.best_logit - self.ours_logit


@dataclass
class Outcome:
    prompt: str
    tokens: int = 0
    same_prompt_tokens: bool = True
    partings: list[Parting] = field(default_factory=list)
    problem: str = ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="the exported model.gguf")
    parser.add_argument("--distill", type=Path, default=ROOT / "target/release/distill", help="the distill binary")
    parser.add_argument("--tokens", type=int, default=64, help="tokens to decode for each prompt")
    parser.add_argument("--prompts", type=Path, help="a text file, one prompt a line, instead of the ten built in")
    parser.add_argument("--tolerance", type=float, default=0.05, help="largest gap between logits at a parting")
    parser.add_argument(
        "--activations", choices=["float"], help="compare the float paths: llama.cpp gets the same weights as F32"
    )
    parser.add_argument("--floor", action="store_true", help="show how far llama.cpp parts from itself")
    # One thread: llama.cpp spins at its barriers, which is slow on a machine that does something else as well.
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()

    prompts = arguments.prompts.read_text("utf-8").splitlines() if arguments.prompts else PROMPTS
    with tempfile.TemporaryDirectory() as directory:
        if arguments.activations == "float":
            model = Path(directory) / "f32.gguf"
            GgufLlama(arguments.model).write_f32(model)
        else:
            model = arguments.model
        peer = LlamaCpp(model, arguments)
        f32_cache = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32}
        other = LlamaCpp(model, arguments, **f32_cache) if arguments.floor else peer
        outcomes = []
        floor = []
        for prompt in prompts:
            ours = distill_generate(prompt, arguments)
            outcomes.append(compare(peer, prompt, ours, arguments.tokens, arguments.tolerance))
            print_row(len(outcomes), outcomes[-1], peer, arguments.tolerance)
            if arguments.floor:
                floor += self_partings(peer, other, ours)
    if arguments.floor:
        print(
            f"\nfloor: over the same tokens llama.cpp with a float32 KV cache parts from llama.cpp with its default "
            f"at {len(floor)} positions, by up to {max(floor, default=0.0):.4f}"
        )
    return summarise(outcomes)


def distill_generate(prompt: str, arguments: argparse.Namespace) -> dict:
    """`{"prompt_ids": […], "ids": […], "text": "…"}` of distill's greedy completion."""
    command = [str(arguments.distill), "generate", str(arguments.model), "--prompt", prompt]
    command += ["--max-tokens", str(arguments.tokens), "--temperature", "0", "--json"]
    if arguments.activations:
        command += ["--activations", arguments.activations]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}\nended with {done.returncode}:\n{done.stderr}")
    return json.loads(done.stdout)


def self_partings(peer: LlamaCpp, other: LlamaCpp, ours: dict) -> list[float]:
    """The gaps where `other`'s best token is not `peer`'s, both led along distill's tokens."""
    gaps = []
    mine, theirs = peer.start(ours["prompt_ids"]), other.start(ours["prompt_ids"])
    for token in ours["ids"]:
        gap = float(mine.max() - mine[np.argmax(theirs)])
        if gap > 0:
            gaps.append(gap)
        mine, theirs = peer.step(token), other.step(token)
    return gaps


class LlamaCpp:
    """llama.cpp with its defaults: an f16 KV cache and, for quantised weights, 8-bit activations."""

    def __init__(self, model: Path, arguments: argparse.Namespace, **options):
        self.llm = llama_cpp.Llama(
            str(model),
            n_ctx=512 + arguments.tokens,
            n_threads=arguments.threads,
            n_threads_batch=arguments.threads,
            logits_all=True,
            verbose=False,
            **options,
        )
        self.vocab = llama_cpp.llama_model_get_vocab(self.llm.model)

    def tokenize(self, text: str) -> list[int]:
        add_bos = bool(llama_cpp.llama_vocab_get_add_bos(self.vocab))
        return self.llm.tokenize(text.encode("utf-8"), add_bos=add_bos, special=True)

    def start(self, prompt: list[int]) -> np.ndarray:
        """Evaluates the prompt; returns the logits of the next token."""
        self.llm.reset()
        self.llm.eval(prompt)
        return self.logits()

    def step(self, token: int) -> np.ndarray:
        self.llm.eval([token])
        return self.logits()

    def logits(self) -> np.ndarray:
        return np.array(self.llm.scores[self.llm.n_tokens - 1], dtype=np.float32)

    def ends(self, token: int) -> bool:
        return bool(llama_cpp.llama_vocab_is_eog(self.vocab, token))

    def show(self, token: int) -> str:
        return repr(self.llm.detokenize([token], special=True).decode("utf-8", "backslashreplace"))


def compare(peer: LlamaCpp, prompt: str, ours: dict, tokens: int, tolerance: float) -> Outcome:
    outcome = Outcome(prompt)
    prompt_ids = peer.tokenize(prompt)
    if prompt_ids != ours["prompt_ids"]:
        outcome.same_prompt_tokens = False
        outcome.problem = f"prompt tokens: llama.cpp {prompt_ids}, distill {ours['prompt_ids']}"
        return outcome

    logits = peer.start(prompt_ids)
    for position, token in enumerate(ours["ids"]):
        outcome.tokens += 1
        second, best = (int(i) for i in np.argsort(logits, kind="stable")[-2:])
        if token != best and logits[token] != logits[best]:
            scores = (float(logits[i]) for i in (token, best, second))
            ours_logit, best_logit, second_logit = scores
            parting = Parting(position, token, ours_logit, best, best_logit, second, second_logit)
            outcome.partings.append(parting)
            if not parting.gap <= tolerance and not outcome.problem:
                outcome.problem = f"position {position}: the logits are {parting.gap:.4f} apart"
        if position + 1 < tokens:
            logits = peer.step(token)

    if outcome.tokens < tokens and not (ours["ids"] and peer.ends(ours["ids"][-1])):
        # distill stopped without showing an end token: llama.cpp must want to stop here too.
        best = int(np.argmax(logits))
        end_logit = max((float(logits[i]) for i in range(len(logits)) if peer.ends(i)), default=-np.inf)
        if not float(logits[best]) - end_logit <= tolerance:
            outcome.problem = f"distill stopped after {outcome.tokens} tokens, llama.cpp goes on with {peer.show(best)}"
    elif outcome.tokens > tokens:
        outcome.problem = f"distill gave {outcome.tokens} tokens for --max-tokens {tokens}"
    return outcome


def print_row(number: int, outcome: Outcome, peer: LlamaCpp, tolerance: float) -> None:
    if number == 1:
        print(f"{'':>3}  {'prompt':<44} {'tokens':>6} {'parted':>6} {'first':>6} {'largest gap':>11}")
    first = outcome.partings[0].position if outcome.partings else "-"
    gap = f"{max(p.gap for p in outcome.partings):.4f}" if outcome.partings else "-"
    label = repr(outcome.prompt)
    label = label if len(label) <= 44 else label[:43] + "…"
    print(f"{number:>3}  {label:<44} {outcome.tokens:>6} {len(outcome.partings):>6} {first:>6} {gap:>11}")
    for p in outcome.partings:
        print(
            f"       at {p.position}: llama.cpp's two best {peer.show(p.best)} {p.best_logit:.4f}, "
            f"{peer.show(p.second)} {p.second_logit:.4f}; distill took {peer.show(p.ours)} {p.ours_logit:.4f} "
            f"(gap {p.gap:.4f}, {'within' if p.gap <= tolerance else 'MORE THAN'} {tolerance})"
        )
    if outcome.problem:
        print(f"       FAILED: {outcome.problem}")
    sys.stdout.flush()


def summarise(outcomes: list[Outcome]) -> int:
    failed = sum(bool(o.problem) for o in outcomes)
    partings = sum(len(o.partings) for o in outcomes)
    total = sum(o.tokens for o in outcomes)
    identical = sum(not o.partings and not o.problem for o in outcomes)
    print(
        f"\n{len(outcomes)} prompts, {total} tokens: {identical} prompts identical, "
        f"{partings} partings in all, {failed} prompts failed"
    )
    return 1 if failed or not outcomes else 0


if __name__ == "__main__":
    sys.exit(main())
