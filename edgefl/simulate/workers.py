"""The pool that plays devices: what the simulation asks of it, whoever runs the processes.

Model: a pool is opened on a scene, is given the weights of each round, and plays jobs. It keeps every device's memory between
its rounds. Two exist: `processes.LocalWorkers` on this machine, `cluster.RayWorkers` on whatever Ray runs on.

Rules: `run` yields in the order of the jobs, whatever order they are finished in; no job depends on another of the same call, and
a device is in at most one of them. So the number of workers shows in the time, and in nothing else.
"""

from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Protocol, Self

from edgefl.layout import Float32
from edgefl.simulate.jobs import Job, Played
from edgefl.simulate.scene import Scene


class Workers(Protocol):
    """A pool of workers. Used by one thread; can be opened again and again, and is closed at the end of its `with`."""

    def open(self, scene: Scene) -> None:
        """Begin a simulation: what an earlier one left is forgotten. Raises MachineError when no worker can be started."""
        ...

    def share(self, kind: int, number: int, weights: Float32) -> None:
        """The weights that devices of a structure train from in a round, in the layout's order; number 0: the first ones."""
        ...

    def forget(self, numbers: Iterable[int]) -> None:
        """No job will name these rounds again."""
        ...

    def run(self, jobs: Iterable[Job]) -> Iterator[tuple[Played, ...]]:
        """Play the jobs; the outcomes in the order of the jobs.

        Raises:
            EdgeflError: what a worker could not do.
            MachineError: a worker died.
        """
        ...

    def close(self) -> None:
        """End the workers."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /) -> None: ...
