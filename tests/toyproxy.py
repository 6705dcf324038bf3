"""A TCP proxy on loopback that lets through so many bytes per second in each direction, as a slow radio link does.

No test in here. A test module imports it by its name (`pythonpath` in pyproject.toml).
"""

import contextlib
import socket
import threading
import time

PIECE = 1024


class Throttle:
    """A listening port in front of another; each connection has two threads, each direction its own token bucket.

    Args:
        target: port on loopback.
        rate: bytes per second in each direction.

    Attributes:
        port: where to connect.
        connections: how many there have been.
        down, up: bytes towards the client, and from it.
    """

    def __init__(self, target, rate):
        """Listen."""
        self.target, self.rate = target, rate
        self.connections = self.down = self.up = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._sockets = []
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self):
        """Stop, and cut every connection."""
        for sock in (self._listener, *self._sockets):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.socket()
                # A small window, so that what the link cannot take waits in the broker and not in our kernel.
                server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
                server.connect(("127.0.0.1", self.target))
                self.connections += 1
                self._sockets += [client, server]
                threading.Thread(target=self._carry, args=(client, server, "up"), daemon=True).start()
                threading.Thread(target=self._carry, args=(server, client, "down"), daemon=True).start()

    def _carry(self, source, sink, direction):
        free_at = time.monotonic()
        with contextlib.suppress(OSError):
            while data := source.recv(PIECE):
                free_at = max(free_at, time.monotonic()) + len(data) / self.rate
                time.sleep(max(0.0, free_at - time.monotonic()))
                sink.sendall(data)
                setattr(self, direction, getattr(self, direction) + len(data))
        for sock in (source, sink):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
