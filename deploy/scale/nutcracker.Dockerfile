# Image of twemproxy, from Debian's package nutcracker: no official image exists.
FROM debian:bookworm-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends nutcracker \
    && rm -rf /var/lib/apt/lists/*
COPY nutcracker.yml /etc/nutcracker/nutcracker.yml
USER 65534:65534
EXPOSE 22121
# The file with the process id needs a directory that this user may write to. Statistics stay in the
# container.
ENTRYPOINT ["/usr/sbin/nutcracker", "-c", "/etc/nutcracker/nutcracker.yml", "-o", "/dev/stderr", "-p", "/tmp/nutcracker.pid", "-a", "127.0.0.1"]
