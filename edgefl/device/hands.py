"""The agent's hands: they do what a session machine orders, and keep machine and disk in agreement when they cannot.

Model: files come through one `Fetcher`, updates leave through one `UpdateSender`, the models take turns at one trainer
(`TrainingQueue`), and one `Voice` tells the server.

Rule: when the disk fails in the middle of the effects of an event, the rest of them is left undone, the model goes back to what
is on disk, and the newest words are looked at again after a pause. The session thereby meets the same situation once more.
"""

import logging
import random
import time
from collections.abc import Callable

from edgefl.device.config import Bundle
from edgefl.device.defer import REASONS
from edgefl.device.events import (
    Adopt,
    Announce,
    Effect,
    Event,
    Fetch,
    Fetched,
    NotRebuilt,
    Rebuild,
    Send,
    Settle,
    StopTraining,
    Train,
)
from edgefl.device.fetching import Fetcher
from edgefl.device.held import HeldModel
from edgefl.device.installer import Installer, Then
from edgefl.device.job import Job
from edgefl.device.rebuild import rebuild
from edgefl.device.resources import peak_rss
from edgefl.device.sending import UpdateSender
from edgefl.device.state import Phase
from edgefl.device.training import TrainerProcess
from edgefl.device.training_queue import TrainingQueue
from edgefl.device.voice import Voice
from edgefl.device.ways import ways_of
from edgefl.errors import BlockError, StoreError, UpdateError
from edgefl.link.contract import Link
from edgefl.store.blobs import BlobStore
from edgefl.wire import topics
from edgefl.wire.files import Difference, FileRef

log = logging.getLogger("edgefl.device")

DISK_PAUSE = 15.0
"""Seconds to wait after the disk has failed."""
RESERVE = 16 << 20
"""Bytes of disk that models leave free for everybody else, and for updates."""


