#!/usr/bin/env bash
# Installs what the tests need, then: format check, lints with warnings denied, all tests, the fuzzer for a moment,
# the soak test for a minute, two of the benchmark's cases for a second, and redis-py's own tests of
# strings through the proxy.
# Needs Debian (or a relative of it) and a Rust toolchain; root, or sudo, to install what is missing: also nginx and webdis, for the
# benchmark, which Debian starts as services where systemd runs.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/need.sh

need redis-server:redis-server redis-cli:redis-tools strace:strace python3:python3 cc:build-essential make:build-essential
# What judges what operators use: Prometheus' own tool, a browser, logrotate, systemd.
need promtool:prometheus chromium:chromium logrotate:logrotate systemd-analyze:systemd
# HTTP caches, for tests that start their own on free ports. Debian starts these packages' services
# where systemd runs (ports 80, 3128, 6081 and 6082). No test needs them: stop or disable them.
need varnishd:varnish nginx:nginx squid:squid
# A client library that many use: redis-py, of the version that tests/requirements.txt names.
if [ ! -e target/python/installed ] || ! cmp -s tests/requirements.txt target/python/installed; then
    # On Debian this is a package of its own, without a command.
    python3 -c 'import ensurepip' 2>/dev/null || need ensurepip:python3-venv
    python3 -m venv --clear target/python
    target/python/bin/pip install --quiet --disable-pip-version-check --requirement tests/requirements.txt
    cp tests/requirements.txt target/python/installed
fi
# The tests open a thousand connections and more; 1024 descriptors are the usual limit, and it may be raised.
ulimit -n "$(ulimit -Hn)"
cargo fmt --check
cargo fmt --check --manifest-path fuzz/Cargo.toml
cargo clippy --locked --all-targets -- -D warnings
cargo test --locked
# A moment for each target: that it builds, and that what it begins with passes under its own limits of time and memory.
scripts/fuzz.sh 5
scripts/load.sh --minutes 1
# That every peer starts and is measured; what the figures are is no matter here.
if [ "$(nproc)" -ge 2 ]; then
    scripts/bench.sh --peers-only --only hit,resp-1 --rounds 1 --seconds 1
else
    echo "scripts/bench.sh is not run: it needs two processors" >&2
fi
# A foreign suite: redis-py's tests of strings, keys and pipelines. The first run installs it.
scripts/foreign.sh --quick
