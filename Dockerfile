# syntax=docker/dockerfile:1

# One target per service: ingress, router, worker. The stages that build are thrown away.

FROM python:3.13-slim AS build
ENV UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_NO_CACHE=1 VIRTUAL_ENV=/opt/gati
WORKDIR /src
COPY requirements.lock requirements-runtime.lock ./
# pip installs uv alone, by its hashes in the lock; uv does the rest.
RUN awk '/^uv==/ { on = 1 } on { print } on && !/\\$/ { exit }' requirements.lock > /tmp/uv.txt \
    && pip install --quiet --no-cache-dir --root-user-action=ignore --no-deps --require-hashes -r /tmp/uv.txt \
    && uv venv --quiet --python /usr/local/bin/python3 /opt/gati \
    && uv pip install --quiet --require-hashes -r requirements-runtime.lock
# The members are built with the build tools that requirements.lock names, by their hashes.
ENV UV_BUILD_CONSTRAINT=/src/requirements.lock
COPY libs/gati_core libs/gati_core
RUN uv pip install --quiet --no-deps ./libs/gati_core

# `uv pip check` fails the build when the runtime lock lacks something that a member asks for.

FROM build AS build-ingress
COPY services/ingress services/ingress
RUN uv pip install --quiet --no-deps ./services/ingress && uv pip check

FROM build AS build-router
COPY services/router services/router
RUN uv pip install --quiet --no-deps ./services/router && uv pip check

FROM build AS build-worker
COPY services/worker services/worker
COPY examples examples
# A worker makes the environments of published packages with uv itself: the same uv, by the same hashes.
RUN uv pip install --quiet --no-deps --require-hashes -r /tmp/uv.txt \
    && uv pip install --quiet --no-deps ./services/worker ./examples/hello ./examples/live ./examples/shop \
    && uv pip check \
    && mkdir /var/cache/gati

FROM python:3.13-slim AS service
RUN groupadd --gid 10001 gati \
    && useradd --uid 10001 --gid 10001 --home-dir /nonexistent --no-create-home --shell /usr/sbin/nologin gati
ENV PATH=/opt/gati/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER gati

FROM service AS ingress
COPY --from=build-ingress /opt/gati /opt/gati
ENV GATI_INGRESS_HOST=0.0.0.0
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=3s --retries=3 --start-period=30s --start-interval=1s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/readyz', timeout=2)"]
ENTRYPOINT ["python", "-m", "gati_ingress"]

FROM service AS router
COPY --from=build-router /opt/gati /opt/gati
ENV GATI_ROUTER_HEALTH_FILE=/tmp/healthy GATI_ROUTER_METRICS_PORT=9090 GATI_ROUTER_METRICS_HOST=0.0.0.0
HEALTHCHECK --interval=10s --timeout=3s --retries=3 --start-period=30s --start-interval=1s \
    CMD ["python", "-m", "gati_router.health"]
ENTRYPOINT ["python", "-m", "gati_router"]

FROM service AS worker
COPY --from=build-worker /opt/gati /opt/gati
# For the environments of published packages. A volume here spares a new container from making them again.
COPY --from=build-worker --chown=gati:gati /var/cache/gati /var/cache/gati
ENV GATI_WORKER_HEALTH_FILE=/tmp/healthy GATI_WORKER_CACHE_DIR=/var/cache/gati
ENV GATI_WORKER_METRICS_PORT=9090 GATI_WORKER_METRICS_HOST=0.0.0.0
HEALTHCHECK --interval=10s --timeout=3s --retries=3 --start-period=30s --start-interval=1s \
    CMD ["python", "-m", "gati_worker.health"]
ENTRYPOINT ["python", "-m", "gati_worker"]
