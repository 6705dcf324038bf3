"""The device's session machine for one model: which version it holds, and how far it is in the current round. Pure.

Model. Two things go on beside each other, each with a module of its own:

* *installing* (`device.installing`): the version that is assigned is fetched, tried beside the active one, and takes its place in
  one atomic step, or is refused. A device always holds the old version or the new one, never neither.
* *work* (`device.rounds`): the current round of the active version: fetch its weights -> train -> send the update -> receipt.

Rules:

* Events are facts that have happened, effects are orders to the shell (`device.agent`). The shell reports back with an event.
* What must survive a power cut is on disk before the next effect. Everything else is heard again, because manifests and round
  orders are retained by the broker.
* Another version abandons the work of the active one; the same version, whose damaged file was fetched again, does not.
* An installation that waits for a round in progress is looked at again when that round has ended.
"""

from edgefl.device import installing, rounds
from edgefl.device.events import (
    Check,
    Checked,
    Connected,
    Damaged,
    Effect,
    Event,
    Fetched,
    ManifestHeard,
    NotRebuilt,
    OrderHeard,
    ReceiptHeard,
    Tick,
    Trained,
    TrainingFailed,
    Tried,
)
from edgefl.device.installing import Outcome
from edgefl.device.state import Phase, Session


def step(state: Session, event: Event, now: float) -> Outcome:
    """The machine: the next state and what to do."""
    before = state
    state, effects = _step(state, event, now)
    waits = state.install is not None and state.install.phase is Phase.READY
    if waits and before.busy and not state.busy:
        effects = (*effects, Check())
    return state, effects


def _step(state: Session, event: Event, now: float) -> Outcome:  # noqa: PLR0911, C901 - one return per kind of event
    match event:
        case Connected():
            return rounds.connected(state, now)
        case ManifestHeard():
            return installing.assigned(state, event, now)
        case Damaged():
            return installing.damaged(state, now)
        case Checked():
            return installing.checked(state, event, now)
        case Tried():
            state, effects = installing.tried(state, event)
            return _and_work(state, effects)
        case OrderHeard(order):
            return rounds.ordered(state, order, now)
        case Fetched(sha256):
            return _fetched(state, sha256, now)
        case NotRebuilt(sha256):
            return rounds.not_rebuilt(state, sha256)
        case Trained():
            return rounds.trained(state, event, now)
        case TrainingFailed():
            return rounds.failed(state, event, now)
        case ReceiptHeard(receipt):
            return rounds.receipted(state, receipt)
        case Tick():
            return _ticked(state, now)


def wake_at(state: Session) -> float | None:
    """When the machine wants a `Tick` at the latest."""
    times = [state.work.retry_at if state.work else None, state.install.check_at if state.install else None]
    return min((at for at in times if at is not None), default=None)


def _and_work(state: Session, effects: tuple[Effect, ...]) -> Outcome:
    """The work of the version that is active now, after these effects."""
    state, more = rounds.next_work(state)
    return state, effects + more


def _fetched(state: Session, sha256: bytes, now: float) -> Outcome:
    before = state
    state, installed = installing.fetched(state, sha256, now)
    if state.active is not before.active:
        return _and_work(state, installed)
    state, worked = rounds.fetched(state, sha256, now)
    return state, worked + installed  # a question whether the installation may go on is asked last


def _ticked(state: Session, now: float) -> Outcome:
    state, worked = rounds.ticked(state, now)
    state, installed = installing.ticked(state, now)
    return state, worked + installed
