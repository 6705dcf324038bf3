"""The pool on Ray (https://docs.ray.io), from the cores of this machine to those of a cluster.

Model: each worker is an actor with one engine. The scene and the weights of each round are objects in Ray's store, which every
machine holds once. A device's memory is an object, too: a job takes it and gives back the next one, so that a device is at home
with no worker, and Ray moves and spills memories as it sees fit. Nothing needs a shared file system.

Rule: the same `Host` as in a local worker plays the devices; here is nothing but its transport.
"""

import contextlib
import os
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from edgefl.errors import EdgeflError, MachineError
from edgefl.layout import Float32, Index
from edgefl.simulate.host import Host
from edgefl.simulate.jobs import ANSWER, ENCODER, JOB, Answer, Job, Played, Troubled
from edgefl.simulate.scene import Scene

AHEAD = 2
"""Jobs that each actor has waiting."""
END_SECONDS = 5.0
_CLUSTERS = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Ray's variable that, switched off, keeps the servers of a Ray that is started here on 127.0.0.1 (on any system)."""


class RayWorker:
    """What runs inside an actor."""

    def __init__(self, scene: Scene) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="edgefl-worker-")
        scene.write_graphs(Path(self._directory.name))
        self._host = Host(scene, Path(self._directory.name))

    def close(self) -> None:
        """Remove the files."""
        self._directory.cleanup()

    def play(self, data: bytes, names: tuple[tuple[int, int], ...], *objects: Any) -> list[bytes]:
        """Play a job.

        Args:
            data: the `Job`, encoded.
            names: structure and round of the weights that follow.
            objects: these weights, then the memory of each player.

        Returns:
            The `Answer`, encoded, then what each player keeps.
        """
        job = JOB.decode(data)
        given: Mapping[tuple[int, int], Float32] = dict(zip(names, objects, strict=False))
        memories = objects[len(names) :]
        try:
            made = self._host.play(job, lambda kind, number: given[kind, number], memories)
        except EdgeflError as error:
            return [ENCODER.encode(Answer(trouble=Troubled.of(error))), *memories]
        return [ENCODER.encode(Answer(tuple(played for played, _ in made))), *(memory for _, memory in made)]


class RayWorkers:
    """Actors on a running Ray, or on one that is started on this machine.

    Args:
        count: of the actors; 0 is one for each processor that Ray knows.
        address: of a running Ray; None starts one here, or joins the one that `ray.init` was called for.
    """

    def __init__(self, count: int = 0, address: str | None = None) -> None:
        if address is None:
            os.environ.setdefault(_CLUSTERS, "0")  # read when ray is imported
        try:
            import ray  # noqa: PLC0415  only this pool needs it, and it is large
        except ImportError as error:
            raise MachineError(
                "Ray is not installed", found=str(error), remedy="Install edgefl-fleet[cluster], or use local workers"
            ) from error
        self._ray: Any = ray
        self._count = count
        self._address = address
        self._mine = False
        self._actors: list[Any] = []
        self._weights: dict[tuple[int, int], Any] = {}
        self._kinds: Index = np.zeros(0, dtype=np.int64)
        self._memories: dict[int, Any] = {}

    def open(self, scene: Scene) -> None:
        """See `Workers.open`."""
        self._drop()
        with _converted("Ray cannot start the workers"):
            if not self._ray.is_initialized():
                # The dashboard would be one more server on the network.
                local: dict[str, Any] = {"include_dashboard": False, "num_cpus": self._count or None}
                options = {"address": self._address} if self._address else local
                self._ray.init(log_to_driver=False, logging_level="error", **options)
                self._mine = True
            count = self._count or max(1, int(self._ray.cluster_resources().get("CPU", 1)))
            self._count = count
            self._empty = self._ray.put(b"")
            self._kinds = scene.kinds
            shared, worker = self._ray.put(scene), self._ray.remote(num_cpus=1)(RayWorker)
            self._actors = [worker.remote(shared) for _ in range(count)]

    def share(self, kind: int, number: int, weights: Float32) -> None:
        """See `Workers.share`."""
        self._weights[kind, number] = self._ray.put(weights)

    def forget(self, numbers: Iterable[int]) -> None:
        """See `Workers.forget`."""
        gone = set(numbers)
        for name in [name for name in self._weights if name[1] in gone]:
            del self._weights[name]

    def run(self, jobs: Iterable[Job]) -> Iterator[tuple[Played, ...]]:
        """See `Workers.run`."""
        waiting, running = deque(jobs), deque[tuple[Job, Any]]()
        load = dict.fromkeys(range(len(self._actors)), 0)
        where: dict[Any, int] = {}
        while waiting or running:
            while waiting and min(load.values()) < AHEAD:
                actor = min(load, key=lambda number: (load[number], number))
                job = waiting.popleft()
                answer = self._begin(self._actors[actor], job)
                load[actor] += 1
                where[answer] = actor
                running.append((job, answer))
            with _converted("a worker of the simulation died"):
                done, _ = self._ray.wait(list(where), num_returns=1)
            for answer in done:
                load[where.pop(answer)] -= 1
            while running and running[0][1] not in where:
                yield self._outcome(running.popleft()[1])

    def _begin(self, actor: Any, job: Job) -> Any:
        """Send a job; the future of its answer. The memories' futures take the place of the old ones."""
        wanted = {(int(self._kinds[p.number]), number) for p in job.players for number in (0, p.before, job.round)}
        names = tuple(sorted(wanted & self._weights.keys()))
        kept = [self._memories.get(player.number, self._empty) for player in job.players]
        call = actor.play.options(num_returns=1 + len(kept))
        answer, *memories = call.remote(ENCODER.encode(job), names, *(self._weights[name] for name in names), *kept)
        if job.task is not None:
            self._memories.update(zip((player.number for player in job.players), memories, strict=True))
        return answer

    def _outcome(self, future: Any) -> tuple[Played, ...]:
        with _converted("a worker of the simulation died"):
            answer = ANSWER.decode(self._ray.get(future))
        if answer.trouble:
            raise answer.trouble.error()
        return answer.played

    def _drop(self) -> None:
        with contextlib.suppress(Exception):  # of an actor that is dead already
            self._ray.get([actor.close.remote() for actor in self._actors], timeout=END_SECONDS)
        for actor in self._actors:
            self._ray.kill(actor)
        self._actors = []
        self._weights.clear()
        self._memories.clear()

    def close(self) -> None:
        """See `Workers.close`. A Ray that was started here is ended."""
        if self._ray.is_initialized():
            self._drop()
            if self._mine:
                self._ray.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /) -> None:
        self.close()


class _converted:  # noqa: N801 - reads as a function
    """Turns what Ray raises inside into a `MachineError` with this problem."""

    def __init__(self, problem: str) -> None:
        self._problem = problem

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /) -> None:
        if isinstance(error, Exception) and not isinstance(error, EdgeflError):
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise MachineError(self._problem, found=first[:300], remedy="See Ray's logs") from error
