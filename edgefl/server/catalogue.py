"""What the server is to serve, as the fleet's database says: valid devices, announced variants, trainings.

Model: the command line leaves its wishes in the database (a device, a version, a training to start or stop); `refresh` takes up
what has changed since the last time. The newest training of each model is kept in memory, running or not, because the final
weights of one that has ended stay announced.

What each device is to hold (`server.wanted`) is written down with a counter before it is announced, so that a device can tell an
old assignment from the newest.

A training belongs to a version. When a newer version is released, devices leave for it as they fetch it; the training goes on for
the profiles that are still announced its version, and ends as *superseded* when none is. What waits for its aggregation then is
never counted.

Rule: a training that cannot be read now (`broken`) costs that model's rounds and nothing else; it is tried again.
"""

import logging
import sqlite3
from collections.abc import Callable, Sequence

from edgefl.errors import EdgeflError, StoreError
from edgefl.identity.repository import renewed
from edgefl.identity.signing import Signer
from edgefl.server.admission import receipt
from edgefl.server.training import Training
from edgefl.server.wanted import Said
from edgefl.store.blobs import BlobStore
from edgefl.store.database import changes_by_others, transaction
from edgefl.store.documents import documents, put_documents
from edgefl.store.garbage import newest_parents, pushed_blobs, remove_garbage
from edgefl.store.ledger import TrainingRecord, end_training, trainings
from edgefl.store.registry import Device, list_devices
from edgefl.store.releases import assign
from edgefl.store.updates import is_stored
from edgefl.store.versions import VariantRecord, all_variants, variants
from edgefl.wire.files import FileRef
from edgefl.wire.releases import Assigned
from edgefl.wire.rounds import Receipt, UpdatePart

log = logging.getLogger("edgefl.server")


