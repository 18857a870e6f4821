# A server and nothing else, at the pinned versions, as an unprivileged user. `docker build --tag tollkeeper .`
FROM python:3.12-slim AS build
WORKDIR /source
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src src
COPY ui ui
# The page, with the Node of a wheel.
RUN ui/with-node npm --prefix ui ci --ignore-scripts && ui/with-node npm --prefix ui run build && rm -rf .venv-node ui
RUN python -m venv /opt/tollkeeper \
    && /opt/tollkeeper/bin/python -m pip install --no-cache-dir --constraint constraints.txt pip \
    && /opt/tollkeeper/bin/python -m pip install --no-cache-dir --no-compile --constraint constraints.txt .

FROM python:3.12-slim
COPY --from=build /opt/tollkeeper /opt/tollkeeper
RUN useradd --system --uid 10001 --home-dir /data --shell /usr/sbin/nologin tollkeeper \
    && install --directory --owner tollkeeper --group tollkeeper --mode 0700 /data
ENV PATH=/opt/tollkeeper/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    TOLLKEEPER_DATA_DIR=/data \
    TOLLKEEPER_HOST=0.0.0.0 \
    TOLLKEEPER_LOG_FORMAT=json
USER tollkeeper
VOLUME /data
EXPOSE 8080
# What is acknowledged is stored; a stop waits for the calls that are under way.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; \
        r.urlopen(f\"http://127.0.0.1:{os.environ.get('TOLLKEEPER_PORT', '8080')}/healthz\", timeout=4)"]
ENTRYPOINT ["tollkeeper"]
CMD ["serve"]
