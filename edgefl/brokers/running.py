"""Which broker process serves a fleet directory, so that another command can tell it to read its files again.

Model: `edgefl broker` holds a lock on `FLEET/broker/KIND.pid` for as long as the broker runs, and writes into it the process to
signal and where it listens. The kernel frees the lock when the holder ends, however it ends; therefore a held lock means that the
process named in the file is the broker and not a later one with its number.
"""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edgefl.brokers.listener import Listener
from edgefl.errors import BrokerError
from edgefl.store.atomic import store_error
from edgefl.store.lock import file_lock

KINDS = ("mosquitto", "embedded")
ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class RunningBroker:
    """A broker that runs on this machine: its kind, its process, and where it answers."""

    kind: str
    pid: int
    host: str
    port: int

    def reload(self) -> None:
        """Tell it to read its certificate, revocation list and access file again. Raises BrokerError."""
        try:
            os.kill(self.pid, signal.SIGHUP)
        except OSError as error:
            raise BrokerError(
                f"the broker's process {self.pid} cannot be told to reload",
                found=error.strerror or "",
                remedy="Run this as the user who runs `edgefl broker`",
            ) from None


@contextmanager
def only_broker(directory: Path, kind: str) -> Iterator[None]:
    """Be the one broker of this kind for a fleet directory while the block runs.

    Raises:
        BrokerError: another one is.
        StoreError: the lock cannot be made.
    """
    path = directory / f"{kind}.pid"
    for _ in range(ATTEMPTS):
        with file_lock(path, wait=False) as alone:
            if alone:
                _write(path, "")
                try:
                    yield
                finally:
                    _write(path, "")
                return
        time.sleep(0.1)  # somebody may just be looking
    raise BrokerError("a broker of this fleet runs already", found=str(path), remedy="Stop the other `edgefl broker` first")


def announce_process(listener: Listener, kind: str, pid: int) -> None:
    """Write down which process to signal; inside `only_broker`. Raises StoreError."""
    _write(listener.directory / f"{kind}.pid", f"{pid} {listener.reachable} {listener.port}\n")


def running_broker(directory: Path) -> RunningBroker | None:
    """The broker that serves this fleet directory on this machine, if one does. Raises StoreError."""
    for kind in KINDS:
        path = directory / f"{kind}.pid"
        if not path.exists():
            continue
        with file_lock(path, shared=True, wait=False) as free:
            if free:
                continue
        match _read(path).split():
            case [pid, host, port] if pid.isdecimal() and port.isdecimal():
                return RunningBroker(kind, int(pid), host, int(port))
    return None


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError as error:
        raise store_error("read", path, error) from error


def _write(path: Path, text: str) -> None:
    """Written in place, because the lock belongs to this very file."""
    try:
        path.write_text(text)
    except OSError as error:
        raise store_error("write", path, error) from error
