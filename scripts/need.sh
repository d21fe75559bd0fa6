# Function that installs missing Debian packages, sourced by the other scripts.
#
# shellcheck shell=bash

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
