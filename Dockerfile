# One image for CPU and CUDA: torch's CUDA build falls back to the CPU where no GPU is given.
#   docker build -t hearth .          docker run -p 8000:8000 -v hearth:/data hearth          (add --gpus all for CUDA)
# Works with the legacy builder too, hence no cache mounts. A change in app/ or models/ rebuilds only the small last layers.

ARG BASE=python:3.11-slim-bookworm

# builder: everything that the lock pins. The slow, big layer; it changes only with the lock.
FROM ${BASE} AS builder
RUN python -m venv /opt/hearth
COPY requirements.lock /build/
RUN /opt/hearth/bin/pip install --no-cache-dir --disable-pip-version-check --no-deps --require-hashes \
      -r /build/requirements.lock

# wheel: our own code and cards, built offline with the pinned back end.
FROM builder AS wheel
WORKDIR /build
COPY pyproject.toml README.md LICENSE ./
COPY app app
COPY models models
RUN /opt/hearth/bin/pip wheel --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir /dist .

# runtime: the tools of development stay out of the image.
FROM builder AS runtime
RUN /opt/hearth/bin/pip uninstall -y -q \
      ast-serialize charset-normalizer coverage execnet graphql-core harfile hatchling hypothesis hypothesis-graphql \
      iniconfig jsonschema-rs librt mypy mypy-extensions pathspec pluggy pyrate-limiter pytest pytest-asyncio \
      pytest-cov pytest-timeout pytest-xdist requests ruff schemathesis sortedcontainers tomlkit trove-classifiers \
      urllib3 uv werkzeug

FROM ${BASE}
# A fixed number, so that volumes and Kubernetes' runAsUser can name it.
RUN useradd --uid 10001 --no-create-home --home-dir /data --shell /usr/sbin/nologin hearth \
    && install -d -o 10001 -g 10001 /data
COPY --from=runtime /opt/hearth /opt/hearth
COPY docker/healthcheck.py /opt/hearth/healthcheck.py
COPY --from=wheel /dist /dist
# Compiled here, because a read-only root cannot keep byte code and would compile at every start.
RUN /opt/hearth/bin/pip install --no-cache-dir --disable-pip-version-check --no-deps --no-index /dist/*.whl

ENV PATH=/opt/hearth/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/data \
    HEARTH_HOME=/data \
    HEARTH_HOST=0.0.0.0 \
    HEARTH_PORT=8000 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 8000
# The supervisor is process 1: it handles the signal by draining, and reaps what its children leave behind.
STOPSIGNAL SIGTERM
# The first start may fetch weights, hence the long grace; failures inside it do not count.
HEALTHCHECK --interval=10s --timeout=5s --start-period=300s --retries=3 \
    CMD ["/opt/hearth/bin/python", "/opt/hearth/healthcheck.py"]
CMD ["hearth", "serve"]
