#!/usr/bin/env bash
# A soak test: keeps the proxy busy in every way it can be used, checks every value, and looks on whether memory,
# descriptors and latency stay what they are. Leaves report.md and load.svg in the report's directory.
#
#   scripts/load.sh [--minutes N] [--report DIR]      10 minutes (decimals allowed, from 0.1), target/load
#
# It builds the proxy and starts it, and a Redis, on free ports of 127.0.0.1; WORKERS and REDIS_TRACKING are passed on.
#   PROXY=host:port REDIS=host:port   take a proxy that is running, and the Redis behind it, without a password and as its
#                                     database 0. Keys that begin with `load:`, 30 MB in all, are written to it and removed in
#                                     the end; if there are such keys already it ends with 2. For results to mean anything
#                                     nobody else should be asking.
#
# Exit code: 0 passed, 1 failed with a line for each reason, 2 nothing was done, for what it says. None of the reasons depends
# on how fast the machine is. Needs Debian (or a relative of it) with Redis 6.2 or later and, unless PROXY is set, a Rust toolchain; root, or
# sudo, to install what is missing.
set -euo pipefail
cd_from=$PWD
cd "$(dirname "$0")/.."
# shellcheck source=scripts/need.sh
. scripts/need.sh

usage() {
    echo "scripts/load.sh: $1" >&2
    echo "usage: scripts/load.sh [--minutes N] [--report DIR]" >&2
    exit 2
}

minutes=10 directory=target/load
while [ "$#" -gt 0 ]; do
    case $1 in
        --minutes | --report) [ "$#" -ge 2 ] || usage "$1 needs a value" ;;&
        --minutes) minutes=$2; shift 2 ;;
        # As whoever called meant it, whatever directory that was in.
        --report) directory=$2; [[ $2 == /* ]] || directory=$cd_from/$2; shift 2 ;;
        -h | --help) sed -n '2,/^set /{ s/^# \{0,1\}//; /^set /!p; }' scripts/load.sh; exit ;;
        *) usage "what is $1?" ;;
    esac
done
[[ $minutes =~ ^[0-9]{1,6}(\.[0-9]{1,6})?$ ]] || usage "--minutes $minutes is no number"
[ -n "$directory" ] || usage "--report needs a directory"
# wrk counts whole seconds. In less than six there is nothing to compare.
seconds=$(awk -v minutes="$minutes" 'BEGIN { printf "%d", minutes * 60 + 0.5 }')
[ "$seconds" -ge 6 ] || usage "--minutes $minutes is too short; at least 0.1"
[ -z "${PROXY:-}" ] || [ -n "${REDIS:-}" ] || usage "PROXY needs REDIS=host:port too: values are written there"
[ -n "${PROXY:-}" ] || [ -z "${REDIS:-}" ] || usage "REDIS is for a proxy that is running; set PROXY=host:port too"
for address in ${PROXY:+"$PROXY"} ${REDIS:+"$REDIS"}; do
    [[ $address =~ ^([^:]+|\[[0-9a-fA-F:.]+\]):[0-9]{1,5}$ ]] || usage "$address is not host:port"
done

redis='' proxy='' drive='' seeded=''
# shellcheck disable=SC2317  # it is reached: by the trap
stop() {
    local status=$?
    trap '' INT TERM
    trap - EXIT
    # Only what was started here, by its id; the proxy before its Redis: it would only complain.
    for process in $drive $proxy $redis; do
        kill "$process" 2>/dev/null || true
        wait "$process" 2>/dev/null || true
    done
    if [ -n "$seeded" ]; then python3 scripts/load/seed.py "$REDIS" remove 2>/dev/null || true; fi
    exit "$status"
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

fail() { echo "scripts/load.sh: $*" >&2; exit 1; }

# The usual port may be taken by a Redis that is none of our business; so take one that is free.
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
        # Whoever answers must be the one that was started.
        if redis-cli -p "$port" info server 2>/dev/null | grep "^process_id:${redis}[^0-9]*\$" >/dev/null; then
            REDIS=127.0.0.1:$port
            return
        fi
        kill "$redis" 2>/dev/null || true
        redis=
    done
    fail "redis-server does not start; see $logs/redis.log"
}

# With nothing of the caller's environment but what is named, so that every run is of the same proxy. A tenth of the cold
# keys fit, entries are gone after a few seconds, and Redis may take its time: a slow machine is no failure.
start_proxy() {
    env -i WORKERS="${WORKERS:-1}" REDIS_TRACKING="${REDIS_TRACKING:-off}" CACHE_SIZE=2000 CACHE_TTL=3 REDIS_TIMEOUT=20000 \
        REDIS_CONNECTIONS=4 REDIS_HOST=127.0.0.1 REDIS_PORT="${REDIS##*:}" PROXY_HOST=127.0.0.1 PROXY_PORT=0 \
        target/release/segment-redis-proxy 2>"$logs/proxy.log" 9>&- &
    proxy=$!
    until PROXY=$(grep -o 'listening on [^, ]*' "$logs/proxy.log" 2>/dev/null); do
        kill -0 "$proxy" 2>/dev/null || { cat "$logs/proxy.log" >&2; fail "the proxy does not start"; }
        sleep 0.1
    done
    PROXY=${PROXY#listening on }
}

# What became of the processes that were started, into `events`.
events=()
look_after() {
    if [ -n "$redis" ] && ! kill -0 "$redis" 2>/dev/null; then events+=("redis-server ended by itself"); fi
    [ -n "$proxy" ] || return 0
    local code=0 ended=
    kill -0 "$proxy" 2>/dev/null || ended=1
    kill "$proxy" 2>/dev/null || true
    wait "$proxy" || code=$?
    proxy=
    if [ -n "$ended" ]; then
        events+=("the proxy ended by itself, with $code")
    elif [ "$code" != 0 ]; then
        events+=("the proxy ended with $code when it was told to stop")
    fi
}

need wrk:wrk python3:python3 redis-benchmark:redis-tools
logs=$directory/logs
mkdir -p "$logs" && [ -w "$logs" ] || usage "$directory cannot be written to; take another one by --report"
# Another run would take away what this one is writing.
exec 9>"$directory/lock"
flock --nonblock 9 || usage "another run is writing to $directory; take another one by --report"
rm -f "$directory"/{report.md,load.svg} "$logs"/{results.json,*.log,*.out,*.err}
if [ -z "${PROXY:-}" ]; then
    # For linking, and because the allocator is built from C.
    need redis-server:redis-server redis-cli:redis-tools cc:build-essential make:build-essential
    cargo build --release --locked
    start_redis
    start_proxy
fi
export PYTHONDONTWRITEBYTECODE=1
if [ -z "$redis" ]; then
    python3 scripts/load/seed.py "$REDIS" check
    seeded=1
fi
python3 scripts/load/seed.py "$REDIS" write
# In the background, so that a signal to this script is acted on at once.
python3 scripts/load/drive.py "$PROXY" "$REDIS" "$seconds" "$logs" &
drive=$!
code=0
wait "$drive" || code=$?
drive=
look_after
[ "$code" = 0 ] || fail "the load could not be run ($code); see $logs"
code=0
python3 scripts/load/report.py "$directory" "$logs" ${events[@]+"${events[@]}"} || code=$?
echo "$directory/report.md, $directory/load.svg" >&2
exit "$code"
