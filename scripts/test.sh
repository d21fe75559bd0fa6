#!/usr/bin/env bash
# Runs all checks of the repository.
#
#     scripts/test.sh            all of them, in 14 minutes on two processors in a fresh clone
#     scripts/test.sh --quick    format, style, lints and tests, in 90 seconds once they are built
#
# The further checks of a full run: the soak test for a minute, the fuzzer for a few seconds, some
# cases of the benchmark for a second, and redis-py's own tests of strings. If a docker engine
# answers, the packages and a newcomer's first commands are tested in containers. It prints the
# duration of each stage.
#
# Needs Debian or a derivative, and a Rust toolchain. Needs root or sudo to install missing
# packages. Where systemd runs, Debian starts redis-server, nginx, webdis, varnish, squid and
# haproxy as services once they are installed. No test needs them: stop those that you do not want
# with `systemctl disable --now`.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/need.sh
. scripts/need.sh

quick=
case $* in
    '') ;;
    --quick) quick=1 ;;
    -h | --help) sed -n '2,/^set /{ s/^# \{0,1\}//; /^set /!p; }' scripts/test.sh; exit ;;
    *) echo "usage: scripts/test.sh [--quick]" >&2; exit 2 ;;
esac

# Runs a command and prints how long it took.
stage() {
    local name=$1 began=$SECONDS
    shift
    echo "== $name" >&2
    "$@"
    echo "== $name: $((SECONDS - began)) s" >&2
}

logs=$target_directory/test
declare -A background=()
# Starts a command in the background, in a process group of its own. Its output goes to a file.
start() {
    local name=$1
    shift
    set -m
    "$@" >"$logs/$name.log" 2>&1 </dev/null 9>&- &
    background[$name]=$!
    set +m
}

# Waits for a command in the background and prints its output. Returns its exit code.
finish() {
    local name=$1 code=0
    wait "${background[$name]}" || code=$?
    unset "background[$name]"
    cat "$logs/$name.log"
    [ "$code" = 0 ] || echo "== $name failed with exit code $code" >&2
    return "$code"
}

