"""The state of a rollout, and what is counted in it: who is told, who holds the version, who has failed, what the gate says.

Model: a device's *step* only ever rises in rank: waiting, told, on its way, timed out, activated, failed. So the same reports
give the same outcome in whatever order they come and however often. A device that was too slow and then holds the version has
succeeded; one that has failed has failed, whatever it says later: to try it again is another rollout.

An operator who resumes a rollout after failures sets those that failed *aside*: they count no more, neither as told nor as
failed, and others are told in their place.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from edgefl.rollout_rules import Rules, share_of

Phase = Literal["running", "waiting", "paused", "finished", "aborted", "superseded", "rolled back"]
OPEN: tuple[Phase, ...] = ("running", "waiting", "paused")
"""Phases of a rollout that has not ended."""
Step = Literal["waiting", "told", "fetching", "deferred", "trial", "timed-out", "activated", "failed", "reverted"]
RANK: Mapping[str, int] = {
    "waiting": 0, "told": 1, "fetching": 2, "deferred": 2, "trial": 2, "timed-out": 3, "activated": 4, "failed": 5, "reverted": 5,
}  # fmt: skip
DONE_AT = RANK["timed-out"]
FAILURES: tuple[Step, ...] = ("timed-out", "failed", "reverted")


@dataclass(frozen=True, slots=True)
class Device:
    """A device in a rollout.

    Attributes:
        step: how far it is.
        stage: index of the stage in which it was told; None while it waits.
        percent: of the step.
        fetched: bytes of the version that it has.
        code, error: of its last trouble; the code is one of `edgefl.errors`, or `timed-out`.
        since: when it had been told and was there, or began after putting it off: a timeout counts from then; None until then.
        aside: it has failed, and an operator has gone on without it.
        changed: when any of this changed. All times are seconds since 1970.
    """

    step: Step = "waiting"
    stage: int | None = None
    percent: int = 0
    fetched: int = 0
    code: str = ""
    error: str = ""
    since: float | None = None
    aside: bool = False
    changed: float = 0.0

    @property
    def failed(self) -> bool:
        """Whether it has failed, or taken too long."""
        return self.step in FAILURES


@dataclass(frozen=True, slots=True)
class Rollout:
    """A rollout: number `id`, the index of the open stage, why it is in this phase, and its devices.

    `present` are those that are there now, `holding` those that say they hold the version; both are what was heard, not stored.
    """

    id: int
    rules: Rules
    phase: Phase = "running"
    stage: int = 0
    reason: str = ""
    devices: Mapping[str, Device] = field(default_factory=dict)
    present: frozenset[str] = frozenset()
    holding: frozenset[str] = frozenset()

    @property
    def is_last_stage(self) -> bool:
        """Whether no further stage can open."""
        return self.stage == len(self.rules.stages) - 1


@dataclass(frozen=True, slots=True)
class Count:
    """What a rollout's gate and limit are judged by; devices that were set aside are not in it.

    Attributes:
        members: devices that the rollout is meant for.
        told: of these, those that were told.
        activated, failed: of these, those that are done.
        capacity: devices that the open stage lets be told.
        needed: devices that must hold the version before the next stage.
    """

    members: int
    told: int
    activated: int
    failed: int
    capacity: int
    needed: int

    @property
    def gate_passed(self) -> bool:
        """Whether enough devices hold the version."""
        return self.members > 0 and self.activated >= self.needed

    @property
    def gate_lost(self) -> bool:
        """Whether so many have failed that the others cannot pass the gate."""
        return self.failed > max(self.capacity, self.told) - self.needed

    def too_many_failed(self, rules: Rules) -> bool:
        """Whether the limit of failures is reached."""
        done = self.activated + self.failed
        return done >= rules.minimum and self.failed >= share_of(rules.abort, done)


def capacity(state: Rollout, stage: int, members: int) -> int:
    """How many devices may be told while a stage is open: its own size, or that of an earlier one if that is larger."""
    return max(one.size(members) for one in state.rules.stages[: stage + 1])


def count(state: Rollout) -> Count:
    """Count a rollout's devices."""
    members = told = activated = failed = 0
    for device in state.devices.values():
        if not device.aside:
            members += 1
            told += device.step != "waiting"
            activated += device.step == "activated"
            failed += device.failed
    room = capacity(state, state.stage, members)
    # Told are more than the stage allows when devices have left the fleet since.
    return Count(members, told, activated, failed, room, share_of(state.rules.success, max(room, told)))


def next_stage(state: Rollout, members: int) -> int:
    """The next stage that tells anybody more, or the last one."""
    stages = range(state.stage + 1, len(state.rules.stages))
    now = capacity(state, state.stage, members)
    return next((stage for stage in stages if capacity(state, stage, members) > now), len(state.rules.stages) - 1)


def place(rollout: int, device: str) -> bytes:
    """Where a device stands in a rollout's queue: always the same place, and in each rollout another one."""
    return hashlib.sha256(f"{rollout}/{device}".encode()).digest()[:8]


def risen(device: Device, step: Step, now: float) -> Device:
    """The device at a step, if that is no step back; a step on the way that repeats is one too."""
    if RANK[step] < RANK[device.step] or (RANK[step] >= DONE_AT and RANK[step] == RANK[device.step]):
        return device
    aside = device.aside and step != "activated"
    return replace(device, step=step, percent=100 if step == "activated" else 0, aside=aside, changed=now)
