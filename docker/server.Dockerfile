# headstart-server. Build from the root of the repository:
#   buildah build -f docker/server.Dockerfile -t headstart-server .
FROM docker.io/library/rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo build --release --locked -p headstart-server

FROM docker.io/library/debian:bookworm-slim
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates \
 && rm -rf /var/lib/apt/lists/* \
 && groupadd --gid 65532 headstart \
 && useradd --uid 65532 --gid 65532 --no-create-home --shell /usr/sbin/nologin headstart \
 && install -d -o 65532 -g 65532 /var/lib/headstart-server
COPY --from=build /src/target/release/headstart-server /usr/local/bin/headstart-server
COPY config/server.toml /etc/headstart/server.toml
USER 65532:65532
VOLUME /var/lib/headstart-server
EXPOSE 5080
ENTRYPOINT ["/usr/local/bin/headstart-server"]
CMD ["--config", "/etc/headstart/server.toml"]
