"""What running some candidates has shown, and what that says of the others. Pure.

Model. `edgefl.compress.cost` estimates memory and step time from shapes. A candidate that has been run by the board's trainer has
a measured figure of each in place of the estimate. Any other's estimate is scaled by the run whose estimate is nearest to its
own (by factor): the memory above that of an empty process, and the time of a step, each by measured over estimated. Candidates of
one structure have the same estimates, so a run of one says the same of all its precisions.

Times are of the machine that runs; a profile's `slowdown` turns them into the board's. Before anything has been run nothing is
known of times, and a step counts as 0: a budget of time then excludes nothing, and the first run calibrates it.

Laws: a candidate that was run costs what was measured; the corrections of one run keep the order of the estimates; a run that was
ended for its memory is a lower bound and is no measurement.
"""

import math
from dataclasses import dataclass
from typing import Protocol

from edgefl.compress.cost import BASE
from edgefl.compress.planner import Cost

LEAST = 1 << 20
"""Bytes above an empty process that any candidate is taken to need, so that factors stay finite."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What a candidate takes of a board.

    Attributes:
        memory: bytes of the training process at its peak.
        step: milliseconds of a training step; 0 if nothing is known of times.
        measured: whether the candidate itself was run; otherwise both are scaled estimates.
    """

    memory: float
    step: float
    measured: bool


@dataclass(frozen=True, slots=True)
class Run:
    """A candidate that was run.

    Attributes:
        name: of the candidate.
        estimated: its cost by shapes alone.
        memory: bytes at the peak; what it had reached if it was `ended`.
        step: milliseconds of a step on the machine that ran it; 0 if it did not come to one.
        ended: whether it was ended for its memory.
    """

    name: str
    estimated: Cost
    memory: float
    step: float
    ended: bool = False


class Weigh(Protocol):
    """Turns an estimate into a demand."""

    def __call__(self, name: str, estimated: Cost) -> Demand:
        """The demand of the candidate of this name."""
        ...


@dataclass(frozen=True, slots=True)
class Evidence:
    """Runs on one machine with one engine and so many threads, each candidate's last one."""

    runs: tuple[Run, ...] = ()

    def after(self, run: Run) -> "Evidence":
        """With one more run, which replaces an earlier one of the same candidate."""
        return Evidence((*(one for one in self.runs if one.name != run.name), run))

    def demand(self, name: str, estimated: Cost, *, slowdown: float = 1.0) -> Demand:
        """What a candidate takes.

        Args:
            name: of the candidate.
            estimated: its cost by shapes alone.
            slowdown: how many times longer a step takes on the board than where the runs were.
        """
        own = next((run for run in self.runs if run.name == name and not run.ended), None)
        if own:
            return Demand(own.memory, own.step * slowdown, measured=True)
        timed = [run for run in self.runs if run.step > 0.0]
        memory, step = estimated.memory, 0.0
        if self.runs:
            near = min(self.runs, key=lambda run: _apart(_above(run.estimated.memory), _above(estimated.memory)))
            memory = _scaled(estimated.memory, near)
        if timed:
            near = min(timed, key=lambda run: _apart(run.estimated.step, estimated.step))
            step = estimated.step * near.step / near.estimated.step if near.estimated.step else near.step
        return Demand(memory, step * slowdown, measured=False)


def _above(memory: float) -> float:
    """Bytes above an empty process."""
    return max(memory - BASE, LEAST)


def _scaled(memory: float, run: Run) -> float:
    if memory == run.estimated.memory:
        return run.memory
    return BASE + _above(memory) * _above(run.memory) / _above(run.estimated.memory)


def _apart(one: float, other: float) -> float:
    """How far two amounts are from each other, by factor."""
    return abs(math.log(max(one, 1e-12) / max(other, 1e-12)))
