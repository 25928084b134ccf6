# The daemon on an arm64 device. From the repository's root:
#   docker buildx build --platform linux/arm64 -f deploy/device.Dockerfile -t splitrt-device .
#   docker run --device /dev/video0 --group-add video -v /etc/splitrt:/etc/splitrt:ro \
#     -v /var/lib/splitrt:/var/lib/splitrt -v /run/splitrt:/run/splitrt splitrt-device
FROM python:3.11-slim-bookworm

RUN useradd --system --create-home --groups video splitrt \
    && install -d -o splitrt -g splitrt -m 0750 /run/splitrt /var/lib/splitrt
WORKDIR /opt/splitrt
COPY pyproject.toml README.md LICENSE requirements.lock ./
COPY splitrt splitrt
COPY models models
COPY device_profiles device_profiles
RUN pip install --no-cache-dir -c requirements.lock '.[apps,daemon]'

USER splitrt
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --start-period=60s \
    CMD ["splitrt", "daemon", "/etc/splitrt/daemon.toml", "--status"]
ENTRYPOINT ["splitrt", "daemon"]
CMD ["/etc/splitrt/daemon.toml"]
