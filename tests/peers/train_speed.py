#!/usr/bin/env python3
"""Seconds and memory of a training step against PyTorch: same shape, same threads, in turns.

    cargo build --release -p distill -p distill-train --example train_speed
    tests/peers/.venv/bin/python tests/peers/train_speed.py

SmolLM2-135M's shape with random weights in f32, AdamW, global-norm clipping. Every round runs PyTorch (transformers'
Llama with scaled-dot-product attention) and ours, each in a process of its own that makes some steps and reports the
median without the first. Distillation has a teacher of the same size: PyTorch's is the textbook form, both logits
whole, KL and JSD of their log-softmaxes as TRL's GKD trainer has them. Shown are medians over the rounds, the median
of the rounds' ratios, and the peak of the resident memory.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LOSSES = ("cross_entropy", "forward_kl", "jsd")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ours", type=Path, default=ROOT / "target/release/examples/train_speed", help="the example")
    parser.add_argument("--losses", default=",".join(LOSSES), help="which losses")
    parser.add_argument("--batch", default="1", help="sequences; several numbers are measured one after another")
    parser.add_argument("--tokens", type=int, default=512, help="tokens of a sequence")
    parser.add_argument("--steps", type=int, default=4, help="steps of a process; the first is not counted")
    parser.add_argument("--repeat", type=int, default=5, help="rounds of both")
    parser.add_argument("--threads", type=int, default=2, help="threads of both")
    parser.add_argument("--grid", default="float", help="ours alone: float, q4_0 or q4_0_q8_0")
    parser.add_argument("--options", default="", help="ours alone: checkpointing, bf16, 8bit, teacher=MODEL.gguf; by commas")
    parser.add_argument("--json", type=Path, help="write all samples here")
    parser.add_argument("--peer", choices=LOSSES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peer:
        print(json.dumps(torch_steps(arguments)))
        return 0

    print(f"{'':28}{'PyTorch':>20}{'distill':>20}{'ratio':>8}{'memory':>8}")
    everything = []
    for batch in (int(n) for n in arguments.batch.split(",")):
        for loss in arguments.losses.split(","):
            rounds = [one_round(arguments, loss, batch) for _ in range(arguments.repeat)]
            everything.append({"loss": loss, "batch": batch, "rounds": rounds})
            show(loss, batch, arguments.tokens, rounds)
    if arguments.json:
        arguments.json.write_text(json.dumps(everything, indent=1))
    return 0


def show(loss: str, batch: int, tokens: int, rounds: list[dict]) -> None:
    cells = []
    for who in ("torch", "ours"):
        seconds = statistics.median(r[who]["seconds"] for r in rounds)
        peak = statistics.median(r[who]["peak_bytes"] for r in rounds)
        cells.append(f"{batch * tokens / seconds:9.1f} t/s {peak / 2**30:4.2f} G")
    ratio = statistics.median(r["torch"]["seconds"] / r["ours"]["seconds"] for r in rounds)
    memory = statistics.median(r["ours"]["peak_bytes"] / r["torch"]["peak_bytes"] for r in rounds)
    name = f"{loss}, {batch} × {tokens}"
    print(f"{name:28}{cells[0]:>20}{cells[1]:>20}{ratio:8.2f}{memory:8.2f}", flush=True)


def one_round(arguments: argparse.Namespace, loss: str, batch: int) -> dict:
    shape = [str(batch), str(arguments.tokens), str(arguments.steps)]
    threads = str(arguments.threads)
    environment = os.environ | {"RAYON_NUM_THREADS": threads, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    torch = [sys.executable, __file__, "--peer", loss, "--batch", shape[0], "--tokens", shape[1], "--steps", shape[2]]
    found = {}
    for who, command in (
        ("torch", [*torch, "--threads", threads]),
        ("ours", [str(arguments.ours), loss, *shape, arguments.grid, *filter(None, arguments.options.split(","))]),
    ):
        result = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
        report = json.loads(result.stdout.strip().splitlines()[-1])
        found[who] = {"seconds": statistics.median(report["seconds"][1:]), "peak_bytes": report["peak_bytes"]}
    return found


def torch_steps(arguments: argparse.Namespace) -> dict:
    import torch
    from torch.nn import functional
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, head_dim=64, tie_word_embeddings=True, max_position_embeddings=2048,
        attn_implementation="sdpa",
    )
    student = LlamaForCausalLM(config)
    teacher = LlamaForCausalLM(config).eval() if arguments.peer != "cross_entropy" else None
    batch = int(arguments.batch)
    count = batch * arguments.tokens
    ids = (torch.arange(count) * 7919 % config.vocab_size).reshape(batch, arguments.tokens)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4, weight_decay=0.1, fused=True)
    seconds = []
    for _ in range(arguments.steps):
        begin = time.perf_counter()
        if teacher is None:
            loss = student(input_ids=ids, labels=ids, use_cache=False).loss
        else:
            with torch.no_grad():
                theirs = teacher(input_ids=ids, use_cache=False).logits
            log_q = functional.log_softmax(student(input_ids=ids, use_cache=False).logits, dim=-1)
            log_p = functional.log_softmax(theirs, dim=-1)
            loss = divergence(arguments.peer, log_p, log_q) / count
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()
        seconds.append(time.perf_counter() - begin)
    return {"seconds": seconds, "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def divergence(kind: str, log_p, log_q):
    import torch
    from torch.nn import functional

    if kind == "forward_kl":
        return functional.kl_div(log_q, log_p, reduction="sum", log_target=True)
    half = torch.log(torch.tensor(0.5))
    mixture = torch.logsumexp(torch.stack([log_p + half, log_q + half]), dim=0)
    to_teacher = functional.kl_div(mixture, log_p, reduction="sum", log_target=True)
    to_student = functional.kl_div(mixture, log_q, reduction="sum", log_target=True)
    return 0.5 * to_teacher + 0.5 * to_student


if __name__ == "__main__":
    raise SystemExit(main())
