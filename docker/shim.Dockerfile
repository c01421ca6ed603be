# headstart-shim, and what installs it on a host. Build from the root of the repository:
#   buildah build -f docker/shim.Dockerfile -t headstart-shim .
# docker/kubernetes-shim.yaml runs it on every node: it puts the program and its unit on the host, where systemd runs them,
# so that neither this container's end nor an upgrade of it stops a mount. (The program may also run in a container:
# privileged, with root_dir and the socket's directory bind-mounted with shared propagation, and the host's /dev/fuse.)
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
# As scripts/package.sh lays it out.
COPY packaging/install.sh /opt/headstart/install.sh
COPY config/shim.toml /opt/headstart/config/shim.toml
COPY config/modules-load.conf /opt/headstart/config/modules-load.conf
COPY config/systemd /opt/headstart/config/systemd
COPY config/containerd /opt/headstart/config/containerd
RUN mkdir -p /opt/headstart/bin && cp /usr/local/bin/headstart-shim /opt/headstart/bin/headstart-shim
ENTRYPOINT ["/usr/local/bin/headstart-shim"]
CMD ["--config", "/etc/headstart/shim.toml"]
