"""The systemd unit that runs the daemon with as few rights as it needs."""

from __future__ import annotations

import shlex
from pathlib import Path

UNIT = """\
# Written by `splitrt daemon --install-unit`; as root:
#   useradd --system --groups video splitrt
#   splitrt daemon {config} --install-unit > /etc/systemd/system/splitrt.service
#   systemctl daemon-reload && systemctl enable --now splitrt
[Unit]
Description=Split inference: cameras and models on this device
After=network-online.target
Wants=network-online.target

[Service]
Type=notify
ExecStart={program} daemon {config}
ExecReload=/bin/kill -HUP $MAINPID
User=splitrt
Group=splitrt
SupplementaryGroups=video
EnvironmentFile=-/etc/splitrt/environment
RuntimeDirectory=splitrt
RuntimeDirectoryMode=0750
StateDirectory=splitrt
StateDirectoryMode=0750
WorkingDirectory=/var/lib/splitrt
UMask=0027
Restart=always
RestartSec=2
TimeoutStartSec=180
TimeoutStopSec=30
WatchdogSec=60
OOMPolicy=stop

# Writes to /run/splitrt and /var/lib/splitrt only; ReadWritePaths= for outputs elsewhere.
ProtectSystem=strict
ProtectHome=read-only
PrivateTmp=yes
NoNewPrivileges=yes
CapabilityBoundingSet=
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectClock=yes
ProtectHostname=yes
ProtectProc=invisible
LockPersonality=yes
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RemoveIPC=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM
# Cameras; a Jetson's csi:// and its GPU need /dev/nv* as well.
DevicePolicy=closed
DeviceAllow=char-video4linux rw
DeviceAllow=char-nvhost rw
DeviceAllow=char-nvidia rw

[Install]
WantedBy=multi-user.target
"""


def unit(program: list[str], config: Path) -> str:
    """The unit's text. program: what starts splitrt, before its verb."""
    words = shlex.join(program).replace("%", "%%")
    return UNIT.format(program=words, config=shlex.quote(str(config.absolute())).replace("%", "%%"))
