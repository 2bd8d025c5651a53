#!/usr/bin/env bash
# Makes tests/peers/.venv with what the peer scripts need, and fetches SmolLM2 into datasets/downloads.
# Needs Python 3.10+, a C++ compiler, about 6 GB of disk (torch) and some twenty minutes, most of
# them for building llama.cpp, once as a library and once more with its llama-perplexity.
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

# The package does not install llama.cpp's programs; its source has them.
source=$(mktemp -d)
trap 'rm -rf "$source"' EXIT
PATH="$PWD/.venv/bin:$PATH" "$pip" download --quiet --no-deps --no-build-isolation --no-binary llama-cpp-python \
    -c requirements.txt -d "$source" llama-cpp-python
tar -xzf "$source"/llama_cpp_python-*.tar.gz -C "$source"
.venv/bin/cmake -S "$source"/llama_cpp_python-*/vendor/llama.cpp -B "$source/build" -G Ninja \
    -DCMAKE_MAKE_PROGRAM="$PWD/.venv/bin/ninja" -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF -DGGML_NATIVE=ON \
    -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=OFF >/dev/null
.venv/bin/cmake --build "$source/build" --target llama-perplexity >/dev/null
cp "$source/build/bin/llama-perplexity" .venv/bin/

python3 ../../datasets/fetch.py smollm2
.venv/bin/python -c 'import gguf, llama_cpp, lm_eval, onnx, onnx_ir, onnxruntime_genai, peft, tensorboard, tokenizers, torch, transformers'
echo "ready: tests/peers/.venv"
