"""How a version is rolled out: stages, gates and limits, and which devices it is meant for; as an operator writes them.

Model: a rollout tells its version to more and more devices, stage by stage. A stage is a number of devices or a share of all that
the rollout is meant for. The next one opens when enough of the devices that were told hold the version; it pauses when too many
of those that are done have failed.

The defaults are those that fleets of devices are updated with elsewhere: one canary, then 5 %, 25 % and all; 90 % must succeed;
10 % failures among at least 3 devices stop it.
"""

import math
from collections.abc import Collection
from typing import Annotated, Literal

import msgspec

from edgefl.errors import ConfigError

Share = Annotated[float, msgspec.Meta(gt=0.0, le=1.0)]
AtLimit = Literal["pause", "abort"]
LONGEST_TIMEOUT = 365 * 86400.0
ROUNDING = 1e-9
"""What a share times a number of devices may be too large by: 0.07 * 100 is a little more than 7."""


def share_of(share: float, devices: int) -> int:
    """How many of so many devices a share in [0, 1] is, rounded up."""
    return math.ceil(share * devices - ROUNDING)


class Stage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How many devices are told while a stage is open: a number, or a share of all; the other one is 0."""

    devices: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 0
    share: Annotated[float, msgspec.Meta(ge=0.0, le=1.0)] = 0.0

    def size(self, members: int) -> int:
        """Devices of so many that are told; at least one, if there is one."""
        return min(members, self.devices or max(1, share_of(self.share, members)))

    def __str__(self) -> str:
        return str(self.devices) if self.devices else f"{100 * self.share:g}%"


class Rules(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How a rollout goes.

    Attributes:
        stages: ascending; the last is all devices.
        success: share of a stage's devices that must hold the version before the next stage opens.
        abort: share of the devices that are done (hold the version, or have failed) at which failures stop the rollout.
        minimum: devices that must be done before that share is looked at.
        at_limit: whether such a rollout pauses, or is aborted at once.
        approve: whether it waits for an operator before each next stage.
        timeout: seconds that a device which has been told, and has been there since, may take, without the time for which it has
            put it off; 0 waits for ever.

    Raises:
        ConfigError: the stages do not rise, or do not end with all devices.
    """

    stages: Annotated[tuple[Stage, ...], msgspec.Meta(min_length=1, max_length=32)] = (
        Stage(devices=1),
        Stage(share=0.05),
        Stage(share=0.25),
        Stage(share=1.0),
    )
    success: Share = 0.9
    abort: Share = 0.1
    minimum: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 3
    at_limit: AtLimit = "pause"
    approve: bool = False
    timeout: Annotated[float, msgspec.Meta(ge=0.0, le=LONGEST_TIMEOUT)] = 0.0

    def __post_init__(self) -> None:
        """Check what types cannot say."""
        said = ",".join(map(str, self.stages))
        for stage in self.stages:
            if (stage.devices > 0) == (stage.share > 0.0):
                raise ConfigError("impossible stages", expected="each a number above 0 or a share", found=said)
        for sizes in ([s.devices for s in self.stages if s.devices], [s.share for s in self.stages if s.share]):
            if sizes != sorted(set(sizes)):
                raise ConfigError("impossible stages", expected="each larger than the one before", found=said)
        if self.stages[-1].share != 1.0:
            raise ConfigError("impossible stages", expected="100% as the last one", found=said, remedy="Append ,100%")


class Target(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which devices a rollout is meant for: those with one of the tags, one of the profiles and one of the ids that are named.

    What is empty says nothing; the empty target means all devices.
    """

    tags: tuple[str, ...] = ()
    profiles: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """Whether it says anything: False means all devices."""
        return bool(self.tags or self.profiles or self.devices)

    def includes(self, device: str, profile: str, tags: Collection[str]) -> bool:
        """Whether a device belongs."""
        return (
            (not self.devices or device in self.devices)
            and (not self.profiles or profile in self.profiles)
            and (not self.tags or any(tag in tags for tag in self.tags))
        )

    def __str__(self) -> str:
        named = (("tag", self.tags), ("profile", self.profiles), ("device", self.devices))
        return "; ".join(f"{what} {', '.join(names)}" for what, names in named if names) or "all devices"


def parse_share(text: str) -> float:
    """A share in (0, 1] as a person writes it: `90%`.

    Raises:
        ConfigError: it is none.
    """
    try:
        share = float(text.strip().removesuffix("%")) / 100 if text.strip().endswith("%") else math.nan
    except ValueError:
        share = math.nan
    if not 0.0 < share <= 1.0:
        raise ConfigError("impossible share", expected="above 0% and at most 100%", found=repr(text[:40]))
    return share


def parse_stages(text: str) -> tuple[Stage, ...]:
    """Stages as a person writes them: `1,5%,25%,100%`.

    Raises:
        ConfigError: one of them is neither a number nor a share.
    """
    return tuple(_stage(word.strip()) for word in text.split(","))


def _stage(word: str) -> Stage:
    if word.endswith("%"):
        return Stage(share=parse_share(word))
    if word.isascii() and word.isdigit() and 0 < int(word[:8]) <= 1_000_000 and len(word) <= 7:
        return Stage(devices=int(word))
    raise ConfigError("impossible stages", expected="numbers and shares, for example 1,5%,25%,100%", found=repr(word[:40]))


def parse_limit(text: str) -> tuple[float, int]:
    """Share of failures and number of devices that are done, as a person writes them: `10%/3`, or `10%` for the default number.

    Raises:
        ConfigError: it is not of that shape.
    """
    share, slash, minimum = text.partition("/")
    if not slash:
        return parse_share(share), Rules().minimum
    if not (minimum.isascii() and minimum.isdigit() and len(minimum) <= 6 and int(minimum) > 0):
        raise ConfigError(
            "impossible limit of failures", expected="a share and a number, for example 10%/3", found=repr(text[:40])
        )
    return parse_share(share), int(minimum)
