"""Many agents in one process: `python -m benchmarks.soak_agents`, told on standard input, in a JSON line, whom to play.

Model: each agent is the one that runs on a board (`edgefl.device.start.run_device`), in a thread, with its own connection, state
directory and lock. Two things are replaced: the trainer trains in the agent's own thread, and its engine only adds a little
noise, because here it is not learning that is looked at; and the link can be cut from outside. Now and then a connection is shut
down under its agent, or an agent is ended and started again. The process itself may be killed at any moment.
"""

import json
import random
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from edgefl.device import hands, start, trainer
from edgefl.device.config import Bundle, load_bundle
from edgefl.device.job import Answer, Job, TrialJob, Verdict
from edgefl.engine.contract import Trained
from edgefl.errors import EdgeflError
from edgefl.layout import Float32
from edgefl.link.paho import PahoLink

RESPITE = 1.0
"""Seconds until an agent that could not start tries again."""
STEP = 0.001
"""Standard deviation of what an agent learns."""

_links: dict[int, "CuttableLink"] = {}


class CuttableLink(PahoLink):
    """A link whose connection can be shut down by another thread."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        _links[threading.get_ident()] = self

    def cut(self) -> bool:
        """End the connection, if there is one."""
        client = self._connection.client
        sock = client.socket() if client else None
        try:
            if isinstance(sock, socket.socket):
                sock.shutdown(socket.SHUT_RDWR)
        except (OSError, ValueError):
            return False
        return sock is not None


class NoisyEngine:
    """An engine that learns noise."""

    def __init__(self, files: Any, *, threads: int) -> None:
        self.layout = files.layout
        self._vector = np.zeros(files.layout.size, dtype=np.float32)
        del threads

    def set_vector(self, vector: Float32) -> None:
        """Keep it."""
        self._vector = vector.copy()

    def vector(self) -> Float32:
        """Give it back."""
        return self._vector

    def train(self, *_: Any, rng: np.random.Generator, **__: Any) -> Trained:
        """Move a little."""
        self._vector = self._vector + rng.normal(scale=STEP, size=len(self._vector)).astype(np.float32)
        return Trained(1, 1.0, 1.0)


class InlineTrainer:
    """In the place of the trainer's process: the real `Trainer`, run when the agent looks for an answer. Every version passes."""

    peak_rss = 0
    cpu = 0.0
    wake = ()

    def __init__(self, threads: int, *_: Any, **__: Any) -> None:
        self._trainer = trainer.Trainer(threads)
        self._job: Job | TrialJob | None = None

    @property
    def busy(self) -> bool:
        """Whether a job is waiting."""
        return self._job is not None

    def start(self, job: Job | TrialJob) -> None:
        """Take a job."""
        self._job = job

    def poll(self) -> Answer | None:
        """Run it."""
        job, self._job = self._job, None
        if isinstance(job, TrialJob):
            return Verdict(version=job.candidate.version, seconds=0.0, peak_rss=0)
        return trainer.answer(self._trainer, job) if job else None

    def cancel(self) -> None:
        """Forget it."""
        self._job = None

    kill = cancel


class Board:
    """One agent and its thread."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._again = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def restart(self) -> None:
        """End the agent; it begins anew with what is on its disk."""
        self._again.set()

    def cut(self) -> bool:
        """Cut its connection; whether it had one."""
        link = _links.get(self._thread.ident or 0)
        return link.cut() if link else False

    def _run(self) -> None:
        while True:
            self._again.clear()
            try:
                start.run_device(self._bundle, self._again.is_set)
            except EdgeflError as error:
                print(f"{self._bundle.config.id}: {error}", file=sys.stderr, flush=True)
                time.sleep(RESPITE)


def main() -> None:
    """Play until the process is killed or its input ends; further lines say how many seconds there are between two faults."""
    orders = json.loads(sys.stdin.readline())
    for module, name, replacement in (
        (start, "PahoLink", CuttableLink),
        (hands, "TrainerProcess", InlineTrainer),
        (trainer, "open_engine", NoisyEngine),
    ):
        setattr(module, name, replacement)
    threading.stack_size(512 * 1024)
    boards = [Board(load_bundle(Path(path))) for path in orders["bundles"]]
    pause = [float(orders["pause"])]
    threading.Thread(target=_trouble, args=(boards, pause), daemon=True).start()
    for line in sys.stdin:
        pause[0] = float(line)


def _trouble(boards: list[Board], pause: list[float]) -> None:
    """Cut connections and restart agents, and say so on standard output."""
    rng = random.Random()  # noqa: S311 - no secret
    while True:
        if pause[0] <= 0.0:
            time.sleep(0.5)
            continue
        time.sleep(rng.expovariate(1.0 / pause[0]))
        board = rng.choice(boards)
        if rng.random() < 0.25:
            board.restart()
            print("restart", flush=True)
        elif board.cut():
            print("cut", flush=True)


if __name__ == "__main__":
    main()
