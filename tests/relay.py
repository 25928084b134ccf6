"""A relay between device and server that delays, cuts, and swallows: a link that fails."""

from __future__ import annotations

import contextlib
import socket
import threading
import time


class Relay:
    """Listens on a free port and passes bytes to `target`; faults are set while it runs.

    delay: seconds before each piece.  hole: swallow everything, connections stay open.
    """

    def __init__(self, target: str) -> None:
        host, port = target.rsplit(":", 1)
        self.target = (host, int(port))
        self.delay, self.hole = 0.0, False
        self.truncate_after: int | None = None  # bytes towards the server, then the line is cut
        self._lines: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Relay:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        self.cut()

    def cut(self) -> None:
        """Close every line that is open now."""
        lines, self._lines = self._lines, []
        for line in lines:
            _close(line)

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(self.target, 2)
            except OSError:
                near.close()
                continue
            self._lines += [near, far]
            threading.Thread(target=self._pass, args=(near, far, True), daemon=True).start()
            threading.Thread(target=self._pass, args=(far, near, False), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, up: bool) -> None:
        passed = 0
        try:
            while piece := source.recv(65536):
                time.sleep(self.delay)
                if self.hole:
                    continue
                if up and self.truncate_after is not None:
                    piece = piece[: max(0, self.truncate_after - passed)]
                    passed += len(piece)
                    sink.sendall(piece)
                    if passed >= self.truncate_after:
                        break
                    continue
                sink.sendall(piece)
        except OSError:
            pass
        _close(source)
        _close(sink)


def _close(line: socket.socket) -> None:
    with contextlib.suppress(OSError):
        line.shutdown(socket.SHUT_RDWR)
    line.close()
