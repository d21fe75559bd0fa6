#!/usr/bin/env bash
# Installs what the tests need, then: format check, lints with warnings denied, all tests.
# Needs Debian (or a relative of it) and a Rust toolchain; root, or sudo, to install what is missing.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/need.sh

need redis-server:redis-server strace:strace cc:gcc make:make
cargo fmt --check
cargo clippy --locked --all-targets -- -D warnings
cargo test --locked
