"""How a version becomes the one that a device holds: heard of, fetched, kept as the candidate, tried, activated. Pure.

Model. `Session.install` is the version on its way (`Phase` says how far), `active` serves until another one has passed its trial,
`previous` is what was active before and can be again without a network. So a device always holds the old version or the new one.

Rules:

* The version that is assigned is the one to hold: a lower one is a rollback, the active one ends whatever is on its way.
* What must survive a power cut is on disk before what follows from it: the candidate and the number of this start before the
  trial, the failure before the version is given up, the active version before its rounds.
* A trial compares with the active version only if the new one is higher: who orders an older version back knows what it lacks.
* A version that has failed here is not tried again under the rollout number that it failed under. Another number, or another
  version, is.
* A damaged file of the active version is fetched again without leave or trial. If that takes longer than a trial may, the
  previous version takes its place meanwhile.
* Leave to go on is asked for at the beginning and again every `CHECK_EVERY` seconds; a reason to wait is told once.
"""

from dataclasses import replace

from edgefl.device.defer import DISK
from edgefl.device.events import (
    Abandon,
    Activate,
    Announce,
    Check,
    Checked,
    Effect,
    Fetch,
    ManifestHeard,
    Prepare,
    Refuse,
    Repaired,
    Revert,
    StopTraining,
    StopTrial,
    Tried,
    Try,
)
from edgefl.device.state import Failure, Install, Phase, Session, Step, Work, same
from edgefl.wire.releases import Manifest
from edgefl.wire.rounds import RoundOrder

CHECK_EVERY = 60.0
"""Seconds between two questions whether a version may be fetched or tried."""
REMEMBERED = 16
"""Failures that a device keeps in mind."""

Outcome = tuple[Session, tuple[Effect, ...]]


def matches(manifest: Manifest, order: RoundOrder) -> bool:
    """Whether an order is for this version and variant."""
    return (manifest.model, manifest.version, manifest.variant) == (order.model, order.version, order.variant)


def assigned(state: Session, event: ManifestHeard, now: float) -> Outcome:
    """This version is the one to hold."""
    manifest, rollout, install = event.manifest, event.rollout, state.install
    if same(state.active, manifest):
        return _abandoned(replace(state, rollout=rollout))
    failure = next((f for f in state.failed if (f.version, f.rollout) == (manifest.version, rollout)), None)
    if failure:
        said = () if state.told == failure else (_given_up(state, failure, "it has failed here before"),)
        state, effects = (state, ()) if install and install.repair else _abandoned(state)
        return replace(state, told=failure), (*effects, *said)
    if install and same(install.manifest, manifest):
        return replace(state, install=replace(install, rollout=rollout)), ()
    state, effects = _abandoned(state)
    state = replace(state, install=_begun(manifest, rollout, now, repair=same(state.broken, manifest)))
    return state, (*effects, Check())


def damaged(state: Session, now: float) -> Outcome:
    """A file of the active version is to be fetched again, unless another version is on its way."""
    if state.broken is None or state.install:
        return state, ()
    return replace(state, install=_begun(state.broken, state.rollout, now, repair=True)), (Check(),)


def _begun(manifest: Manifest, rollout: int, now: float, *, repair: bool) -> Install:
    missing = frozenset(ref.sha256 for ref in manifest.files)
    return Install(manifest, rollout, Phase.WAITING, missing, now, check_at=now + CHECK_EVERY, repair=repair)


def _abandoned(state: Session) -> Outcome:
    """Nothing is on its way any more."""
    install = state.install
    if install is None:
        return state, ()
    state = replace(state, install=None)
    stop: tuple[Effect, ...] = (StopTrial(),) if install.phase is Phase.TRIAL else ()
    return state, (*stop, Fetch(state.wanted()), Abandon())


def _given_up(state: Session, failure: Failure, reason: str) -> Announce:
    step = "reverted" if state.active else "failed"
    return Announce(step, failure.version, 0, reason, failure.code)


def checked(state: Session, event: Checked, now: float) -> Outcome:
    """It is known whether the version on its way may go on."""
    install = state.install
    if install is None or install.phase is Phase.TRIAL:
        return state, ()
    install = replace(install, check_at=now + CHECK_EVERY)
    state = replace(state, install=install)
    if install.phase is Phase.READY:
        return _deferred(state, install, event.install) if event.install else _try(state, install)
    reason = "" if install.repair else event.download
    if install.phase is Phase.WAITING:
        if reason:
            return _deferred(state, install, reason)
        state = replace(state, install=replace(install, phase=Phase.FETCHING))
        return state, (Announce("fetching", install.manifest.version, 0), Fetch(state.wanted()))
    if reason in ("", DISK):  # the room of what is being fetched has been taken already
        return state, ()
    state = replace(state, install=replace(install, phase=Phase.WAITING))
    paused = Fetch(state.wanted())
    state, effects = _deferred(state, replace(install, phase=Phase.WAITING), reason)
    return state, (paused, *effects)


