"""A network camera for the tests: GStreamer's RTSP server in a process of its own, on loopback."""

from __future__ import annotations

import shutil
import socket
import subprocess
from functools import cache

import pytest

WIDTH, HEIGHT = 320, 240
SYSTEM = "/usr/bin/python3"  # Debian's: PyGObject is not of a package registry
BEGIN = """
import sys
import gi
gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer
Gst.init(None)
assert all(map(Gst.ElementFactory.find, ("videotestsrc", "jpegenc", "rtpjpegpay")))
"""
SERVE = f"""
server = GstRtspServer.RTSPServer(address="127.0.0.1", service=sys.argv[1])
factory = GstRtspServer.RTSPMediaFactory(shared=True)
factory.set_launch(
    "( videotestsrc is-live=true pattern=smpte ! "
    "video/x-raw,format=I420,width={WIDTH},height={HEIGHT},framerate=20/1 ! "
    "jpegenc ! rtpjpegpay name=pay0 pt=26 )"
)
server.get_mount_points().add_factory("/door", factory)
assert server.attach(None) > 0
print("ready", flush=True)
GLib.MainLoop().run()
"""


@cache
def there() -> bool:
    """Whether GStreamer's RTSP server is installed."""
    if shutil.which(SYSTEM) is None:
        return False
    return subprocess.run([SYSTEM, "-c", BEGIN], capture_output=True, check=False).returncode == 0


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


class Door:
    """A camera that can be taken away and put back at the same address."""

    def __init__(self) -> None:
        if not there():
            pytest.skip("no RTSP server: gir1.2-gst-rtsp-server-1.0, gstreamer1.0-plugins-good")
        self.port = free_port()
        self.address = f"rtsp://127.0.0.1:{self.port}/door"
        self.process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Door:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        command = [SYSTEM, "-c", BEGIN + SERVE, str(self.port)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout.readline() == "ready\n"

    def kill(self) -> None:
        """Without a farewell, as when the power fails."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process.stdout.close()
            self.process = None
