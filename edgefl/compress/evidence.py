"""What running some candidates has shown, and what that says of the others. Pure.

Model. `edgefl.compress.cost` estimates memory and step time from shapes. A candidate that has been run by the board's trainer has
a measured figure of each in place of the estimate. Any other's estimate is corrected by the runs, memory above that of an empty
process and time of a step alike: between two runs along the line that joins them, beyond the outermost one along the line through
it and the next, or in proportion where there is but one. A line, because what shapes do not tell of is an amount for every
candidate and a factor on what they do tell. So a run that took too much makes all others dearer and a run that fits makes them
cheaper again, each most where it was. Candidates of one structure have the same estimates, so a run of one says the same of all
its precisions.

Times are of the machine that runs; a profile's `slowdown` turns them into the board's. Before anything has been run nothing is
known of times, and a step counts as 0: a budget of time then excludes nothing, and the first run calibrates it.

Laws: a candidate that was run costs what was measured; runs that are in the order of their estimates keep the others in that
order too; a run that was ended for its memory is a lower bound: it says that the candidate takes more, and is no measurement.
A corrected estimate is for choosing what to run next. It refuses nothing by itself: that is for `edgefl.compress.search`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from edgefl.compress.cost import BASE
from edgefl.compress.planner import Cost, Resource

LEAST = 1 << 20
"""Bytes above an empty process that any candidate is taken to need, so that factors stay finite."""
LEAST_STEP = 1e-9
"""Milliseconds that any step is estimated to take, likewise."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What a candidate takes of a board.

    Attributes:
        memory: bytes of the training process at its peak.
        step: milliseconds of a training step; 0 if nothing is known of times.
        measured: whether the candidate itself was run to its end; otherwise both are corrected estimates or a bound.
        bound: whether it was run and ended for its memory: it takes at least this, and its step is an estimate still.
    """

    memory: float
    step: float
    measured: bool
    bound: bool = False

    @property
    def run(self) -> bool:
        """Whether the candidate itself was run."""
        return self.measured or self.bound

    def proves(self, resource: Resource) -> bool:
        """Whether a run of the candidate itself gave the figure for memory or a step."""
        return self.measured or (self.bound and resource == "memory")


@dataclass(frozen=True, slots=True)
class Run:
    """A candidate that was run.

    Attributes:
        name: of the candidate.
        estimated: its cost by shapes alone.
        memory: bytes at the peak; what it takes at least if it was `ended`.
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
        own = next((run for run in self.runs if run.name == name), None)
        if own and not own.ended:
            return Demand(own.memory, own.step * slowdown, measured=True)
        memory, step = estimated.memory, 0.0
        if own:
            memory = own.memory
        elif self.runs:
            above = ((_above(run.estimated.memory), _above(run.memory)) for run in self.runs)
            memory = BASE + _corrected(_above(memory), above)
        if timed := [(max(run.estimated.step, LEAST_STEP), run.step) for run in self.runs if run.step > 0.0]:
            step = _corrected(max(estimated.step, LEAST_STEP), timed)
        return Demand(memory, step * slowdown, measured=False, bound=own is not None)


def _above(memory: float) -> float:
    """Bytes above an empty process."""
    return max(memory - BASE, LEAST)


def _corrected(estimate: float, runs: Iterable[tuple[float, float]]) -> float:
    """A positive estimate in the light of runs, at least one, as (estimate, what it took); of equal estimates the most counts."""
    took: dict[float, float] = {}
    for x, y in runs:
        took[x] = max(y, took.get(x, y))
    if estimate in took:
        return took[estimate]
    places = sorted(took)
    if len(places) == 1:
        return estimate * took[places[0]] / places[0]
    after = min(max(sum(x < estimate for x in places), 1), len(places) - 1)
    low, high = places[after - 1], places[after]
    slope = (took[high] - took[low]) / (high - low)
    near = low if estimate < high else high
    if not low < estimate < high:  # beyond the runs nothing becomes cheaper by more, nor dearer by more than in proportion
        slope = min(max(slope, 0.0), took[near] / near)
    return took[near] + slope * (estimate - near)
