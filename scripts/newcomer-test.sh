#!/usr/bin/env bash
# Does in a bare Debian container what a newcomer does first, and checks each result.
#
#  1. Clones the repository, runs README's first command, reads with curl and redis-cli.
#  2. Unpacks the .tar.gz of scripts/package.sh and runs its binary.
#  3. Runs `segment-redis-proxy check` with wrong configurations. docs/troubleshooting.md must quote
#     every line that it prints.
#
# The container has git, curl and this machine's Rust toolchain, and reaches the packages of Debian
# and of Cargo. The clone is that of the last commit. Variables CARGO_PROFILE_RELEASE_* apply in the
# container too.
#
# Needs a docker engine on this machine and a Rust toolchain of rustup. Needs no image registry.
# Needs root or sudo to build the container's Debian and to install missing packages.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/container.sh
. scripts/container.sh

# Wrong configurations, one on each line: exit code of `check`, variables, => and a part of the
# message. 127.0.0.1:6379 is a Redis without a password, 127.0.0.1:6380 one with a password.
cases='
0 CACHE_TLL=60 => did you mean CACHE_TTL?
2 CACHE_TTL=soon => is not a number
2 CACHE_BYTES=256m => has an unknown unit
2 CACHE_SIZE=256mb => set CACHE_BYTES=256mb
2 REDIS_HOST=redis.internal:6380 => write REDIS_HOST=redis.internal and REDIS_PORT=6380
2 REDIS_HOST=redis://user:secret@redis.internal:6380/0 => is a URL
2 REDIS_PORT=tcp://10.0.0.11:6379 => enableServiceLinks: false
2 RUST_LOG=warning => write RUST_LOG=warn
2 REDIS_USERNAME=app => has no password
2 REDIS_MODE=sentinel REDIS_MASTER=mymaster => REDIS_URL is not set
1 PROXY_HOST=no-such-name.invalid => does not resolve
1 REDIS_PORT=1 => Connection refused
1 REDIS_PORT=6380 REDIS_PASSWORD=wrong => WRONGPASS
1 REDIS_PASSWORD=needless => Redis has no password
'
troubleshooting=docs/troubleshooting.md
name=segment-redis-proxy
# Directory of the clone in the container.
clone=/root/$name

trap clean_up_containers EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# Fails unless the output of a command in the container contains a text: prints TEXT COMMAND...
prints() {
    local expected=$1 output
    shift
    echo "\$ $*"
    output=$(inside "$@" 2>&1) || true
    echo "$output"
    [[ $output == *"$expected"* ]] || fail "$* does not print: $expected"
}

