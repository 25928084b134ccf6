"""/metrics and /healthz over HTTP, on this machine only."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from splitrt.errors import LinkError

HOST = "127.0.0.1"
PATIENCE = 5.0  # seconds for a request to come
TEXT = "text/plain; version=0.0.4; charset=utf-8"


class Page:
    """Listens until closed; port 0 takes a free one. LinkError if it is taken.

    health: (whether all is well, what is said); text: the metrics.
    """

    def __init__(
        self,
        port: int,
        text: Callable[[], bytes],
        health: Callable[[], tuple[bool, dict[str, Any]]],
    ) -> None:
        class Answer(BaseHTTPRequestHandler):
            timeout = PATIENCE

            def do_GET(self) -> None:
                if self.path == "/metrics":
                    self._send(200, TEXT, text())
                elif self.path == "/healthz":
                    well, said = health()
                    self._send(200 if well else 503, "application/json", json.dumps(said).encode())
                else:
                    self._send(404, "text/plain", b"/metrics or /healthz\n")

            def _send(self, status: int, kind: str, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def version_string(self) -> str:
                return "splitrt"

            def log_message(self, *_: object) -> None:
                """Silence: it is asked every few seconds."""

        try:
            self._server = ThreadingHTTPServer((HOST, port), Answer)
        except OSError as error:
            raise LinkError(
                f"no port {port} at {HOST}: {error.strerror}\nhelp: another metrics_port"
            ) from error
        self._server.daemon_threads = True
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, name="page", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(PATIENCE)
