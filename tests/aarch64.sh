#!/usr/bin/env bash
# Tests the runtime for 64-bit Arm on any other Linux machine: builds its crates for that target and runs their tests
# under qemu's user-mode emulation, on CPUs that have and lack the instructions that kernels are written for. So every
# kernel table is compared with the specification, which equals that of the native tests.
#
#     tests/aarch64.sh
#
# What is missing is installed first: qemu and a cross linker from Debian's or Ubuntu's packages (as root or by sudo),
# the standard library by rustup. qemu must know the CPUs below (7.2 and later, so Debian 12 or Ubuntu 24.04).
#
# On two cores the first build takes four minutes, the tests one or two, more where the cores have other work: threads
# that wait for each other spin. Speed under qemu says nothing about any CPU.
set -euo pipefail
cd "$(dirname "$0")/.."

target=aarch64-unknown-linux-gnu
sysroot=/usr/aarch64-linux-gnu
log=$(mktemp)
trap 'rm -f "$log"' EXIT
results=()
# What compares long texts and a real model with peers says nothing about a CPU that the other tests do not, and takes
# a quarter of an hour where each instruction is emulated.
skipped=(--skip real_model --skip hugging_face --skip speeches --skip decoding_inverts --skip vocabularies
    --skip mapped_tables --skip a_long_piece)

as_root() {
    if ((EUID == 0)); then "$@"; else sudo "$@"; fi
}

install_missing() {
    local packages=()
    command -v qemu-aarch64-static >/dev/null || packages+=(qemu-user-static)
    command -v aarch64-linux-gnu-gcc >/dev/null || packages+=(gcc-aarch64-linux-gnu)
    [[ -e $sysroot/lib/libc.so.6 && -e $sysroot/include/stdio.h ]] || packages+=(libc6-dev-arm64-cross)
    if ((${#packages[@]})); then
        as_root apt-get update -q
        as_root apt-get install -q -y --no-install-recommends "${packages[@]}"
    fi
    if [[ ! -d $(rustc --print target-libdir --target "$target") ]]; then
        rustup target add "$target"
    fi
}

# on_cpu CPU TABLES ARGUMENT…: cargo test on that CPU, which must run exactly these kernel tables.
on_cpu() {
    local cpu=$1 tables=$2 started=$SECONDS code=0
    shift 2
    printf '\n== %s, kernel tables %s: cargo test %s\n' "$cpu" "$tables" "$*"
    CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc \
    CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64-static -L $sysroot -cpu $cpu" \
    DISTILL_KERNELS=$tables \
        cargo test --release --target "$target" --no-fail-fast "$@" -- --show-output "${skipped[@]}" 2>&1 | tee "$log" || code=1
    # The test that prints this has found the tables as they should be.
    grep -qx "kernel tables tested: $tables" "$log" || code=1
    results+=("$(awk -v cpu="$cpu" -v tables="$tables" -v seconds=$((SECONDS - started)) -v code="$code" '
        /^test result: / { passed += $4; failed += $6 }
        END {
            verdict = code ? "FAILED" : "ok"
            printf "%-12s %-20s %4d passed, %d failed, %5d s  %s", cpu, tables, passed, failed, seconds, verdict
        }' "$log")")
    return $code
}

install_missing
failed=0
# All of it once; then, without the extensions, what is about kernels by its name.
on_cpu max "i8mm dotprod neon" -p distill-quant -p distill-gguf -p distill-edge || failed=1
for cpu in "cortex-a76 dotprod neon" "cortex-a53 neon"; do
    on_cpu "${cpu%% *}" "${cpu#* }" -p distill-edge --lib --test forward kernels || failed=1
done

printf '\n== aarch64\n'
printf '%s\n' "${results[@]}"
exit "$failed"
