#!/usr/bin/env bash
# Runs the commands of one `console` block of a document. Called by tests/e2e_ops/documents.rs in a
# network namespace of its own, so that the ports of the documents are free.
#
#     console.sh DIRECTORY [NAME=VALUE...]
#
# The directory has one file for each command: 1.command, 2.command, ... The output of each goes to
# 1.output, 2.output, ... The variables are for the proxy. The program must be in PATH.
set -u
directory=$1
shift

ip link set lo up || exit 1
redis-server --bind 127.0.0.1 --port 6379 --save '' --appendonly no >/dev/null &
redis=$!
# redis-cli and curl print what they print on a terminal.
echo no-progress-meter >"$directory/.curlrc"
export REDIS_HOST=127.0.0.1 PROXY_HOST=127.0.0.1 FAKETTY=1 CURL_HOME=$directory
env "$@" segment-redis-proxy 2>"$directory/log" &
proxy=$!
trap 'kill -KILL "$proxy" "$redis" 2>/dev/null; wait "$proxy" "$redis" 2>/dev/null' EXIT

# Repeats a command until it succeeds, at most for a minute.
retry() {
    for _ in {1..600}; do
        if "$@" >/dev/null 2>&1; then return; fi
        sleep 0.1
    done
    echo "console.sh: this did not succeed within a minute: $*" >&2
    exit 1
}

retry redis-cli mset a 1 b 2 c 3 d 4 e 5 f 6 g 7 h 8 i 9 j 10 k 11 l 12
retry curl --fail --silent http://127.0.0.1:8080/readyz

# All in this shell: a command may set a variable for the next one.
for ((number = 1; ; number++)); do
    [ -e "$directory/$number.command" ] || break
    eval "$(cat "$directory/$number.command")" >"$directory/$number.output" 2>&1 </dev/null
done
exit 0
