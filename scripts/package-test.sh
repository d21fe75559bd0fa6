#!/usr/bin/env bash
# Installs, upgrades, removes and purges the Debian package in a container, and checks the archive.
#
# The container is a bare Debian without systemd. There the script starts the binary with the
# command, variables and user of the unit. Then it repeats the life of the package with a substitute
# for systemctl that records its calls.
#
# Needs a docker engine on this machine and a Rust toolchain. Needs no image registry. Needs root or
# sudo to build the container's Debian and to install missing packages.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/container.sh
. scripts/container.sh

trap clean_up_containers EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

name=segment-redis-proxy
defaults=/etc/default/$name
unit=/lib/systemd/system/$name.service
# Version of the upgrade, above any release.
later=1000.0.0
# Files of the package that are not removed without a purge.
configuration=("$defaults" "/etc/logrotate.d/$name")
# Files of the package with their modes.
files=("755 /usr/bin/$name" "644 $unit" "640 $defaults" "644 /etc/logrotate.d/$name"
    "644 /usr/share/man/man8/$name.8.gz" "644 /usr/share/doc/$name/copyright" "644 /usr/share/doc/$name/changelog.gz"
    "644 /usr/share/doc/$name/deploy/prometheus/alerts.yml")

# Fails unless a command in the container succeeds.
expect() { inside "$@" >/dev/null || fail "$*"; }
# Fails if a file exists in the container.
expect_absent() {
    local path
    for path in "$@"; do
        if inside test -e "$path" || inside test -L "$path"; then fail "$path exists"; fi
    done
}

# Installs a package, with the package's output on failure.
install() {
    inside env DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet --no-install-recommends "/packages/$1" \
        >"$temporary/apt.log" 2>&1 || { cat "$temporary/apt.log" >&2; fail "apt-get install $1"; }
    # A maintainer script that ignores an error still prints it.
    if grep -Ei 'error|failed|not found' "$temporary/apt.log" >&2; then fail "apt-get install $1 prints errors"; fi
}

# Removes or purges the package.
remove() {
    inside env DEBIAN_FRONTEND=noninteractive apt-get "$1" --yes --quiet "$name" >"$temporary/apt.log" 2>&1 ||
        { cat "$temporary/apt.log" >&2; fail "apt-get $1"; }
}

# Checks files, modes, owner and state of the installed package of a version.
check_installed() {
    local file installed
    # shellcheck disable=SC2016 # dpkg-query expands these
    installed=$(inside dpkg-query --show --showformat '${Version} ${db:Status-Abbrev}' "$name")
    [ "$installed" = "$1 ii " ] || fail "the installed version is $installed"
    for file in "${files[@]}"; do
        [ "$(inside stat --format '%a %U:%G' "${file#* }")" = "${file%% *} root:root" ] || fail "mode of ${file#* }"
    done
    [ "$(inside "$name" --version)" = "$name $program_version" ] || fail "$name --version"
    # systemd starts the service at boot if it is installed later.
    expect test -L "/etc/systemd/system/multi-user.target.wants/$name.service"
    expect_absent "/etc/systemd/system/$name.service" "$defaults.dpkg-new" "$defaults.dpkg-dist" "$defaults.dpkg-old"
}

# Starts the program in the container as the unit says, as another user and without capabilities.
# The later of two values for a variable counts, as in systemd. Prints its process id.
start_as_unit() {
    inside_with_input bash -s - "$unit" <<'EOF'
        set -euo pipefail
        unit=$1
        value_of() { sed -n "s/^$1=//p" "$unit"; }
        mapfile -t variables < <(value_of Environment | tr ' ' '\n')
        file=$(value_of EnvironmentFile)
        mapfile -O "${#variables[@]}" -t variables < <(grep -E '^[A-Z_]+=' "${file#-}")
        read -ra command < <(value_of ExecStart)
        ulimit -Sn 1024
        env -i "${variables[@]}" setpriv --reuid 65534 --regid 65534 --clear-groups --no-new-privs \
            --inh-caps=-all --bounding-set=-all "${command[@]}" >/tmp/proxy.log 2>&1 </dev/null &
        echo "$!"
EOF
}

# Returns true if a path of the proxy in the container has a status. Leaves the body in `body`.
has_status() {
    local answer
    answer=$(inside curl --silent --max-time 10 --write-out '\n%{http_code}' "http://127.0.0.1:8080$2") || return 1
    body=${answer%$'\n'*}
    [ "${answer##*$'\n'}" = "$1" ]
}

# Fails unless a path has status 200 and a body.
expect_body() {
    has_status 200 "$1" || fail "$1: $body"
    [ "$body" = "$2" ] || fail "$1: $body"
}

# Runs the command that the file of settings recommends.
check_settings() {
    local command
    command=$(inside sed -n 's/^# *sudo \(sh -c .*\)/\1/p' "$defaults")
    [ -n "$command" ] || fail "$defaults has no command to test it"
    expect sh -c "$command"
}

# Starts the proxy as the unit would, reads a key over HTTP, and stops the proxy. The capacity in
# its metrics shows which settings it has read.
check_service() {
    local capacity=$1 process
    process=$(start_as_unit)
    expect test -d "/proc/$process"
    wait_until 30 "the proxy is ready" has_status 200 /readyz
    expect_body /key/a '{"value":1,"fromCache":false}'
    expect_body /key/a '{"value":1,"fromCache":true}'
    expect_body /raw/a 1
    has_status 200 /metrics || fail "/metrics: $body"
    grep -x "segment_cache_capacity_entries $capacity" <<<"$body" || fail "the capacity is not $capacity"
    [ "$(inside stat --format %u "/proc/$process")" = 65534 ] || fail "the proxy does not run as another user"
    # The unit's ExecReload and stop signal.
    expect bash -c "kill -HUP $process"
    has_status 200 /healthz || fail "/healthz after SIGHUP: $body"
    expect bash -c "kill -TERM $process"
    wait_until 15 "the proxy stops" has_ended "$process"
}
has_ended() { ! inside test -d "/proc/$1"; }

# Installs, upgrades, removes, installs again and purges, and checks files after each step.
check_life() {
    install "$first"
    check_installed "$version"
    check_settings
    check_service 100000
    # As an administrator would, with a variable that the file sets already.
    inside sed -i 's/^CACHE_SIZE=.*/CACHE_SIZE=1234/' "$defaults"
    install "$second"
    check_installed "$later"
    check_service 1234

    remove remove
    expect_absent "/usr/bin/$name" "$unit" "/usr/share/man/man8/$name.8.gz" "/usr/share/doc/$name"
    expect grep -x CACHE_SIZE=1234 "$defaults"
    expect test -f "${configuration[1]}"
    install "$second"
    check_installed "$later"
    expect grep -x CACHE_SIZE=1234 "$defaults"
    remove remove

    # Logs of the service, where systemd puts those of a dynamic user.
    inside sh -c "mkdir -p /var/log/private/$name && ln -s private/$name /var/log/$name"
    remove purge
    left=$(inside find / -xdev -name "*$name*" -not -path '/packages/*' -not -path '/proc/*')
    [ -z "$left" ] || fail "left after a purge: $left"
}

# Repeats the life of the package with a substitute for systemctl, and compares the calls. Each line
# has the step, and what systemd is asked to do to the service.
check_calls() {
    inside_with_input sh -c 'mkdir -p /run/systemd/system && cat >/usr/bin/systemctl && chmod 755 /usr/bin/systemctl' <<'EOF'
#!/bin/sh
echo "$*" >>/tmp/calls
case "$*" in
    *is-enabled*) echo enabled ;;
esac
EOF
    local step calls expected
    while read -r step expected; do
        inside sh -c ': >/tmp/calls'
        case $step in
            install) install "$first" ;;
            upgrade) install "$second" ;;
            again) install "$second" ;;
            *) remove "$step" ;;
        esac
        # Without queries of the state. deb-systemd-helper repeats the reload.
        calls=$(inside sed -nE "s/^(.* )?(daemon-reload|(start|stop|restart|try-restart) $name.service)\$/\2/p" /tmp/calls |
            sed "s/ $name.service//" | uniq | tr '\n' ' ')
        [ "$calls" = "$expected " ] || fail "$step calls systemctl: $calls, expected: $expected"
        echo "$step: $calls"
    done <<'EOF'
