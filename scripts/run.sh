#!/usr/bin/env bash
# Builds the proxy and runs it on 127.0.0.1:8080.
#
# The proxy uses the Redis at REDIS_HOST. If that is not set, the script starts a redis-server with
# twelve sample keys. Ctrl-C stops everything that the script started.
#
# Needs Debian or a derivative, and a Rust toolchain. Needs root or sudo to install missing
# packages.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/need.sh
. scripts/need.sh

redis='' proxy=''
# Stops the processes that this script started. Called by the traps.
#
# shellcheck disable=SC2317,SC2329
stop() {
    trap '' INT TERM HUP
    trap - EXIT
    # The proxy before its Redis: otherwise the proxy would log that Redis is lost.
    for process in $proxy $redis; do
        kill "$process" 2>/dev/null || true
        wait "$process" 2>/dev/null || true
    done
}
trap stop EXIT
trap 'exit 0' INT TERM HUP

# A linker, and a C compiler for the allocator.
need cc:build-essential make:build-essential
cargo build --release --locked

if [ -z "${REDIS_HOST:-}" ]; then
    need redis-server:redis-server redis-cli:redis-tools
    # A random port: another Redis may use the usual one.
    for _ in {1..20}; do
        port=$((20000 + RANDOM % 10000))
        # In its own process group: Ctrl-C reaches this script only, which then stops the processes
        # in order.
        setsid redis-server --bind 127.0.0.1 --port "$port" --save '' --appendonly no >/dev/null &
        redis=$!
        until redis-cli -p "$port" ping >/dev/null 2>&1; do
            kill -0 "$redis" 2>/dev/null || break
            sleep 0.1
        done
        # The server that answers must be the one that was started: another Redis must not get the
        # sample keys.
        if redis-cli -p "$port" info server | grep "^process_id:${redis}[^0-9]*\$" >/dev/null; then break; fi
        kill "$redis" 2>/dev/null || true
        redis=
    done
    [ -n "$redis" ] || { echo "scripts/run.sh: redis-server did not start" >&2; exit 1; }
    redis-cli -p "$port" mset a 1 b 2 c 3 d 4 e 5 f 6 g 7 h 8 i 9 j 10 k 11 l 12 >/dev/null
    export REDIS_HOST=127.0.0.1 REDIS_PORT=$port
fi

export PROXY_HOST=${PROXY_HOST:-127.0.0.1} PROXY_PORT=${PROXY_PORT:-8080}
[ "$PROXY_PORT" != 0 ] || { echo "scripts/run.sh: PROXY_PORT must not be 0: this script connects to it" >&2; exit 2; }
setsid "$(build_directory release)/segment-redis-proxy" &
proxy=$!
until (exec 3<>"/dev/tcp/$PROXY_HOST/$PROXY_PORT") 2>/dev/null; do
    kill -0 "$proxy" 2>/dev/null || { wait "$proxy"; exit; }
    sleep 0.1
done
echo
echo "Try it (the second request is a cache hit), Ctrl-C to stop:"
echo "  curl -i http://$PROXY_HOST:$PROXY_PORT/key/a"
echo "  curl -i http://$PROXY_HOST:$PROXY_PORT/raw/b"
echo "  http://$PROXY_HOST:$PROXY_PORT/ in a browser: the dashboard"
echo "  redis-cli -h $PROXY_HOST -p $PROXY_PORT MGET a b"
wait "$proxy"
