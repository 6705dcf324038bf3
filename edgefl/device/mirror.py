"""Fetching a file's missing blocks from a source off the broker, in a thread of its own.

Model: the thread reads each run of missing blocks, checks each block, and puts it into a short queue; then it rings. The agent's
one thread takes them and writes them; the file on disk is touched by nobody else. Whatever goes wrong ends the thread with an
error, and the rest of the file is asked for over MQTT.

Rules: no more is read than the file's promised length and one byte; a block takes at most `BLOCK_SECONDS`; at most `QUEUE` blocks
are in memory; the thread ends with the process.
"""

import os
import queue
import ssl
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from typing import Protocol

from edgefl.errors import BlockError, EdgeflError, EndlessDataError, LinkError, SlowRetrievalError
from edgefl.wire.blocks import block_length, check_block
from edgefl.wire.files import BLOCK_SIZE, FileRef
from edgefl.wire.sources import is_web, place_of

QUEUE = 4
MOST_RUNS = 8
"""Requests for one file; with more holes in it, what lies between them is read as well."""
BLOCK_SECONDS = 30.0
"""A KiB per second: slower sources than that are left to others."""
TIMEOUT = 15.0
"""Seconds for each step of a connection."""


class Bell:
    """A pipe that a poll loop can wait for; rung from any thread."""

    def __init__(self) -> None:
        self.descriptor, self._end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._lock = threading.Lock()

    def ring(self) -> None:
        """Wake whoever waits."""
        with self._lock, suppress(OSError):  # full: it rings already
            if self._end >= 0:
                os.write(self._end, b"\0")

    def silence(self) -> None:
        """Take note."""
        with suppress(OSError):
            while os.read(self.descriptor, 4096):
                pass

    def close(self) -> None:
        """Free the pipe; ringing does nothing from now on."""
        with self._lock:
            os.close(self._end)
            self._end = -1
        os.close(self.descriptor)


class _Stream(Protocol):
    """Bytes from a place; the first `skip` of them lie before those that were asked for."""

    @property
    def skip(self) -> int:
        """Bytes to be read before those that were asked for."""
        ...

    def read(self, count: int) -> bytes:
        """Up to so many bytes; empty at the end."""
        ...


