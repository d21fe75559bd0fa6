#!/usr/bin/env bash
# Fuzzes on the stable toolchain, guided by coverage: scripts/fuzz.sh [--keep] [seconds for each target] [target...]
# 60 seconds and all targets (http resp cache connection) unless told otherwise. What it finds is kept in fuzz/corpus, where
# `cargo test --test model fuzz_replay` replays it for ever; new inputs that reach more are in fuzz/working, for the next run.
#
#   --keep   adds to fuzz/corpus what of fuzz/working reaches more than it does, as few and as short as possible
#
# Needs Debian (or a relative of it) and a Rust toolchain; root, or sudo, to install what is missing.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/need.sh

keep=
if [ "${1:-}" = --keep ]; then keep=1; shift; fi
seconds=${1:-60}
shift || true
# libFuzzer takes 0 for ever.
[[ $seconds =~ ^[1-9][0-9]*$ ]] || { echo "scripts/fuzz.sh: $seconds is no number of seconds" >&2; exit 2; }
[ "$#" -gt 0 ] || set -- http resp cache connection

# An input that takes longer than this many seconds, or more memory than this many MiB, is a finding. The slowest seeds
# take some ten milliseconds; what a connection may hold is a few megabytes.
slowest=5
most_memory=1024
# Of fuzz/corpus: the clone of a repository shall stay small, and the replay short.
most_kept_files=1000
most_kept_bytes=1000000

# libFuzzer is built from C++, with the crate libfuzzer-sys.
need c++:build-essential
host=$(rustc -vV | sed -n 's/^host: //p')
# What `cargo fuzz` passes on, as far as stable rustc takes it: counters for edges, and the operands of comparisons. With a
# target named, build scripts and macros are built without.
RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares" \
    cargo build --release --locked --manifest-path fuzz/Cargo.toml --target-dir fuzz/target --target "$host"

# Options for a target: its words, and a longest input. Heads go up to 16 KiB, with some beyond it.
options_for() {
    case $1 in
        http) echo "-dict=fuzz/dictionaries/http.dict -max_len=17500" ;;
        resp) echo "-dict=fuzz/dictionaries/resp.dict -max_len=8192" ;;
        cache) echo "-max_len=1024" ;;
        connection) echo "-dict=$both -max_len=8192" ;;
        *) echo "scripts/fuzz.sh: there is no target $1" >&2; return 2 ;;
    esac
}

# Runs a target with further options and folders.
run() {
    local target=$1 options
    shift
    options=$(options_for "$target")
    # shellcheck disable=SC2086 # several words
    "fuzz/target/$host/release/$target" $options -timeout="$slowest" -rss_limit_mb="$most_memory" \
        -malloc_limit_mb="$most_memory" -artifact_prefix="fuzz/corpus/$target/" -verbosity=1 "$@"
}

mkdir -p fuzz/working
both=fuzz/working/both.dict
cat fuzz/dictionaries/*.dict >"$both"
status=0
for target in "$@"; do
    working=fuzz/working/$target
    mkdir -p "$working"
    options_for "$target" >/dev/null
    log=fuzz/working/$target.log
    if run "$target" -max_total_time="$seconds" -print_final_stats=1 "$working" "fuzz/corpus/$target" >"$log" 2>&1; then
        awk -v target="$target" '$1 == "stat::number_of_executed_units:" { runs = $2 }
            $1 == "stat::average_exec_per_sec:" { rate = $2 }
            $1 == "stat::new_units_added:" { new = $2 }
            END { printf "%-10s %d executions, %d a second, %d new inputs\n", target, runs, rate, new }' "$log"
    else
        status=1
        # The rest of its log is about coverage and memory.
        echo "== $target has found something; fuzz/working/$target.log says more:"
        grep -A 2 'panicked at' "$log" | cut -c -1000 || true
        grep -E 'SUMMARY|Test unit written to' "$log" || true
    fi
done
[ "$status" = 0 ] || exit "$status"
[ -n "$keep" ] || exit 0

for target in "$@"; do
    # By what is reached at all: how often it was would keep thousands.
    run "$target" -set_cover_merge=1 -use_counters=0 "fuzz/corpus/$target" "fuzz/working/$target" \
        >"fuzz/working/$target.log" 2>&1 ||
        { echo "scripts/fuzz.sh: merging fails; fuzz/working/$target.log says more" >&2; exit 1; }
done
files=$(find fuzz/corpus -type f | wc -l)
bytes=$(find fuzz/corpus -type f -printf '%s\n' | awk '{ sum += $1 } END { print sum + 0 }')
echo "fuzz/corpus has $files files with $bytes bytes"
if [ "$files" -gt "$most_kept_files" ] || [ "$bytes" -gt "$most_kept_bytes" ]; then
    echo "scripts/fuzz.sh: at most $most_kept_files files with $most_kept_bytes bytes are to be kept; remove some" >&2
    exit 1
fi
