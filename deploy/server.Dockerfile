# The tail server on an NVIDIA GPU. From the repository's root:
#   docker build -f deploy/server.Dockerfile -t splitrt-server .
#   docker run --gpus all -p 50700:50700 -v /srv/models:/models:ro splitrt-server /models/birds --device cuda
FROM nvidia/cuda:12.8.1-runtime-ubuntu24.04

RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
RUN useradd --uid 10001 --create-home splitrt
WORKDIR /opt/splitrt
COPY pyproject.toml README.md LICENSE ./
COPY splitrt splitrt
COPY models models
COPY device_profiles device_profiles
RUN python3 -m venv /opt/venv && /opt/venv/bin/pip install --no-cache-dir '.[cloud]'

USER splitrt
EXPOSE 50700
STOPSIGNAL SIGTERM
# Without a shell: it is process 1, and SIGTERM reaches it. In Kubernetes: deploy/kubernetes.yaml.
# Tokens and TLS: --tokens, --tls-cert, --tls-key, --client-ca; without them keep it inside a tunnel.
ENTRYPOINT ["/opt/venv/bin/splitrt", "serve", "--host", "0.0.0.0", "--port", "50700"]
CMD ["/models"]
