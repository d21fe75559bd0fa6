#!/usr/bin/env bash
# Builds the proxy and runs it on 127.0.0.1:8080, in front of the Redis at REDIS_HOST, or, where that is not set, of a
# redis-server of its own with twelve sample keys. Ctrl-C stops all that it started.
# Needs Debian (or a relative of it) and a Rust toolchain; root, or sudo, to install what is missing.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/need.sh

redis= proxy=
stop() {
    trap '' INT TERM HUP
    trap - EXIT
    # Only what was started here, by its id. The proxy first: it would only complain about a Redis that is gone.
    for process in $proxy $redis; do
        kill "$process" 2>/dev/null || true
        wait "$process" 2>/dev/null || true
    done
}
trap stop EXIT
trap 'exit 0' INT TERM HUP

# For linking, and because the allocator is built from C.
need cc:build-essential make:build-essential
cargo build --release --locked

if [ -z "${REDIS_HOST:-}" ]; then
    need redis-server:redis-server redis-cli:redis-tools
    # The usual port may be taken by a Redis that is none of our business; so take one that is free.
    for _ in {1..20}; do
        port=$((20000 + RANDOM % 10000))
        # Apart from this script's processes: Ctrl-C is for the script, which then ends them in order, and each once.
        setsid redis-server --bind 127.0.0.1 --port "$port" --save '' --appendonly no >/dev/null &
        redis=$!
        until redis-cli -p "$port" ping >/dev/null 2>&1; do
            kill -0 "$redis" 2>/dev/null || break
            sleep 0.1
        done
        # Whoever answers must be the one that was started: sample keys are no gift for another's Redis.
        if redis-cli -p "$port" info server | grep "^process_id:$redis[^0-9]*\$" >/dev/null; then break; fi
        kill "$redis" 2>/dev/null || true
        redis=
    done
    [ -n "$redis" ] || { echo "scripts/run.sh: redis-server does not start" >&2; exit 1; }
    redis-cli -p "$port" mset a 1 b 2 c 3 d 4 e 5 f 6 g 7 h 8 i 9 j 10 k 11 l 12 >/dev/null
    export REDIS_HOST=127.0.0.1 REDIS_PORT=$port
fi

export PROXY_HOST=${PROXY_HOST:-127.0.0.1} PROXY_PORT=${PROXY_PORT:-8080}
[ "$PROXY_PORT" != 0 ] || { echo "scripts/run.sh: PROXY_PORT=0 would leave nobody knowing where to ask" >&2; exit 2; }
setsid target/release/segment-redis-proxy &
proxy=$!
until (exec 3<>"/dev/tcp/$PROXY_HOST/$PROXY_PORT") 2>/dev/null; do
    kill -0 "$proxy" 2>/dev/null || { wait "$proxy"; exit; }
    sleep 0.1
done
echo
echo "Try it (twice: the second answer comes from memory), Ctrl-C to stop:"
echo "  curl -i http://$PROXY_HOST:$PROXY_PORT/key/a"
echo "  curl -i http://$PROXY_HOST:$PROXY_PORT/raw/b"
echo "  http://$PROXY_HOST:$PROXY_PORT/ in a browser: how it does"
echo "  redis-cli -h $PROXY_HOST -p $PROXY_PORT MGET a b"
wait "$proxy"
