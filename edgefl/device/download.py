"""The download machine of one file: which blocks to ask for, and when. Pure.

Model. The device *has* some blocks (a bitmap), has *asked* for a few, and misses the others. Blocks come by multicast, so those
that others have asked for arrive as well; every good block that is missing is welcome, asked or not.

    block arrives -> good, missing      -> Store; ask for the next when half the window is free
                  -> had already        -> counted, nothing else
                  -> of another file    -> counted, nothing else
                  -> damaged            -> Reject; the request stands, and the stall timer asks again
    others' blocks fill a slow link     -> GoAlone: ask for blocks on the device's own topic, one window at its own pace
    time passes   -> the deadline       -> TooSlow, once
                  -> a request overdue  -> halve the window; ask again, at once if other blocks are flowing,
                                           otherwise after a pause that doubles each time
    connection made anew -> what was under way is lost: ask again at once

Rules:

* The window is AIMD: from 2 blocks it grows by one for each window of timely blocks, up to 8, and halves on a stall. It does not
  grow when an answer takes 4 s, and shrinks when it takes 8: on a link of 16 KB/s one or two blocks are under way, so that a
  ping still comes through within half of any sensible keepalive.
* Blocks that others have asked for are a gift as long as they are missing here. On a slow link, which takes `SLOW_BLOCK` seconds
  for a block, they fill it, and nothing more is asked for while they come; so slow links share what they ask for.
* Late is not lost. A connection keeps the order of blocks, and loses none while it lasts; but minutes of blocks may wait in the
  broker for a slow link. So a request says which sending was heard last on this connection, and the server sends again only what
  it had sent before that. Nobody is left to wait: after a new connection, or after silence (two in a row on a slow link), a
  request says that nothing is under way.
* Blocks that are here already come in the way: `DROWNED` windows of them on a slow link while an own request waits, more in
  all than good ones, and the download goes alone. It stays alone. What comes twice because it was asked for twice does not count.
* Slow retrieval: a file must be there after `GRACE` seconds and what `SLOWEST` allows for its length. Time without a connection
  does not count.
* A request is overdue after four times the measured answer time, at least 2 s. The time runs from the first request for a block,
  so that a link slower than the timer is learnt in spite of repetitions.
* When nothing arrives at all, the pause before asking again is drawn from 0 to 2, 4, 8 ... 300 s (full jitter): a server that
  comes back is not met by the whole fleet at once. One good block of the file, for whomever, ends the pause.
* Nothing is asked while the link is down: the shell gives no `Tick` then, and `Reconnected` afterwards.
* Times are seconds of a monotonic clock. Randomness comes with the `Tick`.
"""

import math
from dataclasses import replace

import msgspec

from edgefl.device.download_arrivals import afresh, credit, duplicate, measured
from edgefl.device.download_events import (
    Ask,
    BlockArrived,
    Complete,
    Counts,
    Effect,
    Event,
    GoAlone,
    Reconnected,
    Reject,
    Store,
    Tick,
    TooSlow,
)
from edgefl.device.download_state import (
    FIRST_WINDOW,
    LONGEST_PAUSE,
    SHORTEST_PATIENCE,
    Asked,
    Download,
)
from edgefl.errors import BlockError
from edgefl.wire.blocks import MAX_WINDOW_SPAN, check_block, want
from edgefl.wire.files import BLOCK_SIZE, Block, FileRef

MOST_BEHIND = 30.0
"""Seconds; the server remembers no longer what it has sent."""
GRACE = 600.0
"""Seconds that a file may take in addition to what its length allows."""
SLOWEST = 2048.0
"""Bytes per second below which a file is late: a version of 10 MB takes an hour and a half then."""


Outcome = tuple[Download, tuple[Effect, ...]]


def begin(ref: FileRef, have: int, now: float, *, alone: bool = False, reused: int = 0, first: int = 0) -> Outcome:
    """Start, or go on after a restart; the first requests are among the effects.

    Args:
        ref: the file.
        have: bitmap of the blocks that are there.
        now: time.
        alone: the link is known to be too slow for what others ask for.
        reused: how many of the blocks were found on this device.
        first: block at which asking begins, drawn at random: devices that fetch together then ask for different blocks, and each
            hears what the others ask for.
    """
    missing = len(ref.blocks) - have.bit_count()
    late_at = now + GRACE + missing * BLOCK_SIZE / SLOWEST
    counts = Counts(reused=reused)
    state = Download(ref, have, {}, FIRST_WINDOW, 0.0, now, 0, None, counts, alone, 0.0, now, -math.inf, first, now, late_at, now)
    if state.complete:
        return state, (Complete(),)
    if not alone:
        return _ask(state, now)
    state, effects = _ask(replace(state, window=1.0), now)
    return state, (GoAlone(), *effects)


