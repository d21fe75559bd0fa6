# Functions that install what the other scripts need, and find what Cargo built. Sourced by them.
#
# shellcheck shell=bash

# Absolute path of Cargo's target directory, also if CARGO_TARGET_DIR or `build.target-dir` of a
# Cargo configuration names another one. Logs, reports and Python packages are there too. A test of
# a running proxy works without Cargo.
target_directory=$(cargo metadata --no-deps --offline --format-version 1 2>/dev/null |
    sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p') || true
: "${target_directory:=$(realpath --canonicalize-missing "${CARGO_TARGET_DIR:-target}")}"

#     need COMMAND:PACKAGE...
#     need /PATH/TO/FILE:PACKAGE...
#
# Installs the package of each command or file that is missing, as root or with sudo.
need() {
    local pair packages=() as_root=()
    for pair in "$@"; do
        # PATH may lack /usr/sbin.
        command -v "${pair%%:*}" >/dev/null || [ -x "/usr/sbin/${pair%%:*}" ] || [[ $pair == /* && -e ${pair%%:*} ]] ||
            packages+=("${pair##*:}")
    done
    [ "${#packages[@]}" -gt 0 ] || return 0
    [ "$(id -u)" = 0 ] || as_root=(sudo)
    if [ "${#as_root[@]}" -gt 0 ] && ! command -v sudo >/dev/null; then
        echo "missing packages, to be installed by root: apt-get install ${packages[*]}" >&2
        return 1
    fi
    "${as_root[@]}" apt-get update
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${packages[@]}"
}

# Installs the Python packages of the tests and of scripts/foreign.sh into target/python.
need_python_packages() {
    local requirements=(tests/requirements.txt scripts/foreign/requirements.txt) python=$target_directory/python
    if cat "${requirements[@]}" | cmp -s - "$python/installed"; then return; fi
    # Debian has ensurepip in its own package, without a command.
    python3 -c 'import ensurepip' 2>/dev/null || need ensurepip:python3-venv
    python3 -m venv --clear "$python"
    "$python/bin/pip" install --quiet --disable-pip-version-check "${requirements[@]/#/--requirement=}"
    cat "${requirements[@]}" >"$python/installed"
}

# Prints the directory of the binaries that Cargo builds with a profile.
build_directory() {
    case $1 in
        dev) echo "$target_directory/debug" ;;
        *) echo "$target_directory/$1" ;;
    esac
}
