"""What can happen to a rollout (events), what follows from it (effects), and the words for why. Values of the rollout machine."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from edgefl.server.rollout_state import Phase, Step

Word = Literal["pause", "resume", "promote", "abort", "supersede", "rollback"]
"""What an operator may order; `supersede` is a newer rollout of the model."""
Cause = Literal[
    "gate passed", "gate passed, approval asked", "last gate passed", "gate no longer passed",
    "too many failed", "too many failed, rules say abort", "gate out of reach",
    "pause", "resume", "promote", "promote at the last stage", "abort", "supersede", "rollback",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Member:
    """A device that the rollout is meant for, as the server last heard of it; `seen` in seconds since 1970, 0 if never."""

    present: bool = False
    seen: float = 0.0
    holds: bool = False


@dataclass(frozen=True, slots=True)
class DevicesChanged:
    """These are all the devices that the rollout is meant for."""

    members: Mapping[str, Member]


@dataclass(frozen=True, slots=True)
class Reported:
    """How far a device says it is with the version; with the step `told` it has only told of a trouble."""

    device: str
    step: Step
    percent: int = 0
    fetched: int = 0
    code: str = ""
    error: str = ""


@dataclass(frozen=True, slots=True)
class Heard:
    """Devices have said something, in this order."""

    reports: tuple[Reported, ...]


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


@dataclass(frozen=True, slots=True)
class Ordered:
    """An operator wants something; `why` is his reason, or what he did to cause it."""

    word: Word
    why: str = ""


Event = DevicesChanged | Heard | Tick | Ordered


@dataclass(frozen=True, slots=True)
class Told:
    """These devices are to hold the version from now on."""

    stage: int
    devices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Moved:
    """The rollout has gone from one phase to another; every move is a key of `MOVES`."""

    before: Phase
    cause: Cause
    after: Phase
    reason: str


Effect = Told | Moved