class Hands:
    """Performs effects. Owned by the agent's one thread.

    Args:
        bundle: configuration, and where the state is.
        link: to the broker.
        session: number of this start.
        clock: monotonic seconds.
        wall: seconds since 1970.
        rng: of pauses.

    Attributes:
        models: by name; the agent adds to them.

    Raises:
        StoreError: the state directory cannot be used.
    """

    def __init__(
        self,
        bundle: Bundle,
        link: Link,
        session: int,
        *,
        clock: Callable[[], float],
        wall: Callable[[], float] = time.time,
        rng: random.Random,
    ) -> None:
        config = bundle.config
        self.models: dict[str, HeldModel] = {}
        self.blobs = BlobStore(bundle.state / "blobs")
        partial = bundle.state / "partial"
        self.fetcher = Fetcher(config.id, link, self.blobs, partial, reserve=RESERVE, clock=clock, rng=rng)
        self.sender = UpdateSender(config.id, link)
        self.trainings = TrainingQueue(TrainerProcess(config.threads, config.memory_mb, clock=clock))
        self.voice = Voice(config, link, session, memory=lambda: peak_rss() + self.trainings.peak_rss, clock=clock)
        self._installer = Installer(
            config.policy, self.blobs, partial, self.trainings, happen=self.happen, clock=clock, wall=wall
        )
        self._link = link
        self._clock = clock

    def happen(self, model: HeldModel, event: Event) -> None:
        """Let something happen to a model, and do what its machine orders."""
        effects = model.step(event, self._clock())
        try:
            for effect in effects:
                self._perform(model, effect)
        except StoreError as error:
            self.voice.trouble(model.name, str(error), code=error.code)
            self._start_over(model, DISK_PAUSE)

    def _perform(self, model: HeldModel, effect: Effect) -> None:  # noqa: C901 - one case per kind of effect
        match effect:
            case Fetch(files):
                self.fetcher.need(model.name, files, ways_of(model.session.installing))
            case Rebuild(difference, weights):
                self._rebuild(model, difference, weights)
            case Adopt(order):
                model.adopt(order)
                self.tidy()
            case Train():
                self._train(model, effect)
            case StopTraining():
                self.trainings.drop(model, Job)
            case Send():
                if model.session.work:
                    self.sender.send(model.name, model.disk.outbox, model.session.work.sha256)
            case Settle(stored, reason):
                self._settle(model, reason, stored=stored)
            case Announce(step, version, number, error, code):
                if step == "deferred":
                    log.info("%s@%d has to wait: %s", model.name, version, REASONS[code])
                self.voice.report(model.name, version, number, step, error=error, code=code)
            case _:
                self._follow_up(model, self._installer.perform(model, effect, RESERVE))

    def _follow_up(self, model: HeldModel, then: Then) -> None:
        """What an installation has made necessary."""
        if then is Then.DAMAGED:
            self.voice.trouble(model.name, "a new version was damaged on disk; fetching it again", code=BlockError.code)
            self._start_over(model, 0.0)
        if then is Then.REVERTED:
            self._start_over(model, 0.0)
        if then in (Then.ACTIVATED, Then.REVERTED):
            self._activated(model)
        if then is Then.TIDY:
            self.tidy()

    def _activated(self, model: HeldModel) -> None:
        if model.session.work is None:
            self.sender.forget(model.name)
        self.follow_orders(model)
        self.tidy()
        self.be_born()
        model.retry_at = self._clock()  # an order that was heard before its version can be believed now

    def _rebuild(self, model: HeldModel, difference: Difference, weights: FileRef) -> None:
        """Apply a difference; whatever comes of it but the right bytes, in the store, is reason to fetch the whole file."""
        try:
            if model.session.active is None:
                raise StoreError("no version is active")
            rebuild(self.blobs, difference, weights, model.session.active.layout, reserve=RESERVE)
        except (StoreError, UpdateError) as error:
            log.warning("%s: fetching whole weights: %s", model.name, error)
            self.happen(model, NotRebuilt(weights.sha256))
        else:
            self.happen(model, Fetched(weights.sha256))

    def _train(self, model: HeldModel, train: Train) -> None:
        if model.intact():
            known = {"model": model.name, "version": train.order.version, "round": train.order.round}
            log.info("%s round %d training", model.name, train.order.round, extra=known)
            self.trainings.put(model, model.job(train))
        else:
            self.voice.trouble(model.name, "files were damaged on disk; fetching them again")
            self._start_over(model, 0.0)

    def _settle(self, model: HeldModel, reason: str, *, stored: bool) -> None:
        self.sender.forget(model.name)
        if stored:
            model.disk.settle()
        else:
            log.warning("%s: the server refused an update: %s", model.name, reason)
            model.disk.withdraw()
        self.tidy()  # older weights go: only this update was coded with them, or they are what it was refused for

    def _start_over(self, model: HeldModel, pause: float) -> None:
        """Go back to what is on disk, and look at the newest words again after a pause."""
        self.trainings.drop(model)
        at = self._clock() + pause
        model.recover(resend_at=at)
        model.retry_at = at

    def follow_orders(self, model: HeldModel) -> None:
        """Subscribe to the orders of the active variant, and to no other's; of one that is only served there are none."""
        active = model.session.active
        wanted = topics.round_order(model.name, active.variant) if active and active.trains else ""
        if wanted != model.following:
            if model.following:
                self._link.unsubscribe(model.following)
            if wanted:
                self._link.subscribe(wanted)
            model.following = wanted

    def be_born(self) -> None:
        """Say that the device is there, and what it holds."""
        self.voice.birth(model.session.active for model in self.models.values() if model.session.active)

    def report_progress(self) -> None:
        """Tell how far each installation is, if that is news."""
        for model in self.models.values():
            install, percent = model.session.install, self.fetcher.percent(model.name)
            fetching = install is not None and install.phase is Phase.FETCHING
            if install and fetching and self._link.connected and percent != model.percent_told:
                model.percent_told = percent
                fetched = self.fetcher.fetched(model.name)
                self.voice.report(model.name, install.manifest.version, 0, "fetching", percent=percent, fetched=fetched)

    def tidy(self) -> None:
        """Remove blobs and partial files that nothing needs, as far as the disk lets us."""
        keep = {sha256 for model in self.models.values() for sha256 in model.needed()}
        self.fetcher.tidy(keep)
        try:
            self.blobs.keep_only(keep)
        except StoreError as error:
            log.warning("cannot tidy up: %s", error)

    def close(self) -> None:
        """End the trainer and let go of files; what is on disk is used at the next start."""
        self.trainings.close()
        self.fetcher.close()
