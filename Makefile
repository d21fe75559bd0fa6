.PHONY: run test up bench

# On this machine: the proxy, and a Redis with sample keys unless REDIS_HOST names one.
run:
	scripts/run.sh

test:
	scripts/test.sh

# In containers: Redis, the proxy, and the tests against both.
up:
	docker compose up --build

bench:
	cargo bench --locked
