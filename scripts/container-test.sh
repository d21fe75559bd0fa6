#!/usr/bin/env bash
# Builds the images, starts the compose file's services and checks them from outside.
# Needs a docker engine on this machine, docker-compose (or `docker compose`), curl and a Rust toolchain of rustup's; no
# image registry: base images that the engine lacks are stood in for by Debian's packages and the local toolchain (that
# needs root, or sudo). An image that is there is used as it is and never overwritten.
#
#   PULL=1        pull missing base images instead
#   KEEP_BASE=1   leave the stand-ins and the layers built on them; the next run is quicker
#   PORT=...      the port to publish (18642)
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/need.sh

rust_image=rust:1-slim-bookworm
redis_image=redis:7-bookworm
build_stage='segment-container-test:build'
stand_ins=()
temporary=$(mktemp -d)

# Empty means the compose file's default; so neither the shell's variables nor a .env change what is tested.
for variable in REDIS_{HOST,PORT,USERNAME,PASSWORD,DB,CONNECTIONS,TIMEOUT,TRACKING} CACHE_{SIZE,BYTES} MAX_VALUE_BYTES \
    STALE_IF_ERROR PROXY_HOST ALLOWED_HOSTS MAX_CONNECTIONS CLIENT_{BYTES,TIMEOUT,IDLE_TIMEOUT} SHARE_PORT SHUTDOWN_GRACE \
    ADMIN ACCESS_LOG LOG_FILE WORKERS RUST_LOG; do
    export "$variable="
done
export CACHE_TTL=2.5 PROXY_PORT="${PORT:-18642}" COMPOSE_PROJECT_NAME="segment-container-test-$$"

as_root=()
[ "$(id -u)" = 0 ] || as_root=(sudo)
compose=(docker compose)
docker compose version >/dev/null 2>&1 || compose=(docker-compose)

say() { echo "== $*"; }
fail() { echo "FAILED: $*" >&2; exit 1; }

