# shellcheck shell=bash
# Sourced by the other scripts.

# need COMMAND:PACKAGE...: installs the Debian packages of those commands that are not there; /path/to/file:PACKAGE of what is
# no command. As root, or by sudo.
need() {
    local pair packages=() as_root=()
    for pair in "$@"; do
        # Not everybody's PATH has the programs of administrators.
        command -v "${pair%%:*}" >/dev/null || [ -x "/usr/sbin/${pair%%:*}" ] || [[ $pair == /* && -e ${pair%%:*} ]] ||
            packages+=("${pair##*:}")
    done
    [ "${#packages[@]}" -gt 0 ] || return 0
    [ "$(id -u)" = 0 ] || as_root=(sudo)
    if [ "${#as_root[@]}" -gt 0 ] && ! command -v sudo >/dev/null; then
        echo "to be installed, by root: apt-get install ${packages[*]}" >&2
        return 1
    fi
    "${as_root[@]}" apt-get update
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${packages[@]}"
}
