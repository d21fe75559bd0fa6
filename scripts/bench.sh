#!/usr/bin/env bash
# Benchmarks the proxy beside nginx, webdis, Redis and Valkey, runs `cargo bench`, and checks the
# goals.
#
#     scripts/bench.sh [--rounds N] [--seconds S] [--report DIR] [--only CASE,...]
#                      [--peers-only] [--profile NAME] [--base BINARY] [--publish]
#
#     --rounds        measurements of each server in each case (default 5)
#     --seconds       duration of each measurement (default 2)
#     --report        directory for report.md and bench.svg (default target/bench)
#     --only          some cases, by their names in scripts/bench/cases.py, like hit,resp-16,2m-16
#     --peers-only    without `cargo bench` (cache, memory, faults)
#     --profile       Cargo profile of the proxy and the floor (default release)
#     --base          earlier build of the proxy, measured too, as "the proxy before"
#     --publish       copies the report of a full run into docs/benchmarks.md and to docs/bench.svg
#
# docs/benchmarks.md explains how to read the report. The script builds the proxy and the floor. It
# starts them, nginx, webdis and two Redis servers on free ports of 127.0.0.1, and writes only to
# the report's directory. It takes 20 minutes plus the time of `cargo bench`, and --base adds seven
# minutes. Nothing else should run meanwhile.
#
# VALKEY_SERVER names the program of Valkey, if valkey-server is not in PATH. Without Valkey its
# columns are missing. The cases with 10 million keys need 2.5 GB of free memory for each server
# that holds them: the proxy, Redis, Valkey, and the earlier build. Without it they are skipped.
#
# Needs Debian or a derivative, two processors and a Rust toolchain. Needs root or sudo to install
# missing packages. Where systemd runs, Debian starts nginx, webdis and redis-server as services
# once they are installed. Stop those that you do not want with `systemctl disable --now`.
#
# Exit code: 0 measured, with or without reaching the goals; 1 failed, with a message; 2 not
# started, with the reason.
set -euo pipefail
cd_from=$PWD
cd "$(dirname "$0")/.."
# shellcheck source=scripts/need.sh
. scripts/need.sh

# Returns a path that may be relative to the caller's directory.
absolute() {
    if [[ -z $1 || $1 == /* ]]; then echo "$1"; else echo "$cd_from/$1"; fi
}

usage() {
    echo "scripts/bench.sh: $1" >&2
    echo "usage: scripts/bench.sh [--rounds N] [--seconds S] [--report DIR] [--only CASE,...]" \
        "[--peers-only] [--profile NAME] [--base BINARY] [--publish]" >&2
    exit 2
}

mapfile -t all < <(sed -n 's/^    \(Case\|make_random\)("\([^"]*\)".*/\2/p' scripts/bench/cases.py)
rounds=5 seconds=2 directory=$target_directory/bench only='' peers_only='' profile=release base='' publish=''
while [ "$#" -gt 0 ]; do
    case $1 in
        --rounds | --seconds | --report | --only | --profile | --base) [ "$#" -ge 2 ] || usage "$1 needs a value" ;;&
        --rounds) rounds=$2; shift 2 ;;
        --seconds) seconds=$2; shift 2 ;;
        --report) directory=$(absolute "$2"); shift 2 ;;
        --only) only=$2; shift 2 ;;
        --peers-only) peers_only=1; shift ;;
        --profile) profile=$2; shift 2 ;;
        --base) base=$(absolute "$2"); shift 2 ;;
        --publish) publish=1; shift ;;
        -h | --help) sed -n '2,/^set /{ s/^# \{0,1\}//; /^set /!p; }' scripts/bench.sh; exit ;;
        *) usage "unknown option $1" ;;
    esac
done
for number in "$rounds" "$seconds"; do
    # wrk takes whole seconds.
    [[ $number =~ ^[1-9][0-9]{0,3}$ ]] || usage "$number is not a whole number from 1 to 9999"
done
[ -n "$directory" ] || usage "--report needs a directory"
IFS=, read -ra chosen <<<"${only:-$(IFS=,; echo "${all[*]}")}"
for name in "${chosen[@]}"; do
    [[ " ${all[*]} " == *" $name "* ]] || usage "unknown case $name; the cases are ${all[*]}"
