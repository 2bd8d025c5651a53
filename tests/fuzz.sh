#!/usr/bin/env bash
# Fuzzes everything that reads what others wrote, one target after another, and closes with a table.
#
#     tests/fuzz.sh [EXECUTIONS]
#
# EXECUTIONS are those of all targets together, 1,000,000 by default: shared so that each takes about as long on one
# core, some five minutes in all. A crash, an allocation beyond the bounds of fuzz/src/limits.rs, a leak, or a minute
# without an answer fails its target and leaves the input in fuzz/artifacts. What was found stays in fuzz/corpus and is
# where the next run begins; both are this machine's alone.
#
# What is missing is installed first: nightly Rust by rustup, cargo-fuzz by cargo.
set -euo pipefail
cd "$(dirname "$0")/../fuzz"

total=${1:-1000000}
log=$(mktemp)
trap 'rm -f "$log"' EXIT
results=()

# Traces of allocations and freed blocks kept for a report: cheaper than by default, since a crash is run again anyway.
export ASAN_OPTIONS=${ASAN_OPTIONS:-malloc_context_size=2:quarantine_size_mb=16}

install_missing() {
    cargo +nightly --version >/dev/null 2>&1 || rustup toolchain install nightly --profile minimal
    cargo +nightly fuzz --version >/dev/null 2>&1 || cargo install --locked cargo-fuzz
}

# fuzz TARGET PERMILLE LONGEST OPTION…: that share of the executions, on inputs up to so many bytes. Options before `--`
# are cargo-fuzz's, those behind it libFuzzer's.
fuzz() {
    local target=$1 runs=$((total * $2 / 1000)) longest=$3 started=$SECONDS code=0
    shift 3
    printf '\n== %s, %d executions\n' "$target" "$runs"
    # Leaks are found by the targets themselves, faster.
    cargo +nightly fuzz run "$target" "$@" -runs="$runs" -max_len="$longest" -timeout=60 -rss_limit_mb=2048 \
        -detect_leaks=0 -print_final_stats=1 2>&1 | tee "$log" |
        grep --line-buffered -E '^#[0-9]+[[:space:]]+(INITED|pulse|DONE)|panicked|ERROR|SUMMARY|^error|^artifact' || true
    # Only a run that came to its end says so.
    grep -q '^Done [0-9]* runs' "$log" || { code=1; tail -n 40 "$log"; }
    results+=("$(awk -v target="$target" -v seconds=$((SECONDS - started)) -v code="$code" '
        $1 ~ /^#[0-9]+$/ { for (i = 2; i < NF; i++) value[$i] = $(i + 1) }
        /^stat::number_of_executed_units:/ { runs = $2 }
        END {
            verdict = code ? "FAILED" : "ok"
            printf "%-10s %10d executions, %5d s, %5d edges, %6d features  %s", target, runs, seconds, value["cov:"],
                value["ft:"], verdict
        }' "$log")")
    return $code
}

install_missing
[[ -d corpus/container && -d corpus/state ]] || cargo +nightly run --release --example seeds
failed=0
# These read bytes, so what they compare leads to what to change; the others make their input from numbers.
fuzz container 500 8192 -- -dict=gguf.dict || failed=1
fuzz state 350 4096 -- -dict=gguf.dict || failed=1
fuzz tokenizer 125 512 --no-trace-compares -- || failed=1
fuzz model 25 256 --no-trace-compares -- || failed=1

printf '\n== fuzz\n'
printf '%s\n' "${results[@]}"
exit "$failed"
