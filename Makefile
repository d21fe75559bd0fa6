# Shortcuts for the scripts in scripts/ and for docker compose.

.PHONY: run test load up bench

# Runs the proxy on this machine, with a Redis that has sample keys unless REDIS_HOST is set.
run:
	scripts/run.sh

# Installs what the tests need, checks format and lints, and runs all tests.
test:
	scripts/test.sh

# Runs the soak test for ten minutes and writes a report to target/load.
load:
	scripts/load.sh

# Runs Redis, the proxy and the end-to-end test in containers.
up:
	if docker compose version >/dev/null 2>&1; then docker compose up --build; else docker-compose up --build; fi

# Benchmarks the proxy, nginx, webdis, Redis and Valkey, and the internals; writes a report to target/bench.
bench:
	scripts/bench.sh
