"""What a device finds of a model's versions on disk: the active one, the one before it, and the candidate in its trial.

Rules: whatever moment the power was cut at, what is found is the old version or the new one. A revert that was cut short is
ended; a candidate is fetched (what is there is only looked at) and tried again, with the starts that it has had; what is not
believed (another fleet's, another profile's, flipped bits) counts as absent.
"""

import logging
from collections.abc import Callable

from edgefl.device.state import Install, Phase, Session, same
from edgefl.errors import StoreError
from edgefl.store.model_state import ModelState, TrialRecord
from edgefl.wire.releases import Manifest

log = logging.getLogger("edgefl.device")

Belief = Callable[[bytes | None], Manifest | None]
"""The manifest in a signed file, if it is believed."""


def find_versions(disk: ModelState, believed: Belief) -> tuple[Manifest | None, Manifest | None]:
    """The manifests of the active version and of the one before it."""
    manifest, previous = believed(disk.current()), believed(disk.previous())
    if manifest is None and previous is None and disk.current() is not None:
        log.warning("%s: what is on disk is not this device's, or damaged; starting afresh", disk.root.name)
        disk.forget()
    if same(manifest, previous) or previous is None:
        return manifest, None
    failed = disk.failed()
    if manifest is not None and all(failure.version != manifest.version for failure in failed):
        return manifest, previous
    log.warning("%s: going back to version %d", disk.root.name, previous.version)
    try:
        disk.revert(failed)
    except StoreError as error:
        log.warning("%s: %s", disk.root.name, error)
        return manifest, previous
    return previous, None


def find_candidate(disk: ModelState, believed: Belief, session: Session) -> Install | None:
    """The candidate, to be looked at at once; None if there is none, or if it has failed or passed already."""
    manifest, record = believed(disk.candidate()), disk.trial()
    if manifest is None or same(manifest, session.active or session.broken):
        return None
    of_it = record if record and record.version == manifest.version else TrialRecord(manifest.version, 0, 0)
    if any((one.version, one.rollout) == (manifest.version, of_it.rollout) for one in session.failed):
        return None
    missing = frozenset(ref.sha256 for ref in manifest.files)
    return Install(manifest, of_it.rollout, Phase.WAITING, missing, 0.0, starts=of_it.starts, check_at=0.0)


def find_rollout(disk: ModelState, manifest: Manifest) -> int:
    """Number under which the active version was assigned; 0 if it is not known."""
    record = disk.trial()
    if record is None:
        return 0
    return record.rollout if record.version == manifest.version else record.held
