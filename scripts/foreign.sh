#!/usr/bin/env bash
# Runs redis-py's own test suite on plain Redis and through the proxy, and compares test by test.
# Through the proxy means that it answers string reads, and Redis all else (scripts/foreign/route.py).
#
#   scripts/foreign.sh            the tests that need one Redis and nothing else, in RESP3 and RESP2
#   scripts/foreign.sh --quick    those of strings, keys and pipelines, in half a minute
#
# The suite is in the source distribution on PyPI, of the version that tests/requirements.txt has. Two
# Redis servers, the proxy and the relay run on free ports of 127.0.0.1. Logs are in target/foreign.
#
# Exit code: 0 the same tests pass; 1 a test passes on plain Redis alone, or too few reads were routed
# to prove anything; 2 wrong usage. scripts/foreign/expected.txt has the tests that differ for a reason.
# Needs Debian (or a relative of it) and a Rust toolchain; root, or sudo, to install what is missing.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/need.sh
. scripts/need.sh

quick=
case $* in
    '') ;;
    --quick) quick=1 ;;
    -h | --help) sed -n '2,/^set /{ s/^# \{0,1\}//; /^set /!p; }' scripts/foreign.sh; exit ;;
    *) echo "usage: scripts/foreign.sh [--quick]" >&2; exit 2 ;;
esac

fail() { echo "scripts/foreign.sh: $*" >&2; exit 1; }

target=$PWD/target/foreign
python=$target/python/bin/python
logs=$target/logs
mkdir -p "$logs"
exec 9>"$target/lock"
flock --nonblock 9 || fail "another run is using target/foreign"
rm -f "$logs"/*

processes=() directories=()
# shellcheck disable=SC2317  # it is reached: by the trap
stop() {
    local status=$? at
    trap '' INT TERM
    trap - EXIT
    # Only processes that were started here, by their id, the last one first.
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

# Installs the client library, its suite and pytest.
install() {
    local version
    version=$(sed -n 's/^redis==//p' tests/requirements.txt)
    [ -n "$version" ] || fail "tests/requirements.txt names no version of redis"
    local requirements=(tests/requirements.txt scripts/foreign/requirements.txt)
    if cat "${requirements[@]}" | cmp -s - "$target/installed"; then return; fi
    # On Debian this is a package of its own, without a command.
    python3 -c 'import ensurepip' 2>/dev/null || need ensurepip:python3-venv
    python3 -m venv --clear "$target/python"
    local pip=("$python" -m pip --quiet --disable-pip-version-check)
    "${pip[@]}" install "${requirements[@]/#/--requirement=}"
    rm -rf "$target/source" "$target/suite"
    mkdir "$target/suite"
    "${pip[@]}" download --no-deps --no-binary redis --dest "$target/source" "redis==$version"
    # The tests alone: the library is the one that is installed.
    tar -xzf "$target/source/redis-$version.tar.gz" -C "$target/suite" --strip-components=1 \
        "redis-$version/tests"
    cat "${requirements[@]}" >"$target/installed"
}

# Starts a Redis and leaves its port in `port`. The usual port may be another Redis'.
start_redis() {
    local try directory
    directory=$(mktemp -d)
    directories+=("$directory")
    for try in {1..20}; do
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
    fail "redis-server does not start; see $logs/$1.log"
}

# Waits until the process that was started last logs where it listens. Leaves its port in `port`.
await_port() {
    until port=$(grep -o 'listening on 127.0.0.1:[0-9]*' "$1" 2>/dev/null); do
        kill -0 "${processes[-1]}" 2>/dev/null || { cat "$1" >&2; fail "$2 does not start"; }
        sleep 0.1
    done
    port=${port##*:}
}

# suite NAME PORT ARGUMENT...: becomes the suite on the server at a port, with further arguments of
# pytest. Left out is what needs a cluster, modules, TLS, a replica or other hosts.
suite() {
    local name=$1 server=$2 here=$PWD
    shift 2
    cd "$target/suite"
    PYTHONPATH=$here/scripts/foreign exec timeout 900 "$python" -m pytest \
        -c "$here/scripts/foreign/pytest.ini" --rootdir . \
        -p record --record-outcomes "$logs/$name.outcomes" --redis-url "redis://127.0.0.1:$server/0" \
        -m 'not (onlycluster or redismod or ssl or replica or multidb_integration or cp_integration)' \
        "$@" >"$logs/$name.log" 2>&1 9>&-
}

# run NAME ARGUMENT...: runs the suite on both servers at once. In the background, so that a signal
# to this script is acted on at once.
runs=()
run() {
    local name=$1 plain routed
    shift
    suite "$name.plain" "$plain_port" "$@" &
    plain=$!
    suite "$name.routed" "$relay_port" "$@" &
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
# With the checks for overflow and debug assertions in.
cargo build --locked
export PYTHONDONTWRITEBYTECODE=1

start_redis plain
plain_port=$port
start_redis behind
redis_port=$port
# Values expire and are invalidated, but not evicted. Redis may be slow: some tests have it pause.
env -i REDIS_HOST=127.0.0.1 REDIS_PORT="$redis_port" REDIS_TRACKING=on REDIS_TIMEOUT=60000 \
    CACHE_TTL=2 CACHE_SIZE=1000000 CLIENT_IDLE_TIMEOUT=3600 PROXY_HOST=127.0.0.1 PROXY_PORT=0 \
    target/debug/segment-redis-proxy 2>"$logs/proxy.log" 9>&- &
processes+=("$!")
await_port "$logs/proxy.log" "the proxy"
proxy_port=$port
python3 scripts/foreign/route.py "$redis_port" "$proxy_port" "$logs/counts.json" \
    >"$logs/route.out" 2>"$logs/route.log" 9>&- &
processes+=("$!")
await_port "$logs/route.out" "scripts/foreign/route.py"
relay_port=$port relay=${processes[-1]}

# The parts of the suite that read strings, and those about connections.
reading=(commands pipeline encoding scripting)
others=(lock hash keyspace_notifications connection connection_pool client monitor pubsub retry)
files() { printf 'tests/test_%s.py\n' "$@"; printf 'tests/test_asyncio/test_%s.py\n' "$@"; }
if [ -n "$quick" ]; then
    mapfile -t selected < <(files "${reading[@]}" | grep -v asyncio)
    # Without other types than strings, and without tests that wait for seconds.
    run RESP3 "${selected[@]}" \
        -k 'not (sync or bl or bz or brpop or client or acl or stream or zset or geo or hset or list)'
    least_reads=100
else
    mapfile -t selected < <(files "${reading[@]}" "${others[@]}")
    run RESP3 "${selected[@]}" tests/test_function.py tests/test_multiprocessing.py
    mapfile -t selected < <(files "${reading[@]}" | grep -v asyncio)
    run RESP2 "${selected[@]}" --protocol 2
    least_reads=600
fi
# The relay writes its counts when it ends.
kill "$relay" || true
wait "$relay" || fail "scripts/foreign/route.py ended by itself; see $logs/route.log"
unset 'processes[-1]'
python3 scripts/foreign/compare.py scripts/foreign/expected.txt "$logs/counts.json" "$least_reads" \
    "$proxy_port" "${runs[@]}"
