# Functions that build and run containers without an image registry. Sourced by other scripts.
#
# shellcheck shell=bash
# shellcheck source=scripts/need.sh
. scripts/need.sh

as_root=()
[ "$(id -u)" = 0 ] || as_root=(sudo)
# Everything that `clean_up_containers` removes.
temporary=$(mktemp -d)
containers=() images=()

# Prints the title of a step.
say() { echo "== $*"; }
# Prints a message and exits with 1.
fail() { echo "FAILED: $*" >&2; exit 1; }

# Removes the containers, images and files that these functions created.
clean_up_containers() {
    [ "${#containers[@]}" = 0 ] || docker rm --force --volumes "${containers[@]}" >/dev/null || true
    [ "${#images[@]}" = 0 ] || docker rmi "${images[@]}" >/dev/null || true
    "${as_root[@]}" rm -rf "$temporary"
}

# Installs a small Debian with packages (comma-separated) into a directory.
bootstrap() {
    need debootstrap:debootstrap
    mkdir -p "$temporary/debootstrap"
    "${as_root[@]}" env PATH="$PATH:/usr/sbin:/sbin" \
        debootstrap --variant=minbase --cache-dir="$temporary/debootstrap" --include="$2" bookworm "$1" \
        >"$temporary/debootstrap.log" || { tail -n 20 "$temporary/debootstrap.log" >&2; fail "debootstrap"; }
    "${as_root[@]}" rm -rf "$1"/var/cache/apt/archives/*.deb "$1"/var/lib/apt/lists
    # Behind a proxy that intercepts TLS the machine trusts authorities that Debian's package lacks.
    if [ -f /etc/ssl/certs/ca-certificates.crt ] && [ -d "$1/etc/ssl/certs" ]; then
        "${as_root[@]}" cp /etc/ssl/certs/ca-certificates.crt "$1/etc/ssl/certs/ca-certificates.crt"
    fi
}

# Writes a directory as a tar archive to standard output, and removes the directory.
pack() {
    "${as_root[@]}" tar -C "$1" --numeric-owner -c .
    "${as_root[@]}" rm -rf "$1"
}

# Sets `base` to the id of an image of a bare Debian with git and curl. The image is removed at the
# end. Its archive stays in Cargo's target directory for a week, for the next script.
build_base() {
    local directory=$target_directory/container
    local archive=$directory/debian.tar
    mkdir -p "$directory"
    # Two scripts at the same time build it once.
    exec 8>"$directory/lock"
    flock 8
    if [ -z "$(find "$archive" -mtime -7 2>/dev/null)" ]; then
        say "bare Debian"
        bootstrap "$temporary/base" ca-certificates,curl,git
        pack "$temporary/base" >"$archive.new"
        mv "$archive.new" "$archive"
    fi
    exec 8>&-
    base=$(docker import "$archive")
    images+=("$base")
}

# Sets `toolchain` to the directory of the Rust toolchain, which works in another Debian too.
find_toolchain() {
    toolchain=$(rustc --print sysroot)
    # A toolchain of the distribution has no directory of its own.
    if [ "$toolchain" = /usr ] || [ ! -x "$toolchain/bin/cargo" ]; then fail "a toolchain of rustup is needed"; fi
}

# Starts a container of `base` that waits, with further arguments of docker run. Sets `container`.
# The shell reaps processes that have lost their parents.
start_container() {
    container=$(docker run --detach "$@" "$base" bash -c 'sleep infinity & wait')
    containers+=("$container")
}

# Runs a command in the container, without and with standard input.
inside() { docker exec "$container" "$@"; }
inside_with_input() { docker exec --interactive "$container" "$@"; }

# wait_until SECONDS TEXT COMMAND...: repeats a command until it succeeds, and fails after the time.
wait_until() {
    local seconds=$1 what=$2 deadline=$((SECONDS + $1))
    shift 2
    until "$@"; do
        [ "$SECONDS" -lt "$deadline" ] || fail "timeout after $seconds s: $what"
        sleep 0.2
    done
}
