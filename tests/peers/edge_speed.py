#!/usr/bin/env python3
"""Speed of the edge runtime against llama.cpp: same weights, same threads, in turns.

    tests/peers/.venv/bin/python tests/peers/edge_speed.py MODEL.gguf

For each number of threads: prefill of a prompt, and decoding after a short prompt and at depths. Every repetition
runs llama.cpp with flash attention off, with it on, and distill, each in a process of its own, one after the other,
so that all three see the same state of the machine. Shown are medians, and the median of the ratios of the
repetitions, against llama.cpp's better setting.

llama.cpp is driven through its C interface with fixed tokens, as its own llama-bench does: no sampling and no
tokenizer in its time. distill's time includes the choice of the best token.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a GGUF file that both run")
    parser.add_argument("--distill", type=Path, default=ROOT / "target/release/distill", help="the distill binary")
    parser.add_argument("--threads", default="1,2", help="numbers of threads")
    parser.add_argument("--prompt", type=int, default=512, help="tokens to prefill")
    parser.add_argument("--generate", type=int, default=128, help="tokens to decode")
    parser.add_argument("--depth", default="0,4096", help="tokens in the cache before decoding")
    parser.add_argument("--repeat", type=int, default=7, help="rounds of all three")
    parser.add_argument("--json", type=Path, help="write all samples here")
    parser.add_argument("--peer", choices=["off", "on"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peer:
        print(json.dumps(llama_cpp_speed(arguments)))
        return 0

    print(f"{arguments.model.name}: prefill {arguments.prompt}, decode {arguments.generate}; {arguments.repeat} rounds")
    print(f"{'':24}{'llama.cpp':>10}{'with fa':>10}{'distill':>10}{'ratio':>8}  tokens/s, medians")
    everything = {}
    for threads in (int(n) for n in arguments.threads.split(",")):
        rounds = [one_round(arguments, threads) for _ in range(arguments.repeat)]
        everything[threads] = rounds
        for what in rounds[0]["distill"]:
            columns = [[r[engine][what] for r in rounds] for engine in ("off", "on", "distill")]
            better = max(columns[:2], key=statistics.median)
            ratio = statistics.median(ours / theirs for ours, theirs in zip(columns[2], better))
            shown = "".join(f"{statistics.median(column):10.1f}" for column in columns)
            print(f"{threads} threads, {what:<13}{shown}{ratio:8.2f}", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(everything, indent=1))
    return 0


def one_round(arguments: argparse.Namespace, threads: int) -> dict[str, dict[str, float]]:
    """Tokens a second of each engine, by what was measured."""
    sizes = ["--prompt", str(arguments.prompt), "--generate", str(arguments.generate), "--depth", arguments.depth]
    model = str(arguments.model)
    found = {}
    for flash in ("off", "on"):
        peer = [sys.executable, __file__, model, *sizes, "--threads", str(threads), "--peer", flash]
        found[flash] = output(peer)
    ours = [str(arguments.distill), "bench", model, *sizes, "--threads", str(threads), "--repeat", "1", "--json"]
    run = output(ours)["runs"][0]
    found["distill"] = {"prefill": run["prefill"]["tokens_per_second"]}
    for decode in run["decode"]:
        found["distill"][f"decode @{decode['depth']}"] = decode["tokens_per_second"]
    return found


def output(command: list[str]) -> dict:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}\nended with {done.returncode}:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def llama_cpp_speed(arguments: argparse.Namespace) -> dict[str, float]:
    """One measurement of llama.cpp, after a warm-up."""
    import ctypes

    import llama_cpp

    llama_cpp.llama_backend_init()
    quiet = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p())
    model = llama_cpp.llama_model_load_from_file(
        str(arguments.model).encode(), llama_cpp.llama_model_default_params()
    )
    depths = [int(n) for n in arguments.depth.split(",")]
    parameters = llama_cpp.llama_context_default_params()
    parameters.n_ctx = max(arguments.prompt, max(depths) + 1 + arguments.generate) + 64
    parameters.n_batch = parameters.n_ubatch = 512
    parameters.n_threads = parameters.n_threads_batch = int(arguments.threads)
    parameters.flash_attn_type = (
        llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED
        if arguments.peer == "on"
        else llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
    )
    context = llama_cpp.llama_init_from_model(model, parameters)
    memory = llama_cpp.llama_get_memory(context)
    vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    tokens = (ctypes.c_int32 * parameters.n_ctx)(*(i * 7919 % vocabulary for i in range(parameters.n_ctx)))

    def feed(first: int, count: int) -> None:
        for start in range(first, first + count, parameters.n_batch):
            size = min(parameters.n_batch, first + count - start)
            part = (ctypes.c_int32 * size).from_buffer(tokens, 4 * start)
            if llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(part, size)) != 0:
                raise SystemExit("llama_decode failed")
        llama_cpp.llama_synchronize(context)

    found = {}
    for warm in (True, False):
        llama_cpp.llama_memory_clear(memory, True)
        start = time.perf_counter()
        feed(0, arguments.prompt)
        if not warm:
            found["prefill"] = arguments.prompt / (time.perf_counter() - start)
    for depth in depths:
        llama_cpp.llama_memory_clear(memory, True)
        feed(0, max(depth, 1))
        for warm in (True, False):
            count = 8 if warm else arguments.generate
            start = time.perf_counter()
            for i in range(count):
                feed(max(depth, 1) + i, 1)
            found[f"decode @{depth}"] = count / (time.perf_counter() - start)
            llama_cpp.llama_memory_seq_rm(memory, 0, max(depth, 1), -1)
    return found


if __name__ == "__main__":
    sys.exit(main())