class SourceFetch:
    """Missing blocks of one file, from one source.

    Args:
        source: a checked source.
        ref: the file.
        have: bitmap of the blocks that are there.
        ring: called whenever there is something to take, from the thread.
        context: which web servers are believed; None for the system's certificates.
        block_seconds: patience for each block.

    Attributes:
        source: where from.
        error: why it has ended early; None if all blocks came, or it still runs.
    """

    def __init__(
        self,
        source: str,
        ref: FileRef,
        have: int,
        *,
        ring: Callable[[], None],
        context: ssl.SSLContext | None = None,
        block_seconds: float = BLOCK_SECONDS,
    ) -> None:
        self.source = source
        self.error: EdgeflError | None = None
        self._ref = ref
        self._have = have
        self._ring = ring
        self._context = context
        self._patience = block_seconds
        self._blocks: queue.Queue[tuple[int, bytes]] = queue.Queue(QUEUE)
        self._ended = threading.Event()
        self._cancelled = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"source {ref.sha256.hex()[:8]}", daemon=True)
        self._thread.start()

    @property
    def done(self) -> bool:
        """Whether nothing more comes and everything was taken."""
        return self._ended.is_set() and self._blocks.empty()

    def take(self) -> Iterator[tuple[int, bytes]]:
        """Index and bytes of the blocks that have come since the last call; they have been checked."""
        with suppress(queue.Empty):
            while True:
                yield self._blocks.get_nowait()

    def cancel(self) -> None:
        """Nothing more is wanted; the thread ends by itself."""
        self._cancelled.set()

    def _run(self) -> None:
        try:
            self._read()
        except EdgeflError as error:
            self.error = error
        except Exception as error:  # noqa: BLE001 - a thread that dies silently would leave the file waiting for ever
            self.error = LinkError(f"source {self.source[:100]} failed", found=repr(error)[:200])
        finally:
            self._ended.set()
            self._ring()

    def _read(self) -> None:
        for first, last in _runs(((1 << len(self._ref.blocks)) - 1) & ~self._have):
            if not self._cancelled.is_set():
                self._read_run(first, last)

    def _read_run(self, first: int, last: int) -> None:
        """Read the blocks from the first to the last."""
        end = min(self._ref.length, (last + 1) * BLOCK_SIZE)
        with self._open(first * BLOCK_SIZE, end) as stream:
            skip = stream.skip
            while skip > 0 and not self._cancelled.is_set():
                skip -= len(self._exactly(stream, min(skip, BLOCK_SIZE)))
            for index in range(first, last + 1):
                data = self._exactly(stream, block_length(self._ref, index))
                check_block(self._ref, index, data)
                if not self._have >> index & 1 and not self._put(index, data):
                    return
            if end == self._ref.length and stream.read(1):
                raise EndlessDataError(f"source {self.source[:100]} has too much", expected=f"{self._ref.length} bytes")

    def _open(self, offset: int, end: int) -> AbstractContextManager[_Stream]:
        place = place_of(self.source, self._ref.sha256)
        if not is_web(self.source):
            return _OpenFile(place, offset, self._ref.length)
        from edgefl.device.web import WebFile  # noqa: PLC0415 - a board without web sources does not pay for an HTTP client

        return WebFile(place, offset, end, self._ref.length, self._context or ssl.create_default_context(), TIMEOUT)

    def _exactly(self, stream: _Stream, count: int) -> bytes:
        """So many bytes, in good time."""
        data, until = bytearray(), time.monotonic() + self._patience
        while len(data) < count and not self._cancelled.is_set():
            piece = stream.read(count - len(data))
            if not piece:
                raise BlockError(f"source {self.source[:100]} has too little", expected=f"{self._ref.length} bytes")
            if time.monotonic() > until:
                raise SlowRetrievalError(f"source {self.source[:100]} is too slow", expected=f"a block in {self._patience:g} s")
            data += piece
        return bytes(data)

    def _put(self, index: int, data: bytes) -> bool:
        """Hand a block over; False if nobody wants it any more."""
        while not self._cancelled.is_set():
            with suppress(queue.Full):
                self._blocks.put((index, data), timeout=0.5)
                self._ring()
                return True
        return False


def _runs(missing: int) -> list[tuple[int, int]]:
    """First and last block of each run of missing blocks; one over everything if there are many."""
    runs: list[tuple[int, int]] = []
    left = missing
    while left:
        first = (left & -left).bit_length() - 1
        filled = left >> first
        last = first + ((filled + 1) & -(filled + 1)).bit_length() - 2
        runs.append((first, last))
        left = left >> (last + 1) << (last + 1)
    return runs if len(runs) <= MOST_RUNS else [(runs[0][0], runs[-1][1])]


class _OpenFile:
    """Bytes of a file on this machine, from an offset on. Raises LinkError, EndlessDataError, BlockError."""

    skip = 0

    def __init__(self, path: str, offset: int, length: int) -> None:
        try:
            # Not blocking: a place may turn out to be a pipe that nobody writes to.
            self._descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except (OSError, ValueError) as error:
            raise LinkError(f"source {path[:100]} cannot be read", found=str(error)[:200]) from None
        status = os.fstat(self._descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size != length:
            os.close(self._descriptor)
            kind = EndlessDataError if status.st_size > length else BlockError
            raise kind(f"source {path[:100]} is another file", expected=f"{length} bytes", found=f"{status.st_size}")
        os.lseek(self._descriptor, offset, os.SEEK_SET)

    def read(self, count: int) -> bytes:
        """Up to so many bytes; empty at the end. Raises LinkError."""
        try:
            return os.read(self._descriptor, count)
        except OSError as error:  # a stick that was pulled out
            raise LinkError("a source cannot be read any more", found=str(error)) from None

    def __enter__(self) -> "_OpenFile":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)
