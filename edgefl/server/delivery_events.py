"""What the delivery machine hears and orders, as frozen values. Times are seconds of a monotonic clock."""

from dataclasses import dataclass

from edgefl.wire.files import Want


@dataclass(frozen=True, slots=True)
class Offered:
    """A file can be served from now on; `blocks` is how many it has."""

    sha256: bytes
    blocks: int


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """A file is no longer served; what was wanted of it is forgotten."""

    sha256: bytes


@dataclass(frozen=True, slots=True)
class Wanted:
    """A device asks for blocks; `expected` are the devices that will soon want the same file, if they have not asked yet."""

    device: str
    want: Want
    expected: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed, and the link can take `room` more bytes."""

    room: int


Event = Offered | Withdrawn | Wanted | Tick


@dataclass(frozen=True, slots=True)
class SendBlocks:
    """Publish these blocks of a file, in this order: to one device, or to all who listen if `device` is empty."""

    sha256: bytes
    indices: tuple[int, ...]
    device: str = ""


@dataclass(frozen=True, slots=True)
class Refuse:
    """A device asks for what is not served, or too often."""

    device: str
    sha256: bytes
    reason: str


Effect = SendBlocks | Refuse


@dataclass(frozen=True, slots=True)
class Counts:
    """What has happened so far, in blocks (`refused` in requests, `passes` in passes).

    Attributes:
        asked: blocks in requests that were heard.
        sent: published, of these `alone` to one device.
        merged: wanted already when they were asked for.
        crossed: under way when they were asked for.
        ignored: beyond the end of a file or of what one request may ask.
        throttled: asked for again, more often than a device may.
        refused: requests for what is not served, or too many of them.
        passes: of blocks to all, begun.
    """

    asked: int = 0
    sent: int = 0
    alone: int = 0
    merged: int = 0
    crossed: int = 0
    ignored: int = 0
    throttled: int = 0
    refused: int = 0
    passes: int = 0
