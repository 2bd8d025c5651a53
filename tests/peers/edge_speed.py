#!/usr/bin/env python3
"""Speed of the edge runtime against llama.cpp and onnxruntime-genai: same weights, same threads, in turns.

    tests/peers/.venv/bin/python tests/peers/edge_speed.py MODEL.gguf [--onnx DIRECTORY]

For each number of threads: prefill of a prompt, and decoding after a short prompt and at depths. Every repetition
runs llama.cpp with flash attention off, with it on, onnxruntime-genai if its form of the model is given
(`onnx_model.py` makes it), and distill, each in a process of its own, one after the other, so that all see the same
state of the machine. Shown are medians, and the medians of the ratios of the repetitions: against llama.cpp's better
setting, and against onnxruntime-genai.

Both peers get fixed tokens, as llama.cpp's own llama-bench does: no sampling and no tokenizer in their time.
distill's time includes the choice of the best token. A peer that computes on more threads than it was given ends the
measurement.
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
BATCH = 512


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a GGUF file that distill and llama.cpp run")
    parser.add_argument("--onnx", type=Path, help="the same weights for onnxruntime-genai")
    parser.add_argument("--distill", type=Path, default=ROOT / "target/release/distill", help="the distill binary")
    parser.add_argument("--threads", default="1,2", help="numbers of threads")
    parser.add_argument("--prompt", type=int, default=512, help="tokens to prefill")
    parser.add_argument("--generate", type=int, default=128, help="tokens to decode")
    parser.add_argument("--depth", default="0,4096", help="tokens in the cache before decoding")
    parser.add_argument("--repeat", type=int, default=7, help="rounds of all engines")
    parser.add_argument("--json", type=Path, help="write all samples here")
    parser.add_argument("--peer", choices=["off", "on", "onnx"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peer:
        print(json.dumps(peer_speed(arguments)))
        return 0

    onnx = ["onnx"] if arguments.onnx else []
    print(f"{arguments.model.name}: prefill {arguments.prompt}, decode {arguments.generate}; {arguments.repeat} rounds")
    titles = ["llama.cpp", "with fa", *(["onnx"] if onnx else []), "distill"]
    ratios = ["/llama.cpp", *(["/onnx"] if onnx else [])]
    print(f"{'':24}" + "".join(f"{title:>11}" for title in titles + ratios) + "  tokens/s, medians")
    everything = {}
    for threads in (int(n) for n in arguments.threads.split(",")):
        rounds = [one_round(arguments, threads) for _ in range(arguments.repeat)]
        everything[threads] = rounds
        for what in rounds[0]["distill"]:
            columns = {engine: [r[engine][what] for r in rounds] for engine in ("off", "on", *onnx, "distill")}
            shown = "".join(f"{statistics.median(column):11.1f}" for column in columns.values())
            better = max("off", "on", key=lambda engine: statistics.median(columns[engine]))
            for peer in (better, *onnx):
                ratio = statistics.median(ours / theirs for ours, theirs in zip(columns["distill"], columns[peer]))
                shown += f"{ratio:11.2f}"
            print(f"{threads} threads, {what:<13}{shown}", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(everything, indent=1))
    return 0


def one_round(arguments: argparse.Namespace, threads: int) -> dict[str, dict[str, float]]:
    """Tokens a second of each engine, by what was measured."""
    sizes = ["--prompt", str(arguments.prompt), "--generate", str(arguments.generate), "--depth", arguments.depth]
    sizes += ["--threads", str(threads)]
    models = {"off": arguments.model, "on": arguments.model}
    if arguments.onnx:
        models["onnx"] = arguments.onnx
    found = {}
    for peer, model in models.items():
        found[peer] = output([sys.executable, __file__, str(model), *sizes, "--peer", peer])
    ours = [str(arguments.distill), "bench", str(arguments.model), *sizes, "--repeat", "1", "--json"]
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


def peer_speed(arguments: argparse.Namespace) -> dict[str, float]:
    """One measurement of a peer, after a warm-up."""
    depths = [int(n) for n in arguments.depth.split(",")]
    context = max(arguments.prompt, max(depths) + 1 + arguments.generate) + 64
    peer = (OnnxRuntime if arguments.peer == "onnx" else LlamaCpp)(arguments, context)
    wall, cpu = time.perf_counter(), time.process_time()

    def feed(first: int, count: int) -> None:
        for start in range(first, first + count, BATCH):
            peer.feed(start, min(BATCH, first + count - start))

    found = {}
    for warm in (True, False):
        peer.keep(0)
        start = time.perf_counter()
        feed(0, arguments.prompt)
        if not warm:
            found["prefill"] = arguments.prompt / (time.perf_counter() - start)
    for depth in depths:
        peer.keep(0)
        feed(0, max(depth, 1))
        for warm in (True, False):
            count = 8 if warm else arguments.generate
            start = time.perf_counter()
            for i in range(count):
                feed(max(depth, 1) + i, 1)
            found[f"decode @{depth}"] = count / (time.perf_counter() - start)
            peer.keep(max(depth, 1))
    threads = (time.process_time() - cpu) / (time.perf_counter() - wall)
    if threads > int(arguments.threads) + 0.1:
        raise SystemExit(f"{arguments.peer}: {threads:.2f} threads computed, {arguments.threads} were given")
    return found


class LlamaCpp:
    """Through its C interface; `--peer` says whether with flash attention."""

    def __init__(self, arguments: argparse.Namespace, context: int):
        import ctypes

        import llama_cpp

        self.ctypes, self.api = ctypes, llama_cpp
        llama_cpp.llama_backend_init()
        self.quiet = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self.quiet, ctypes.c_void_p())
        self.model = llama_cpp.llama_model_load_from_file(
            str(arguments.model).encode(), llama_cpp.llama_model_default_params()
        )
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx = context
        parameters.n_batch = parameters.n_ubatch = BATCH
        parameters.n_threads = parameters.n_threads_batch = int(arguments.threads)
        parameters.flash_attn_type = (
            llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED
            if arguments.peer == "on"
            else llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        )
        self.context = llama_cpp.llama_init_from_model(self.model, parameters)
        self.memory = llama_cpp.llama_get_memory(self.context)
        vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.tokens = (ctypes.c_int32 * context)(*fixed_tokens(context, vocabulary))

    def feed(self, first: int, count: int) -> None:
        part = (self.ctypes.c_int32 * count).from_buffer(self.tokens, 4 * first)
        if self.api.llama_decode(self.context, self.api.llama_batch_get_one(part, count)) != 0:
            raise SystemExit("llama_decode failed")
        self.api.llama_synchronize(self.context)

    def keep(self, tokens: int) -> None:
        """Forgets what comes after the first `tokens`."""
        self.api.llama_memory_seq_rm(self.memory, 0, tokens, -1)


class OnnxRuntime:
    """onnxruntime-genai; its threads are set over what `genai_config.json` says."""

    def __init__(self, arguments: argparse.Namespace, context: int):
        import numpy as np
        import onnxruntime_genai

        config = onnxruntime_genai.Config(str(arguments.model))
        session = {"intra_op_num_threads": int(arguments.threads), "inter_op_num_threads": 1}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
        self.model = onnxruntime_genai.Model(config)
        parameters = onnxruntime_genai.GeneratorParams(self.model)
        parameters.set_search_options(max_length=context, do_sample=False)
        self.generator = onnxruntime_genai.Generator(self.model, parameters)
        vocabulary = json.loads((arguments.model / "genai_config.json").read_text())["model"]["vocab_size"]
        self.tokens = np.array(fixed_tokens(context, vocabulary), dtype=np.int32)

    def feed(self, first: int, count: int) -> None:
        self.generator.append_tokens(self.tokens[first : first + count])

    def keep(self, tokens: int) -> None:
        """Forgets what comes after the first `tokens`."""
        self.generator.rewind_to(tokens)


def fixed_tokens(count: int, vocabulary: int) -> list[int]:
    return [i * 7919 % vocabulary for i in range(count)]


if __name__ == "__main__":
    sys.exit(main())
