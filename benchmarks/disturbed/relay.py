"""A TCP relay between a process and a server that can refuse, hold and cut connections, as a bad network does."""

from __future__ import annotations

import socket
import struct
import threading
from contextlib import suppress

#: closing with this sends a reset, not an orderly end
_RESET = struct.pack("ii", 1, 0)


class Relay:
    """Listens on a free loopback port and passes everything on to `port`."""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self._to = (host, port)
        self._server = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = int(self._server.getsockname()[1])
        self._flows = threading.Event()
        self._flows.set()
        self._refuses = False
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def refuse(self) -> None:
        """Reset all connections, and every new one."""
        self._refuses = True
        self.cut()

    def hold(self) -> None:
        """Take connections and bytes, and pass nothing on."""
        self._flows.clear()

    def cut(self) -> None:
        """Reset the connections of now; new ones pass."""
        with self._lock:
            for end in self._open:
                _reset(end)
            self._open.clear()

    def restore(self) -> None:
        """A good network again."""
        self._refuses = False
        self._flows.set()

    def close(self) -> None:
        """Listen no more."""
        # wakes the thread that waits in accept, which would keep the port open
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self.cut()
        self._flows.set()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._server.accept()
            except OSError:
                return
            if self._refuses:
                _reset(near)
                near.close()
                continue
            try:
                far = socket.create_connection(self._to, timeout=10)
            except OSError:
                _reset(near)
                near.close()
                continue
            far.settimeout(None)
            with self._lock:
                self._open |= {near, far}
            threading.Thread(target=self._serve, args=(near, far), daemon=True).start()

    def _serve(self, near: socket.socket, far: socket.socket) -> None:
        back = threading.Thread(target=self._pump, args=(far, near), daemon=True)
        back.start()
        self._pump(near, far)
        back.join()
        with self._lock:
            self._open -= {near, far}
        near.close()
        far.close()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                self._flows.wait()
                sink.sendall(data)
        # what one end has closed is closed at the other; the other direction may still flow
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)


def _reset(end: socket.socket) -> None:
    with suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        end.shutdown(socket.SHUT_RDWR)
