#!/usr/bin/env bash
# Installs what the tests need, then: format check, lints with warnings denied, all tests.
# Needs Debian (or a relative of it) and a Rust toolchain; root, or sudo, to install what is missing.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/need.sh

need redis-server:redis-server strace:strace cc:build-essential make:build-essential
# The tests open a thousand connections and more; 1024 descriptors are the usual limit, and it may be raised.
ulimit -n "$(ulimit -Hn)"
cargo fmt --check
cargo clippy --locked --all-targets -- -D warnings
cargo test --locked
