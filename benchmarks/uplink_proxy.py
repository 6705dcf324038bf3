"""A TCP proxy that counts: one listening port per device, all leading to one server, so that each device's bytes are told apart.

Model: bytes are counted as they are read from a connection: *up* from the device, *down* towards it. Everything inside TCP counts
(TLS records and handshakes, MQTT or HTTP framing, keep-alive), TCP and IP headers do not. Each piece is noted with its time, so
that the bytes of any span can be asked for later.

Rules: the proxy listens on loopback; it changes and delays nothing; it runs in a thread of its own, from entering to leaving the
context.
"""

import asyncio
import contextlib
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType

LOOPBACK = "127.0.0.1"
PIECE = 1 << 16


@dataclass(frozen=True, slots=True)
class Count:
    """Bytes up and down."""

    up: int = 0
    down: int = 0

    def __add__(self, other: "Count") -> "Count":
        return Count(self.up + other.up, self.down + other.down)


@dataclass(slots=True)
class _Gate:
    """One listening port and what has passed through it: times, and bytes up and down at these."""

    port: int = 0
    pieces: list[tuple[float, int, int]] = field(default_factory=list)


class CountingProxy:
    """Ports by device name.

    Args:
        target: port of the server on loopback; it need not listen yet.
        names: the devices.
    """

    def __init__(self, target: int, names: Sequence[str]) -> None:
        self._target = target
        self._gates = {name: _Gate() for name in names}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="counting proxy", daemon=True)
        self._servers: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def ports(self) -> dict[str, int]:
        """Where each device is to connect."""
        return {name: gate.port for name, gate in self._gates.items()}

    def between(self, start: float, end: float) -> dict[str, Count]:
        """What each device has sent and received from `start` until before `end`, in seconds since 1970."""
        found = {}
        for name, gate in self._gates.items():
            inside = [(up, down) for moment, up, down in tuple(gate.pieces) if start <= moment < end]
            found[name] = Count(sum(up for up, _ in inside), sum(down for _, down in inside))
        return found

    def __enter__(self) -> "CountingProxy":
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._open(), self._loop).result()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _open(self) -> None:
        for gate in self._gates.values():
            server = await asyncio.start_server(partial(self._accept, gate), LOOPBACK, 0)
            gate.port = server.sockets[0].getsockname()[1]
            self._servers.append(server)

    async def _close(self) -> None:
        for server in self._servers:
            server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, gate: _Gate, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        with contextlib.closing(writer), contextlib.suppress(OSError, asyncio.CancelledError):
            there, onward = await asyncio.open_connection(LOOPBACK, self._target)
            with contextlib.closing(onward):
                await asyncio.gather(_pass_on(gate, reader, onward, up=True), _pass_on(gate, there, writer, up=False))


async def _pass_on(gate: _Gate, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, up: bool) -> None:
    """Count and forward until the source ends; then the sink is told so."""
    try:
        while piece := await source.read(PIECE):
            gate.pieces.append((time.time(), len(piece) if up else 0, 0 if up else len(piece)))
            sink.write(piece)
            await sink.drain()
    finally:
        with contextlib.suppress(OSError):
            sink.write_eof()


def total(counts: dict[str, Count]) -> Count:
    """Of all devices."""
    return sum(counts.values(), Count())
