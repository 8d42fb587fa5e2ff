# The image: the program, the libraries that it links, CA certificates, and a user. It has no shell and no packages.
#
#     docker buildx build --platform linux/amd64,linux/arm64 --tag apsara-bridge .
#
# Mount a configuration at /etc/apsara-bridge/bridge.toml and a volume at /var/lib/apsara-bridge, the spool's default.
# Everything else may be read-only. It runs as user 65532 and needs no capability.

FROM rust:1.95-slim-bookworm AS build
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# The Debian release of the base image determines the versions.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates gcc libc6-dev make perl \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY Cargo.toml Cargo.lock ./
COPY .cargo .cargo
COPY benches benches
COPY src src
# Built dependencies are cached between builds, separately for each platform.
ARG TARGETPLATFORM
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/source/target,id=target-${TARGETPLATFORM} \
    cargo build --release --locked --features vendored --bin apsara-bridge \
    && install -D target/release/apsara-bridge /image/apsara-bridge
# The libraries that the loader needs, at their usual paths.
RUN ldd /image/apsara-bridge | grep -o '/[^ ]*' | xargs -I '{}' cp --parents --dereference '{}' /image \
    && cp --parents --dereference /etc/ssl/certs/ca-certificates.crt /image \
    && printf 'nonroot:x:65532:65532:nonroot:/:/sbin/nologin\n' >/image/etc/passwd \
    && printf 'nonroot:x:65532:\n' >/image/etc/group \
    && install -d -o 65532 -g 65532 /image/var/lib/apsara-bridge

FROM scratch
LABEL org.opencontainers.image.title="apsara-bridge" \
    org.opencontainers.image.description="Receives the callbacks of ApsaraVideo VOD and Intelligent Media Services and publishes them as CloudEvents to Kafka, NATS or HTTP" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.version="0.1.0"
COPY --from=build /image /
ENV SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
USER 65532:65532
EXPOSE 8080 9464
VOLUME /var/lib/apsara-bridge
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s \
    CMD ["/apsara-bridge", "health", "--config", "/etc/apsara-bridge/bridge.toml"]
ENTRYPOINT ["/apsara-bridge"]
CMD ["serve", "--config", "/etc/apsara-bridge/bridge.toml"]