done
[ -z "$publish" ] || [ "$only$peers_only$profile" = release ] ||
    usage "--publish needs a full run, without --only, --peers-only and --profile"
# Lines around the report in docs/benchmarks.md. The text above and below is written by hand.
report_start='<!-- Start of the report of scripts/bench.sh; all above is written by hand. -->'
report_end='<!-- End of the report of scripts/bench.sh; all below is written by hand. -->'
for line in ${publish:+"$report_start" "$report_end"}; do
    grep -qxF -- "$line" docs/benchmarks.md || usage "docs/benchmarks.md has no line $line"
done
[ -z "$base" ] || "$base" --version >/dev/null 2>&1 || usage "--base needs a build of the proxy, not $base"
valkey=${VALKEY_SERVER:-valkey-server}
# A name without a slash is looked up in PATH.
[[ $valkey != */* ]] || valkey=$(absolute "$valkey")
valkey=$(command -v "$valkey") || [ -z "${VALKEY_SERVER:-}" ] || usage "VALKEY_SERVER: cannot run $VALKEY_SERVER"
[ "$(nproc)" -ge 2 ] || usage "two processors are needed: one for the servers, one for the load"

running=''
# Stops the running command. Called by the traps.
#
# shellcheck disable=SC2317,SC2329
stop() {
    local status=$?
    trap '' INT TERM
    trap - EXIT
    # The command stops its own children.
    if [ -n "$running" ]; then
        kill "$running" 2>/dev/null || true
        wait "$running" 2>/dev/null || true
    fi
    exit "$status"
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# Runs a command in the background, so that the traps run at once. Returns its exit code.
run() {
    local code=0
    "$@" &
    running=$!
    wait "$running" || code=$?
    running=
    return "$code"
}

need python3:python3 taskset:util-linux wrk:wrk redis-benchmark:redis-tools redis-server:redis-server \
    nginx:nginx /usr/lib/nginx/modules/ngx_http_lua_module.so:libnginx-mod-http-lua \
    /usr/share/lua/5.1/nginx/redis.lua:lua-nginx-redis webdis:webdis cc:build-essential make:build-essential
logs=$directory/logs
{ mkdir -p "$logs" && [ -w "$logs" ]; } || usage "$directory is not writable; choose another directory with --report"
# Two runs would overwrite each other's files.
exec 9>"$directory/lock"
flock --nonblock 9 || usage "another run uses $directory; choose another directory with --report"
rm -f "$directory"/{report.md,bench.svg} "$logs"/{results.json,base,*.md}
# A copy, as the build may replace it.
[ -z "$base" ] || cp "$base" "$logs/base"
cargo build --locked --profile "$profile" --bins --example floor
# nginx is in /usr/sbin, which PATH may lack. The cases with 1,000 connections need more than the
# usual 1,024 descriptors.
export PATH=$PATH:/usr/sbin PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=scripts/load
BUILD_DIRECTORY=$(build_directory "$profile")
export BUILD_DIRECTORY VALKEY_SERVER=$valkey BASE_BINARY=${base:+$logs/base}
ulimit -n "$(ulimit -Hn)"
run python3 scripts/bench/run_cases.py "$logs" "$rounds" "$seconds" "${chosen[@]}"
code=0
[ -n "$peers_only" ] || run python3 scripts/bench/run_cargo_bench.py "$logs" || code=$?
python3 scripts/bench/report.py "$directory" "$logs"
echo "$directory/report.md, $directory/bench.svg" >&2
if [ -n "$publish" ] && [ "$code" = 0 ]; then
    above=$(sed "\\|^$report_start\$|q" docs/benchmarks.md)
    below=$(sed "1,\\|^$report_end\$|d" docs/benchmarks.md)
    # The report is a section of the document there.
    printf '%s\n' "$above" '' "$(sed '1s/^# /## /' "$directory/report.md")" '' "$report_end" "$below" \
        >docs/benchmarks.md
    echo "docs/benchmarks.md: check the ratios that the text above the report quotes" >&2
    cp "$directory/bench.svg" docs/bench.svg
fi
exit "$code"
