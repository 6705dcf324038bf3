"""The server's round machine: when an update counts, and when a round is aggregated. Pure; the shell is `server.training`.

Model. A training runs a number of rounds. A round is a *buffer with a deadline* (FedBuff, Nguyen et al., AISTATS 2022,
https://arxiv.org/abs/2106.06639): it is aggregated as soon as `cohort` updates are in the buffer, or when its deadline has
passed and at least `quorum` are. An update that was trained for an earlier round counts in the current one, discounted, if it
is at most `staleness` rounds late. A synchronous round is the special case cohort = all devices.

Rules:

* An update is known by (device, round it was trained for). It enters the buffer once; the second time it is a `Repeat`.
* The machine never waits for a device by name: a device that is gone costs a deadline, not the training.
* `judge` decides before anything is stored; `stored` is told after it has been stored for good. A server that dies between
  the two has promised nothing.
* A round whose deadlines pass without a quorum is opened to more and more devices: perhaps too few of them drew a lot, and
  those that did are gone.
* A jump-start (`edgefl.jumpstart`) is a first round with a cohort of its own. Nothing that is late counts in it, and what was
  trained for it or before it counts nowhere else: it is not about the weights that the race has chosen.
* Times are seconds of any one clock that survives restarts (the shell uses wall time).
"""

from dataclasses import dataclass, replace

from edgefl.jumpstart import cohort_at, quorum_at
from edgefl.plan import Plan

UpdateKey = tuple[str, int]
"""Device and the round it trained for."""


@dataclass(frozen=True, slots=True)
class Rounds:
    """State of one training.

    Attributes:
        plan: what the operator asked for.
        number: the open round, or the last one when `finished`.
        last: the number of the last round; rounds count on over the trainings of a version.
        opened: when it was opened.
        buffer: updates that wait for the next aggregation.
        counted: updates of recent rounds that wait no longer (aggregated, or left behind by an earlier training of the
            version), so that a repetition is known.
        finished: all rounds are done.
        raced: the last round of earlier trainings of the version that was a jump-start; 0 if there was none.
    """

    plan: Plan
    number: int
    last: int
    opened: float
    buffer: frozenset[UpdateKey] = frozenset()
    counted: frozenset[UpdateKey] = frozenset()
    finished: bool = False
    raced: int = 0

    @property
    def of_training(self) -> int:
        """The number of the open round, counted from 1 in this training."""
        return self.number - self.last + self.plan.rounds

    @property
    def race(self) -> int:
        """The number of the version's last round that is or was a jump-start; 0 if there is none."""
        return self.last - self.plan.rounds + 1 if self.plan.jump_start else self.raced

    @property
    def deadline(self) -> float:
        """When the open round may be aggregated with a mere quorum."""
        return self.opened + self.plan.deadline


@dataclass(frozen=True, slots=True)
class Accept:
    """Store this update, then tell the machine; it is `late` rounds late."""

    late: int


@dataclass(frozen=True, slots=True)
class Repeat:
    """This update is stored already: send the receipt again, count nothing."""


@dataclass(frozen=True, slots=True)
class Refuse:
    """This update can never count; the device is told why."""

    reason: str


Verdict = Accept | Repeat | Refuse


def judge(state: Rounds, key: UpdateKey) -> Verdict:
    """Whether an update that has just arrived may be stored."""
    _, trained_for = key
    if key in state.buffer or key in state.counted:
        return Repeat()
    if state.finished:
        return Refuse("the training has ended")
    if trained_for < 1:
        return Refuse(f"there is no round {trained_for}; rounds count from 1")
    if trained_for > state.number:
        return Refuse(f"round {trained_for} has not been opened; the current one is {state.number}")
    late = state.number - trained_for
    raced = trained_for <= state.race
    if late > (0 if raced else state.plan.staleness):
        allowed = "none in and after a jump-start" if raced else str(state.plan.staleness)
        return Refuse(f"{late} rounds late; the plan allows {allowed}")
    return Accept(late)


def stored(state: Rounds, key: UpdateKey) -> Rounds:
    """The update is stored for good and is part of the buffer."""
    return replace(state, buffer=state.buffer | {key})


def due(state: Rounds, now: float) -> bool:
    """Whether the buffer is to be aggregated now."""
    if state.finished:
        return False
    if len(state.buffer) >= cohort_at(state.plan, state.of_training):
        return True
    return now >= state.deadline and len(state.buffer) >= quorum_at(state.plan, state.of_training)


def widened(state: Rounds, now: float) -> float:
    """The fraction of the devices that take part now: the plan's, doubled with each deadline that has passed without a quorum."""
    fraction = state.plan.fraction
    if state.finished or len(state.buffer) >= quorum_at(state.plan, state.of_training):
        return fraction
    deadlines = int(max(0.0, now - state.opened) / state.plan.deadline)
    return min(1.0, fraction * 2.0 ** min(deadlines, 64))


def aggregated(state: Rounds, now: float) -> Rounds:
    """The buffer has been aggregated: the next round opens, or the training has ended."""
    oldest = state.number - state.plan.staleness
    counted = frozenset(key for key in state.counted | state.buffer if key[1] >= oldest)
    if state.number >= state.last:
        return replace(state, buffer=frozenset(), counted=counted, finished=True)
    return replace(state, number=state.number + 1, opened=now, buffer=frozenset(), counted=counted)
