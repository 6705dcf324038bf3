"""The pool on this machine: processes that share files, one per core.

Model: each worker has a connection, at most `AHEAD` jobs in it, so that it never waits for its next one. Outcomes that come
before their turn wait; jobs are handed out at most `LEAD` per worker ahead of the turn, so that few of them do.

Rule: messages are msgpack over inherited pipes: nothing is pickled, and a program that simulates needs no `__main__` guard.
"""

import os
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from types import TracebackType
from typing import Self

from edgefl.errors import MachineError
from edgefl.layout import Float32
from edgefl.simulate.jobs import ANSWER, ENCODER, Job, Played
from edgefl.simulate.scene import Scene
from edgefl.simulate.shelf import Shelf
from edgefl.simulate.worker import SCENE, WORK

AHEAD = 2
LEAD = 8
END_SECONDS = 5.0


class _Hand:
    """One worker process: its connection, and the turns of the jobs that it has."""

    def __init__(self) -> None:
        self.connection, theirs = Pipe()
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "edgefl.simulate.worker", str(theirs.fileno())]
        try:
            # A session of its own: Ctrl-C in the terminal reaches the simulation, and the simulation ends its workers.
            self.process = subprocess.Popen(
                command, pass_fds=(theirs.fileno(),), env=environment, stdin=subprocess.DEVNULL, start_new_session=True
            )
        except OSError as error:
            raise MachineError("a worker process cannot be started", found=str(error), remedy="Use fewer workers") from error
        finally:
            theirs.close()
        self.turns: deque[int] = deque()

    def end(self) -> None:
        self.connection.close()
        try:
            self.process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class LocalWorkers:
    """Processes on this machine.

    Args:
        count: how many; 0 is one per core that this process may use.
        directory: where the simulation's files go; None: the system's place for temporary files.
    """

    def __init__(self, count: int = 0, directory: Path | None = None) -> None:
        self._count = count or len(os.sched_getaffinity(0))
        self._parent = directory
        self._hands: list[_Hand] = []
        self._shelf: Shelf | None = None
        self._temporary: tempfile.TemporaryDirectory[str] | None = None

    @property
    def count(self) -> int:
        """How many workers there are."""
        return self._count

    def open(self, scene: Scene) -> None:
        """See `Workers.open`."""
        self._clear()
        self._temporary = tempfile.TemporaryDirectory(prefix="edgefl-simulate-", dir=self._parent)
        self._shelf = Shelf.create(Path(self._temporary.name), scene)
        while len(self._hands) < self._count:
            self._hands.append(_Hand())
        for hand in self._hands:
            self._send(hand, SCENE + os.fsencode(self._temporary.name))
        for hand in self._hands:
            self._receive(hand)

    def share(self, kind: int, number: int, weights: Float32) -> None:
        """See `Workers.share`."""
        self._opened().put_weights(kind, number, weights)

    def forget(self, numbers: Iterable[int]) -> None:
        """See `Workers.forget`."""
        for number in numbers:
            self._opened().drop_weights(number)

    def run(self, jobs: Iterable[Job]) -> Iterator[tuple[Played, ...]]:
        """See `Workers.run`."""
        self._opened()
        waiting = deque(enumerate(jobs))
        total, turn, early = len(waiting), 0, dict[int, tuple[Played, ...]]()
        while turn < total:
            self._hand_out(waiting, turn)
            while turn in early:
                yield early.pop(turn)
                turn += 1
                self._hand_out(waiting, turn)
            if turn < total:
                for hand in self._ready():
                    early[hand.turns.popleft()] = self._receive(hand)

    def _hand_out(self, waiting: deque[tuple[int, Job]], turn: int) -> None:
        """Give each worker enough to do."""
        for depth in range(AHEAD):
            for hand in self._hands:
                if waiting and len(hand.turns) <= depth and waiting[0][0] < turn + LEAD * self._count:
                    number, job = waiting.popleft()
                    hand.turns.append(number)
                    self._send(hand, WORK + ENCODER.encode(job))

    def _ready(self) -> list[_Hand]:
        by_connection = {hand.connection: hand for hand in self._hands if hand.turns}
        return [by_connection[connection] for connection in wait(list(by_connection)) if isinstance(connection, Connection)]

    def _send(self, hand: _Hand, message: bytes) -> None:
        try:
            hand.connection.send_bytes(message)
        except OSError:
            raise self._died(hand) from None

    def _receive(self, hand: _Hand) -> tuple[Played, ...]:
        try:
            answer = ANSWER.decode(hand.connection.recv_bytes())
        except (EOFError, OSError):
            raise self._died(hand) from None
        if answer.trouble:
            self.close()  # other workers' answers to this call are of no use any more
            raise answer.trouble.error()
        return answer.played

    def _died(self, hand: _Hand) -> MachineError:
        hand.end()
        code = hand.process.returncode
        self.close()
        return MachineError(
            "a worker process of the simulation died",
            found=f"signal {-code}" if code < 0 else f"exit code {code}",
            remedy="Look for its last words above; with little memory, use fewer workers",
        )

    def _opened(self) -> Shelf:
        if self._shelf is None:
            raise MachineError("the workers are closed", remedy="Open them on a scene first")
        return self._shelf

    def _clear(self) -> None:
        if any(hand.turns for hand in self._hands):  # a call of `run` was given up half way
            self._end()
        self._shelf = None
        if self._temporary:
            self._temporary.cleanup()
            self._temporary = None

    def _end(self) -> None:
        hands, self._hands = self._hands, []
        for hand in hands:
            hand.connection.close()
        for hand in hands:
            hand.end()

    def close(self) -> None:
        """See `Workers.close`."""
        self._end()
        self._clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /) -> None:
        self.close()
