"""The device's session machine for one model: which version it holds, and how far it is in the current round. Pure.

Model. Two things go on beside each other:

* *installing*: a manifest newer than the active one has been heard; its files are being fetched; when all are there and
  verified it is activated in one atomic step. A device always holds the old version or the new one, never neither.
* *work*: the current round of the active version: fetch the round's weights -> train -> send the update -> receipt.

Rules:

* Events are facts that have happened, effects are orders to the shell (`device.agent`). The shell reports back with an event.
* What must survive a power cut is on disk before the next effect: the active manifest (before `Activate` is reported done) and
  the outbox (before `Trained`). Everything else is heard again, because manifests and round orders are retained by the broker.
* An update that has been trained is sent until a receipt names it, on every connection and after every pause, whatever rounds
  have been opened meanwhile. Only a receipt or a newer version ends it. A word from the server makes the pauses short again.
* An order without a task ends a training: its weights are fetched and kept, nothing is trained.
* A new version abandons the work of the old one; the same version, installed again because a file of it was damaged, does not.
* Weights are fetched as a difference from weights that are held, if the order offers one, otherwise or when that fails whole.
* A newer order supersedes an order whose weights are still being fetched or whose training has failed, but not one in training:
  a late update still counts.
* Times are seconds of a monotonic clock; pauses double with each failure up to five minutes.
"""

from dataclasses import replace

from edgefl.device.events import (
    Activate,
    Adopt,
    Announce,
    Connected,
    Effect,
    Event,
    Fetch,
    Fetched,
    ManifestHeard,
    NotRebuilt,
    OrderHeard,
    Rebuild,
    ReceiptHeard,
    Send,
    Settle,
    StopTraining,
    Tick,
    Train,
    Trained,
    TrainingFailed,
)
from edgefl.device.shortcut import shortest
from edgefl.device.state import Session, Step, Work
from edgefl.participation import chance
from edgefl.participation import takes_part as draws
from edgefl.wire.messages import FileRef, Manifest, Receipt, RoundOrder

RESEND_AFTER = 20.0
"""Seconds without a receipt after which an update is sent again on a living connection, for the first time."""
RETRY_AFTER = 2.0
"""Seconds from the first failed training of a round to the second attempt."""
RETRY_LIMIT = 300.0
"""Longest pause of either kind; each is twice as long as the one before."""
GIVE_UP_AFTER = 3
"""Failed trainings of one round before the device waits for the next."""

Outcome = tuple[Session, tuple[Effect, ...]]


def takes_part(device: str, order: RoundOrder, loss: float = 0.0) -> bool:
    """Whether this device trains in this round (`edgefl.participation`); `loss` is of its last training, 0 if not known."""
    task = order.task
    if task is None:
        return False
    likely = chance(task.fraction, own_loss=loss, mean_loss=task.loss) if task.biased else task.fraction
    return draws(order.model, order.version, order.round, device, likely)


def step(state: Session, event: Event, now: float) -> Outcome:  # noqa: PLR0911 - one return per kind of event
    """The machine: the next state and what to do."""
    match event:
        case Connected():
            return _connected(state, now)
        case ManifestHeard(manifest):
            return _consider(state, manifest)
        case OrderHeard(order):
            return _order(state, order, now)
        case Fetched(sha256):
            return _fetched(state, sha256, now)
        case NotRebuilt(sha256):
            return _not_rebuilt(state, sha256)
        case Trained():
            return _trained(state, event, now)
        case TrainingFailed(number, reason):
            return _failed(state, number, reason, now)
        case ReceiptHeard(receipt):
            return _receipt(state, receipt)
        case Tick():
            return _tick(state, now)


def wake_at(state: Session) -> float | None:
    """When the machine wants a `Tick` at the latest."""
    return state.work.retry_at if state.work else None


def _consider(state: Session, manifest: Manifest) -> Outcome:
    held = max((m.version for m in (state.active, state.installing) if m), default=0)
    if manifest.version <= held:
        return state, ()
    state = replace(state, installing=manifest, missing=frozenset(ref.sha256 for ref in manifest.files))
    return state, (Announce("fetching", manifest.version, 0), Fetch(_wanted(state)))


def _wanted(state: Session) -> tuple[FileRef, ...]:
    files: dict[bytes, FileRef] = {}
    if state.installing:
        files |= {ref.sha256: ref for ref in state.installing.files if ref.sha256 in state.missing}
    if state.work and state.work.step is Step.FETCHING and state.work.order:
        ref = state.work.difference.file if state.work.difference else state.work.order.weights
        files[ref.sha256] = ref
    return tuple(files.values())


def _activate(state: Session) -> Outcome:
    manifest = state.installing
    if manifest is None:
        return state, ()
    work, heard = state.work, state.heard
    stop: tuple[Effect, ...] = (StopTraining(),) if work and work.step is Step.TRAINING else ()
    state = replace(
        state,
        active=manifest,
        installing=None,
        missing=frozenset(),
        work=work if work and work.step is Step.SENDING and work.version == manifest.version else None,
        adopted=b"",
        loss=state.loss if state.done[0] == manifest.version else 0.0,
        heard=heard if heard and _matches(manifest, heard) else None,
    )
    return state, (*stop, Activate(manifest), Announce("activated", manifest.version, 0))


def _matches(manifest: Manifest, order: RoundOrder) -> bool:
    return (manifest.model, manifest.version, manifest.variant) == (order.model, order.version, order.variant)


