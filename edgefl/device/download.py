"""The download machine of one file: which blocks to ask for, and when. Pure.

Model. The device *has* some blocks (a bitmap), has *asked* for a few, and misses the others. Blocks come by multicast, so those
that others have asked for arrive as well; every good block that is missing is welcome, asked or not.

    block arrives -> good, missing      -> Store; ask for the next when half the window is free
                  -> had already        -> counted, nothing else
                  -> of another file    -> counted, nothing else
                  -> damaged            -> Reject; the request stands, and the stall timer asks again
    time passes   -> a request overdue  -> halve the window; ask again, at once if other blocks are flowing,
                                           otherwise after a pause that doubles each time

Rules:

* The window is AIMD: from 2 blocks it grows by one for each window of timely blocks, up to 8, and halves on a stall.
* A request is overdue after four times the measured answer time, at least 2 s. The time runs from the first request for a block,
  so that a link slower than the timer is learnt in spite of repetitions.
* When nothing arrives at all, the pause before asking again is drawn from 0 to 2, 4, 8 ... 300 s (full jitter): a server that
  comes back is not met by the whole fleet at once. One good block of the file, for whomever, ends the pause.
* Nothing is asked while the link is down: the shell gives no `Tick` then, and `Reconnected` afterwards.
* Times are seconds of a monotonic clock. Randomness comes with the `Tick`.
"""

from dataclasses import dataclass, replace

from edgefl.errors import BlockError
from edgefl.wire.blocks import MAX_WINDOW_SPAN, check_block, want
from edgefl.wire.messages import Block, FileRef, Want

FIRST_WINDOW = 2.0
LARGEST_WINDOW = 8.0
SHORTEST_PATIENCE = 2.0
LONGEST_PAUSE = 300.0


@dataclass(frozen=True, slots=True)
class BlockArrived:
    """A decoded block, of this file or another."""

    block: Block


@dataclass(frozen=True, slots=True)
class Reconnected:
    """The link is up again; what was asked before may be lost."""


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


Effect = Ask | Store | Complete | Reject


@dataclass(frozen=True, slots=True)
class Asked:
    """A request for one block: when it was made first, and last."""

    first: float
    last: float


@dataclass(frozen=True, slots=True)
class Counts:
    """What has happened so far, in blocks (`asks` in requests, `stalls` in overdue timers)."""

    stored: int = 0
    unasked: int = 0
    duplicate: int = 0
    foreign: int = 0
    damaged: int = 0
    asks: int = 0
    stalls: int = 0


@dataclass(frozen=True, slots=True)
class Download:
    """State of one download.

    Attributes:
        ref: the file.
        have: bitmap of the blocks that are there (bit i for block i).
        asked: outstanding requests by block index; at most `LARGEST_WINDOW`.
        window: blocks that may be outstanding.
        answer_time: smoothed seconds from request to block; 0 before the first.
        heard_at: when the last good block arrived.
        silences: stalls in a row without a good block between.
        resume_at: end of the pause, None while not pausing.
        counts: statistics.
    """

    ref: FileRef
    have: int
    asked: dict[int, Asked]
    window: float
    answer_time: float
    heard_at: float
    silences: int
    resume_at: float | None
    counts: Counts

    @property
    def complete(self) -> bool:
        """Whether all blocks are there."""
        return self.have.bit_count() == len(self.ref.blocks)

    @property
    def percent(self) -> int:
        """Progress, 0 to 100; 100 only when complete."""
        return 100 * self.have.bit_count() // len(self.ref.blocks)

    @property
    def patience(self) -> float:
        """Seconds after which a request is overdue."""
        return min(LONGEST_PAUSE, max(SHORTEST_PATIENCE, 4.0 * self.answer_time))


Outcome = tuple[Download, tuple[Effect, ...]]


def begin(ref: FileRef, have: int, now: float) -> Outcome:
    """Start, or go on after a restart, with the blocks in the bitmap `have`; the first requests are among the effects."""
    state = Download(ref, have, {}, FIRST_WINDOW, 0.0, now, 0, None, Counts())
    return (state, (Complete(),)) if state.complete else _ask(state, now)


def step(state: Download, event: Event, now: float) -> Outcome:
    """The machine: the next state and what to do."""
    match event:
        case BlockArrived(block):
            return _arrived(state, block, now)
        case Reconnected():
            return _ask(replace(state, asked={}, silences=0, resume_at=None), now)
        case Tick(jitter):
            return _tick(state, now, jitter)


