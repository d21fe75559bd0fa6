# Stages: manifest (dependencies fetched) -> build (the binary), tests (the scenario), segment (what is shipped).
# Nothing here needs BuildKit.

FROM rust:1-slim-bookworm AS manifest
# tikv-jemalloc-sys builds the allocator from its C sources.
RUN apt-get update \
    && apt-get install -y --no-install-recommends make \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /build
COPY Cargo.toml Cargo.lock ./
# Stand-ins for the sources: dependencies get layers of their own, and a change in src does not build them again.
RUN mkdir -p benches src tests/e2e_protocol \
    && echo '//! Stands in.' > src/lib.rs \
    && printf '//! Stands in.\nfn main() {}\n' \
        | tee benches/cache.rs benches/memory.rs benches/bad_days.rs benches/bad_clients.rs benches/floor.rs src/main.rs \
            > tests/e2e_protocol/main.rs \
    && rustc -vV | sed -n 's/^host: //p' > /host \
    && cargo fetch --locked --target "$(cat /host)"

FROM manifest AS build
# Static, so that the image needs no libc. The target is named although it is the host: then the flag is for the binary
# alone, and proc macros and build scripts, which cannot be static, are built without it.
ENV RUSTFLAGS="-C target-feature=+crt-static"
RUN cargo build --locked --release --target "$(cat /host)"
COPY src src
# The copied files keep their times, which may be older than the stand-ins'; cargo would see nothing to do.
# Debug information would be four fifths of the image; the names of functions stay, for backtraces.
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
# SCENARIO_REDIS and SCENARIO_PROXY (host:port) say what to run against, SCENARIO_TTL the CACHE_TTL in force there.
CMD ["/e2e_protocol", "scenario::"]

FROM scratch AS segment
COPY --from=build /segment-redis-proxy /segment-redis-proxy
# By number: there is no /etc/passwd that could know a name.
USER 65534:65534
EXPOSE 8080
STOPSIGNAL SIGTERM
# Whether the event loops turn; Redis' being away is no illness, a restart would only lose the cache. The first check comes one
# interval after the start, and whoever depends on the service waits for it. The program gives up after 2 s, before the engine
# does, and says why.
HEALTHCHECK --interval=5s --timeout=3s --start-period=10s --retries=3 CMD ["/segment-redis-proxy", "healthcheck"]
ENTRYPOINT ["/segment-redis-proxy"]
