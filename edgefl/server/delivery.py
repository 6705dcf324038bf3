"""The delivery machine: merges the block requests of a fleet, so that each wanted block goes out once. Pure.

Model. The shell offers files. A *lane* is a file and whom its blocks go to: all who listen, or one device that has asked to be
served alone. Requests on the lane to all are collected in a bitmap for a short *merge window*; then the wanted blocks are sent,
once, on the file's topic. The first blocks of a file, and those sent already, wait until who is expected has gathered. N devices
that fetch the same file cost little more than one. A lane to one device has no merge window and goes at that device's pace.

    Wanted -> more often than a device may (`server.askers`) -> refused; of repetitions, what is too much is left out
           -> blocks that are under way to the asker         -> nothing
           -> blocks that were sent in this pass             -> held until the gathering ends and nothing else is wanted
           -> other blocks                                   -> collected; due after the merge window, alone at once
    Tick   -> lanes that are due, in turn, one block each, until their wants, the link's room or the rate is used up

Rules:

* A request is a hint, not a debt: what is lost or left out is asked for again.
* Late is not lost. A connection through a broker keeps the order and loses nothing while it lasts, so what was sent after the
  last block that the asker has heard (`Want.heard`) is under way to it, for minutes on a slow link; what was sent before and is
  asked for is lost, and is sent again. Who begins to listen gets everything; who has heard nothing since says how far it is
  behind, and `UNDER_WAY` is the least of it.
* In a pass each block goes out to all at most once. The first pass, and each later one, begins when the devices that are expected
  have asked, or after a short time that is in proportion to those who have not (`server.gather`); so all who come late get what
  they have missed together. While other blocks are wanted, they go first: late ones listen to them, too.
* Who goes alone no longer listens to all: only what was sent to all before its first request alone counts as under way to it.
* Everything is bounded: `MOST_FILES` offered files, `MOST_SHARED` lanes to all, `MOST_ALONE` to one device and `ALONE_EACH` to
  the same, `MOST_PER_REQUEST` blocks heard from one request, and what is known of devices. More is refused or ignored, and
  counted.
* The rate limit of all is a token bucket in bytes per second that holds a quarter of a second, and at least one block. Lanes
  share it block by block in rotation, so that one large file does not starve a small one. The rate limit of a device spaces the
  blocks that are sent to it alone.
* Times are seconds of a monotonic clock. There is no randomness.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import islice

from edgefl.server.askers import Asker, Askers, admit, allowed, with_asker
from edgefl.server.delivery_events import Counts, Effect, Event, Offered, Refuse, SendBlocks, Tick, Wanted, Withdrawn
from edgefl.server.gather import GATHER, gathering
from edgefl.server.lanes import REMEMBERED, UNDER_WAY, Lane, LaneName, indices_of, slot_of
from edgefl.server.turns import in_turn
from edgefl.wire.blocks import wanted
from edgefl.wire.files import BLOCK_SIZE, Want

MERGE_WINDOW = 0.05
RETRY_ROOM = 0.02
"""Seconds after which the link is looked at again when it had no room."""
BLOCK_COST = BLOCK_SIZE + 64
"""Bytes of one block's message."""
MOST_FILES = 4096
MOST_SHARED = 256
MOST_ALONE = 4096
ALONE_EACH = 4
MOST_PER_REQUEST = 64


@dataclass(frozen=True, slots=True)
class Delivery:
    """State of the delivery of all files.

    Attributes:
        rate: bytes per second to everybody together, None for no limit.
        device_rate: bytes per second to each device that is served alone, None for no limit.
        merge: seconds for which requests are collected, unless nobody but the asker is expected.
        gather: most seconds for which devices that are expected are waited for.
        files: number of blocks by SHA-256 of the offered files.
        lanes: in the order of rotation.
        askers: what each device has cost lately.
        tokens: bytes that may be sent, as of `filled_at`.
        blocked_until: no sending before this time (rate or room used up).
        counts: statistics.
    """

    rate: float | None = None
    device_rate: float | None = None
    merge: float = MERGE_WINDOW
    gather: float = GATHER
    files: Mapping[bytes, int] = field(default_factory=dict)
    lanes: Mapping[LaneName, Lane] = field(default_factory=dict)
    askers: Askers = field(default_factory=dict)
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
            files = {name: blocks for name, blocks in state.files.items() if name != sha256}
            return replace(state, files=files, lanes={k: lane for k, lane in state.lanes.items() if k[0] != sha256}), ()
        case Wanted():
            return _wanted(state, event, now)
        case Tick(room):
            return _tick(state, room, now)


