#!/usr/bin/env bash
# Builds the images, starts the services of the compose file and tests them from outside.
#
#     PULL=1         pulls missing base images
#     KEEP_BASE=1    keeps the substitute base images and layers, for a faster next run
#     PORT=...       the published port (default 18642)
#
# Needs a docker engine on this machine, docker-compose (or `docker compose`), curl and a Rust
# toolchain of rustup. Needs no image registry: without PULL=1 the script builds substitutes for
# missing base images from Debian's packages and the local toolchain, with root or sudo. It never
# overwrites an existing image.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/container.sh
. scripts/container.sh

rust_image=rust:1-slim-bookworm
redis_image=redis:7-bookworm
build_stage='segment-container-test:build'
substitutes=()

# Empty variables select the compose file's defaults, whatever the shell or a .env file contains.
for variable in REDIS_{HOST,PORT,URL,USERNAME,PASSWORD{,_FILE},DB,CONNECTIONS,TIMEOUT,TRACKING} \
    REDIS_TLS{,_CA,_CERT,_KEY,_NAME} CACHE_{SIZE,BYTES} \
    MAX_VALUE_BYTES STALE_IF_ERROR PROXY_{HOST,SOCKET,SOCKET_MODE} ALLOWED_HOSTS MAX_CONNECTIONS \
    CLIENT_{PASSWORD{,_FILE},BYTES,TIMEOUT,IDLE_TIMEOUT} SHARE_PORT SHUTDOWN_GRACE \
    TLS_{CERT,KEY,CLIENT_CA,REQUIRED} \
    ADMIN ADMIN_{PORT,HOST} ACCESS_LOG LOG_{FILE,FORMAT} WORKERS RUST_LOG; do
    export "$variable="
done
export CACHE_TTL=2.5 PROXY_PORT="${PORT:-18642}" COMPOSE_PROJECT_NAME="segment-container-test-$$"

compose=(docker compose)
docker compose version >/dev/null 2>&1 || compose=(docker-compose)

