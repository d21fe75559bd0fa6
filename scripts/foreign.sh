#!/usr/bin/env bash
# Runs redis-py's own test suite on plain Redis and through the proxy, and compares test by test.
#
#     scripts/foreign.sh            the tests that need only one Redis, in RESP3 and RESP2
#     scripts/foreign.sh --quick    those of strings, keys and pipelines, in half a minute
#     scripts/foreign.sh --install  none: only installs the suite
#
# Through the proxy means that the proxy answers string reads, and Redis all other commands. A relay
# (scripts/foreign/route.py) separates them. The suite comes from the source distribution on PyPI,
# in the version of tests/requirements.txt. Two Redis servers, the proxy and the relay run on free
# ports of 127.0.0.1. Logs are in target/foreign.
#
# Exit code: 0 the same tests pass; 1 a test passes on plain Redis only, or too few reads were
# routed to prove anything; 2 wrong usage. scripts/foreign/expected.txt lists the tests that may
# differ, with reasons.
#
# Needs Debian or a derivative, and a Rust toolchain. Needs root or sudo to install missing
# packages.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/need.sh
. scripts/need.sh

mode=full
case $* in
    '') ;;
    --quick) mode=quick ;;
    --install) mode=install ;;
    -h | --help) sed -n '2,/^set /{ s/^# \{0,1\}//; /^set /!p; }' scripts/foreign.sh; exit ;;
    *) echo "usage: scripts/foreign.sh [--quick | --install]" >&2; exit 2 ;;
esac

# Prints a message and exits with 1.
fail() { echo "scripts/foreign.sh: $*" >&2; exit 1; }

