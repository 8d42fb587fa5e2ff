# The image: the program, the libraries that it links, CA certificates, a user, licences and the SBOM. It has no shell.
#
#     make image                                                     # for this machine, with docker or buildah
#     docker buildx build --platform linux/amd64,linux/arm64 --tag apsara-bridge .
#
# A release also fixes what the image is built with and says what it was built from:
#
#     docker buildx build --platform linux/amd64,linux/arm64 --tag apsara-bridge:0.1.0 \
#         --build-arg RUST_IMAGE=rust:1.95-slim-bookworm@sha256:DIGEST \
#         --build-arg REVISION="$(git rev-parse HEAD)" \
#         --build-arg SOURCE_DATE_EPOCH="$(git log -1 --format=%ct)" .
#
# `docker buildx imagetools inspect rust:1.95-slim-bookworm` prints the digest.
#
# Mount a configuration at /etc/apsara-bridge/bridge.toml and a volume at /var/lib/apsara-bridge, the spool's default.
# Everything else may be read-only. It runs as user 65532 and needs no capability.

ARG RUST_IMAGE=rust:1.95-slim-bookworm

FROM ${RUST_IMAGE} AS build
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# The Debian release of the base image determines the versions. A base image of your own may have the packages already.
# hadolint ignore=DL3008
RUN packages=(ca-certificates g++ gcc jq libc6-dev make perl) \
    && if ! dpkg --status "${packages[@]}" >/dev/null 2>&1; then \
        apt-get update && apt-get install --yes --no-install-recommends "${packages[@]}"; \
    fi \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY tests/support/setup tests/support/setup
RUN tests/support/setup release
COPY Cargo.toml Cargo.lock LICENSE THIRD-PARTY-LICENSES.txt ./
COPY .cargo .cargo
COPY packaging packaging
COPY benches benches
COPY src src
# Built dependencies are cached between builds, separately for each platform.
ARG TARGETPLATFORM
ARG SOURCE_DATE_EPOCH
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/source/target,id=target-${TARGETPLATFORM} \
    packaging/release /release \
    && install -D target/release/apsara-bridge /image/apsara-bridge \
    && install -D --mode=644 --target-directory=/image/usr/share/doc/apsara-bridge LICENSE THIRD-PARTY-LICENSES.txt \
    && install --mode=644 /release/*.cdx.json /image/usr/share/doc/apsara-bridge/apsara-bridge.cdx.json
RUN packaging/fill-image /image

FROM scratch
ARG REVISION=unknown
LABEL org.opencontainers.image.title="apsara-bridge" \
    org.opencontainers.image.description="Receives the callbacks of ApsaraVideo VOD and Intelligent Media Services and publishes them as CloudEvents to Kafka, NATS or HTTP" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.version="0.1.0" \
    org.opencontainers.image.revision="${REVISION}"
COPY --from=build /image /
ENV SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
USER 65532:65532
EXPOSE 8080 9464
VOLUME /var/lib/apsara-bridge
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s \
    CMD ["/apsara-bridge", "health", "--config", "/etc/apsara-bridge/bridge.toml"]
ENTRYPOINT ["/apsara-bridge"]
CMD ["serve", "--config", "/etc/apsara-bridge/bridge.toml"]
