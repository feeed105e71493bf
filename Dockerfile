# One container: the server, non-root, data in a volume. The base is an argument, so that a build can be offline.
#   docker build -t parallax .
#   docker run -p 127.0.0.1:8080:8080 -v parallax-data:/data parallax
ARG BASE=python:3.11-slim
FROM ${BASE}

RUN if ! command -v git >/dev/null; then \
        apt-get update && apt-get install -y --no-install-recommends git && rm -rf /var/lib/apt/lists/*; \
    fi \
    && useradd --system --uid 10001 --create-home --home-dir /home/parallax parallax \
    && install -d -o parallax -g parallax -m 0700 /data

WORKDIR /app
COPY requirements.lock pyproject.toml README.md ./
ENV PIP_BREAK_SYSTEM_PACKAGES=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
RUN python3 -m pip install --no-cache-dir --require-hashes -r requirements.lock
COPY parallax ./parallax
COPY patterns ./patterns
RUN python3 -m pip install --no-cache-dir --no-deps .

USER parallax
ENV PARALLAX_DATA_DIR=/data PARALLAX_PORT=8080
VOLUME /data
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s CMD \
    python3 -c "import urllib.request as u; u.urlopen('http://127.0.0.1:8080/healthz', timeout=2)"
# The port is published to the host's loopback above; every request still needs the key in /data/key.
CMD ["parallax", "serve", "--host", "0.0.0.0", "--expose"]