target=$target_directory/foreign
python=$target_directory/python/bin/python
logs=$target/logs
mkdir -p "$logs"
exec 9>"$target/lock"
flock --nonblock 9 || fail "another run is using $target"
rm -f "$logs"/*

processes=() directories=()
# Stops the processes that this script started, the last one first. Called by the traps.
#
# shellcheck disable=SC2317,SC2329
stop() {
    local status=$? at
    trap '' INT TERM
    trap - EXIT
    for ((at = ${#processes[@]} - 1; at >= 0; at--)); do
        kill "${processes[at]}" 2>/dev/null || true
        wait "${processes[at]}" 2>/dev/null || true
    done
    rm -rf ${directories[@]+"${directories[@]}"}
    exit "$status"
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# Installs the client library, pytest and the suite.
install() {
    local version
    version=$(sed -n 's/^redis==//p' tests/requirements.txt)
    [ -n "$version" ] || fail "tests/requirements.txt names no version of redis"
    need_python_packages
    if [ "$(cat "$target/installed" 2>/dev/null)" = "$version" ]; then return; fi
    rm -rf "$target/source" "$target/suite"
    mkdir "$target/suite"
    "$python" -m pip --quiet --disable-pip-version-check download --no-deps --no-binary redis \
        --dest "$target/source" "redis==$version"
    # The tests only: the library is installed.
    tar -xzf "$target/source/redis-$version.tar.gz" -C "$target/suite" --strip-components=1 \
        "redis-$version/tests"
    echo "$version" >"$target/installed"
}

# Starts a Redis and sets `port`. The port is random: another Redis may use the usual one.
start_redis() {
    local directory
    directory=$(mktemp -d)
    directories+=("$directory")
    for _ in {1..20}; do
        port=$((20000 + RANDOM % 10000))
        # Some tests use DEBUG.
        redis-server --bind 127.0.0.1 --port "$port" --save '' --appendonly no --dir "$directory" \
            --enable-debug-command yes >"$logs/$1.log" 9>&- &
        local process=$!
        processes+=("$process")
        until redis-cli -p "$port" ping >/dev/null 2>&1; do
            kill -0 "$process" 2>/dev/null || break
            sleep 0.1
        done
        # The server that answers must be the one that was started.
        if redis-cli -p "$port" info server 2>/dev/null |
            grep "^process_id:${process}[^0-9]*\$" >/dev/null; then
            return
        fi
        kill "$process" 2>/dev/null || true
        wait "$process" 2>/dev/null || true
        unset 'processes[-1]'
    done
    fail "redis-server did not start; see $logs/$1.log"
}

# Waits until the process that was started last logs its address. Sets `port`.
await_port() {
    until port=$(grep -o 'listening on 127.0.0.1:[0-9]*' "$1" 2>/dev/null); do
        kill -0 "${processes[-1]}" 2>/dev/null || { cat "$1" >&2; fail "$2 did not start"; }
        sleep 0.1
    done
    port=${port##*:}
}

# exec_suite NAME PORT ARGUMENT...: replaces the shell with the suite, on the server at a port, with
# further arguments of pytest. Excludes tests that need a cluster, modules, TLS, a replica or other
# hosts.
exec_suite() {
    local name=$1 server=$2 here=$PWD
    shift 2
    cd "$target/suite"
    PYTHONPATH=$here/scripts/foreign exec timeout 900 "$python" -m pytest \
        -c "$here/scripts/foreign/pytest.ini" --rootdir . \
        -p record --record-outcomes "$logs/$name.outcomes" --redis-url "redis://127.0.0.1:$server/0" \
        -m 'not (onlycluster or redismod or ssl or replica or multidb_integration or cp_integration)' \
        "$@" >"$logs/$name.log" 2>&1 9>&-
}

# run_both NAME ARGUMENT...: runs the suite on both servers at the same time, in the background, so
# that the traps run at once.
runs=()
run_both() {
    local name=$1 plain routed
    shift
    exec_suite "$name.plain" "$plain_port" "$@" &
    plain=$!
    exec_suite "$name.routed" "$relay_port" "$@" &
    routed=$!
    processes+=("$plain" "$routed")
    wait "$plain" || true
    wait "$routed" || true
    unset 'processes[-1]' 'processes[-1]'
    runs+=("$name" "$logs/$name.plain.outcomes" "$logs/$name.routed.outcomes")
}

need redis-server:redis-server redis-cli:redis-tools python3:python3 cc:build-essential \
    make:build-essential
install
[ "$mode" != install ] || exit 0
# A debug build, for overflow checks and debug assertions.
cargo build --locked
export PYTHONDONTWRITEBYTECODE=1

start_redis plain
plain_port=$port
start_redis behind
redis_port=$port
# Values expire and are invalidated, but never evicted. The timeout is long: some tests pause Redis.
env -i REDIS_HOST=127.0.0.1 REDIS_PORT="$redis_port" REDIS_TRACKING=on REDIS_TIMEOUT=60000 \
    CACHE_TTL=2 CACHE_SIZE=1000000 CLIENT_IDLE_TIMEOUT=3600 PROXY_HOST=127.0.0.1 PROXY_PORT=0 \
    "$(build_directory dev)/segment-redis-proxy" 2>"$logs/proxy.log" 9>&- &
processes+=("$!")
await_port "$logs/proxy.log" "the proxy"
proxy_port=$port
python3 scripts/foreign/route.py "$redis_port" "$proxy_port" "$logs/counts.json" \
    >"$logs/route.out" 2>"$logs/route.log" 9>&- &
processes+=("$!")
await_port "$logs/route.out" "scripts/foreign/route.py"
relay_port=$port relay=${processes[-1]}

# Parts of the suite that read strings, and other parts about connections.
reading=(commands pipeline encoding scripting)
others=(lock hash keyspace_notifications connection connection_pool client monitor pubsub retry)
files() { printf 'tests/test_%s.py\n' "$@"; printf 'tests/test_asyncio/test_%s.py\n' "$@"; }
if [ "$mode" = quick ]; then
    mapfile -t selected < <(files "${reading[@]}" | grep -v asyncio)
    # Strings only, without tests that wait for seconds.
    run_both RESP3 "${selected[@]}" \
        -k 'not (sync or bl or bz or brpop or client or acl or stream or zset or geo or hset or list)'
    least_reads=100
else
    mapfile -t selected < <(files "${reading[@]}" "${others[@]}")
    run_both RESP3 "${selected[@]}" tests/test_function.py tests/test_multiprocessing.py
    mapfile -t selected < <(files "${reading[@]}" | grep -v asyncio)
    run_both RESP2 "${selected[@]}" --protocol 2
    least_reads=600
fi
# The relay writes its counts when it ends.
kill "$relay" || true
wait "$relay" || fail "scripts/foreign/route.py failed; see $logs/route.log"
unset 'processes[-1]'
python3 scripts/foreign/compare.py scripts/foreign/expected.txt "$logs/counts.json" "$least_reads" \
    "$proxy_port" "${runs[@]}"