class Catalogue:
    """What is to be served. Owned by the server's one thread.

    Attributes:
        profiles: of each valid device, by its id.
        revoked: ids of the devices that nobody is to hear of or speak to any more.
        announced: the variants that devices may fetch now.
        taken_back: model, profile and version of variants that no device is to fetch any more.
        assigned: counter and models of what each valid device is to hold, by its id.
        documents: the fleet's TUF metadata, by name.
        trainings: the newest training of each model whose version is announced.
        ended: model and variant of round orders that nobody is to follow any more.
        broken: why a training cannot be taken up, by model.
    """

    def __init__(self, database: sqlite3.Connection, blobs: BlobStore, wall: Callable[[], float]) -> None:
        """Empty until the first `refresh`; `wall` gives seconds since 1970."""
        self._database = database
        self._blobs = blobs
        self._wall = wall
        self._seen: int | None = None
        self._pushed: frozenset[bytes] = frozenset()
        self.profiles: dict[str, str] = {}
        self.revoked: list[str] = []
        self.announced: list[VariantRecord] = []
        self.taken_back: list[tuple[str, str, int]] = []
        self.assigned: dict[str, tuple[int, tuple[Assigned, ...]]] = {}
        self.documents: dict[str, bytes] = {}
        self.trainings: dict[str, Training] = {}
        self.ended: list[tuple[str, str]] = []
        self.broken: dict[str, str] = {}

    def changed(self) -> bool:
        """Whether another process has written to the database since the last complete refresh. Raises StoreError."""
        return changes_by_others(self._database) != self._seen

    def refresh(self) -> None:
        """Bring everything up to date.

        Raises:
            StoreError: the database cannot be read or written now.
        """
        seen = changes_by_others(self._database)
        devices = list_devices(self._database)
        self.profiles = {device.id: device.profile for device in devices if device.revoked is None}
        self.revoked = [device.id for device in devices if device.revoked is not None]
        self._assign(devices)
        self._pushed = pushed_blobs(self._database)
        self.ended, self.broken = [], {}
        current = {(one.manifest.model, one.manifest.version) for one in self.announced if one.manifest.trains}
        for record in {record.model: record for record in trainings(self._database)}.values():
            if (record.model, record.version) in current:
                self._follow(record)
            else:
                self._end_superseded(record)
        if not self.broken:
            self._seen = seen

    def renew_documents(self, signer: Signer) -> None:
        """Make snapshot and timestamp anew when their time has come.

        Raises:
            FleetError: the signer does not speak for the fleet any more.
            StoreError: they cannot be written down now.
        """
        changed = renewed(self.documents, signer, self._wall()) if self.documents else {}
        if changed:
            with transaction(self._database):
                known = documents(self._database)  # a push may have come between
                changed = renewed(known, signer, self._wall())
                put_documents(self._database, changed)
            self.documents = {**known, **changed}

    def _assign(self, devices: Sequence[Device]) -> None:
        """Decide what each device is to hold, write it down, and find what is to be announced for it."""
        said = Said(self._database, devices)
        told = said.wanted()
        with transaction(self._database):
            self.assigned = {device: (assign(self._database, device, models), models) for device, models in told.items()}
        self.announced = said.announced(told)
        current = {(one.manifest.model, one.profile, one.manifest.version) for one in self.announced}
        self.taken_back = [one for one in all_variants(self._database) if one not in current]
        self.documents = documents(self._database)

    def examine(self, device: str, head: UpdatePart) -> Receipt | None:
        """The receipt that the head of a valid device's update alone decides; None when its content is wanted.

        Raises:
            StoreError: nothing can be said about it now.
        """
        training = self.trainings.get(head.model)
        if training is not None and training.record.version == head.version:
            return training.examine(device, self.profiles[device], head)
        if head.model in self.broken:
            raise StoreError(f"no word to {device} about its update: the training of {head.model} cannot be taken up")
        stored = is_stored(self._database, device, head)
        return receipt(head, "" if stored else f"{head.model}@{head.version} is not in training")

    def files(self) -> dict[bytes, tuple[str, FileRef]]:
        """The files that devices may ask for now, by SHA-256, with the model that each belongs to."""
        files: dict[bytes, tuple[str, FileRef]] = {}
        for record in self.announced:
            files |= {ref.sha256: (record.manifest.model, ref) for ref in record.manifest.offered}
        for model, training in self.trainings.items():
            files |= {ref.sha256: (model, ref) for ref in (*training.offer.all_files(), *training.earlier)}
        return files

    def remove_garbage(self) -> None:
        """Delete the blobs that nobody needs (`edgefl.store.garbage`). Raises StoreError."""
        if not self.broken:
            remove_garbage(self._blobs, self._needed)

    def _needed(self) -> frozenset[bytes]:
        """The blobs that must stay, those of a push that has come since the last refresh included."""
        if self.changed():
            self._pushed = pushed_blobs(self._database)
        named = {sha256 for training in self.trainings.values() for sha256 in training.histories.files()}
        return self._pushed | newest_parents(self._database) | self.files().keys() | named

    def open_rounds(self) -> dict[str, tuple[int, int]]:
        """Id of the training and number of the open round, by model in training."""
        return {m: (t.record.id, t.state.number) for m, t in self.trainings.items() if not t.state.finished}

    def _follow(self, record: TrainingRecord) -> None:
        """Bring the training in memory to what its record says."""
        name = f"{record.model}@{record.version}"
        training = self.trainings.get(record.model)
        if training is not None and training.record.id == record.id:
            if record.state == "stopped" and not training.state.finished:
                training.stop()
                log.info("%s: the training was stopped in round %d", name, training.state.number)
            return
        self.trainings.pop(record.model, None)
        try:
            training = self.trainings[record.model] = Training(self._database, self._blobs, record, self._wall)
        except EdgeflError as error:
            self.broken[record.model] = str(error)
        else:
            log.info("%s: %s, round %d", name, record.state, training.state.number)

    def _end_superseded(self, record: TrainingRecord) -> None:
        """No device is to have this version any more: its training ends, and its orders are taken back."""
        if record.state == "running":
            end_training(self._database, record.id, "superseded")
            log.info("%s@%d: the training ends, every profile has a newer version", record.model, record.version)
        self.trainings.pop(record.model, None)
        names = {one.manifest.variant for one in variants(self._database, record.model, record.version)}
        self.ended += [(record.model, name) for name in sorted(names)]