def _deferred(state: Session, install: Install, reason: str) -> Outcome:
    state = replace(state, install=replace(install, told=reason))
    if install.told == reason:
        return state, ()
    return state, (Announce("deferred", install.manifest.version, 0, code=reason),)


def _try(state: Session, install: Install) -> Outcome:
    manifest = install.manifest
    if install.starts >= manifest.health.starts:
        return _refused(state, install, "trial-starts", f"its trial was begun {install.starts} times and never ended")
    install = replace(install, phase=Phase.TRIAL, starts=install.starts + 1, check_at=None)
    kept = tuple(failure for failure in state.failed if failure.version != manifest.version)
    against = state.active if state.active and state.active.version < manifest.version else None
    prepare = Prepare(manifest, install.rollout, install.starts)
    stop: tuple[Effect, ...] = ()
    if state.work and state.work.step is Step.TRAINING:
        state, stop = replace(state, work=None), (StopTraining(),)  # trained again if the trial fails
    state = replace(state, install=install, failed=kept)
    return state, (*stop, prepare, Announce("trial", manifest.version, 0), Try(manifest, against))


def fetched(state: Session, sha256: bytes, now: float) -> Outcome:
    """A file is there."""
    install = state.install
    if install is None or sha256 not in install.missing:
        return state, ()
    install = replace(install, missing=install.missing - {sha256})
    if install.missing:
        return replace(state, install=install), ()
    if install.repair:
        work = state.work if state.work and state.work.version == install.manifest.version else None
        state = _with_active(replace(state, install=None, broken=None), install, work)
        return state, (Repaired(install.manifest), Announce("activated", install.manifest.version, 0))
    state = replace(state, install=replace(install, phase=Phase.READY, since=now, check_at=now + CHECK_EVERY, told=""))
    return state, (Check(),)


def tried(state: Session, event: Tried) -> Outcome:
    """The trial has ended."""
    install = state.install
    if install is None or install.phase is not Phase.TRIAL or install.manifest.version != event.version:
        return state, ()
    if event.code:
        return _refused(state, install, event.code, event.reason)
    stop: tuple[Effect, ...] = (StopTraining(),) if state.work and state.work.step is Step.TRAINING else ()
    before = state.active or state.broken
    kept = state.adopted if state.active else b""
    back, held = same(install.manifest, state.previous), state.previous_weights
    state = _with_active(replace(state, install=None, broken=None, done=(0, 0), loss=0.0, proven=False), install, None)
    if before:
        state = replace(state, previous=before, previous_weights=kept, adopted=held if back else b"")
    return state, (*stop, Activate(install.manifest, back), Announce("activated", install.manifest.version, 0))


def _with_active(state: Session, install: Install, work: Work | None) -> Session:
    heard = state.heard if state.heard and matches(install.manifest, state.heard) else None
    return replace(state, active=install.manifest, rollout=install.rollout, work=work, adopted=b"", heard=heard)


def _refused(state: Session, install: Install, code: str, reason: str) -> Outcome:
    failure = Failure(install.manifest.version, install.rollout, code)
    state = _remembering(replace(state, install=None), failure)
    return state, (Refuse(failure), _given_up(state, failure, reason))


def _remembering(state: Session, failure: Failure) -> Session:
    return replace(state, failed=(*state.failed, failure)[-REMEMBERED:], told=failure)


def reverted(state: Session, code: str, reason: str) -> Outcome:
    """The active version is no good: the previous one takes its place. An empty code means that its files are at fault."""
    bad = state.active or state.broken
    if bad is None or state.previous is None:
        return state, ()
    failure = Failure(bad.version, state.rollout, code) if code else None
    if failure:
        state = _remembering(state, failure)
    stop: tuple[Effect, ...] = (StopTraining(),) if state.work and state.work.step is Step.TRAINING else ()
    state, effects = _abandoned(replace(state, work=None))
    state = replace(
        state,
        active=state.previous,
        adopted=state.previous_weights,
        previous=None,
        previous_weights=b"",
        broken=None,
        heard=None,
        done=(0, 0),
        loss=0.0,
        rollout=0,
        proven=True,
    )
    return state, (*stop, *effects, Revert(failure), Announce("reverted", bad.version, 0, reason, code or "disk"))


def ticked(state: Session, now: float) -> Outcome:
    """Time has passed."""
    install = state.install
    if install is None:
        return state, ()
    fetching = install.phase in (Phase.WAITING, Phase.FETCHING)
    if state.broken and state.previous and fetching and now - install.since > state.broken.health.seconds:
        return reverted(state, "", "its files are damaged and cannot be fetched again")
    if install.check_at is None or now < install.check_at:
        return state, ()
    return replace(state, install=replace(install, check_at=now + CHECK_EVERY)), (Check(),)
