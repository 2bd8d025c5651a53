#!/usr/bin/env bash
# Makes tests/peers/.venv with what the peer scripts need, and fetches SmolLM2 into datasets/downloads.
# Needs Python 3.10+, a C++ compiler, about 6 GB of disk (torch) and some ten minutes, most of
# them for building llama.cpp.
set -euo pipefail
cd "$(dirname "$0")"

python3 -m venv .venv
pip=.venv/bin/pip
# The build's own tools, so that llama.cpp is compiled for this machine: no prebuilt wheel is taken, nor one that pip
# kept from a build with other flags.
"$pip" install --quiet scikit-build-core==1.1.2 cmake==4.4.4 ninja==1.13.2
PATH="$PWD/.venv/bin:$PATH" \
    CMAKE_ARGS="-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF -DLLAMA_BUILD_COMMON=OFF -DLLAMA_CURL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_TOOLS=OFF" \
    "$pip" install --quiet --no-cache-dir --no-build-isolation --no-binary llama-cpp-python \
    -c requirements.txt llama-cpp-python
"$pip" install --quiet -r requirements.txt

python3 ../../datasets/fetch.py smollm2
.venv/bin/python -c 'import gguf, llama_cpp, onnx, onnx_ir, onnxruntime_genai, peft, tensorboard, tokenizers, torch, transformers'
echo "ready: tests/peers/.venv"
