# Image of the proxy, and of its end-to-end test.
#
# Stages: manifest (dependencies) -> build (the binary), tests (the test), segment (the image).
# BuildKit is not required.

FROM rust:1-slim-bookworm AS manifest
# tikv-jemalloc-sys compiles the allocator from C sources.
RUN apt-get update \
    && apt-get install -y --no-install-recommends make \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /build
COPY Cargo.toml Cargo.lock ./
# Options of the allocator.
COPY .cargo .cargo
# Placeholder sources: dependencies are built in separate layers, and a change in src does not
# rebuild them.
RUN mkdir -p benches src tests/e2e_protocol \
    && echo '//! Stands in.' > src/lib.rs \
    && printf '//! Stands in.\nfn main() {}\n' \
        | tee benches/cache.rs benches/memory.rs benches/faults.rs benches/misbehaving_clients.rs benches/watchers.rs benches/floor.rs src/main.rs \
            > tests/e2e_protocol/main.rs \
    && rustc -vV | sed -n 's/^host: //p' > /host \
    && cargo fetch --locked --target "$(cat /host)"

FROM manifest AS build
# Links statically, so that the image needs no libc. An explicit target, even though it is the host,
# limits the flag to the binary: proc macros and build scripts cannot be static.
ENV RUSTFLAGS="-C target-feature=+crt-static"
RUN cargo build --locked --release --target "$(cat /host)"
COPY src src
# `touch`, because COPY keeps modification times that may be older than those of the placeholders.
# Cargo would not rebuild then. Strips debug information, which would be four fifths of the image.
# Function names stay, for backtraces.
RUN touch src/lib.rs src/main.rs \
    && cargo build --locked --release --target "$(cat /host)" \
    && strip --strip-debug -o /segment-redis-proxy "target/$(cat /host)/release/segment-redis-proxy"

FROM manifest AS tests
RUN cargo test --locked --no-run --test e2e_protocol
COPY src src
COPY tests tests
RUN touch src/lib.rs src/main.rs tests/e2e_protocol/main.rs \
    && cargo test --locked --no-run --test e2e_protocol \
    && cp "$(find target/debug/deps -name 'e2e_protocol-*' -type f -executable)" /e2e_protocol
USER 65534:65534
# SCENARIO_REDIS and SCENARIO_PROXY (host:port) select the servers to test. SCENARIO_TTL is the
# CACHE_TTL of that proxy.
CMD ["/e2e_protocol", "scenario::"]

FROM scratch AS segment
COPY --from=build /segment-redis-proxy /segment-redis-proxy
# Numeric, because the image has no /etc/passwd.
USER 65534:65534
EXPOSE 8080
STOPSIGNAL SIGTERM
# Checks that the event loops make progress. An unavailable Redis does not fail the check, because a
# restart would only lose the cache. The first check runs one interval after the start, and
# dependent services wait for it. The command times out after 2 s, before Docker does, and prints
# the reason.
HEALTHCHECK --interval=5s --timeout=3s --start-period=10s --retries=3 CMD ["/segment-redis-proxy", "healthcheck"]
ENTRYPOINT ["/segment-redis-proxy"]