# Stops the commands in the background. Called by the traps.
#
# shellcheck disable=SC2317,SC2329
stop() {
    local status=$?
    trap '' INT TERM
    trap - EXIT
    for process in ${background[@]+"${background[@]}"}; do
        kill -- "-$process" 2>/dev/null || true
        wait "$process" 2>/dev/null || true
    done
    exit "$status"
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# All packages at once: apt-get does not run twice at the same time.
need redis-server:redis-server redis-cli:redis-tools strace:strace python3:python3 cc:build-essential \
    c++:build-essential make:build-essential promtool:prometheus chromium:chromium logrotate:logrotate \
    systemd-analyze:systemd varnishd:varnish nginx:nginx squid:squid curl:curl ip:iproute2 unshare:util-linux \
    openssl:openssl haproxy:haproxy nutcracker:nutcracker
[ -n "$quick" ] || need wrk:wrk taskset:util-linux webdis:webdis git:git debootstrap:debootstrap \
    /usr/lib/nginx/modules/ngx_http_lua_module.so:libnginx-mod-http-lua \
    /usr/share/lua/5.1/nginx/redis.lua:lua-nginx-redis
python3 -c 'import ensurepip' 2>/dev/null || need ensurepip:python3-venv
mkdir -p "$logs"
exec 9>"$logs/lock"
flock --nonblock 9 || { echo "scripts/test.sh: another run uses $logs" >&2; exit 1; }
# The tests open thousands of connections, and the usual limit is 1,024 descriptors.
ulimit -n "$(ulimit -Hn)"

check_format() {
    cargo fmt --check
    cargo fmt --check --manifest-path fuzz/Cargo.toml
}

# The allocator is built from C. Of its libraries only this one is linked, and the size of its debug
# information costs more time than the code.
build() {
    MAKEFLAGS='STATIC_LIBS=lib/libjemalloc_pic.a EXTRA_CFLAGS=-g0' "$@"
}

# Runs a command whose release build is not optimized, which takes half the time. For tests of
# packages and instructions, not of speed.
unoptimized() {
    CARGO_PROFILE_RELEASE_OPT_LEVEL=0 CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
        CARGO_PROFILE_RELEASE_DEBUG=false build "$@"
}

# Both sets of features. Without `tls` no crate of it may be left.
lint() {
    build cargo clippy --locked --all-targets -- -D warnings
    build cargo clippy --locked --lib --bins --no-default-features -- -D warnings
    if cargo tree --locked --edges normal --no-default-features | grep -wE 'rustls|ring|webpki-roots'; then
        echo "a build without the feature tls depends on the crates above" >&2
        return 1
    fi
}

# The tests of the connections to Redis, over each transport. Those of `transport` select their own,
# those of `failover` need two addresses.
test_transports() {
    cargo test --locked --test e2e_redis -- --test-threads=8
    local transport
    for transport in tls unix; do
        echo "over $transport"
        REDIS_TRANSPORT=$transport cargo test --locked --test e2e_redis -- --test-threads=8 --skip transport:: --skip failover::
    done
}

# Tests without I/O take processor time, most end-to-end tests wait: so they run side by side, and
# more of them than there are processors. Those of e2e_load assert on memory and time, those of
# e2e_nodes start up to 60 servers. They run alone.
run_tests() {
    local path name others=()
    for path in tests/*.rs tests/*/main.rs; do
        name=${path%/main.rs} name=$(basename "${name%.rs}")
        case $name in
            model | simulation | e2e_redis | e2e_nodes | e2e_load) ;;
            *) others+=(--test "$name") ;;
        esac
    done
    start models nice cargo test --locked --lib --bins --test model --test simulation
    start without_tls nice cargo test --locked --lib --no-default-features
    start e2e_redis test_transports
    cargo test --locked "${others[@]}" -- --test-threads=4
    finish e2e_redis
    finish models
    finish without_tls
    # Most of the time these wait for servers that fail over.
    cargo test --locked --test e2e_nodes -- --test-threads=8
    cargo test --locked --test e2e_load -- --test-threads=4
    cargo test --locked --doc
}

if [ -n "$quick" ]; then
    start install need_python_packages
else
    # With the suite, which is used in the end.
    start install scripts/foreign.sh --install
fi
stage style scripts/style.py
stage format check_format
stage lint lint
stage build build cargo test --locked --no-run
stage install finish install
stage tests run_tests
[ -z "$quick" ] || exit 0

# None of these depends on the speed of the machine. The soak test takes a minute in any case, and
# its load is nicer than the fuzzer. All use the binary that the tests have used, with checks for
# overflow. The containers need binaries of their own, and share one bare Debian.
start soak scripts/load.sh --minutes 1 --profile dev
containers=()
if docker info >/dev/null 2>&1; then
    containers=(package newcomer)
    for name in "${containers[@]}"; do start "$name" unoptimized nice "scripts/$name-test.sh"; done
else
    echo "scripts/package-test.sh and scripts/newcomer-test.sh are skipped: no docker engine answers" >&2
fi
stage fuzz scripts/fuzz.sh 5
if [ "$(nproc)" -ge 2 ]; then
    # Every server starts and is measured. The figures mean nothing.
    cases=hit,half-16,1k-mget-100,resp-1,http
    stage bench scripts/bench.sh --profile dev --peers-only --only "$cases" --rounds 1 --seconds 1
else
    echo "scripts/bench.sh is skipped: it needs two processors" >&2
fi
stage soak finish soak
stage foreign scripts/foreign.sh --quick
for name in ${containers[@]+"${containers[@]}"}; do stage "$name" finish "$name"; done
echo "== all checks passed in $SECONDS s" >&2
