"""The work of a round: fetch its weights, train, send the update, receipt. Pure.

Rules:

* An update that has been trained is sent until a receipt names it, on every connection and after every pause, whatever rounds
  have been opened meanwhile. Only a receipt or another version ends it. A word from the server makes the pauses short again.
* A version that is only served has no rounds, whatever orders are heard.
* An order without a task ends a training: its weights are fetched and kept, nothing is trained.
* Weights are fetched as a difference from weights that are held, if the order offers one, otherwise or when that fails whole.
* A newer order supersedes an order whose weights are still being fetched or whose training has failed, but not one in training:
  a late update still counts.
* A version that has never made an update here and cannot be loaded gives way to the version before it.
* Times are seconds of a monotonic clock; pauses double with each failure up to five minutes.
"""

from dataclasses import replace

from edgefl.device.events import (
    Adopt,
    Announce,
    Fetch,
    Rebuild,
    Send,
    Settle,
    Train,
    Trained,
    TrainingFailed,
)
from edgefl.device.installing import Outcome, matches, reverted
from edgefl.device.shortcut import shortest
from edgefl.device.state import Session, Step, Work
from edgefl.participation import chance
from edgefl.participation import takes_part as draws
from edgefl.wire.releases import Manifest
from edgefl.wire.rounds import Receipt, RoundOrder

RESEND_AFTER = 20.0
"""Seconds without a receipt after which an update is sent again on a living connection, for the first time."""
RETRY_AFTER = 2.0
"""Seconds from the first failed training of a round to the second attempt."""
RETRY_LIMIT = 300.0
"""Longest pause of either kind; each is twice as long as the one before."""
GIVE_UP_AFTER = 3
"""Failed trainings of one round before the device waits for the next."""

GRAVE = frozenset({"load", "crash", "memory"})
"""Codes of failures that the version is to blame for, if it has never been trained here."""


def takes_part(device: str, order: RoundOrder, loss: float = 0.0) -> bool:
    """Whether this device trains in this round (`edgefl.participation`); `loss` is of its last training, 0 if not known."""
    task = order.task
    if task is None:
        return False
    likely = chance(task.fraction, own_loss=loss, mean_loss=task.loss) if task.biased else task.fraction
    return draws(order.model, order.version, order.round, device, likely)


def _same(one: RoundOrder | None, other: RoundOrder) -> bool:
    """Whether two orders want the same; one that is announced again may have another expiry."""
    wanted = (other.version, other.round, other.weights, other.task)
    return one is not None and (one.version, one.round, one.weights, one.task) == wanted


def ordered(state: Session, order: RoundOrder, now: float) -> Outcome:
    """An order has been heard."""
    work = state.work
    if work and work.step is Step.SENDING and work.retry_at is not None:
        state = replace(state, work=replace(work, failures=0, retry_at=min(work.retry_at, now + RESEND_AFTER)))
    if state.heard and (order.version, order.round) < (state.heard.version, state.heard.round):
        return state, ()
    return next_work(replace(state, heard=order))


def next_work(state: Session) -> Outcome:
    """Begin the newest round that has been heard, unless there is better to do."""
    order, work = state.heard, state.work
    if order is None or state.active is None or not state.active.trains or not matches(state.active, order):
        return state, ()
    if work and (work.step is not Step.FETCHING or _same(work.order, order)):
        return state, ()
    place = (order.version, order.round)
    if order.weights.sha256 == state.adopted if order.task is None else place <= state.done:
        return state, ()
    if order.task is not None and not takes_part(state.device, order, state.loss):
        state, skipped = replace(state, work=None), work is not None
        return state, ((Fetch(state.wanted()),) if skipped else ())
    state = replace(state, work=Work(order.version, order.round, Step.FETCHING, order, difference=shortest(state, order)))
    return state, (Fetch(state.wanted()),)


