"""A worker process on this machine: `python -m edgefl.simulate.worker DESCRIPTOR`.

Model: it reads messages from a connection that it inherits: the directory of a scene, or a job; it answers jobs. It ends when the
connection does, so that no worker outlives its simulation.

Rule: it loads ONNX Runtime, never torch.
"""

import os
import signal
import sys
from multiprocessing.connection import Connection
from pathlib import Path

from edgefl.errors import EdgeflError
from edgefl.simulate.host import Host
from edgefl.simulate.jobs import ENCODER, JOB, Answer, Job, Troubled
from edgefl.simulate.shelf import Shelf

SCENE, WORK = b"s", b"j"
"""First byte of a message: the rest is a directory, or a `Job`."""


class Worker:
    """Answers messages."""

    def __init__(self) -> None:
        self._on: tuple[Shelf, Host] | None = None

    def open(self, directory: Path) -> Answer:
        """Go to another scene; what goes wrong becomes an answer."""
        self.close()
        shelf = Shelf(directory)
        try:
            self._on = (shelf, Host(shelf.scene(), shelf.graphs))
        except EdgeflError as error:
            return Answer(trouble=Troubled.of(error))
        return Answer()

    def answer(self, job: Job) -> Answer:
        """Play a job; what goes wrong becomes an answer."""
        if self._on is None:
            raise RuntimeError("a job before the scene")
        shelf, host = self._on
        try:
            made = host.play(job, shelf.weights, [shelf.memory(player.number) for player in job.players])
            for played, memory in made:
                shelf.remember(played.number, memory)
        except EdgeflError as error:
            return Answer(trouble=Troubled.of(error))
        except MemoryError:
            return Answer(trouble=Troubled("machine", "a worker ran out of memory", "", "", "Use fewer workers"))
        return Answer(tuple(played for played, _ in made))

    def close(self) -> None:
        """Let go of the scene."""
        if self._on:
            self._on[0].close()
            self._on = None


def serve(connection: Connection, worker: Worker) -> None:
    """Answer until the other end closes."""
    while True:
        try:
            message = connection.recv_bytes()
        except EOFError:
            return
        if message[:1] == SCENE:
            connection.send_bytes(ENCODER.encode(worker.open(Path(os.fsdecode(message[1:])))))
        else:
            connection.send_bytes(ENCODER.encode(worker.answer(JOB.decode(message[1:]))))


def main(arguments: list[str]) -> None:
    """Entry of the process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the simulation, which ends us
    os.dup2(2, 1)  # libraries that print must not garble the simulation's output
    serve(Connection(int(arguments[0])), Worker())


if __name__ == "__main__":
    main(sys.argv[1:])
