#!/usr/bin/env bash
# Failover test: runs the proxy on a real cluster, or on a primary with sentinels, that loses
# primaries and moves slots under writes. Checks every value that clients get.
#
#     scripts/failover.sh [--minutes N] [--mode MODE] [--every SECONDS] [--report DIR]
#                         [--profile NAME] [--without-proxy]
#
#     --minutes        duration, decimals allowed, at least 0.5 (default 10)
#     --mode           cluster (default): three primaries with a replica each; sentinel: a primary,
#                      two replicas, three sentinels
#     --every          seconds between two events, at least 15 (default 20)
#     --report         directory for report.md and the logs (default target/failover)
#     --profile        Cargo profile of the proxy (default release)
#     --without-proxy  runs only writers, events and the client of redis-py
#
# The events alternate: a failover on request, a slot that moves with its keys (cluster only), and
# kill -9 of a primary, which comes back as a replica. Each key has one writer and versions that
# only grow. Readers over HTTP and RESP check that no value is older than the version that was
# acknowledged longer ago than the promised bound:
#
#     FAILOVER_BOUND   milliseconds (default: 2000 for a cluster, 3500 for sentinels). Promised are
#                      REDIS_TOPOLOGY_INTERVAL + 500, with sentinels 1000 more for their
#                      announcement; the rest allows for a busy machine
#
# A killed primary may lose acknowledged writes. The test finds such losses at the servers, and
# reports them. Errors may only come while the primary of the key is down or fails over. A
# thousandth of the replies may be timeouts of a busy machine at any time. The report compares the
# time without service with that of redis-py in the same run. Passes WORKERS on to the proxy.
#
# Starts servers and the proxy on free ports of 127.0.0.1, and stops only these. No other process
# of the machine is affected.
#
# Exit code: 0 passed; 1 failed, with a line for each reason; 2 not started, with the reason.
#
# Needs Debian or a derivative, Redis 7 or later, and a Rust toolchain. Needs root or sudo to
# install missing packages.
set -euo pipefail
cd_from=$PWD
cd "$(dirname "$0")/.."
# shellcheck source=scripts/need.sh
. scripts/need.sh

usage() {
    echo "scripts/failover.sh: $1" >&2
    echo "usage: scripts/failover.sh [--minutes N] [--mode cluster|sentinel] [--every SECONDS] [--report DIR]" >&2
    echo "                           [--profile NAME] [--without-proxy]" >&2
    exit 2
}

minutes=10 mode=cluster every=20 directory=$target_directory/failover profile=release with_proxy=1
while [ "$#" -gt 0 ]; do
    case $1 in
        --minutes | --mode | --every | --report | --profile) [ "$#" -ge 2 ] || usage "$1 needs a value" ;;&
        --minutes) minutes=$2; shift 2 ;;
        --mode) mode=$2; shift 2 ;;
        --every) every=$2; shift 2 ;;
        # Relative to the caller's directory.
        --report) directory=$2; [[ $2 == /* ]] || directory=$cd_from/$2; shift 2 ;;
        --profile) profile=$2; shift 2 ;;
        --without-proxy) with_proxy=; shift ;;
        -h | --help) sed -n '2,/^set /{ s/^# \{0,1\}//; /^set /!p; }' scripts/failover.sh; exit ;;
        *) usage "unknown option $1" ;;
    esac
done
[[ $minutes =~ ^[0-9]{1,6}(\.[0-9]{1,6})?$ ]] || usage "--minutes $minutes is not a number"
[[ $every =~ ^[0-9]{1,4}$ && $every -ge 15 ]] || usage "--every $every is not a number of at least 15"
[ "$mode" = cluster ] || [ "$mode" = sentinel ] || usage "--mode $mode is neither cluster nor sentinel"
[ -n "$directory" ] || usage "--report needs a directory"
seconds=$(awk -v minutes="$minutes" 'BEGIN { printf "%d", minutes * 60 + 0.5 }')
[ "$seconds" -ge 30 ] || usage "--minutes $minutes is too short; the minimum is 0.5"
bound=${FAILOVER_BOUND:-}
[ -n "$bound" ] || { [ "$mode" = cluster ] && bound=2000 || bound=3500; }
[[ $bound =~ ^[0-9]{1,6}$ ]] || usage "FAILOVER_BOUND=$bound is not a number of milliseconds"

run=''
# Stops the test, and with it the servers and the proxy, which are in its process group. Called by
# the traps.
#
# shellcheck disable=SC2317,SC2329
stop() {
    local status=$?
    trap '' INT TERM
    trap - EXIT
    if [ -n "$run" ]; then
        # It ends its processes itself, unless it is stuck.
        kill "$run" 2>/dev/null || true
        for _ in {1..50}; do
            kill -0 "$run" 2>/dev/null || break
            sleep 0.1
        done
        kill -KILL -- "-$run" 2>/dev/null || true
        wait "$run" 2>/dev/null || true
    fi
    exit "$status"
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

need redis-server:redis-server python3:python3
logs=$directory/logs
{ mkdir -p "$logs" && [ -w "$logs" ]; } || usage "$directory is not writable; choose another directory with --report"
# Two runs would overwrite each other's files.
exec 9>"$directory/lock"
flock --nonblock 9 || usage "another run uses $directory; choose another directory with --report"
rm -rf "$directory/report.md" "$logs"
mkdir -p "$logs"
need_python_packages
binary=-
if [ -n "$with_proxy" ]; then
    # A linker, and a C compiler for the allocator.
    need cc:build-essential make:build-essential
    cargo build --locked --profile "$profile"
    binary=$(build_directory "$profile")/segment-redis-proxy
fi
export PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=scripts/load
# In a process group of its own, and in the background, so that the traps run at once.
set -m
"$target_directory/python/bin/python" scripts/failover/run_failover.py \
    "$mode" "$seconds" "$every" "$bound" "$binary" "$directory" 9>&- &
run=$!
set +m
code=0
wait "$run" || code=$?
exit "$code"
