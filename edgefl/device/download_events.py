"""What the download machine hears and orders, as frozen values. Times are seconds of a monotonic clock."""

from dataclasses import dataclass

from edgefl.wire.files import Block, Want


@dataclass(frozen=True, slots=True)
class BlockArrived:
    """A decoded block, of this file or another."""

    block: Block


@dataclass(frozen=True, slots=True)
class Reconnected:
    """The link is up again after so many seconds without it; what was asked before may be lost."""

    away: float = 0.0


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed; `jitter` is drawn uniformly from [0, 1)."""

    jitter: float


Event = BlockArrived | Reconnected | Tick


@dataclass(frozen=True, slots=True)
class Ask:
    """Send this request."""

    want: Want


@dataclass(frozen=True, slots=True)
class GoAlone:
    """Listen to the file's topic no longer, but to the device's own; requests are for this device alone from now on."""


@dataclass(frozen=True, slots=True)
class Store:
    """Write this block; it has been checked."""

    index: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Complete:
    """All blocks are there: verify the whole file."""


@dataclass(frozen=True, slots=True)
class Reject:
    """A block of this file was not what its description promises."""

    index: int
    reason: str


@dataclass(frozen=True, slots=True)
class TooSlow:
    """The deadline has passed after so many seconds of connection; `missing` blocks are not there."""

    missing: int
    seconds: float


Effect = Ask | GoAlone | Store | Complete | Reject | TooSlow


@dataclass(frozen=True, slots=True)
class Counts:
    """What has happened so far, in blocks (`asks` in requests, `stalls` in overdue timers).

    Attributes:
        stored: good blocks that came and were missing; of these `unasked` had been asked for by others only.
        duplicate: were there already.
        foreign: of another file.
        damaged: not what the file's description promises.
        asks: requests sent.
        stalls: times when a request was overdue.
        reused: found on this device and never asked for.
    """

    stored: int = 0
    unasked: int = 0
    duplicate: int = 0
    foreign: int = 0
    damaged: int = 0
    asks: int = 0
    stalls: int = 0
    reused: int = 0