def wake_at(state: Download) -> float | None:
    """When the machine wants a `Tick` at the latest; None when complete."""
    if state.complete:
        return None
    if state.resume_at is not None:
        return state.resume_at
    return min((asked.last for asked in state.asked.values()), default=state.heard_at) + state.patience


def _arrived(state: Download, block: Block, now: float) -> Outcome:
    counts = state.counts
    if block.file != state.ref.sha256[: len(block.file)]:
        return replace(state, counts=replace(counts, foreign=counts.foreign + 1)), ()
    if state.have >> block.index & 1:
        return replace(state, counts=replace(counts, duplicate=counts.duplicate + 1)), ()
    try:
        check_block(state.ref, block.index, block.data)
    except BlockError as error:
        return replace(state, counts=replace(counts, damaged=counts.damaged + 1)), (Reject(block.index, str(error)),)
    pausing = state.resume_at is not None
    state = _credit(state, block.index, now)
    store = Store(block.index, block.data)
    if state.complete:
        return state, (store, Complete())
    if pausing and state.asked:
        state, effects = _repeat(state, now)
    elif len(state.asked) * 2 <= state.window:
        state, effects = _ask(state, now)
    else:
        effects = ()
    return state, (store, *effects)


def _credit(state: Download, index: int, now: float) -> Download:
    """A good block: it is there; if it was asked for, the link has shown how fast it is."""
    asked = state.asked.get(index)
    window, answer_time = state.window, state.answer_time
    if asked is not None:
        measured = now - asked.first
        answer_time = measured if answer_time == 0.0 else 0.875 * answer_time + 0.125 * measured
        if now - asked.last <= state.patience:
            window = min(LARGEST_WINDOW, window + 1.0 / window)
    counts = replace(state.counts, stored=state.counts.stored + 1, unasked=state.counts.unasked + (asked is None))
    return replace(
        state,
        have=state.have | 1 << index,
        asked={i: a for i, a in state.asked.items() if i != index},
        window=window,
        answer_time=answer_time,
        heard_at=now,
        silences=0,
        resume_at=None,
        counts=counts,
    )


def _tick(state: Download, now: float, jitter: float) -> Outcome:
    if state.complete:
        return state, ()
    if state.resume_at is not None:
        return _repeat(state, now) if now >= state.resume_at else (state, ())
    overdue = [index for index, asked in state.asked.items() if now >= asked.last + state.patience]  # as in `wake_at`
    if not overdue:
        return (state, ()) if state.asked else _ask(state, now)
    counts = replace(state.counts, stalls=state.counts.stalls + 1)
    state = replace(state, window=max(1.0, state.window / 2.0), counts=counts)
    if now - state.heard_at < state.patience:
        return _send(state, overdue, now)
    pause = jitter * min(LONGEST_PAUSE, SHORTEST_PATIENCE * 2.0 ** min(state.silences, 16))
    return replace(state, silences=state.silences + 1, resume_at=now + pause), ()


def _repeat(state: Download, now: float) -> Outcome:
    """The pause is over: ask again, for no more than the window."""
    kept = sorted(state.asked)[: int(state.window)]
    return _send(replace(state, asked={index: state.asked[index] for index in kept}, resume_at=None), kept, now)


def _ask(state: Download, now: float) -> Outcome:
    """Fill the window with the first missing blocks."""
    room = int(state.window) - len(state.asked)
    missing = ((1 << len(state.ref.blocks)) - 1) & ~state.have
    for index in state.asked:
        missing &= ~(1 << index)
    indices: list[int] = []
    while missing and len(indices) < room:
        low = missing & -missing
        indices.append(low.bit_length() - 1)
        missing ^= low
    return _send(state, indices, now)


def _send(state: Download, indices: list[int], now: float) -> Outcome:
    """Ask for these blocks, as far as one request reaches; the others stay as they are."""
    if not indices:
        return state, ()
    reached = [index for index in sorted(indices) if index - min(indices) < MAX_WINDOW_SPAN]
    asked = {**state.asked}
    for index in reached:
        asked[index] = Asked(asked[index].first if index in asked else now, now)
    counts = replace(state.counts, asks=state.counts.asks + 1)
    return replace(state, asked=asked, counts=counts), (Ask(want(state.ref, reached)),)
