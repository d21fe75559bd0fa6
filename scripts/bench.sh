#!/usr/bin/env bash
# Measures the proxy against others that could stand in its place, and inside, and says which goals it reaches. Leaves report.md and
# bench.svg in the report's directory; docs/BENCHMARKS.md says how to read them.
#
#   scripts/bench.sh [--rounds N] [--seconds S] [--report DIR] [--only CASE,...] [--peers-only] [--publish]
#
#   --rounds, --seconds   how often each server is measured in each case, and for how long: 5 times for 2 seconds
#   --report              target/bench unless told otherwise
#   --only                some of the cases, by their names in scripts/bench/cases.py, like hit,resp-16
#   --peers-only          without what `cargo bench` measures inside: cache, memory and bad_days, whose tables are in the report too
#   --publish             copies the report of a whole run into docs/BENCHMARKS.md and to docs/bench.svg
#
# It builds the proxy and the floor, and starts them, nginx, webdis and two Redis on free ports of 127.0.0.1, with nothing written
# but in the report's directory. It takes eight minutes, and what `cargo bench` takes; nothing else should run meanwhile. Needs Debian
# (or a relative of it) with two processors and a Rust toolchain; root, or sudo, to install what is missing. Where systemd runs,
# Debian starts nginx, webdis and redis-server as services when they are installed: `systemctl disable --now` those you do not want.
#
# Exit code: 0 done, whether the goals are reached or not; 1 something went wrong, with a line for it; 2 nothing was done, for
# what it says.
set -euo pipefail
cd_from=$PWD
cd "$(dirname "$0")/.."
# shellcheck source=scripts/need.sh
. scripts/need.sh

usage() {
    echo "scripts/bench.sh: $1" >&2
    echo "usage: scripts/bench.sh [--rounds N] [--seconds S] [--report DIR] [--only CASE,...] [--peers-only] [--publish]" >&2
    exit 2
}

mapfile -t all < <(sed -n 's/^    Case("\([^"]*\)".*/\1/p' scripts/bench/cases.py)
rounds=5 seconds=2 directory=target/bench only='' peers_only='' publish=''
while [ "$#" -gt 0 ]; do
    case $1 in
        --rounds | --seconds | --report | --only) [ "$#" -ge 2 ] || usage "$1 needs a value" ;;&
        --rounds) rounds=$2; shift 2 ;;
        --seconds) seconds=$2; shift 2 ;;
        # As whoever called meant it, whatever directory that was in.
        --report) directory=$2; [[ $2 == /* ]] || directory=$cd_from/$2; shift 2 ;;
        --only) only=$2; shift 2 ;;
        --peers-only) peers_only=1; shift ;;
        --publish) publish=1; shift ;;
        -h | --help) sed -n '2,/^set /{ s/^# \{0,1\}//; /^set /!p; }' scripts/bench.sh; exit ;;
        *) usage "what is $1?" ;;
    esac
done
for number in "$rounds" "$seconds"; do
    # wrk counts whole seconds.
    [[ $number =~ ^[1-9][0-9]{0,3}$ ]] || usage "$number is no whole number from 1 to 9999"
done
[ -n "$directory" ] || usage "--report needs a directory"
IFS=, read -ra chosen <<<"${only:-$(IFS=,; echo "${all[*]}")}"
for name in "${chosen[@]}"; do
    [[ " ${all[*]} " == *" $name "* ]] || usage "there is no case $name; there are ${all[*]}"
done
[ -z "$publish" ] || [ -z "$only$peers_only" ] || usage "--publish is for a whole run"
# Ends the report in docs/BENCHMARKS.md.
report_end='<!-- End of the report of scripts/bench.sh; all below is written by hand. -->'
[ -z "$publish" ] || grep -qxF -- "$report_end" docs/BENCHMARKS.md || usage "docs/BENCHMARKS.md has no line $report_end"
[ "$(nproc)" -ge 2 ] || usage "it needs two processors: one for the servers, one for the load"

running=''
# shellcheck disable=SC2317  # it is reached: by the trap
stop() {
    local status=$?
    trap '' INT TERM
    trap - EXIT
    # It ends what it has started itself.
    if [ -n "$running" ]; then
        kill "$running" 2>/dev/null || true
        wait "$running" 2>/dev/null || true
    fi
    exit "$status"
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# In the background, so that a signal to this script is acted on at once. Returns the command's exit code.
run() {
    local code=0
    "$@" &
    running=$!
    wait "$running" || code=$?
    running=
    return "$code"
}

need python3:python3 taskset:util-linux wrk:wrk redis-benchmark:redis-tools redis-server:redis-server nginx:nginx webdis:webdis \
    /usr/lib/nginx/modules/ngx_http_lua_module.so:libnginx-mod-http-lua /usr/share/lua/5.1/nginx/redis.lua:lua-nginx-redis \
    cc:build-essential make:build-essential
logs=$directory/logs
{ mkdir -p "$logs" && [ -w "$logs" ]; } || usage "$directory cannot be written to; take another one by --report"
# Another run would take away what this one is writing.
exec 9>"$directory/lock"
flock --nonblock 9 || usage "another run is writing to $directory; take another one by --report"
rm -f "$directory"/{report.md,bench.svg} "$logs"/{results.json,*.md}
cargo build --release --locked --bins --example floor
# nginx is where only administrators' PATH leads; a thousand connections, of which 1024 descriptors leave too few.
export PATH=$PATH:/usr/sbin PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=scripts/load
ulimit -n "$(ulimit -Hn)"
run python3 scripts/bench/drive.py "$logs" "$rounds" "$seconds" "${chosen[@]}"
code=0
[ -n "$peers_only" ] || run python3 scripts/bench/inside.py "$logs" || code=$?
python3 scripts/bench/report.py "$directory" "$logs"
echo "$directory/report.md, $directory/bench.svg" >&2
if [ -n "$publish" ] && [ "$code" = 0 ]; then
    # The report replaces all up to the line that ends it; what stands below is written by hand.
    below=$(sed "1,\\|^$report_end\$|d" docs/BENCHMARKS.md)
    printf '%s\n' "$(<"$directory/report.md")" '' "$report_end" "$below" >docs/BENCHMARKS.md
    cp "$directory/bench.svg" docs/bench.svg
fi
exit "$code"
