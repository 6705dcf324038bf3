"""A TCP proxy that misbehaves on command, for tests of links, brokers and agents on loopback.

No test in here. A test module imports it by its name (`pythonpath` in pyproject.toml).

Modes, which may be changed at any time and hold for every connection, open or new:

    forward    pass everything on
    stall      keep connections, pass nothing, tell nobody: a peer that has vanished without a word
    throttle   pass on at `rate` bytes a second in each direction, at most `PIECE` at a time

`cut` and `reset` end the connections that are open, with a FIN or an RST; `refuse` says whether new ones are turned away.
"""

import contextlib
import socket
import struct
import threading
import time

PIECE = 4096
LOOK = 0.02


class FaultyProxy:
    """Leads from a port of its own to a port on loopback.

    Attributes:
        port: where it listens.
        mode: `forward`, `stall` or `throttle`.
        rate: bytes a second in mode `throttle`, for each direction of each connection.
        refuse: whether new connections are reset at once.
        connections: how many there have been.
        passed: bytes passed on, up and down.
    """

    def __init__(self, target):
        self.target, self.mode, self.rate, self.refuse = target, "forward", 16_000, False
        self.connections, self.passed = 0, [0, 0]
        self._lock = threading.Lock()
        self._open = set()
        self._closed = False
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._closed = True
        self._listener.close()
        self.cut()

    def cut(self):
        """End the open connections."""
        for near, far in self._taken():
            for end in (near, far):
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def reset(self):
        """End the open connections as a host does that knows nothing of them."""
        for near, far in self._taken():
            for end in (near, far):
                with contextlib.suppress(OSError):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    end.close()

    def _taken(self):
        with self._lock:
            pairs, self._open = self._open, set()
        return pairs

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                self.connections += 1
                try:
                    if self.refuse:
                        raise OSError
                    far = socket.create_connection(("127.0.0.1", self.target))
                except OSError:
                    near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    near.close()
                    continue
                with self._lock:
                    self._open.add((near, far))
                for direction, (source, sink) in enumerate(((near, far), (far, near))):
                    source.settimeout(LOOK)
                    threading.Thread(target=self._pump, args=(source, sink, direction), daemon=True).start()

    def _pump(self, source, sink, direction):
        """Pass on from one end to the other until either is gone."""
        with contextlib.suppress(OSError, ValueError):
            while not self._closed:
                if self.mode == "stall":
                    time.sleep(LOOK)
                    continue
                try:
                    data = source.recv(PIECE if self.mode == "throttle" else 65536)
                except TimeoutError:
                    continue
                if not data:
                    break
                while self.mode == "stall" and not self._closed:
                    time.sleep(LOOK)
                if self.mode == "throttle":
                    time.sleep(len(data) / self.rate)
                self._send(sink, data)
                self.passed[direction] += len(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    @staticmethod
    def _send(sink, data):
        view = memoryview(data)
        while view:
            try:
                view = view[sink.send(view) :]
            except TimeoutError:
                continue