# Removes the services and the images. Called by the traps.
#
# shellcheck disable=SC2317,SC2329
clean_up() {
    local status=$?
    trap - EXIT
    [ "$status" = 0 ] || "${compose[@]}" logs --tail 50 || true
    "${compose[@]}" down -v --rmi local --timeout 2 || true
    # The substitutes have the names of official images and must not be mistaken for them.
    if [ "${#substitutes[@]}" -gt 0 ] && [ -z "${KEEP_BASE:-}" ]; then
        docker rmi "$build_stage" "${substitutes[@]}" >/dev/null || true
    fi
    clean_up_containers
    exit "$status"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

# Returns true if an image of this name has to be built.
is_missing() {
    if docker image inspect "$1" >/dev/null 2>&1; then return 1; fi
    if [ "${PULL:-}" = 1 ] && docker pull "$1"; then return 1; fi
    return 0
}

# Imports a directory as an image, with further arguments of docker import.
import() {
    local root=$1 name=$2
    shift 2
    pack "$root" | docker import --message "substitute by container-test.sh" "$@" - "$name" >/dev/null
    substitutes+=("$name")
}

# Builds the substitute for the image of Rust.
build_rust_image() {
    local toolchain root=$temporary/rust
    find_toolchain
    bootstrap "$root" ca-certificates,gcc,libc6-dev
    "${as_root[@]}" mkdir "$root/usr/local/rust"
    tar -C "$toolchain" --exclude=./share -c . |
        "${as_root[@]}" tar -C "$root/usr/local/rust" --no-same-owner -x
    import "$root" "$rust_image" \
        --change "ENV PATH=/usr/local/rust/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
}

# Builds the substitute for the image of Redis.
build_redis_image() {
    bootstrap "$temporary/redis" redis-server
    # As in the official image: not root, data in /data, open to its network.
    "${as_root[@]}" mkdir "$temporary/redis/data"
    "${as_root[@]}" chroot "$temporary/redis" chown redis:redis /data
    import "$temporary/redis" "$redis_image" --change "USER redis" --change "WORKDIR /data" --change "VOLUME /data" \
        --change 'CMD ["redis-server", "--protected-mode", "no"]'
}

# Requests a path at the published port, and returns true if the response has a status. Leaves the
# body in $temporary/body.
has_status() {
    local status=$1 path=$2 got
    got=$(curl --silent --show-error --noproxy '*' --max-time 10 --output "$temporary/body" \
        --write-out '%{http_code}' "http://127.0.0.1:$PROXY_PORT$path") || return 1
    [ "$got" = "$status" ]
}

# Prints a field of /proc/PID/status of the proxy.
read_process_status() {
    local id
    id=$(docker inspect -f '{{.State.Pid}}' "$segment")
    awk -v field="$1:" '$1 == field { $1 = ""; print substr($0, 2) }' "/proc/$id/status"
}

# Prints the state of the health check.
health() { docker inspect -f '{{.State.Health.Status}}' "$segment"; }
is_healthy() { [ "$(health)" = healthy ]; }
# Prints start time and exit code of the last health checks.
list_checks() {
    docker inspect -f '{{range .State.Health.Log}}{{.Start}} {{.ExitCode}}{{"\n"}}{{end}}' "$segment" | sed '/^$/d'
}

need curl:curl
if is_missing "$rust_image"; then say "substitute for $rust_image"; build_rust_image; fi
if is_missing "$redis_image"; then say "substitute for $redis_image"; build_redis_image; fi

say "building"
# The classic builder leaves the build stage behind without a name, 1 GB in size. With a name it can
# be removed.
docker build --target build --tag "$build_stage" .
"${compose[@]}" build

say "starting"
"${compose[@]}" up -d segment
segment=$("${compose[@]}" ps -q segment)
redis=$("${compose[@]}" ps -q redis)
begin=$SECONDS
wait_until 60 "the container is healthy" is_healthy
echo "healthy after $((SECONDS - begin)) s"

# The scenario also proves that a static binary in an empty image resolves names with docker's DNS:
# no /etc/hosts there has `segment`, the listening address, or `redis`.
say "the scenario"
"${compose[@]}" run --rm -T tests || fail "the scenario failed with exit code $?"

say "the published port"
has_status 200 /key/a || fail "/key/a"
echo "$(<"$temporary/body")"
[[ $(<"$temporary/body") == '{"value":1,"fromCache":'* ]] || fail "/key/a"
for path in /healthz /readyz /metrics; do
    has_status 200 "$path" || fail "$path: $(cat "$temporary/body")"
done
grep '^segment_requests_total{protocol="http",outcome="hit"} [1-9]' "$temporary/body" ||
    fail "/metrics counts no hits"

say "user, capabilities, root file system, files"
user=$(docker top "$segment" -o pid,uid | awk 'NR == 2 { print $2 }')
[ "$user" = 65534 ] || fail "the proxy runs as user $user"
# From /proc of the process, which needs an engine on the same machine.
for set in CapInh CapPrm CapEff CapBnd CapAmb; do
    value=$(read_process_status "$set")
    [ "$value" = 0000000000000000 ] || fail "the proxy has capabilities: $set is $value"
done
[ "$(read_process_status NoNewPrivs)" = 1 ] || fail "NoNewPrivs is not set"
[ "$(docker inspect -f '{{.HostConfig.ReadonlyRootfs}}' "$segment")" = true ] || fail "the root file system is writable"
# Without directories and the files that the engine mounts into every container.
files=$(docker export "$segment" | tar -t | grep -Ev '/$|^(\.dockerenv|dev/.*|etc/(hostname|hosts|mtab|resolv\.conf))$')
echo "$files"
[ "$files" = segment-redis-proxy ] || fail "the image contains more than the binary"

image=$(docker inspect -f '{{.Image}}' "$segment")
docker image inspect -f '{{.Size}}' "$image" | awk '{ printf "== image size: %.1f MB\n", $1 / 1e6 }'

say "without Redis"
docker stop "$redis" >/dev/null
begin=$SECONDS
wait_until 60 "/readyz has status 503" has_status 503 /readyz
echo "/readyz after $((SECONDS - begin)) s: $(cat "$temporary/body")"
grep -q '"ready":false,"reason":"..*"' "$temporary/body" || fail "/readyz gives no reason"
has_status 200 /healthz || fail "/healthz: $(cat "$temporary/body")"
# The running check may have started with Redis; the one after it did not.
before=$(list_checks | tail -n 1)
has_two_more_checks() {
    [ "$(list_checks | tail -n 2 | head -n 1)" != "$before" ] && [ "$(list_checks | tail -n 1)" != "$before" ]
}
wait_until 60 "two more health checks" has_two_more_checks
is_healthy || fail "without Redis the container is $(health)"
[ "$(list_checks | tail -n 1 | sed 's/.* //')" = 0 ] || fail "without Redis the health check fails: $(list_checks)"
docker start "$redis" >/dev/null
wait_until 60 "/readyz has status 200 again" has_status 200 /readyz

say "stopping"
[ "$(docker inspect -f '{{.Config.StopTimeout}}' "$segment")" = 15 ] ||
    fail "the container lacks the stop timeout of the compose file"
begin=$(date +%s%N)
docker stop "$segment" >/dev/null
milliseconds=$((($(date +%s%N) - begin) / 1000000))
code=$(docker inspect -f '{{.State.ExitCode}}' "$segment")
[ "$code" = 0 ] || fail "docker stop: exit code $code"
echo "docker stop took $milliseconds ms"
# No client was connected, so the shutdown must not use up SHUTDOWN_GRACE.
[ "$milliseconds" -lt 10000 ] || fail "docker stop took $milliseconds ms"
"${compose[@]}" logs --no-color segment
say "passed"
