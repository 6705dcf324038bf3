"""Who lives and dies: a device's agent and the server, each forked from a process that has loaded everything already.

Model: what runs in the child is what `edgefl device run` and `edgefl serve` run, with sockets, files and a trainer of its own;
only Python's start is spared, which would take most of the time. Each carries a fuse, and notes in a journal what it has settled
(device) or folded into a round (server) *before* it goes on, so that afterwards somebody can compare.

Rule: the parent has one thread and no open database, because both do not survive a fork.
"""

import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from benchmarks.faults_fuse import Fuse
from edgefl.aggregate.mean import polynomial_staleness
from edgefl.cli.process import log_to_stderr, stop_on_signals
from edgefl.cli.serve import serve
from edgefl.codec.sparsify import Sparse
from edgefl.device.config import load_bundle
from edgefl.device.start import run_device
from edgefl.device.training import TrainerProcess
from edgefl.errors import EdgeflError
from edgefl.server import training
from edgefl.server.variants import store_parent
from edgefl.store.model_state import ModelState
from edgefl.store.outbox import peek
from edgefl.store.updates import UpdateRecord
from edgefl.wire.rounds import UpdatePart

PLAIN_EXIT = 4


class Settled(msgspec.Struct, frozen=True, array_like=True):
    """A device was told that the server has stored this update."""

    device: str
    version: int
    round: int
    sha256: bytes


class Folded(msgspec.Struct, frozen=True, array_like=True):
    """The server lets this stored update take part in an open round; positions in the parent's coordinates."""

    training: int
    device: str
    round: int
    samples: int
    positions: bytes
    values: bytes


class Journal:
    """Records in a file; each is appended in one write."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, record: msgspec.Struct) -> None:
        """Append one."""
        data = msgspec.msgpack.encode(record)
        file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(file, len(data).to_bytes(4, "big") + data)
        os.close(file)

    def read(self, kind: Any) -> list[Any]:
        """All of them."""
        data = self._path.read_bytes() if self._path.exists() else b""
        found, place = [], 0
        while place < len(data):
            length = int.from_bytes(data[place : place + 4], "big")
            found.append(msgspec.msgpack.decode(data[place + 4 : place + 4 + length], type=kind))
            place += 4 + length
        return found


def fork(role: Callable[[], None], log: Path) -> int:
    """Run a role in a child process with its output in a log; the child's process id."""
    pid = os.fork()
    if pid:
        return pid
    status = PLAIN_EXIT
    try:
        os.setsid()
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        log_to_stderr()
        role()
        status = 0
    except EdgeflError as error:
        print(f"ended: {error}", file=sys.stderr, flush=True)
    except BaseException:  # noqa: BLE001 - a child that has been forked must not return
        traceback.print_exc()
        status = 1
    os._exit(status)


def run_as_device(bundle: Path, fuse: Fuse, settled: Path) -> None:
    """An agent, until a signal."""
    device = bundle.name
    real_settle, real_init = ModelState.settle, TrainerProcess.__init__

    def settle(state: ModelState) -> None:
        entry = peek(state.outbox)
        if entry is not None:
            Journal(settled).write(Settled(device, entry.version, entry.round, entry.sha256))
        real_settle(state)

    def init(process: TrainerProcess, threads: int, *arguments: Any, **named: Any) -> None:
        real_init(process, threads, *arguments, **named)
        process._command = [sys.executable, "-m", "benchmarks.faults_trainer", str(threads)]  # noqa: SLF001 - a fuse for it too

    setattr(ModelState, "settle", settle)  # noqa: B010 - an assignment would have to lie about types
    setattr(TrainerProcess, "__init__", init)  # noqa: B010
    fuse.hand_on()
    fuse.install()
    run_device(load_bundle(bundle), stop_on_signals())


def run_as_server(fleet: Path, fuse: Fuse, folded: Path, parents: Path) -> None:
    """`edgefl serve`, until a signal; every parent vector that it makes is kept in a directory."""
    real_fold = training.Training._fold  # noqa: SLF001 - to see what is counted

    def fold(self: training.Training, key: tuple[str, int], head: UpdatePart | UpdateRecord, update: Sparse) -> None:
        index = self._sent[head.variant][update.positions].astype("<i8")
        values = update.values.astype("<f4").tobytes()
        Journal(folded).write(Folded(self.record.id, key[0], key[1], head.samples, index.tobytes(), values))
        real_fold(self, key, head, update)

    def keep_parent(blobs: Any, vector: Any) -> bytes:
        sha256 = store_parent(blobs, vector)
        (parents / sha256.hex()).write_bytes(vector.astype("<f4").tobytes())
        return sha256

    setattr(training.Training, "_fold", fold)  # noqa: B010 # noqa: SLF001
    setattr(training, "store_parent", keep_parent)  # noqa: B010 - the module does not export it
    fuse.install()
    serve.main(["--fleet", str(fleet)], standalone_mode=False)


def mean_of(updates: list[tuple[Folded, int]], size: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The aggregate of a round from each update once, computed densely; `updates` with how late each one was."""
    total, weight = np.zeros(size), 0.0
    for update, late in updates:
        w = update.samples * polynomial_staleness(late)
        total[np.frombuffer(update.positions, "<i8")] += w * np.frombuffer(update.values, "<f4").astype(float)
        weight += w
    return total / weight if weight else total


def wait_until(happened: Callable[[], bool], seconds: float, meanwhile: Callable[[], None]) -> bool:
    """Whether it has happened in time."""
    deadline = time.monotonic() + seconds
    while not happened():
        if time.monotonic() > deadline:
            return False
        meanwhile()
        time.sleep(0.05)
    return True
