#!/usr/bin/env bash
# Measures three proxies behind real balancers, with the files of deploy/scale: hit ratio with and
# without hashing, the death of a proxy under load, and a hot key.
#
#     scripts/scale.sh [--scale N] [--report DIR] [--profile NAME]
#
#     --scale     length of the loads; below 1 to see that everything works (default 1)
#     --report    directory for report.md (default target/scale)
#     --profile   Cargo profile of the proxy (default release)
#
# Builds the proxy. Starts Redis, three proxies, HAProxy, nginx and twemproxy on free ports of
# 127.0.0.1, one balancer after another. Takes seven minutes. docs/sizing.md has the report of one
# run. As root, it limits the proxies to a hundredth of a processor for the hot key, so that they
# are the slowest part.
#
# Exit code: 0 passed; 1 failed, with a line for each reason; 2 not started, with the reason. No
# reason to fail depends on the speed of the machine.
#
# Needs Debian or a derivative and a Rust toolchain. Needs root or sudo to install missing packages.
# Where systemd runs, Debian starts redis-server, haproxy and nginx as services once they are
# installed. Stop those that you do not want with `systemctl disable --now`.
set -euo pipefail
cd_from=$PWD
cd "$(dirname "$0")/.."
# shellcheck source=scripts/need.sh
. scripts/need.sh

usage() {
    echo "scripts/scale.sh: $1" >&2
    echo "usage: scripts/scale.sh [--scale N] [--report DIR] [--profile NAME]" >&2
    exit 2
}

scale=1 directory=$target_directory/scale profile=release
while [ "$#" -gt 0 ]; do
    case $1 in
        --scale | --report | --profile) [ "$#" -ge 2 ] || usage "$1 needs a value" ;;&
        --scale) scale=$2; shift 2 ;;
        # Relative to the caller's directory.
        --report) directory=$2; [[ $2 == /* ]] || directory=$cd_from/$2; shift 2 ;;
        --profile) profile=$2; shift 2 ;;
        -h | --help) sed -n '2,/^set /{ s/^# \{0,1\}//; /^set /!p; }' scripts/scale.sh; exit ;;
        *) usage "unknown option $1" ;;
    esac
done
[[ $scale =~ ^(0\.[0-9]{1,3}|[1-9](\.[0-9]{1,3})?)$ ]] || usage "--scale $scale is not a number from 0.001 to 9.999"
[ -n "$directory" ] || usage "--report needs a directory"

measurement=
# Ends the measurement, which ends all processes that it started. Called by the traps.
#
# shellcheck disable=SC2317,SC2329
stop() {
    local status=$?
    trap '' INT TERM
    trap - EXIT
    if [ -n "$measurement" ]; then
        kill "$measurement" 2>/dev/null || true
        wait "$measurement" 2>/dev/null || true
    fi
    exit "$status"
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# A linker, and a C compiler for the allocator.
need python3:python3 redis-server:redis-server haproxy:haproxy nginx:nginx nutcracker:nutcracker \
    cc:build-essential make:build-essential
{ mkdir -p "$directory" && [ -w "$directory" ]; } || usage "$directory is not writable; choose another directory with --report"
# Two runs would overwrite each other's files.
exec 9>"$directory/lock"
flock --nonblock 9 || usage "another run uses $directory; choose another directory with --report"
rm -f "$directory"/report.md "$directory"/*.log "$directory"/*.out
cargo build --locked --profile "$profile"
export PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=scripts/load
# In the background, so that the traps run at once.
python3 scripts/scale/run_scale.py "$(build_directory "$profile")/segment-redis-proxy" "$directory" "$scale" 9>&- &
measurement=$!
code=0
wait "$measurement" || code=$?
measurement=
echo "$directory/report.md" >&2
exit "$code"
