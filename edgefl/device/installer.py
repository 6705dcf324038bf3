"""The agent's hands for installations: what a session orders about versions, done on disk, in the trainer and by looking around.

Rule: what has to follow from it elsewhere (subscriptions, births, garbage) is not done here but said (`Then`).
"""

import logging
from collections.abc import Callable
from enum import Enum, auto
from pathlib import Path

from edgefl.device.conditions import conditions
from edgefl.device.defer import Policy, may_download, may_install
from edgefl.device.events import (
    Abandon,
    Activate,
    Check,
    Checked,
    Event,
    Prepare,
    Refuse,
    Repaired,
    Revert,
    StopTrial,
    Try,
)
from edgefl.device.held import HeldModel
from edgefl.device.job import TrialJob
from edgefl.device.training_queue import TrainingQueue
from edgefl.store.blobs import BlobStore

log = logging.getLogger("edgefl.device")

Installation = Abandon | Activate | Check | Prepare | Refuse | Repaired | Revert | StopTrial | Try


class Then(Enum):
    """What follows: files may have become garbage; another version is active; the session differs from the disk; both."""

    NOTHING = auto()
    TIDY = auto()
    ACTIVATED = auto()
    DAMAGED = auto()
    REVERTED = auto()


class Installer:
    """Owned by the agent's one thread.

    Args:
        policy: when versions may be fetched and installed.
        blobs: files of all models.
        partial: directory of files that are being fetched.
        trainings: whose trainer tries versions.
        happen: lets an event happen to a model.
        clock: monotonic seconds.
        wall: seconds since 1970.
    """

    def __init__(
        self,
        policy: Policy,
        blobs: BlobStore,
        partial: Path,
        trainings: TrainingQueue,
        *,
        happen: Callable[[HeldModel, Event], None],
        clock: Callable[[], float],
        wall: Callable[[], float],
    ) -> None:
        self._policy = policy
        self._blobs = blobs
        self._partial = partial
        self._trainings = trainings
        self._happen = happen
        self._clock = clock
        self._wall = wall

    def perform(self, model: HeldModel, effect: Installation, reserve: int) -> Then:  # noqa: PLR0911 - one return per kind of effect
        """Do it; `reserve` is how many bytes of disk to leave free.

        Raises:
            StoreError: the disk does not let us.
        """
        match effect:
            case Check():
                self._check(model, reserve)
            case Prepare():
                model.prepare(effect)
            case Try():
                return self._try(model, effect)
            case StopTrial():
                self._trainings.drop(model, TrialJob)
            case Activate(manifest, back):
                model.disk.activate(back=back)
                model.verdict = None
                known = {"model": model.name, "version": manifest.version}
                log.info("%s@%d is active", model.name, manifest.version, extra=known)
                return Then.ACTIVATED
            case Repaired(manifest):
                log.info("%s@%d is whole again", model.name, manifest.version)
                return Then.ACTIVATED
            case Abandon():
                model.disk.abandon()
                model.verdict = None
                return Then.TIDY
            case Refuse():
                model.disk.refuse(model.session.failed)
                model.verdict = None
                model.retry_at = self._clock()  # a damaged version that waited for this one is repaired now
                return Then.TIDY
            case Revert():
                model.disk.revert(model.session.failed)
                return Then.REVERTED
        return Then.NOTHING

    def _check(self, model: HeldModel, reserve: int) -> None:
        if model.session.install is None:
            return
        clock, wall = self._clock(), self._wall()
        now = conditions(model.session, self._policy, self._blobs, self._partial, clock=clock, wall=wall, reserve=reserve)
        self._happen(model, Checked(may_download(self._policy, now), may_install(self._policy, now)))

    def _try(self, model: HeldModel, order: Try) -> Then:
        version = order.manifest.version
        if model.verdict and model.verdict.version == version:
            self._happen(model, model.verdict)  # what follows from it could not be written
        elif not model.whole(order.manifest):
            return Then.DAMAGED
        else:
            log.info("%s@%d is tried", model.name, version)
            self._trainings.put(model, model.trial(order))
        return Then.NOTHING
