# The image of rayservice.yaml: Debian 12 with Python 3.11, this project, its locked packages and system tools; no tests.
# One image serves the head, the gateways and the sandboxes; Ray has to be the same on all of them.
FROM debian:12-slim AS build

RUN apt-get update -qq \
    && apt-get install -qq --no-install-recommends binutils ca-certificates python3 python3-venv >/dev/null

WORKDIR /opt/holdfast
COPY . .
RUN scripts/install-python-packages .venv requirements.lock
# Left out: what Ray has for Java, reinforcement learning and language models, what boto3 knows of other services than S3,
# symbols for debuggers, tests, and pip.
RUN cd .venv/lib/python3.11/site-packages \
    && rm -rf ray/jars ray/rllib ray/llm pip pip-*.dist-info \
    && find botocore/data -mindepth 1 -maxdepth 1 -type d ! -name 's3*' ! -name 'sso*' ! -name sts ! -name signin \
        -exec rm -rf {} + \
    && find numpy -type d -name tests -prune -exec rm -rf {} + \
    && strip --strip-unneeded ray/core/src/ray/gcs/gcs_server ray/core/src/ray/raylet/raylet \
    && find . -name '*.so' ! -path './numpy*' -exec strip --strip-unneeded {} +

FROM debian:12-slim

# tini is the container's first process: it ends what is left, and reaps. wget is for the health checks that KubeRay runs.
WORKDIR /opt/holdfast
COPY scripts/install-system-packages scripts/
RUN apt-get update -qq \
    && apt-get install -qq --no-install-recommends ca-certificates python3 tini wget >/dev/null \
    && scripts/install-system-packages \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /usr/share/doc/* /usr/share/man/* /usr/share/locale/* /var/log/*
COPY --from=build /opt/holdfast /opt/holdfast

# KubeRay runs `ray start` by its name, in a shell that keeps this PATH. Root, because sandboxes are made of mounts; what
# a container may do as root is for whoever runs it to say: `holdfast doctor` names what is missing.
ENV PATH=/opt/holdfast/.venv/bin:$PATH
# A volume, because an overlay cannot write to the container's own.
VOLUME /var/lib/holdfast
EXPOSE 8484
ENTRYPOINT ["tini", "--"]
CMD ["holdfast", "serve", "--host", "0.0.0.0"]
