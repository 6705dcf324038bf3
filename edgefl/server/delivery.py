"""The delivery machine: merges the block requests of a fleet, so that each wanted block goes out once. Pure.

Model. The shell offers files. Requests for blocks of a file are collected in a bitmap for a short *merge window*; then the
wanted blocks are sent, once, on the file's topic, to which every interested device listens. N devices that fetch the same file
cost little more than one file.

    Wanted -> blocks sent within the last moment -> already under way to the asker as well: nothing
           -> other blocks                       -> collected; due after the merge window
    Tick   -> files that are due, in turn, one block each, until their wants, the link's room or the rate is used up

Rules:

* A request is a hint, not a debt: nothing is kept per device, and what is lost or left out is asked for again.
* Everything is bounded: bits for the blocks of at most `MOST_FILES` offered files, `MOST_ACTIVE` files with wants,
  `MOST_PER_REQUEST` blocks heard from one request. More is refused or ignored, and counted.
* The rate limit is a token bucket in bytes per second that holds a quarter of a second, and at least one block. Files share
  it block by block in rotation, so that one large file does not starve a small one.
* Times are seconds of a monotonic clock. There is no randomness.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import islice

from edgefl.wire.blocks import wanted
from edgefl.wire.messages import BLOCK_SIZE, Want

MERGE_WINDOW = 0.05
UNDER_WAY = 0.5
"""Seconds after sending during which another request for the same block is taken to have crossed it."""
RETRY_ROOM = 0.02
"""Seconds after which the link is looked at again when it had no room."""
SLOT = 0.1
"""Sendings closer together than this are remembered as one."""
BLOCK_COST = BLOCK_SIZE + 64
"""Bytes of one block's message."""
MOST_FILES = 4096
MOST_ACTIVE = 256
MOST_PER_REQUEST = 64


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
    """A device asks for blocks."""

    device: str
    want: Want


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed, and the link can take `room` more bytes."""

    room: int


Event = Offered | Withdrawn | Wanted | Tick


@dataclass(frozen=True, slots=True)
class SendBlocks:
    """Publish these blocks of a file, in this order."""

    sha256: bytes
    indices: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Refuse:
    """A device asks for what is not served."""

    device: str
    sha256: bytes
    reason: str


Effect = SendBlocks | Refuse


@dataclass(frozen=True, slots=True)
class Active:
    """A file of which blocks are wanted or were just sent.

    Attributes:
        want: bitmap of the blocks to send.
        due: when to send them.
        sent: what was sent lately: time and bitmap, oldest first.
    """

    want: int = 0
    due: float = 0.0
    sent: tuple[tuple[float, int], ...] = ()

    def under_way(self, now: float) -> int:
        """Bitmap of the blocks sent within the last `UNDER_WAY` seconds."""
        bits = 0
        for when, indices in self.sent:
            bits |= indices if now - when < UNDER_WAY else 0
        return bits


@dataclass(frozen=True, slots=True)
class Counts:
    """What has happened so far, in blocks (`refused` in requests)."""

    asked: int = 0
    sent: int = 0
    merged: int = 0
    crossed: int = 0
    ignored: int = 0
    refused: int = 0


@dataclass(frozen=True, slots=True)
class Delivery:
    """State of the delivery of all files.

    Attributes:
        rate: bytes per second, None for no limit.
        merge: seconds for which requests are collected.
        files: number of blocks by SHA-256 of the offered files.
        active: by SHA-256, in the order of rotation.
        tokens: bytes that may be sent, as of `filled_at`.
        blocked_until: no sending before this time (rate or room used up).
        counts: statistics.
    """

    rate: float | None = None
    merge: float = MERGE_WINDOW
    files: Mapping[bytes, int] = field(default_factory=dict)
    active: Mapping[bytes, Active] = field(default_factory=dict)
    tokens: float = 0.0
    filled_at: float = 0.0
    blocked_until: float = 0.0
    counts: Counts = field(default_factory=Counts)


Outcome = tuple[Delivery, tuple[Effect, ...]]


def step(state: Delivery, event: Event, now: float) -> Outcome:
    """The machine: the next state and what to do."""
    match event:
        case Offered(sha256, blocks):
            if len(state.files) >= MOST_FILES and sha256 not in state.files:
                return state, ()
            return replace(state, files={**state.files, sha256: blocks}), ()
        case Withdrawn(sha256):
            return _withdraw(state, sha256), ()
        case Wanted(device, request):
            return _wanted(state, device, request, now)
        case Tick(room):
            return _tick(state, room, now)


def wake_at(state: Delivery) -> float | None:
    """When the machine wants a `Tick` at the latest; None while nothing is wanted."""
    due = [active.due for active in state.active.values() if active.want]
    return max(min(due), state.blocked_until) if due else None


def _withdraw(state: Delivery, sha256: bytes) -> Delivery:
    files = {name: blocks for name, blocks in state.files.items() if name != sha256}
    active = {name: value for name, value in state.active.items() if name != sha256}
    return replace(state, files=files, active=active)


def _wanted(state: Delivery, device: str, request: Want, now: float) -> Outcome:
    blocks = state.files.get(request.sha256)
    if blocks is None:
        return _refuse(state, device, request, "no such file")
    if request.sha256 not in state.active and len(state.active) >= MOST_ACTIVE:
        state = _forget(state, now)
        if len(state.active) >= MOST_ACTIVE:
            return _refuse(state, device, request, "too many files at once")
    indices = [index for index in islice(wanted(request), MOST_PER_REQUEST) if index < blocks]
    bits = 0
    for index in indices:
        bits |= 1 << index
    active = state.active.get(request.sha256, Active())
    crossed = bits & active.under_way(now)
    merged = bits & active.want & ~crossed
    fresh = bits & ~crossed & ~merged
    counts = replace(
        state.counts,
        asked=state.counts.asked + len(indices),
        merged=state.counts.merged + merged.bit_count(),
        crossed=state.counts.crossed + crossed.bit_count(),
        ignored=state.counts.ignored + int.from_bytes(request.bitmap, "little").bit_count() - len(indices),
    )
    state = replace(state, counts=counts)
    if not fresh:
        return state, ()
    active = replace(active, want=active.want | fresh, due=active.due if active.want else now + state.merge)
    return replace(state, active={**state.active, request.sha256: active}), ()


def _refuse(state: Delivery, device: str, request: Want, reason: str) -> Outcome:
    counts = replace(state.counts, refused=state.counts.refused + 1)
    return replace(state, counts=counts), (Refuse(device, request.sha256, reason),)


def _forget(state: Delivery, now: float) -> Delivery:
    """Drop files of which nothing is wanted or under way."""
    active = {name: value for name, value in state.active.items() if value.want or value.under_way(now)}
    return replace(state, active=active)


def _tick(state: Delivery, room: int, now: float) -> Outcome:
    state = _forget(_refill(state, now), now)
    limit = max(0, room if state.rate is None else min(room, int(state.tokens)))
    chosen, order = _choose(state, limit // BLOCK_COST, now)
    active = {name: state.active[name] for name in order} | dict(state.active)
    for name, bits in chosen.items():
        active[name] = _mark_sent(active[name], bits, now)
    total = sum(bits.bit_count() for bits in chosen.values())
    tokens = state.tokens - total * BLOCK_COST
    pause = max(RETRY_ROOM, (BLOCK_COST - tokens) / state.rate if state.rate else 0.0) if order else 0.0
    counts = replace(state.counts, sent=state.counts.sent + total)
    state = replace(state, active=active, counts=counts, tokens=tokens, blocked_until=now + pause)
    return state, tuple(SendBlocks(name, _indices(bits)) for name, bits in chosen.items())


def _refill(state: Delivery, now: float) -> Delivery:
    if state.rate is None:
        return replace(state, tokens=0.0, filled_at=now)
    depth = max(state.rate / 4.0, float(BLOCK_COST))
    tokens = min(depth, state.tokens + state.rate * max(0.0, now - state.filled_at))
    return replace(state, tokens=tokens, filled_at=now)


def _choose(state: Delivery, room: int, now: float) -> tuple[dict[bytes, int], tuple[bytes, ...]]:
    """Up to `room` due blocks, one of each file in turn, lowest first; and the files left with due blocks, next one first."""
    left = {name: active.want for name, active in state.active.items() if active.want and active.due <= now}
    order, chosen = deque(left), dict.fromkeys(left, 0)
    while order and room > 0:
        name = order.popleft()
        low = left[name] & -left[name]
        left[name] ^= low
        chosen[name] |= low
        room -= 1
        if left[name]:
            order.append(name)
    return {name: bits for name, bits in chosen.items() if bits}, tuple(order)


def _mark_sent(active: Active, bits: int, now: float) -> Active:
    sent = tuple(entry for entry in active.sent if now - entry[0] < UNDER_WAY)
    older, slot = (sent[:-1], sent[-1]) if sent and now - sent[-1][0] < SLOT else (sent, (now, 0))
    return replace(active, want=active.want & ~bits, sent=(*older, (slot[0], slot[1] | bits)))


def _indices(bits: int) -> tuple[int, ...]:
    indices = []
    while bits:
        low = bits & -bits
        indices.append(low.bit_length() - 1)
        bits ^= low
    return tuple(indices)