def wake_at(state: Delivery) -> float | None:
    """When the machine wants a `Tick` at the latest; None while nothing is wanted."""
    due = [_due(state, name, lane) for name, lane in state.lanes.items() if lane.want or lane.held]
    return max(min(due), state.blocked_until) if due else None


def _due(state: Delivery, name: LaneName, lane: Lane) -> float:
    asker = state.askers.get(name[1]) if state.device_rate else None
    return max(lane.next_at, asker.next_at) if asker else lane.next_at


def _wanted(state: Delivery, event: Wanted, now: float) -> Outcome:
    device, request = event.device, event.want
    askers, asker = admit(state.askers, device, now)
    state = replace(state, askers=askers)
    blocks = state.files.get(request.sha256)
    if asker is None or blocks is None:
        return _refuse(state, device, request, "no such file" if asker else "too many requests")
    name = (request.sha256, device if request.alone else "")
    if name not in state.lanes and not _has_place(state, name):
        state = _forget(state, now)
        if not _has_place(state, name):
            return _refuse(state, device, request, "too many files at once")
    indices = [index for index in islice(wanted(request), MOST_PER_REQUEST) if index < blocks]
    bits = sum(1 << index for index in indices)
    counts = replace(
        state.counts,
        asked=state.counts.asked + len(indices),
        ignored=state.counts.ignored + int.from_bytes(request.bitmap, "little").bit_count() - len(indices),
    )
    throttled = state.counts.throttled
    state = _collect(replace(state, counts=counts), event, asker, name, bits, now)
    if indices and state.counts.throttled - throttled == len(indices):
        return _refuse(state, device, request, "the same blocks too often")
    return state, ()


def _collect(state: Delivery, event: Wanted, asker: Asker, name: LaneName, bits: int, now: float) -> Delivery:
    """Put blocks on a lane, those excepted that are there, under way, or asked for too often."""
    sha256, alone = name[0], bool(name[1])
    lane = state.lanes.get(name, Lane())
    if alone and sha256 not in asker.alone:
        lane = replace(lane, sent=state.lanes.get((sha256, ""), Lane()).sent)
    crossed = bits & _under_way(lane, event.want, now)
    merged = bits & (lane.want | lane.held) & ~crossed
    asker, fresh = allowed(asker, sha256, bits & ~crossed & ~merged)
    counts = replace(
        state.counts,
        merged=state.counts.merged + merged.bit_count(),
        crossed=state.counts.crossed + crossed.bit_count(),
        throttled=state.counts.throttled + (bits & ~crossed & ~merged & ~fresh).bit_count(),
    )
    askers = with_asker(state.askers, event.device, asker.remembering(sha256, bits, alone=alone))
    state = replace(state, counts=counts, askers=askers)
    if not fresh and not lane.held:
        return state
    lane = lane.wanting(fresh, now) if alone else _shared(state, lane, event, fresh, now)
    return replace(state, lanes={**state.lanes, name: lane})


def _shared(state: Delivery, lane: Lane, event: Wanted, bits: int, now: float) -> Lane:
    """The lane to all after a device has asked for these blocks: those that were sent in this pass are held for the next."""
    held, gathered = bits & lane.passed, lane.gathering
    merge = 0.0 if event.expected == {event.device} else state.merge
    if gathered:
        gathered = gathered.joined(event.device, now)
    elif held:
        missing = frozenset(device for device in event.expected if not _has_asked(state, device, event.want.sha256))
        gathered = gathering(missing, merge, state.gather, now)
    return replace(lane.wanting(bits & ~lane.passed, now + merge), held=lane.held | held, gathering=gathered)


