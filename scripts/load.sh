#!/usr/bin/env bash
# Soak test: runs every kind of load against the proxy, checks all values, memory and descriptors.
#
#     scripts/load.sh [--minutes N] [--report DIR] [--profile NAME]
#
#     --minutes   duration, decimals allowed, at least 0.1 (default 10)
#     --report    directory for report.md and load.svg (default target/load)
#     --profile   Cargo profile of the proxy (default release)
#
# Builds the proxy and starts it, with a Redis, on free ports of 127.0.0.1. Passes WORKERS and
# REDIS_TRACKING on to the proxy. To test a running proxy instead, set both of these:
#
#     PROXY=host:port    the proxy
#     REDIS=host:port    the Redis behind it: database 0, no password
#
# The test writes 30 MB of keys that begin with `load:` to that Redis and removes them at the end.
# It exits with 2 if such keys exist. No other client should use the proxy meanwhile.
#
# docs/reliability.md has the report of one run.
#
# Exit code: 0 passed; 1 failed, with a line for each reason; 2 not started, with the reason. No
# reason to fail depends on the speed of the machine.
#
# Needs Debian or a derivative, Redis 6.2 or later and, unless PROXY is set, a Rust toolchain. Needs
# root or sudo to install missing packages.
set -euo pipefail
cd_from=$PWD
cd "$(dirname "$0")/.."
# shellcheck source=scripts/need.sh
. scripts/need.sh

usage() {
    echo "scripts/load.sh: $1" >&2
    echo "usage: scripts/load.sh [--minutes N] [--report DIR] [--profile NAME]" >&2
    exit 2
}

