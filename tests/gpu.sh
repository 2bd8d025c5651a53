#!/usr/bin/env bash
# Training on a GPU: the graph tests on it, then steps of SmolLM2-135M's shape with tokens a second and the share of what
# the chip's products of matrices reach by themselves.
#
#     tests/gpu.sh cuda            # or wgpu
#     tests/gpu.sh cuda build DIR  # builds into DIR only what the first form runs, for a machine without Rust
#     tests/gpu.sh cuda run DIR    # runs that there
set -euo pipefail
backend=${1:?cuda or wgpu} action=${2:-all} directory=${3:+$(realpath -m "$3")}
cd "$(dirname "$0")/.."
tests=(grid graph backward)

build() {
    mkdir -p "$1"
    local messages
    messages=$(CARGO_TARGET_DIR="target/$backend" cargo test --release --no-run --message-format json \
        -p distill-tests -p distill-train --features "distill-tests/$backend,distill-train/$backend" \
        $(printf -- '--test %s ' "${tests[@]}") --example train_speed)
    for name in "${tests[@]}" train_speed; do
        local executable
        executable=$(sed -n "s/.*\"name\":\"$name\".*\"executable\":\"\([^\"]*\)\".*/\1/p" <<<"$messages" | tail -1)
        strip -o "$1/$name" "$executable"
    done
}

run() {
    for name in "${tests[@]}"; do
        "$1/$name"
    done
    local precisions=(f32)
    [[ $backend != cuda ]] || precisions+=(bf16)
    for precision in "${precisions[@]}"; do
        for batch in 1 8; do
            local option=()
            [[ $precision == f32 ]] || option=("precision=$precision")
            printf '%s, %s × 512 tokens: ' "$precision" "$batch"
            "$1/train_speed" cross_entropy "$batch" 512 20 float "backend=$backend" "${option[@]}"
        done
    done
}

case $action in
    build) build "${directory:?where to}" ;;
    run) run "${directory:?where from}" ;;
    all)
        directory=$(mktemp -d)
        trap 'rm -rf "$directory"' EXIT
        build "$directory"
        run "$directory"
        ;;
    *) echo "expected build or run" >&2; exit 2 ;;
esac
