# The image of rayservice.yaml: Debian 12 with Python 3.11, all of this project, its locked packages and system tools.
# One image serves the head, the gateways and the sandboxes; Ray has to be the same on all of them.
FROM debian:12-slim

# make and Python for `make setup`, which installs the rest; wget for the health checks that KubeRay runs in its pods.
RUN apt-get update -qq \
    && apt-get install -qq --no-install-recommends ca-certificates make python3 python3-venv wget >/dev/null \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/holdfast
COPY . .
RUN make setup && rm -rf /var/lib/apt/lists/* /root/.cache

# KubeRay runs `ray start` by its name, in a shell that keeps this PATH. Root, because sandboxes are made of mounts; what
# a pod may do as root is for its security context to say.
ENV PATH=/opt/holdfast/.venv/bin:$PATH
CMD ["holdfast", "doctor"]