def _same(one: RoundOrder | None, other: RoundOrder) -> bool:
    """Whether two orders want the same; one that is announced again may have another expiry."""
    wanted = (other.version, other.round, other.weights, other.task)
    return one is not None and (one.version, one.round, one.weights, one.task) == wanted


def _order(state: Session, order: RoundOrder, now: float) -> Outcome:
    work = state.work
    if work and work.step is Step.SENDING and work.retry_at is not None:
        state = replace(state, work=replace(work, failures=0, retry_at=min(work.retry_at, now + RESEND_AFTER)))
    if state.heard and (order.version, order.round) < (state.heard.version, state.heard.round):
        return state, ()
    return _next_work(replace(state, heard=order))


def _next_work(state: Session) -> Outcome:
    """Begin the newest round that has been heard, unless there is better to do."""
    order, work = state.heard, state.work
    if order is None or state.active is None or not _matches(state.active, order):
        return state, ()
    if work and (work.step is not Step.FETCHING or _same(work.order, order)):
        return state, ()
    place = (order.version, order.round)
    if order.weights.sha256 == state.adopted if order.task is None else place <= state.done:
        return state, ()
    if order.task is not None and not takes_part(state.device, order, state.loss):
        state, skipped = replace(state, work=None), work is not None
        return state, ((Fetch(_wanted(state)),) if skipped else ())
    state = replace(state, work=Work(order.version, order.round, Step.FETCHING, order, difference=shortest(state, order)))
    return state, (Fetch(_wanted(state)),)


def _weights_there(state: Session, active: Manifest, work: Work, order: RoundOrder) -> Outcome:
    adopt = () if state.adopted == order.weights.sha256 else (Adopt(order),)
    state = replace(state, adopted=order.weights.sha256)
    if order.task is None:
        return replace(state, work=None), (*adopt, Announce("adopted", order.version, order.round))
    state = replace(state, work=replace(work, step=Step.TRAINING, retry_at=None, difference=None))
    return state, (*adopt, Announce("training", order.version, order.round), Train(active, order))


def _fetched(state: Session, sha256: bytes, now: float) -> Outcome:
    if sha256 in state.missing:
        state = replace(state, missing=state.missing - {sha256})
        if not state.missing:
            state, effects = _activate(state)
            state, more = _next_work(state)
            return state, effects + more
    work = state.work
    if not (state.active and work and work.order and work.step is Step.FETCHING):
        return state, ()
    if work.order.weights.sha256 == sha256:
        pausing = work.retry_at is not None and now < work.retry_at
        return (state, ()) if pausing else _weights_there(state, state.active, work, work.order)
    if work.difference and work.difference.file.sha256 == sha256:
        return state, (Rebuild(work.difference, work.order.weights),)
    return state, ()


def _not_rebuilt(state: Session, sha256: bytes) -> Outcome:
    work = state.work
    if work is None or work.order is None or work.difference is None or work.order.weights.sha256 != sha256:
        return state, ()
    state = replace(state, work=replace(work, difference=None))
    return state, (Fetch(_wanted(state)),)


def _trained(state: Session, done: Trained, now: float) -> Outcome:
    work = state.work
    if work is None or work.step is not Step.TRAINING or work.round != done.round:
        return state, ()
    work = replace(work, step=Step.SENDING, sha256=done.sha256, failures=0, retry_at=now + RESEND_AFTER)
    return replace(state, work=work, loss=done.loss), (Send(), Announce("trained", work.version, work.round))


def _failed(state: Session, number: int, reason: str, now: float) -> Outcome:
    work = state.work
    if work is None or work.step is not Step.TRAINING or work.round != number:
        return state, ()
    said = Announce("failed", work.version, number, reason)
    failures = work.failures + 1
    superseded = state.heard is not None and not _same(work.order, state.heard)
    if superseded or failures >= GIVE_UP_AFTER:
        state, effects = _next_work(replace(state, work=None, done=max(state.done, (work.version, number))))
        return state, (said, *effects)
    work = replace(work, step=Step.FETCHING, failures=failures, retry_at=now + _pause(RETRY_AFTER, failures - 1))
    return replace(state, work=work), (said,)


def _pause(first: float, before: int) -> float:
    """Seconds to wait after so many pauses before this one."""
    return min(RETRY_LIMIT, first * 2.0 ** min(before, 16))


def _receipt(state: Session, receipt: Receipt) -> Outcome:
    work = state.work
    if work is None or work.step is not Step.SENDING or receipt.sha256 != work.sha256:
        return state, ()
    state = replace(state, work=None, done=max(state.done, (work.version, work.round)))
    state, effects = _next_work(state)
    return state, (Settle(receipt.stored, receipt.reason), *effects)


def _connected(state: Session, now: float) -> Outcome:
    work = state.work
    if work is None or work.step is not Step.SENDING:
        return state, ()
    return replace(state, work=replace(work, failures=0, retry_at=now + RESEND_AFTER)), (Send(),)


def _tick(state: Session, now: float) -> Outcome:
    work = state.work
    if work is None or work.retry_at is None or now < work.retry_at:
        return state, ()
    if work.step is Step.SENDING:
        failures = work.failures + 1
        work = replace(work, failures=failures, retry_at=now + _pause(RESEND_AFTER, failures))
        return replace(state, work=work), (Send(),)
    state = replace(state, work=replace(work, retry_at=None))
    return state, (Fetch(_wanted(state)),)
