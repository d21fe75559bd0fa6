.PHONY: run test load up bench

# On this machine: the proxy, and a Redis with sample keys unless REDIS_HOST names one.
run:
	scripts/run.sh

test:
	scripts/test.sh

# The soak test: ten minutes, a report in target/load.
load:
	scripts/load.sh

# In containers: Redis, the proxy, and the tests against both.
up:
	if docker compose version >/dev/null 2>&1; then docker compose up --build; else docker-compose up --build; fi

# Beside nginx, webdis and Redis, and inside; a report in target/bench.
bench:
	scripts/bench.sh
