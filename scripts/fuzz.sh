#!/usr/bin/env bash
# Fuzzes the parsers, the cache and whole connections, guided by coverage, on the stable toolchain.
#
#     scripts/fuzz.sh [--keep] [SECONDS] [TARGET...]
#
#     SECONDS    duration for each target (default 60)
#     TARGET     http, resp, cache, connection or tls (default all)
#     --keep     adds to fuzz/corpus the inputs of fuzz/working that reach more code, as few and as
#                short as possible
#
# Inputs that fail go to fuzz/corpus, where `cargo test --test model fuzz_replay` replays them. New
# inputs that reach more code go to fuzz/working, where the next run starts from them.
#
# Needs Debian or a derivative, and a Rust toolchain. Needs root or sudo to install missing
# packages.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/need.sh
. scripts/need.sh

keep=
if [ "${1:-}" = --keep ]; then keep=1; shift; fi
seconds=${1:-60}
shift || true
# libFuzzer takes 0 as no limit.
[[ $seconds =~ ^[1-9][0-9]*$ ]] || { echo "scripts/fuzz.sh: $seconds is not a number of seconds" >&2; exit 2; }
[ "$#" -gt 0 ] || set -- http resp cache connection tls

# Limits in seconds and MiB; an input beyond them is a finding. The slowest seeds take about ten
# milliseconds, and a connection may hold a few megabytes.
input_timeout=5
max_memory=1024
# Limits of fuzz/corpus, for a small repository and a short replay.
max_corpus_files=1000
max_corpus_bytes=1000000

# libfuzzer-sys builds libFuzzer from C++.
need c++:build-essential
host=$(rustc -vV | sed -n 's/^host: //p')
# The flags of `cargo fuzz` that stable rustc accepts: counters for edges, operands of comparisons.
# With --target they do not apply to build scripts and macros.
RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares" \
    cargo build --release --locked --manifest-path fuzz/Cargo.toml --target-dir "$target_directory/fuzz" --target "$host"

# Prints the options of a target: its dictionary and its maximum input length. Request heads may
# have 16 KiB, so inputs are somewhat longer.
list_options() {
    case $1 in
        http) echo "-dict=fuzz/dictionaries/http.dict -max_len=17500" ;;
        resp) echo "-dict=fuzz/dictionaries/resp.dict -max_len=8192" ;;
        cache) echo "-max_len=1024" ;;
        tls) echo "-max_len=8192" ;;
        connection) echo "-dict=$both -max_len=8192" ;;
        *) echo "scripts/fuzz.sh: unknown target $1" >&2; return 2 ;;
    esac
}

# Sets `command` to the program of a target and its options.
set_command() {
    local target=$1 options
    options=$(list_options "$target")
    # shellcheck disable=SC2206 # the options are several words
    command=("$target_directory/fuzz/$host/release/$target" $options -timeout="$input_timeout" -rss_limit_mb="$max_memory"
        -malloc_limit_mb="$max_memory" -artifact_prefix="fuzz/corpus/$target/" -verbosity=1)
}

mkdir -p fuzz/working
both=fuzz/working/both.dict
cat fuzz/dictionaries/*.dict >"$both"

processes=()
# Stops the targets that still run. Called by the traps.
#
# shellcheck disable=SC2317,SC2329
stop() {
    local exit_code=$?
    trap '' INT TERM
    trap - EXIT
    for process in ${processes[@]+"${processes[@]}"}; do kill "$process" 2>/dev/null || true; done
    exit "$exit_code"
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

status=0
# Waits for the target that was started first, and prints its figures or its finding.
finish_first() {
    local target=${running[0]} log=fuzz/working/${running[0]}.log
    if wait "${processes[0]}"; then
        awk -v target="$target" '$1 == "stat::number_of_executed_units:" { runs = $2 }
            $1 == "stat::average_exec_per_sec:" { rate = $2 }
            $1 == "stat::new_units_added:" { new = $2 }
            END { printf "%-10s %d executions, %d a second, %d new inputs\n", target, runs, rate, new }' "$log"
    else
        status=1
        # The rest of the log is about coverage and memory.
        echo "== $target: finding; full log: $log"
        grep -A 2 'panicked at' "$log" | cut -c -1000 || true
        grep -E 'SUMMARY|Test unit written to' "$log" || true
    fi
    processes=("${processes[@]:1}") running=("${running[@]:1}")
}

running=()
for target in "$@"; do
    # One target for each processor.
    [ "${#running[@]}" -lt "$(nproc)" ] || finish_first
    set_command "$target"
    mkdir -p "fuzz/working/$target"
    "${command[@]}" -max_total_time="$seconds" -print_final_stats=1 "fuzz/working/$target" "fuzz/corpus/$target" \
        >"fuzz/working/$target.log" 2>&1 &
    processes+=("$!") running+=("$target")
done
while [ "${#running[@]}" -gt 0 ]; do finish_first; done
[ "$status" = 0 ] || exit "$status"
[ -n "$keep" ] || exit 0

for target in "$@"; do
    set_command "$target"
    # By edges reached, without hit counts: these would keep thousands of inputs.
    "${command[@]}" -set_cover_merge=1 -use_counters=0 "fuzz/corpus/$target" "fuzz/working/$target" \
        >"fuzz/working/$target.log" 2>&1 ||
        { echo "scripts/fuzz.sh: merging the corpus of $target failed; see fuzz/working/$target.log" >&2; exit 1; }
done
files=$(find fuzz/corpus -type f | wc -l)
bytes=$(find fuzz/corpus -type f -printf '%s\n' | awk '{ sum += $1 } END { print sum + 0 }')
echo "fuzz/corpus: $files files, $bytes bytes"
if [ "$files" -gt "$max_corpus_files" ] || [ "$bytes" -gt "$max_corpus_bytes" ]; then
    echo "scripts/fuzz.sh: the limit is $max_corpus_files files and $max_corpus_bytes bytes; remove some inputs" >&2
    exit 1
fi
