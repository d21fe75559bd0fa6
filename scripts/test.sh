#!/usr/bin/env bash
# Installs what the tests need, then: format check, lints with warnings denied, all tests.
# Needs Debian (or a relative of it) and a Rust toolchain; root, or sudo.
set -euo pipefail
cd "$(dirname "$0")/.."

# A command, and the Debian package that has it.
needed=(redis-server:redis-server redis-cli:redis-tools strace:strace curl:curl cc:gcc make:make)
packages=()
for pair in "${needed[@]}"; do
    command -v "${pair%%:*}" >/dev/null || packages+=("${pair##*:}")
done
if [ "${#packages[@]}" -gt 0 ]; then
    as_root=()
    [ "$(id -u)" = 0 ] || as_root=(sudo)
    "${as_root[@]}" apt-get update
    DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get install -y --no-install-recommends "${packages[@]}"
fi

cargo fmt --check
cargo clippy --locked --all-targets -- -D warnings
cargo test --locked