def _has_asked(state: Delivery, device: str, sha256: bytes) -> bool:
    asker = state.askers.get(device)
    return asker is not None and sha256 in asker.asked


def _under_way(lane: Lane, request: Want, now: float) -> int:
    """Bitmap of the blocks that still come to the asker, of their own accord."""
    if request.fresh:
        return 0
    if 0 < request.heard <= slot_of(now):  # a number from the future is from the clock of another life of this machine
        return lane.after(request.heard)
    return lane.under_way(now, max(UNDER_WAY, request.behind))


def _has_place(state: Delivery, name: LaneName) -> bool:
    """Whether there may be one more lane of this kind."""
    if not name[1]:
        return sum(not device for _, device in state.lanes) < MOST_SHARED
    own = sum(device == name[1] for _, device in state.lanes)
    return own < ALONE_EACH and len(state.lanes) < MOST_SHARED + MOST_ALONE


def _refuse(state: Delivery, device: str, request: Want, reason: str) -> Outcome:
    counts = replace(state.counts, refused=state.counts.refused + 1)
    return replace(state, counts=counts), (Refuse(device, request.sha256, reason),)


def _forget(state: Delivery, now: float, seconds: float = UNDER_WAY) -> Delivery:
    """Drop lanes on which nothing is wanted, and to all nothing was sent for so long."""
    return replace(
        state,
        lanes={
            name: lane
            for name, lane in state.lanes.items()
            if lane.want or lane.held or now - lane.sent_at < (UNDER_WAY if name[1] else seconds)
        },
    )


def _tick(state: Delivery, room: int, now: float) -> Outcome:
    state = _pass_on(_forget(_refill(state, now), now, REMEMBERED), now)
    limit = max(0, room if state.rate is None else min(room, int(state.tokens)))
    left = {name: lane.want for name, lane in state.lanes.items() if lane.want and _due(state, name, lane) <= now}
    chosen, order = in_turn(left, limit // BLOCK_COST, spaced=bool(state.device_rate))
    lanes = {name: state.lanes[name] for name in order} | dict(state.lanes)
    askers = dict(state.askers)
    for name, bits in chosen.items():
        lanes[name] = lanes[name].sending(bits, now)
        if name[1] in askers and state.device_rate:
            askers[name[1]] = replace(askers[name[1]], next_at=now + bits.bit_count() * BLOCK_COST / state.device_rate)
    total = sum(bits.bit_count() for bits in chosen.values())
    alone = sum(bits.bit_count() for name, bits in chosen.items() if name[1])
    tokens = state.tokens - total * BLOCK_COST
    pause = max(RETRY_ROOM, (BLOCK_COST - tokens) / state.rate if state.rate else 0.0) if order else 0.0
    counts = replace(state.counts, sent=state.counts.sent + total, alone=state.counts.alone + alone)
    state = replace(state, lanes=lanes, askers=askers, counts=counts, tokens=tokens, blocked_until=now + pause)
    return state, tuple(SendBlocks(name[0], indices_of(bits), name[1]) for name, bits in chosen.items())


def _pass_on(state: Delivery, now: float) -> Delivery:
    """Begin the passes for which it is time."""
    lanes = {name: lane.passing(now) for name, lane in state.lanes.items()}
    begun = sum(lane is not state.lanes[name] for name, lane in lanes.items())
    return replace(state, lanes=lanes, counts=replace(state.counts, passes=state.counts.passes + begun)) if begun else state


def _refill(state: Delivery, now: float) -> Delivery:
    if state.rate is None:
        return replace(state, tokens=0.0, filled_at=now)
    depth = max(state.rate / 4.0, float(BLOCK_COST))
    tokens = min(depth, state.tokens + state.rate * max(0.0, now - state.filled_at))
    return replace(state, tokens=tokens, filled_at=now)
