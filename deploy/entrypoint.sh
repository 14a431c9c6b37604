#!/bin/sh
# Entry point of the container: serve a repository with the image's own Triton. Arguments go to `diffsplat serve`, and
# win over those given here.
set -eu

# Older releases have known vulnerabilities that a client can reach.
oldest=26.07
release=${NVIDIA_TRITON_SERVER_VERSION:?is not set: the base image must be one of NVIDIA\'s Triton images}
first=$(printf '%s\n' "$oldest" "$release" | sort -V | head -n 1)
if [ "$first" != "$oldest" ]; then
    echo "Triton $release has known vulnerabilities: build the image on release $oldest or newer" >&2
    exit 1
fi
if [ "${1:-}" = --check ]; then # the build's own check
    exit 0
fi

exec diffsplat serve "${DIFFSPLAT_REPOSITORY:-/data/repository}" --tritonserver "${TRITON_HOME:-/opt/tritonserver}" \
    --address 0.0.0.0 --log-folder "${DIFFSPLAT_LOGS:-/var/log/diffsplat}" "$@"
