#!/usr/bin/env python3
"""From the start of the process to the first token, and the peak of memory: the edge runtime against llama.cpp.

    cargo build --profile edge -p distill-edge --example generate
    tests/peers/.venv/bin/python tests/peers/first_token.py MODEL.gguf MODEL.edge

The prompt has 30 tokens in SmolLM2's vocabulary; 32 are generated, greedily, on all CPUs that the script may use (under
`taskset` fewer). Each round runs distill on the `.edge` file, distill on the GGUF file, and llama.cpp with its
defaults, each in a fresh process, one after the other. A round before the first is not counted; it brings the files
into the page cache.

**Time.** distill's goes from before the fork until the token's text is read from the process's standard output.
llama.cpp's begins inside its Python process when all is imported: the model is loaded, a context for as many tokens
made, the prompt tokenized and computed, the best token's text written.

**Memory.** The largest resident set, the mapped pages of the model included: for distill `ru_maxrss` of `wait4` (never
less than what this script has itself, some 15 MiB), for llama.cpp `VmHWM` less what was resident after the imports.
distill's is held against weights + KV + 16 MiB. Weights are the bytes of all tensors in the GGUF file; the `.edge` file
has the same in another order. KV is 2 (keys and values) x layers x KV heads x head size x 2 bytes (binary16) for each
token of prompt and answer, which is the context that the example opens.

Exit code 1 if a run on the `.edge` file took more memory than that.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MIB = 1 << 20
PROMPT = (
    "The capital of France is Paris, a city of two million people on the river Seine. "
    "Long ago, when the town was small, the people"
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a GGUF file")
    parser.add_argument("edge", type=Path, help="the same as an .edge file")
    parser.add_argument(
        "--generate", type=Path, default=ROOT / "target/edge/examples/generate", help="distill-edge's example"
    )
    parser.add_argument("--prompt", default=PROMPT)
    parser.add_argument("--tokens", type=int, default=32, help="tokens to generate")
    parser.add_argument("--repeat", type=int, default=7, help="rounds")
    parser.add_argument("--json", type=Path, help="write all samples here")
    parser.add_argument("--peer", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peer:
        print(json.dumps(llama_cpp_run(arguments)))
        return 0

    rounds = [one_round(arguments) for _ in range(1 + arguments.repeat)][1:]
    prompt = rounds[0]["llama.cpp"]["prompt_tokens"]
    weights, kv = sizes_bytes(arguments.model, prompt + arguments.tokens)
    limit = weights + kv + 16 * MIB
    print(f"{arguments.model.name}: {prompt} tokens of prompt, {arguments.tokens} generated; {arguments.repeat} rounds")
    print(f"weights {weights / MIB:.1f} + KV {kv / MIB:.1f} + 16 = {limit / MIB:.1f} MiB")
    print(f"{'':16}{'first token, ms':>16}{'peak, MiB':>11}{'of that':>9}  medians")
    for engine in rounds[0]:
        seconds = statistics.median(r[engine]["seconds"] for r in rounds)
        peak = statistics.median(r[engine]["peak_bytes"] for r in rounds)
        print(f"{engine:16}{seconds * 1e3:16.1f}{peak / MIB:11.1f}{peak / limit:9.3f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(rounds, indent=1))
    return int(max(r["distill, .edge"]["peak_bytes"] for r in rounds) > limit)


def one_round(arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    return {
        "distill, .edge": distill_run(arguments, arguments.edge),
        "distill, .gguf": distill_run(arguments, arguments.model),
        "llama.cpp": peer_run(),
    }


def distill_run(arguments: argparse.Namespace, model: Path) -> dict[str, float]:
    command = [str(arguments.generate), str(model), arguments.prompt, str(arguments.tokens)]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    text = os.read(process.stdout.fileno(), 4096)
    seconds = time.perf_counter() - start
    process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0 or not text.strip():
        raise SystemExit(f"{' '.join(command)}\nended with {process.returncode} and wrote {text!r}")
    return {"seconds": seconds, "peak_bytes": usage.ru_maxrss * 1024}


def peer_run() -> dict[str, float]:
    """This script again, with the same arguments, as llama.cpp's process."""
    command = [sys.executable, *sys.argv, "--peer"]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}\nended with {done.returncode}:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def llama_cpp_run(arguments: argparse.Namespace) -> dict[str, float]:
    import ctypes

    import llama_cpp as api

    before = status_bytes("VmRSS")
    start = time.perf_counter()
    api.llama_backend_init()
    quiet = api.llama_log_callback(lambda *_: None)
    api.llama_log_set(quiet, ctypes.c_void_p())
    model = api.llama_model_load_from_file(str(arguments.model).encode(), api.llama_model_default_params())
    vocabulary = api.llama_model_get_vocab(model)

    text = arguments.prompt.encode()
    tokens = (ctypes.c_int32 * (len(text) + 2))()
    prompt = api.llama_tokenize(vocabulary, text, len(text), tokens, len(tokens), True, True)
    parameters = api.llama_context_default_params()
    parameters.n_ctx = prompt + arguments.tokens
    parameters.n_threads = parameters.n_threads_batch = len(os.sched_getaffinity(0))
    context = api.llama_init_from_model(model, parameters)
    sampler = api.llama_sampler_init_greedy()
    piece = ctypes.create_string_buffer(64)
    count = prompt
    for i in range(arguments.tokens):
        if api.llama_decode(context, api.llama_batch_get_one(tokens, count)) != 0:
            raise SystemExit("llama_decode failed")
        tokens[0], count = api.llama_sampler_sample(sampler, context, -1), 1
        length = api.llama_token_to_piece(vocabulary, tokens[0], piece, len(piece), 0, True)
        os.write(sys.stdout.fileno(), piece.raw[:length])
        if i == 0:
            seconds = time.perf_counter() - start
    os.write(sys.stdout.fileno(), b"\n")
    return {"seconds": seconds, "peak_bytes": status_bytes("VmHWM") - before, "prompt_tokens": prompt}


def status_bytes(field: str) -> int:
    """A size of this process, which Linux gives in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def sizes_bytes(model: Path, tokens: int) -> tuple[int, int]:
    """Of all tensors, and of the keys and values of `tokens`."""
    import gguf

    reader = gguf.GGUFReader(model)

    def of_model(key: str) -> int:
        return int(reader.fields[f"llama.{key}"].contents())

    if "llama.attention.key_length" in reader.fields:
        head_size = of_model("attention.key_length")
    else:
        head_size = of_model("embedding_length") // of_model("attention.head_count")
    kv = 2 * of_model("block_count") * of_model("attention.head_count_kv") * head_size * 2 * tokens
    return sum(int(tensor.n_bytes) for tensor in reader.tensors), kv


if __name__ == "__main__":
    sys.exit(main())
