"""One model on the device: its session in memory, its folder on disk, and the signed words that its session was told.

Model: what is heard becomes an event only if it is believed (`device.trust`, for manifests `device.following`). The newest words
are kept, because they mean something else when the state has changed: an order that comes before its version, or a manifest while
the disk is full. What is on disk was believed once and does not expire.

Rule: the session and the disk agree after `recover`, whatever has failed before.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from edgefl.device.config import DeviceConfig
from edgefl.device.events import Damaged, Effect, Event, ManifestHeard, OrderHeard, Prepare, Train, Tried, Try
from edgefl.device.job import Job, TrialJob
from edgefl.device.jobs import training_job, trial_job
from edgefl.device.recovery import find_candidate, find_rollout, find_versions
from edgefl.device.session import step
from edgefl.device.state import Failure, Session, Step, Work
from edgefl.device.trust import believed_order, kept_manifest, kept_order, seal, signed_by
from edgefl.errors import PeerError
from edgefl.store.blobs import BlobStore
from edgefl.store.model_state import ModelState, TrialRecord
from edgefl.store.outbox import OutboxEntry
from edgefl.wire.releases import Manifest
from edgefl.wire.rounds import RoundOrder

log = logging.getLogger("edgefl.device")

ROUND_FIRST = 15.0
"""Seconds for which an installation that the disk has ended lets a round go first: otherwise a full disk stops both."""


@dataclass(slots=True)
class HeldModel:
    """A model that the device knows. Owned by the agent.

    Attributes:
        name: of the model.
        config: of the device.
        disk: what survives.
        blobs: files of all models.
        session: what the machine says.
        retry_at: when to look at the newest words again (`hear_again`); None while there is no need.
        percent_told: progress of the installation as it was reported last.
        following: topic of the orders that the agent has subscribed to.
        verdict: of the last trial, as long as what follows from it is not on disk.
    """

    name: str
    config: DeviceConfig
    disk: ModelState
    blobs: BlobStore
    session: Session = field(init=False)
    retry_at: float | None = None
    percent_told: int = -1
    following: str = ""
    verdict: Tried | None = None
    _told: Failure | None = None
    _manifest_heard: tuple[Manifest, int, bytes] | None = None
    _order_heard: bytes = b""
    _signed: dict[Manifest | RoundOrder, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.recover(None)

    def step(self, event: Event, now: float) -> tuple[Effect, ...]:
        """Let the machine make a step; what it orders."""
        if isinstance(event, Tried) and self.session.trying == event.version:
            self.verdict = event
        self.session, effects = step(self.session, event, now)
        self._told = self.session.told
        return effects

    def hear_manifest(self, manifest: Manifest, payload: bytes, rollout: int) -> Event:
        """The event of a believed manifest of the version that a rollout (0: none) wants here; raises StoreError.

        One of the active version that names the same files has another key for round orders: it takes the old one's place.
        """
        sealed = seal(payload, self.config)
        self._manifest_heard = (manifest, rollout, sealed)
        self._remember(manifest, sealed)
        active = self.session.active
        if active is not None and active != manifest and (active.version, active.files) == (manifest.version, manifest.files):
            self.disk.replace_current(sealed)
            self.session = replace(self.session, active=manifest)
        return ManifestHeard(manifest, rollout)

    def hear_order(self, payload: bytes, wall: float, online_key: bytes) -> Event | None:
        """The event of an announced order; None as long as it means nothing here. `online_key` is what the fleet's root appoints.

        Raises:
            PeerError: it is not believed.
        """
        active = self.session.active
        try:
            order = believed_order(payload, active, wall) if active else None
        except PeerError:
            new_key = active is not None and active.round_key != online_key and signed_by(payload, online_key)
            if self.session.installing is None and not new_key:
                raise
            order = None  # for a version that is on its way, or whose manifest will name the new key: it is looked at again
        self._order_heard = payload
        if active is None or order is None or order.version != active.version:
            return None
        self._remember(order, payload)
        return OrderHeard(order)

    def hear_again(self, wall: float, online_key: bytes) -> Iterator[Event]:
        """The events of what is on disk and of the newest words, after the state has changed under them."""
        if self.session.broken:
            yield Damaged()
        if self._manifest_heard is not None:
            manifest, rollout, sealed = self._manifest_heard
            self._remember(manifest, sealed)
            yield ManifestHeard(manifest, rollout)
        try:
            event = self.hear_order(self._order_heard, wall, online_key) if self._order_heard else None
        except PeerError as error:
            log.info("%s: still not believed: %s", self.name, error)
            return
        if event is not None:
            yield event

    def prepare(self, order: Prepare) -> None:
        """Keep a candidate on disk, and that its trial begins. Raises StoreError."""
        record = TrialRecord(order.manifest.version, order.rollout, order.starts, self.session.rollout)
        self.disk.prepare(self._signed[order.manifest], record, self.session.failed)

    def adopt(self, order: RoundOrder) -> None:
        """Keep an order on disk. Raises StoreError."""
        self.disk.adopt(self._signed[order])

    def stored_manifest(self) -> Manifest | None:
        """The version that is active on disk, if it is believed."""
        return self._believed(self.disk.current())

    def _believed(self, payload: bytes | None) -> Manifest | None:
        try:
            return kept_manifest(payload, self.name, self.config) if payload is not None else None
        except PeerError:
            return None

    def stored_order(self, manifest: Manifest) -> RoundOrder | None:
        """The newest order of this version on disk, if it is believed."""
        return kept_order(self.disk.orders(), manifest)

    def recover(self, resend_at: float | None) -> None:
        """Set the session to what is on disk.

        A version whose files are damaged is not active until they have been fetched again, but its update is still sent. See
        `edgefl.device.recovery` for the rest.

        Args:
            resend_at: when to send an update that is found, and to go on with a candidate; None: at the next connection, and now.
        """
        self._signed.clear()
        manifest, previous = find_versions(self.disk, self._believed)
        self.session = Session(self.config.id, failed=self.disk.failed(), told=self._told)
        if manifest is not None:
            self._recover_active(manifest, resend_at)
            order = self.stored_order(previous) if previous else None
            weights = order.weights.sha256 if order else b""
            self.session = replace(self.session, previous=previous, previous_weights=weights)
        install = find_candidate(self.disk, self._believed, self.session)
        if install:
            ended = self.verdict and self.verdict.version == install.manifest.version
            starts = 0 if ended else install.starts  # it was the disk that ended the installation
            self.session = replace(
                self.session,
                install=replace(install, starts=starts, check_at=0.0 if resend_at is None else resend_at + ROUND_FIRST),
            )
            self._signed[install.manifest] = self.disk.candidate() or b""

    def _recover_active(self, manifest: Manifest, resend_at: float | None) -> None:
        order = self.stored_order(manifest)
        entry = self.disk.waiting(manifest.version, manifest.variant)
        sending = Work(entry.version, entry.round, Step.SENDING, None, entry.sha256, retry_at=resend_at) if entry else None
        done = (manifest.version, self.disk.settled_round(manifest.version, manifest.variant))
        whole = self.whole(manifest)
        adopted = order.weights.sha256 if order and self.blobs.intact(order.weights.sha256) else b""
        last = entry or self.disk.last_settled(manifest.version, manifest.variant)
        loss = last.loss_after if last else 0.0
        self.session = replace(
            self.session,
            active=manifest if whole else None,
            broken=None if whole else manifest,
            work=sending,
            done=done,
            adopted=adopted,
            loss=loss,
            rollout=find_rollout(self.disk, manifest),
            proven=last is not None,
        )

    def intact(self) -> bool:
        """Whether the files that a training needs are whole; damaged ones are deleted."""
        active, work = self.session.active, self.session.work
        weights = work is None or work.order is None or self.blobs.intact(work.order.weights.sha256)
        return weights and active is not None and self.whole(active)

    def needed(self) -> set[bytes]:
        """SHA-256 of every file that the session refers to, or will when a damaged version is repaired."""
        session = self.session
        manifests = (session.active, session.broken, session.previous, session.installing)
        refs = [ref for manifest in manifests if manifest for ref in manifest.files]
        if session.work and session.work.order:
            refs.append(session.work.order.weights)
            refs += [session.work.difference.file] if session.work.difference else []
        earlier = self._earlier()
        newest = {session.adopted, session.previous_weights}
        return {ref.sha256 for ref in refs} | newest | ({earlier.weights} if earlier else set())

    def _earlier(self) -> OutboxEntry | None:
        """The settled update, if the weights that it was trained from may still lie here: the next one is coded with them.

        They are kept while they are the newest, and beside those of the round in training: a board then holds three weights
        files (with the version's own), no more than it does while a round's weights arrive.
        """
        manifest, work, adopted = self.session.active, self.session.work, self.session.adopted
        entry = self.disk.last_settled(manifest.version, manifest.variant) if manifest else None
        if entry is None or not entry.weights:
            return None
        at_work = work is not None and (work.step is Step.SENDING or (work.order and work.order.weights.sha256 == adopted))
        return entry if at_work or entry.weights == adopted else None

    def job(self, train: Train) -> Job:
        """The trainer's job for an order."""
        return training_job(train, self._earlier(), self.config, self.disk, self.blobs)

    def trial(self, order: Try) -> TrialJob:
        """The trainer's job for a trial."""
        return trial_job(order, self.session.adopted, self.config, self.disk, self.blobs)

    def whole(self, manifest: Manifest) -> bool:
        """Whether all files of a version are there and undamaged; damaged ones are deleted."""
        found = [self.blobs.intact(ref.sha256) for ref in manifest.files]  # all of them: each damaged one is deleted
        return all(found)

    def _remember(self, message: Manifest | RoundOrder, signed: bytes) -> None:
        """Keep the signed bytes of a message for as long as the session refers to it, or is about to."""
        session = self.session
        referred = (session.installing, session.heard, session.work.order if session.work else None)
        self._signed = {known: kept for known, kept in self._signed.items() if known in referred}
        self._signed[message] = signed
