# headstart-shim. Build from the root of the repository:
#   buildah build -f docker/shim.Dockerfile -t headstart-shim .
# Run it privileged, with the host's root_dir and socket directory bind-mounted and shared mount propagation: the FUSE
# mount it makes must appear on the host. It is the same program that the systemd unit runs.
FROM docker.io/library/rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo build --release --locked -p headstart-shim

FROM docker.io/library/debian:bookworm-slim
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates \
 && rm -rf /var/lib/apt/lists/*
COPY --from=build /src/target/release/headstart-shim /usr/local/bin/headstart-shim
COPY config/shim.toml /etc/headstart/shim.toml
ENTRYPOINT ["/usr/local/bin/headstart-shim"]
CMD ["--config", "/etc/headstart/shim.toml"]