answers() { inside curl --silent --fail --max-time 5 http://127.0.0.1:8080/readyz >/dev/null 2>&1; }
has_ended() { ! kill -0 "$1" 2>/dev/null; }

# Starts a command in the container, with its output in the log NAME, and waits until the proxy
# answers: start NAME COMMAND. Sets `job`, and `process` to its id in the container.
start() {
    local log=$temporary/$1.log deadline=$((SECONDS + 1200))
    inside sh -c "echo \$\$ >/run/$1.pid; $2" >"$log" 2>&1 &
    job=$!
    until answers; do
        if has_ended "$job" || [ "$SECONDS" -ge "$deadline" ]; then tail -n 40 "$log" >&2; fail "$2"; fi
        sleep 0.5
    done
    process=$(inside cat "/run/$1.pid")
}

# Stops what `start` has started. It must exit with 0 and stop answering.
stop() {
    inside bash -c "kill -TERM $process"
    wait "$job" || fail "exit code $? on SIGTERM"
    if answers; then fail "a proxy still runs"; fi
}

# Reads over both protocols what scripts/run.sh has written to its Redis.
read_sample_keys() {
    local url=http://127.0.0.1:8080
    prints '{"value":1,"fromCache":false}' curl -sS -i "$url/key/a"
    prints 'Cache-Status: segment-redis-proxy; hit; ttl=' curl -sS -i "$url/key/a"
    prints '{"value":1,"fromCache":true}' curl -sS "$url/key/a"
    prints 2 curl -sS "$url/raw/b"
    prints '{"error":"key not found"}' curl -sS "$url/key/nothing"
    # --no-raw prints as on a terminal.
    prints $'1) "1"\n2) "2"\n3) (nil)' redis-cli --no-raw -p 8080 MGET a b nothing
    prints 'this proxy is read-only' redis-cli --no-raw -p 8080 SET a 2
}

# Clones the repository in the container and follows README.
follow_readme() {
    local first
    git clone --quiet --bare . "$temporary/repository.git"
    docker cp "$temporary/repository.git" "$container:/repository.git" >/dev/null
    inside git clone --quiet /repository.git "$clone"
    first=$(inside awk '/^```/ { is_code = !is_code; next } is_code' "$clone/README.md" | grep -o 'scripts/[a-z-]*\.sh' | head -n 1)
    [ "$first" = scripts/run.sh ] || fail "README's first command is $first"
    say "$first"
    start run "cd $clone && exec $first"
    # The script prints them after its own check, which may come later than the first answer.
    wait_until 10 "$first prints what to try" grep -q 'in a browser' "$temporary/run.log"
    grep -A 9 'Try it' "$temporary/run.log"
    read_sample_keys
    stop
    if inside grep -l redis-server /proc/[0-9]*/comm 2>/dev/null; then fail "$first has not stopped its Redis"; fi
}

# Unpacks the archive in the container, starts two Redis servers and the binary.
run_packaged_binary() {
    local archive
    # Built here: the packages of scripts/package-test.sh are the same and take no second build.
    scripts/package.sh --output "$temporary/packages" >/dev/null
    archive=$(cd "$temporary/packages" && echo *.tar.gz)
    inside mkdir /unpacked
    docker cp "$temporary/packages/." "$container:/unpacked" >/dev/null
    inside sh -c "cd /unpacked && sha256sum --check $archive.sha256 && tar --strip-components=1 -xzf $archive"
    inside redis-server --port 6379 --save '' --daemonize yes >/dev/null
    inside redis-server --port 6380 --save '' --requirepass right --daemonize yes >/dev/null
    wait_until 10 "Redis answers" inside redis-cli mset a 1 b 2 >/dev/null
    prints "$name " "/unpacked/$name" --version
    start packaged "exec env REDIS_HOST=127.0.0.1 PROXY_HOST=127.0.0.1 CACHE_SIZE=1000 /unpacked/$name"
    read_sample_keys
    stop
}

# Runs `check` in the container with further variables. Prints its output, then its exit code.
check_with() {
    local code=0
    docker exec --env REDIS_HOST=127.0.0.1 --env PROXY_HOST=127.0.0.1 --env CACHE_SIZE=1000 "${@/#/--env=}" \
        "$container" "/unpacked/$name" check 2>&1 || code=$?
    echo "$code"
}

# Removes what differs from run to run: numbers and the width of columns.
normalize() { sed -E 's/[0-9]+/0/g; s/[[:space:]]+/ /g'; }

# Prints what the document quotes: lines of text blocks, and code in other lines. Short quotes are
# left out: they are in many messages.
list_quotes() {
    awk '/^```/ { is_text = /^```text/; is_code = !is_code; next } is_text' "$troubleshooting"
    # shellcheck disable=SC2016 # backticks of Markdown
    awk '/^```/ { is_code = !is_code; next } !is_code' "$troubleshooting" | grep -o '`[^`]\{20,\}`' | tr -d '`'
}

# Fails unless the document quotes a line of a message. `...` in a quote stands for any text.
expect_quoted() {
    local line=$1 quote
    for quote in "${quotes[@]}"; do
        # shellcheck disable=SC2053 # a pattern
        [[ $line != *$quote* ]] || return 0
    done
    fail "$troubleshooting does not quote: $line"
}

# Runs `check` with each wrong configuration, and looks for each line about a problem in the
# document.
check_messages() {
    local right code variables expected output line count=0
    right=$(check_with)
    echo "$right"
    [[ ${right##*$'\n'} == 0 && $right != *$'\n'warning* ]] || fail "check of a right configuration"
    # Every character of a quote counts for itself, except the dots.
    mapfile -t quotes < <(list_quotes | normalize | sed -E 's/[][*?\\]/\\&/g; s/\.\.\.+/*/g')
    while IFS= read -r line; do
        [ -n "$line" ] || continue
        expected=${line#* => } line=${line% => *} code=${line%% *} variables=${line#* }
        # shellcheck disable=SC2086 # the variables are several words
        output=$(check_with $variables)
        printf '$ %s %s check\n%s\n' "$variables" "$name" "$output"
        [ "${output##*$'\n'}" = "$code" ] || fail "exit code $code expected"
        [[ $output == *"$expected"* ]] || fail "the message does not contain: $expected"
        normalize <<<"$output" | grep -E "^(warning|failed|$name:) " >"$temporary/message" || fail "no message"
        while IFS= read -r line; do expect_quoted "$line"; done <"$temporary/message"
        count=$((count + 1))
    done <<<"$cases"
    [ "$count" -ge 10 ] || fail "only $count configurations"
}

need git:git
find_toolchain
build_base
passed=()
while IFS= read -r variable; do passed+=(--env "$variable"); done < <(compgen -e CARGO_PROFILE_RELEASE_ || true)
start_container --volume "$toolchain:/usr/local/rust:ro" "${passed[@]}" \
    --env PATH=/usr/local/rust/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
say "clone"
follow_readme
say "the packaged binary"
run_packaged_binary
say "wrong configurations"
check_messages
say "passed in $SECONDS s"