install daemon-reload start
upgrade daemon-reload try-restart
remove stop daemon-reload
again daemon-reload start
purge stop daemon-reload
EOF
    inside rm -r /run/systemd /usr/bin/systemctl
}

# Both at the same time: one waits for the network, the other for the processor.
say "packages"
mkdir "$temporary/packages"
scripts/package.sh --output "$temporary/packages" >"$temporary/package.log" &
package=$!
build_base
wait "$package" || fail "scripts/package.sh"
cat "$temporary/package.log"
archive=$(cd "$temporary/packages" && echo ./*.tar.gz)
first=$(cd "$temporary/packages" && echo *.deb)
version=${first#*_} version=${version%_*}
program_version=$(sed -n 's/^version = "\(.*\)"$/\1/p; T; q' Cargo.toml)

say "checksums, same bytes from the same binary"
(cd "$temporary/packages" && sha256sum --check ./*.sha256) || fail "checksums"
tar -C "$temporary" -xzf "$temporary/packages/$archive"
binary=$(echo "$temporary/$name"-*/"$name")
for directory in prometheus grafana kubernetes; do
    diff -r "deploy/$directory" "${binary%/*}/deploy/$directory" || fail "deploy/$directory in the archive"
done
for step in again later; do
    mkdir "$temporary/$step"
    options=()
    [ "$step" = again ] || options=(--version "$later")
    scripts/package.sh --binary "$binary" --output "$temporary/$step" "${options[@]}" >/dev/null
done
diff -r "$temporary/packages" "$temporary/again" || fail "the packages differ from one run to the next"
second=$(cd "$temporary/later" && echo *.deb)
"$binary" --version
if command -v lintian >/dev/null; then
    say "lintian"
    lintian --fail-on error --info "$temporary/packages/$first"
fi

start_container --hostname package-test
inside mkdir /packages
for file in "$temporary/packages/$first" "$temporary/later/$second"; do
    docker cp "$file" "$container:/packages/" >/dev/null
done
say "Redis in the container"
inside sh -c 'apt-get update && apt-get install --yes --no-install-recommends redis-server' >"$temporary/apt.log" 2>&1 ||
    { tail "$temporary/apt.log" >&2; fail "redis-server"; }
inside redis-server --daemonize yes --save '' >/dev/null
wait_until 10 "Redis answers" inside redis-cli set a 1
say "without systemd"
check_life
say "with systemd"
check_calls
say "passed in $SECONDS s"