clean_up() {
    local status=$?
    trap - EXIT
    [ "$status" = 0 ] || "${compose[@]}" logs --tail 50 || true
    "${compose[@]}" down -v --rmi local --timeout 2 || true
    # They bear the names of images that others made; nobody should take them for those.
    if [ "${#stand_ins[@]}" -gt 0 ] && [ -z "${KEEP_BASE:-}" ]; then
        docker rmi "$build_stage" "${stand_ins[@]}" >/dev/null || true
    fi
    "${as_root[@]}" rm -rf "$temporary"
    exit "$status"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

# Whether an image of this name has to be made.
missing() {
    if docker image inspect "$1" >/dev/null 2>&1; then return 1; fi
    if [ "${PULL:-}" = 1 ] && docker pull "$1"; then return 1; fi
    return 0
}

# A small Debian with the packages (comma-separated) in a directory.
bootstrap() {
    need debootstrap:debootstrap
    mkdir -p "$temporary/packages"
    "${as_root[@]}" env PATH="$PATH:/usr/sbin:/sbin" \
        debootstrap --variant=minbase --cache-dir="$temporary/packages" --include="$2" bookworm "$1" \
        >"$temporary/debootstrap.log" || { tail -n 20 "$temporary/debootstrap.log" >&2; fail "debootstrap"; }
    "${as_root[@]}" rm -rf "$1"/var/cache/apt/archives/*.deb "$1"/var/lib/apt/lists
}

# The directory becomes an image; further arguments are for docker import.
import() {
    local root=$1 name=$2
    shift 2
    "${as_root[@]}" tar -C "$root" --numeric-owner -c . |
        docker import --message "stand-in by container-test.sh" "$@" - "$name" >/dev/null
    stand_ins+=("$name")
    "${as_root[@]}" rm -rf "$root"
}

rust_stand_in() {
    local toolchain root=$temporary/rust
    toolchain=$(rustc --print sysroot)
    # A toolchain of the distribution shares its directory with everything else.
    if [ "$toolchain" = /usr ] || [ ! -x "$toolchain/bin/cargo" ]; then fail "a toolchain of rustup's is needed"; fi
    bootstrap "$root" ca-certificates,gcc,libc6-dev
    # Behind a proxy that opens TLS, the machine trusts authorities that Debian's package does not know.
    if [ -f /etc/ssl/certs/ca-certificates.crt ]; then
        "${as_root[@]}" cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
    fi
    "${as_root[@]}" mkdir "$root/usr/local/rust"
    tar -C "$toolchain" --exclude=./share -c . |
        "${as_root[@]}" tar -C "$root/usr/local/rust" --no-same-owner -x
    import "$root" "$rust_image" --change "ENV PATH=/usr/local/rust/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
}

redis_stand_in() {
    bootstrap "$temporary/redis" redis-server
    # As in the image it stands for: not root, data in /data, and open to the network it is in.
    "${as_root[@]}" mkdir "$temporary/redis/data"
    "${as_root[@]}" chroot "$temporary/redis" chown redis:redis /data
    import "$temporary/redis" "$redis_image" --change "USER redis" --change "WORKDIR /data" --change "VOLUME /data" \
        --change 'CMD ["redis-server", "--protected-mode", "no"]'
}

# Asks the command after the first two arguments again and again, for so many seconds at most.
wait_until() {
    local seconds=$1 what=$2 deadline=$((SECONDS + $1))
    shift 2
    until "$@"; do
        [ "$SECONDS" -lt "$deadline" ] || fail "not within $seconds s: $what"
        sleep 0.2
    done
}

# Whether the answer for a path at the published port has that status; it is in $temporary/answer then.
answers() {
    local status=$1 path=$2 got
    got=$(curl --silent --show-error --noproxy '*' --max-time 10 --output "$temporary/answer" --write-out '%{http_code}' \
        "http://127.0.0.1:$PROXY_PORT$path") || return 1
    [ "$got" = "$status" ]
}

# What a field of /proc/.../status says of the proxy's process.
of_process() {
    local id
    id=$(docker inspect -f '{{.State.Pid}}' "$segment")
    awk -v field="$1:" '$1 == field { $1 = ""; print substr($0, 2) }' "/proc/$id/status"
}

health() { docker inspect -f '{{.State.Health.Status}}' "$segment"; }
is_healthy() { [ "$(health)" = healthy ]; }
# When each of the last health checks began, and how it ended.
checks() { docker inspect -f '{{range .State.Health.Log}}{{.Start}} {{.ExitCode}}{{"\n"}}{{end}}' "$segment" | sed '/^$/d'; }

need curl:curl
if missing "$rust_image"; then say "standing in for $rust_image"; rust_stand_in; fi
if missing "$redis_image"; then say "standing in for $redis_image"; redis_stand_in; fi

say "building"
# The older builder leaves a stage that is no image behind, 1 GB without a name; with one it can be taken away.
docker build --target build --tag "$build_stage" .
"${compose[@]}" build

say "starting"
"${compose[@]}" up -d segment
segment=$("${compose[@]}" ps -q segment)
redis=$("${compose[@]}" ps -q redis)
begin=$SECONDS
wait_until 60 "the health check says healthy" is_healthy
echo "healthy after $((SECONDS - begin)) s"

# That it passes shows too that a static binary in an empty image asks docker's DNS: `segment`, where it listens, and
# `redis` are names that no /etc/hosts there holds.
say "the scenario"
"${compose[@]}" run --rm -T tests || fail "the scenario ended with $?"

say "the published port"
answers 200 /key/a || fail "/key/a"
echo "$(<"$temporary/answer")"
[[ $(<"$temporary/answer") == '{"value":1,"fromCache":'* ]] || fail "/key/a"
for path in /healthz /readyz /metrics; do
    answers 200 "$path" || fail "$path: $(cat "$temporary/answer")"
done
grep '^segment_requests_total{protocol="http",outcome="hit"} [1-9]' "$temporary/answer" || fail "/metrics tells of no requests"

say "user, capabilities, root file system, files"
user=$(docker top "$segment" -o pid,uid | awk 'NR == 2 { print $2 }')
[ "$user" = 65534 ] || fail "it runs as $user"
# As the kernel sees it. This needs an engine on the same machine.
for set in CapInh CapPrm CapEff CapBnd CapAmb; do
    [ "$(of_process "$set")" = 0000000000000000 ] || fail "it has capabilities: $set is $(of_process "$set")"
done
[ "$(of_process NoNewPrivs)" = 1 ] || fail "it could gain privileges"
[ "$(docker inspect -f '{{.HostConfig.ReadonlyRootfs}}' "$segment")" = true ] || fail "its root can be written to"
# Directories, and what the engine mounts into every container, are left out.
files=$(docker export "$segment" | tar -t | grep -Ev '/$|^(\.dockerenv|dev/.*|etc/(hostname|hosts|mtab|resolv\.conf))$')
echo "$files"
[ "$files" = segment-redis-proxy ] || fail "the image holds more than the binary"

image=$(docker inspect -f '{{.Image}}' "$segment")
docker image inspect -f '{{.Size}}' "$image" | awk '{ printf "== the image has %.1f MB\n", $1 / 1e6 }'

say "without Redis"
docker stop "$redis" >/dev/null
begin=$SECONDS
wait_until 60 "/readyz says 503" answers 503 /readyz
echo "/readyz after $((SECONDS - begin)) s: $(cat "$temporary/answer")"
grep -q '"ready":false,"reason":"..*"' "$temporary/answer" || fail "/readyz gives no reason"
answers 200 /healthz || fail "/healthz: $(cat "$temporary/answer")"
# The check that runs now began perhaps before; the one after it did not.
before=$(checks | tail -n 1)
two_more() { [ "$(checks | tail -n 2 | head -n 1)" != "$before" ] && [ "$(checks | tail -n 1)" != "$before" ]; }
wait_until 60 "two more health checks" two_more
is_healthy || fail "without Redis it is $(health)"
[ "$(checks | tail -n 1 | sed 's/.* //')" = 0 ] || fail "without Redis its health checks fail: $(checks)"
docker start "$redis" >/dev/null
wait_until 60 "/readyz says 200 again" answers 200 /readyz

say "stopping"
[ "$(docker inspect -f '{{.Config.StopTimeout}}' "$segment")" = 15 ] || fail "the engine does not wait as long as it is told to"
begin=$(date +%s%N)
docker stop "$segment" >/dev/null
milliseconds=$((($(date +%s%N) - begin) / 1000000))
code=$(docker inspect -f '{{.State.ExitCode}}' "$segment")
[ "$code" = 0 ] || fail "docker stop ended it with $code"
echo "docker stop took $milliseconds ms"
# Nobody was connected: only who has clients that are slow needs SHUTDOWN_GRACE.
[ "$milliseconds" -lt 10000 ] || fail "docker stop took $milliseconds ms"
"${compose[@]}" logs --no-color segment
say "passed"