def _weights_there(state: Session, active: Manifest, work: Work, order: RoundOrder) -> Outcome:
    adopt = () if state.adopted == order.weights.sha256 else (Adopt(order),)
    state = replace(state, adopted=order.weights.sha256)
    if order.task is None:
        return replace(state, work=None), (*adopt, Announce("adopted", order.version, order.round))
    state = replace(state, work=replace(work, step=Step.TRAINING, retry_at=None, difference=None))
    return state, (*adopt, Announce("training", order.version, order.round), Train(active, order))


def fetched(state: Session, sha256: bytes, now: float) -> Outcome:
    """A file is there."""
    work = state.work
    if not (state.active and work and work.order and work.step is Step.FETCHING):
        return state, ()
    if work.order.weights.sha256 == sha256:
        pausing = work.retry_at is not None and now < work.retry_at
        return (state, ()) if pausing else _weights_there(state, state.active, work, work.order)
    if work.difference and work.difference.file.sha256 == sha256:
        return state, (Rebuild(work.difference, work.order.weights),)
    return state, ()


def not_rebuilt(state: Session, sha256: bytes) -> Outcome:
    """The weights could not be made from a difference."""
    work = state.work
    if work is None or work.order is None or work.difference is None or work.order.weights.sha256 != sha256:
        return state, ()
    state = replace(state, work=replace(work, difference=None))
    return state, (Fetch(state.wanted()),)


def trained(state: Session, done: Trained, now: float) -> Outcome:
    """The update is in the outbox."""
    work = state.work
    if work is None or work.step is not Step.TRAINING or work.round != done.round:
        return state, ()
    work = replace(work, step=Step.SENDING, sha256=done.sha256, failures=0, retry_at=now + RESEND_AFTER)
    return replace(state, work=work, loss=done.loss, proven=True), (Send(), Announce("trained", work.version, work.round))


def failed(state: Session, event: TrainingFailed, now: float) -> Outcome:
    """The trainer could not make an update."""
    work, number = state.work, event.round
    if work is None or work.step is not Step.TRAINING or work.round != number:
        return state, ()
    said = Announce("failed", work.version, number, event.reason, event.code)
    failures = work.failures + 1
    if failures >= GIVE_UP_AFTER and event.code in GRAVE and state.previous and not state.proven:
        state, effects = reverted(replace(state, work=None), f"trial-{event.code}", event.reason)
        return state, (said, *effects)
    superseded = state.heard is not None and not _same(work.order, state.heard)
    if superseded or failures >= GIVE_UP_AFTER:
        state, effects = next_work(replace(state, work=None, done=max(state.done, (work.version, number))))
        return state, (said, *effects)
    work = replace(work, step=Step.FETCHING, failures=failures, retry_at=now + _pause(RETRY_AFTER, failures - 1))
    return replace(state, work=work), (said,)


def _pause(first: float, before: int) -> float:
    """Seconds to wait after so many pauses before this one."""
    return min(RETRY_LIMIT, first * 2.0 ** min(before, 16))


def receipted(state: Session, receipt: Receipt) -> Outcome:
    """The server has stored or refused an update."""
    work = state.work
    if work is None or work.step is not Step.SENDING or receipt.sha256 != work.sha256:
        return state, ()
    state = replace(state, work=None, done=max(state.done, (work.version, work.round)))
    state, effects = next_work(state)
    return state, (Settle(receipt.stored, receipt.reason), *effects)


def connected(state: Session, now: float) -> Outcome:
    """The broker has accepted the connection."""
    work = state.work
    if work is None or work.step is not Step.SENDING:
        return state, ()
    return replace(state, work=replace(work, failures=0, retry_at=now + RESEND_AFTER)), (Send(),)


def ticked(state: Session, now: float) -> Outcome:
    """Time has passed."""
    work = state.work
    if work is None or work.retry_at is None or now < work.retry_at:
        return state, ()
    if work.step is Step.SENDING:
        failures = work.failures + 1
        work = replace(work, failures=failures, retry_at=now + _pause(RESEND_AFTER, failures))
        return replace(state, work=work), (Send(),)
    state = replace(state, work=replace(work, retry_at=None))
    return state, (Fetch(state.wanted()),)
