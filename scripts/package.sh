#!/usr/bin/env bash
# Builds a static binary and packs it as an archive and as a Debian package.
#
#     scripts/package.sh [--output DIR] [--binary FILE] [--version VERSION]
#
#     --output     directory for the packages (default target/package)
#     --binary     packs this binary instead of building one
#     --version    version of the packages (default that of Cargo.toml)
#
# Writes segment-redis-proxy-VERSION-TARGET.tar.gz and segment-redis-proxy_VERSION_ARCHITECTURE.deb,
# each with a .sha256 file. The same binary and commit give the same bytes. SOURCE_DATE_EPOCH
# overrides the time of the last commit.
#
# Needs Debian or a derivative, and a Rust toolchain. Needs root or sudo to install missing
# packages.
set -euo pipefail
cd_from=$PWD
cd "$(dirname "$0")/.."
# shellcheck source=scripts/need.sh
. scripts/need.sh

# Prints a message and exits with 1.
fail() { echo "scripts/package.sh: $*" >&2; exit 1; }

usage() {
    echo "scripts/package.sh: $1" >&2
    echo "usage: scripts/package.sh [--output DIR] [--binary FILE] [--version VERSION]" >&2
    exit 2
}

name=segment-redis-proxy
output=$target_directory/package binary='' version=''
while [ "$#" -gt 0 ]; do
    case $1 in
        --output | --binary | --version) [ -n "${2:-}" ] || usage "$1 needs a value" ;;&
        # Relative to the caller's directory.
        --output) output=$2; [[ $2 == /* ]] || output=$cd_from/$2; shift 2 ;;
        --binary) binary=$2; [[ $2 == /* ]] || binary=$cd_from/$2; shift 2 ;;
        --version) version=$2; shift 2 ;;
        -h | --help) sed -n '2,/^set /{ s/^# \{0,1\}//; /^set /!p; }' scripts/package.sh; exit ;;
        *) usage "unknown option $1" ;;
    esac
done

need cc:build-essential make:build-essential strip:binutils dpkg-deb:dpkg
[ -n "$version" ] || version=$(sed -n 's/^version = "\(.*\)"$/\1/p; T; q' Cargo.toml)
[[ $version =~ ^[0-9][0-9A-Za-z.+~]*$ ]] || usage "$version is not a version"
host=$(rustc -vV | sed -n 's/^host: //p')
case $host in
    x86_64-*) architecture=amd64 ;;
    aarch64-*) architecture=arm64 ;;
    *) architecture=$(dpkg --print-architecture) ;;
esac
epoch=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)} || fail "no commit found; set SOURCE_DATE_EPOCH"
# The allocator would be built again for each commit.
unset SOURCE_DATE_EPOCH
man_page=deploy/man/$name.8
[ -f "$man_page" ] || fail "$man_page is missing"

# Directories of the packages must not depend on the caller's umask.
umask 022
stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# Builds the static binary and sets `binary`. An explicit target, even though it is the host, limits
# the flag to the binary: proc macros and build scripts cannot be static.
build() {
    RUSTFLAGS="${RUSTFLAGS:-} -C target-feature=+crt-static" \
        cargo build --locked --release --bin "$name" --target "$host"
    binary=$target_directory/$host/release/$name
}

# Copies files into the stage: put MODE SOURCE DESTINATION.
put() { install -D -m "$1" "$2" "$stage/$3"; }

# Sets owner-independent modes and one time for a tree of the stage.
normalize() {
    chmod -R u=rwX,go=rX "$stage/$1"
    find "$stage/$1" -exec touch --no-dereference --date="@$epoch" {} +
}

# Packs the archive: binary, documents, files for operators.
pack_archive() {
    local root=$name-$version-$host file
    put 755 "$stage/binary" "$root/$name"
    for file in LICENSE *.md; do put 644 "$file" "$root/$file"; done
    cp -R docs deploy "$stage/$root/"
    normalize "$root"
    tar -C "$stage" --sort=name --format=gnu --owner=0 --group=0 --numeric-owner --create "$root" |
        gzip -n9 >"$output/$root.tar.gz"
    write_checksum "$root.tar.gz"
}

# Packs the Debian package.
pack_debian() {
    local doc=deb/usr/share/doc/$name file size
    put 755 "$stage/binary" "deb/usr/bin/$name"
    put 644 "deploy/systemd/$name.service" "deb/lib/systemd/system/$name.service"
    put 644 "deploy/debian/$name.default" "deb/etc/default/$name"
    put 644 "deploy/logrotate/$name" "deb/etc/logrotate.d/$name"
    put 644 deploy/debian/lintian-overrides "deb/usr/share/lintian/overrides/$name"
    put 644 deploy/debian/copyright "$doc/copyright"
    for file in *.md; do put 644 "$file" "$doc/$file"; done
    cp -R docs "$stage/$doc/"
    # The documents refer to these.
    mkdir -p "$stage/$doc/deploy"
    cp -R deploy/prometheus deploy/grafana deploy/kubernetes "$stage/$doc/deploy/"
    mkdir -p "$stage/deb/usr/share/man/man8" "$stage/deb/DEBIAN"
    gzip -n9 <"$man_page" >"$stage/deb/usr/share/man/man8/$name.8.gz"
    write_debian_changelog | gzip -n9 >"$stage/$doc/changelog.gz"
    # Without the control files, in KiB, as dpkg counts.
    size=$(du -sk --apparent-size --exclude=DEBIAN "$stage/deb" | cut -f 1)
    sed "s/@VERSION@/$version/; s/@ARCHITECTURE@/$architecture/; s/@SIZE@/$size/" deploy/debian/control \
        >"$stage/deb/DEBIAN/control"
    cp deploy/debian/conffiles "$stage/deb/DEBIAN/"
    for file in postinst prerm postrm; do put 755 "deploy/debian/$file" "deb/DEBIAN/$file"; done
    (cd "$stage/deb" && find usr lib -type f -print0 | LC_ALL=C sort -z | xargs -0 md5sum >DEBIAN/md5sums)
    normalize deb
    # It may hold a password.
    chmod 640 "$stage/deb/etc/default/$name"
    file=${name}_${version}_$architecture.deb
    # One thread: the bytes must not depend on the number of processors.
    SOURCE_DATE_EPOCH=$epoch dpkg-deb --root-owner-group -Zxz --threads-max=1 --build "$stage/deb" "$output/$file" >/dev/null
    write_checksum "$file"
}

# Prints a changelog in Debian's format. The changes themselves are in CHANGELOG.md.
write_debian_changelog() {
    printf '%s (%s) stable; urgency=medium\n\n  * Release %s. The changes are in CHANGELOG.md.\n\n -- %s  %s\n' \
        "$name" "$version" "$version" "$(sed -n 's/^Maintainer: //p' deploy/debian/control)" \
        "$(LC_ALL=C date --utc --rfc-email --date="@$epoch")"
}

# Writes the checksum of a package beside it.
write_checksum() {
    (cd "$output" && sha256sum "$1" >"$1.sha256")
    echo "$output/$1"
}

[ -n "$binary" ] || build
# Debug information is four fifths of the binary. Function names stay, for backtraces.
strip --strip-debug -o "$stage/binary" "$binary"
if LC_ALL=C readelf --program-headers "$stage/binary" | grep ' INTERP ' >/dev/null; then
    fail "$binary is not linked statically"
fi
mkdir -p "$output"
pack_archive
pack_debian