def step(state: Download, event: Event, now: float) -> Outcome:
    """The machine: the next state and what to do."""
    match event:
        case BlockArrived(block):
            return _arrived(state, block, now)
        case Reconnected(away):
            return _ask(afresh(state, away, now), now)
        case Tick(jitter):
            return _tick(state, now, jitter)


def wake_at(state: Download) -> float | None:
    """When the machine wants a `Tick` at the latest; None when complete."""
    if state.complete:
        return None
    overdue = min((asked.last for asked in state.asked.values()), default=state.heard_at) + state.reminder
    due = overdue if state.resume_at is None else state.resume_at
    return min(max(due, state.listens_until), state.late_at)


def _arrived(state: Download, block: Block, now: float) -> Outcome:
    counts = state.counts
    if block.file != state.ref.sha256[: len(block.file)]:
        return replace(state, counts=replace(counts, foreign=counts.foreign + 1)), ()
    state = measured(state, block.sent, now)
    if state.have >> block.index & 1:
        return _unless_drowned(duplicate(state, block.index), (), now)
    try:
        check_block(state.ref, block.index, block.data)
    except BlockError as error:
        return replace(state, counts=replace(counts, damaged=counts.damaged + 1)), (Reject(block.index, str(error)),)
    pausing, asked = state.resume_at is not None, block.index in state.asked
    state = credit(state, block.index, now)
    store = Store(block.index, block.data)
    if state.complete:
        return state, (store, Complete())
    if pausing and state.asked:
        state, effects = _repeat(state, now)
    elif len(state.asked) * 2 <= state.window and now >= state.listens_until:
        state, effects = _ask(state, now)
    else:
        effects = ()
    return (state, (store, *effects)) if asked else _unless_drowned(state, (store, *effects), now)


def _unless_drowned(state: Download, effects: tuple[Effect, ...], now: float) -> Outcome:
    """Go alone if what others ask for fills a slow link, so that what was asked for here does not come through."""
    if state.alone or not state.drowned:
        return state, effects
    state, asking = _ask(replace(state, alone=True, window=1.0, asked={}), now)
    return state, (*(effect for effect in effects if not isinstance(effect, Ask)), GoAlone(), *asking)


def _tick(state: Download, now: float, jitter: float) -> Outcome:
    if state.complete or now < min(state.listens_until, state.late_at):
        return state, ()
    if now >= state.late_at:
        missing = len(state.ref.blocks) - state.have.bit_count()
        return replace(state, late_at=math.inf), (TooSlow(missing, now - state.began),)
    if state.resume_at is not None:
        return _repeat(state, now) if now >= state.resume_at else (state, ())
    overdue = [index for index, asked in state.asked.items() if now >= asked.last + state.reminder]  # as in `wake_at`
    if not overdue:
        return (state, ()) if state.asked else _ask(state, now)
    return _overdue(state, overdue, now, jitter)


def _overdue(state: Download, overdue: list[int], now: float, jitter: float) -> Outcome:
    """Remind the server on a slow link; otherwise, and in silence, it is a stall."""
    if state.slow and now - state.arrived_at < state.patience:
        return _send(state, overdue, now)
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
    """Fill the window with the missing blocks that are next, from `first` on and round."""
    room = int(state.window) - len(state.asked)
    missing = ((1 << len(state.ref.blocks)) - 1) & ~state.have
    for index in state.asked:
        missing &= ~(1 << index)
    indices: list[int] = []
    while missing and len(indices) < room:
        later = missing >> state.first << state.first
        low = (later or missing) & -(later or missing)
        indices.append(low.bit_length() - 1)
        missing ^= low
    return _send(state, indices, now)


def _behind(state: Download, now: float) -> int:
    """Seconds that a block takes to this device: since it listens, if nothing has come; otherwise on slow links only."""
    if state.arrived_at <= state.since:
        return int(min(MOST_BEHIND, now - state.since))
    return int(min(MOST_BEHIND, state.answer_time, now - state.since)) if state.slow else 0


def _send(state: Download, indices: list[int], now: float) -> Outcome:
    """Ask for these blocks, as far as one request reaches; the others stay as they are."""
    if not indices:
        return state, ()
    reached = [index for index in sorted(indices) if index - min(indices) < MAX_WINDOW_SPAN]
    asked, repeated = {**state.asked}, state.repeated
    for index in reached:
        known = asked.get(index)
        asked[index] = replace(known, last=now) if known else Asked(now, now, state.unwanted)
        repeated |= 1 << index if known else 0
    counts = replace(state.counts, asks=state.counts.asks + 1)
    behind, heard = (0, 0) if state.deaf else (_behind(state, now), state.heard)
    request = want(state.ref, reached)
    request = msgspec.structs.replace(request, alone=state.alone, behind=behind, heard=heard, fresh=now <= state.since)
    return replace(state, asked=asked, repeated=repeated, counts=counts), (Ask(request),)
