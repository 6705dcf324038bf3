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
from edgefl.device.events import Effect, Event, ManifestHeard, OrderHeard, Train
from edgefl.device.job import Held, Job
from edgefl.device.session import step
from edgefl.device.state import Session, Step, Work
from edgefl.device.trust import believed_order, kept_manifest, seal, signed_by
from edgefl.errors import PeerError, StoreError
from edgefl.store.blobs import BlobStore
from edgefl.store.model_state import ModelState
from edgefl.store.outbox import OutboxEntry
from edgefl.wire.messages import HISTORY_REACH, Manifest, RoundOrder

log = logging.getLogger("edgefl.device")


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
    """

    name: str
    config: DeviceConfig
    disk: ModelState
    blobs: BlobStore
    session: Session = field(init=False)
    retry_at: float | None = None
    percent_told: int = -1
    following: str = ""
    _manifest_heard: tuple[Manifest, bytes] | None = None
    _order_heard: bytes = b""
    _signed: dict[Manifest | RoundOrder, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.recover(None)

    def step(self, event: Event, now: float) -> tuple[Effect, ...]:
        """Let the machine make a step; what it orders."""
        self.session, effects = step(self.session, event, now)
        return effects

    def hear_manifest(self, manifest: Manifest, payload: bytes) -> Event:
        """The event of a believed manifest of the version that this device is to hold; raises StoreError.

        One of the active version that names the same files has another key for round orders: it takes the old one's place.
        """
        sealed = seal(payload, self.config)
        self._manifest_heard = (manifest, sealed)
        self._remember(manifest, sealed)
        active = self.session.active
        if active is not None and active != manifest and (active.version, active.files) == (manifest.version, manifest.files):
            self.disk.activate(sealed, keep=True)
            self.session = replace(self.session, active=manifest)
        return ManifestHeard(manifest)

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
        stored = self.stored_manifest()
        if self.session.active is None and stored is not None:
            self._remember(stored, self.disk.current() or b"")
            yield ManifestHeard(stored)
        if self._manifest_heard is not None:
            self._remember(*self._manifest_heard)
            yield ManifestHeard(self._manifest_heard[0])
        try:
            event = self.hear_order(self._order_heard, wall, online_key) if self._order_heard else None
        except PeerError as error:
            log.info("%s: still not believed: %s", self.name, error)
            return
        if event is not None:
            yield event

    def activate(self, manifest: Manifest) -> None:
        """Make a version the active one on disk. Raises StoreError."""
        before = self.stored_manifest()
        same = before is not None and (before.version, before.variant) == (manifest.version, manifest.variant)
        self.disk.activate(self._signed[manifest], keep=same)

    def adopt(self, order: RoundOrder) -> None:
        """Keep an order on disk. Raises StoreError."""
        self.disk.adopt(self._signed[order])

    def stored_manifest(self) -> Manifest | None:
        """The version that is active on disk, if it is believed."""
        payload = self.disk.current()
        try:
            return kept_manifest(payload, self.name, self.config) if payload is not None else None
        except PeerError:
            return None

    def stored_order(self, manifest: Manifest) -> RoundOrder | None:
        """The newest order of this version on disk, if it is believed."""
        payload = self.disk.order()
        try:
            order = believed_order(payload, manifest, 0.0) if payload is not None else None
        except PeerError:
            return None
        return order if order and order.version == manifest.version else None

    def recover(self, resend_at: float | None) -> None:
        """Set the session to what is on disk.

        A version whose files are damaged is not active until they have been fetched again, but its update is still sent. What
        is not believed (another fleet's, another profile's, flipped bits) is cleared away.

        Args:
            resend_at: when to send an update that is found; None waits for the next connection.
        """
        self.session = Session(self.config.id)
        self._signed.clear()
        manifest = self.stored_manifest()
        if manifest is None:
            if self.disk.current() is not None:
                log.warning("%s: what is on disk is not this device's, or damaged; starting afresh", self.name)
                self.disk.forget()
            return
        order = self.stored_order(manifest)
        entry = self.disk.waiting(manifest.version, manifest.variant)
        sending = Work(entry.version, entry.round, Step.SENDING, None, entry.sha256, retry_at=resend_at) if entry else None
        done = (manifest.version, self.disk.settled_round(manifest.version, manifest.variant))
        active = manifest if self._intact(manifest) else None
        adopted = order.weights.sha256 if order and self.blobs.intact(order.weights.sha256) else b""
        last = entry or self.disk.last_settled(manifest.version, manifest.variant)
        loss = last.loss_after if last else 0.0
        self.session = Session(self.config.id, active=active, work=sending, done=done, adopted=adopted, loss=loss)

    def intact(self) -> bool:
        """Whether the files that a training needs are whole; damaged ones are deleted."""
        active, work = self.session.active, self.session.work
        weights = work is None or work.order is None or self.blobs.intact(work.order.weights.sha256)
        return weights and active is not None and self._intact(active)

    def needed(self) -> set[bytes]:
        """SHA-256 of every file that the session refers to, or will when a damaged version is repaired."""
        session = self.session
        manifests = (session.active or self.stored_manifest(), session.installing)
        refs = [ref for manifest in manifests if manifest for ref in manifest.files]
        if session.work and session.work.order:
            refs.append(session.work.order.weights)
            refs += [session.work.difference.file] if session.work.difference else []
        earlier = self._earlier()
        return {ref.sha256 for ref in refs} | {session.adopted} | ({earlier.weights} if earlier else set())

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
        manifest, order = train.manifest, train.order
        if order.task is None:
            raise StoreError("an order without a task cannot be trained")
        return Job(
            device=self.config.id,
            version=manifest.version,
            variant=manifest.variant,
            round=order.round,
            engine=manifest.engine,
            layout=manifest.layout,
            input_shape=manifest.input_shape,
            classes=manifest.classes,
            batch=manifest.batch,
            graphs={ref.role: str(self.blobs.path(ref.sha256)) for ref in manifest.files if ref.role != "weights"},
            weights=str(self.blobs.path(order.weights.sha256)),
            source=self.config.data,
            task=order.task,
            outbox=str(self.disk.outbox),
            settled=str(self.disk.settled),
            recipe=manifest.recipe,
            personal=str(self.disk.personal),
            weights_sha256=order.weights.sha256,
            start=next((self._held(ref.sha256, 0) for ref in manifest.files if ref.role == "weights"), None),
            before=self._before(order),
        )

    def _before(self, order: RoundOrder) -> Held | None:
        """The weights that the settled update was trained from, if they are here and the server has them still."""
        entry = self._earlier()
        if entry is None or not 0 < order.round - entry.round <= HISTORY_REACH or not self.blobs.intact(entry.weights):
            return None
        return self._held(entry.weights, entry.round)

    def _held(self, sha256: bytes, number: int) -> Held:
        return Held(path=str(self.blobs.path(sha256)), sha256=sha256, round=number)

    def _intact(self, manifest: Manifest) -> bool:
        found = [self.blobs.intact(ref.sha256) for ref in manifest.files]  # all of them: each damaged one is deleted
        return all(found)

    def _remember(self, message: Manifest | RoundOrder, signed: bytes) -> None:
        """Keep the signed bytes of a message for as long as the session refers to it, or is about to."""
        session = self.session
        referred = (session.installing, session.heard, session.work.order if session.work else None)
        self._signed = {known: kept for known, kept in self._signed.items() if known in referred}
        self._signed[message] = signed