minutes=10 directory=$target_directory/load profile=release
while [ "$#" -gt 0 ]; do
    case $1 in
        --minutes | --report | --profile) [ "$#" -ge 2 ] || usage "$1 needs a value" ;;&
        --minutes) minutes=$2; shift 2 ;;
        # Relative to the caller's directory.
        --report) directory=$2; [[ $2 == /* ]] || directory=$cd_from/$2; shift 2 ;;
        --profile) profile=$2; shift 2 ;;
        -h | --help) sed -n '2,/^set /{ s/^# \{0,1\}//; /^set /!p; }' scripts/load.sh; exit ;;
        *) usage "unknown option $1" ;;
    esac
done
[[ $minutes =~ ^[0-9]{1,6}(\.[0-9]{1,6})?$ ]] || usage "--minutes $minutes is not a number"
[ -n "$directory" ] || usage "--report needs a directory"
# wrk takes whole seconds. Fewer than six give too few samples to compare.
seconds=$(awk -v minutes="$minutes" 'BEGIN { printf "%d", minutes * 60 + 0.5 }')
[ "$seconds" -ge 6 ] || usage "--minutes $minutes is too short; the minimum is 0.1"
[ -z "${PROXY:-}" ] || [ -n "${REDIS:-}" ] || usage "PROXY needs REDIS=host:port too: the test writes its keys there"
[ -n "${PROXY:-}" ] || [ -z "${REDIS:-}" ] || usage "REDIS is for a running proxy; set PROXY=host:port too"
for address in ${PROXY:+"$PROXY"} ${REDIS:+"$REDIS"}; do
    [[ $address =~ ^([^:]+|\[[0-9a-fA-F:.]+\]):[0-9]{1,5}$ ]] || usage "$address is not host:port"
done

redis='' proxy='' load='' seeded=''
# Stops the processes that this script started, and removes the keys. Called by the traps.
#
# shellcheck disable=SC2317,SC2329
stop() {
    local status=$?
    trap '' INT TERM
    trap - EXIT
    # The proxy before its Redis: otherwise the proxy would log that Redis is lost.
    for process in $load $proxy $redis; do
        kill "$process" 2>/dev/null || true
        wait "$process" 2>/dev/null || true
    done
    if [ -n "$seeded" ]; then python3 scripts/load/seed.py "$REDIS" remove 2>/dev/null || true; fi
    exit "$status"
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# Prints a message and exits with 1.
fail() { echo "scripts/load.sh: $*" >&2; exit 1; }

# Starts a Redis and sets REDIS to its address. Its port is random: another Redis may use the usual
# one.
start_redis() {
    local port
    for _ in {1..20}; do
        port=$((20000 + RANDOM % 10000))
        redis-server --bind 127.0.0.1 --port "$port" --save '' --appendonly no >"$logs/redis.log" 9>&- &
        redis=$!
        until redis-cli -p "$port" ping >/dev/null 2>&1; do
            kill -0 "$redis" 2>/dev/null || break
            sleep 0.1
        done
        # The server that answers must be the one that was started.
        if redis-cli -p "$port" info server 2>/dev/null | grep "^process_id:${redis}[^0-9]*\$" >/dev/null; then
            REDIS=127.0.0.1:$port
            return
        fi
        kill "$redis" 2>/dev/null || true
        redis=
    done
    fail "redis-server did not start; see $logs/redis.log"
}

# Starts the proxy and sets PROXY to its address. Its environment is fixed, so that runs are
# comparable. The cache holds a tenth of the cold keys, and entries expire after seconds.
# REDIS_TIMEOUT is long, so that a slow machine does not fail.
start_proxy() {
    env -i WORKERS="${WORKERS:-1}" REDIS_TRACKING="${REDIS_TRACKING:-off}" CACHE_SIZE=2000 CACHE_TTL=3 \
        REDIS_TIMEOUT=20000 REDIS_CONNECTIONS=4 REDIS_HOST=127.0.0.1 REDIS_PORT="${REDIS##*:}" \
        PROXY_HOST=127.0.0.1 PROXY_PORT=0 \
        "$(build_directory "$profile")/segment-redis-proxy" 2>"$logs/proxy.log" 9>&- &
    proxy=$!
    until PROXY=$(grep -o 'listening on [^, ]*' "$logs/proxy.log" 2>/dev/null); do
        kill -0 "$proxy" 2>/dev/null || { cat "$logs/proxy.log" >&2; fail "the proxy did not start"; }
        sleep 0.1
    done
    PROXY=${PROXY#listening on }
}

# Stops the proxy, and records in `events` if the proxy or Redis exited early or with an error.
events=()
stop_proxy() {
    if [ -n "$redis" ] && ! kill -0 "$redis" 2>/dev/null; then events+=("redis-server exited during the test"); fi
    [ -n "$proxy" ] || return 0
    local code=0 exited=
    kill -0 "$proxy" 2>/dev/null || exited=1
    kill "$proxy" 2>/dev/null || true
    wait "$proxy" || code=$?
    proxy=
    if [ -n "$exited" ]; then
        events+=("the proxy exited during the test, with code $code")
    elif [ "$code" != 0 ]; then
        events+=("the proxy exited with code $code on SIGTERM")
    fi
}

need wrk:wrk python3:python3 redis-benchmark:redis-tools
logs=$directory/logs
{ mkdir -p "$logs" && [ -w "$logs" ]; } || usage "$directory is not writable; choose another directory with --report"
# Two runs would overwrite each other's files.
exec 9>"$directory/lock"
flock --nonblock 9 || usage "another run uses $directory; choose another directory with --report"
rm -f "$directory"/{report.md,load.svg} "$logs"/{results.json,*.log,*.out,*.err}
if [ -z "${PROXY:-}" ]; then
    # A linker, and a C compiler for the allocator.
    need redis-server:redis-server redis-cli:redis-tools cc:build-essential make:build-essential
    cargo build --locked --profile "$profile"
    start_redis
    start_proxy
fi
export PYTHONDONTWRITEBYTECODE=1
if [ -z "$redis" ]; then
    python3 scripts/load/seed.py "$REDIS" check
    seeded=1
fi
python3 scripts/load/seed.py "$REDIS" write
# In the background, so that the traps run at once.
python3 scripts/load/run_load.py "$PROXY" "$REDIS" "$seconds" "$logs" &
load=$!
code=0
wait "$load" || code=$?
load=
stop_proxy
[ "$code" = 0 ] || fail "the load did not run (exit code $code); see $logs"
code=0
python3 scripts/load/report.py "$directory" "$logs" ${events[@]+"${events[@]}"} || code=$?
echo "$directory/report.md, $directory/load.svg" >&2
exit "$code"
