# An image with the one file and nothing else, for x86-64 and ARM64. `make dist` makes the files first.
#
#   docker build -t shimmy .
#   docker run --rm -p 127.0.0.1:11435:11435 -v ~/models:/models:ro shimmy
#
# Options go after the image's name, or into variables: -e SHIMMY_API_KEY=secret. The server listens on all addresses of
# the container; who may reach it is decided by -p.
FROM scratch AS amd64
COPY --chmod=755 dist/shimmy-linux-x86_64 /shimmy

FROM scratch AS arm64
COPY --chmod=755 dist/shimmy-linux-aarch64 /shimmy

# Docker sets the variable to the machine that the image is for. Builders that do not: --build-arg TARGETARCH=arm64
FROM ${TARGETARCH:-amd64}
# Folders that belong to the user below: an image from scratch has none.
COPY --chown=65532:65532 packaging/docker/root /
ENV HOME=/tmp SHIMMY_BIND=0.0.0.0:11435 SHIMMY_CACHE_DIR=/cache SHIMMY_MODEL_PATH=/models
USER 65532:65532
VOLUME ["/models", "/cache"]
EXPOSE 11435
HEALTHCHECK --interval=30s --timeout=10s --start-period=30s CMD ["/shimmy", "health"]
ENTRYPOINT ["/shimmy", "serve"]
