"""One model on the device: its session in memory, its folder on disk, and the signed words that its session was told."""

from dataclasses import dataclass, field
from pathlib import Path

from edgefl.device.config import DeviceConfig
from edgefl.device.events import Train
from edgefl.device.job import Job
from edgefl.device.session import Session, Step, Work
from edgefl.errors import StoreError
from edgefl.store.blobs import BlobStore
from edgefl.store.model_state import ModelState
from edgefl.wire.messages import Manifest, RoundOrder


@dataclass(slots=True)
class HeldModel:
    """A model that the device knows. Owned by the agent.

    Attributes:
        name: of the model.
        disk: what survives.
        session: what the machine says.
        manifest_heard, order_heard: payloads of the newest announcements, to be looked at again when the state has changed.
        manifests, orders: signed bytes by version and by weights, until they are written to disk.
        retry_at: when to look at the announcements again after the disk has failed.
    """

    name: str
    disk: ModelState
    session: Session
    manifest_heard: bytes = b""
    order_heard: bytes = b""
    manifests: dict[int, bytes] = field(default_factory=dict)
    orders: dict[bytes, bytes] = field(default_factory=dict)
    retry_at: float | None = None

    def recover(self, blobs: BlobStore) -> None:
        """Set the session to what is on disk; a version whose files are damaged counts as not there, and is fetched again."""
        self.session = recovered_session(self.session.device, self.disk, blobs)

    def remember(self, manifest: Manifest, signed: bytes) -> None:
        """Keep a believed manifest's signed bytes until its activation; only the newest one can still be activated."""
        if manifest.version >= max(self.manifests, default=0):
            self.manifests = {manifest.version: signed}

    def remember_order(self, order: RoundOrder, signed: bytes) -> None:
        """Keep a believed order's signed bytes until its adoption."""
        work = self.session.work
        current = work.order.weights.sha256 if work and work.order else b""
        self.orders = {sha256: kept for sha256, kept in self.orders.items() if sha256 == current}
        self.orders[order.weights.sha256] = signed

    def job(self, config: DeviceConfig, train: Train, blobs: BlobStore) -> Job:
        """The trainer's job for an order."""
        manifest, order = train.manifest, train.order
        if order.task is None:
            raise StoreError("an order without a task cannot be trained")
        return Job(
            device=config.id,
            version=manifest.version,
            variant=manifest.variant,
            round=order.round,
            engine=manifest.engine,
            layout=manifest.layout,
            input_shape=manifest.input_shape,
            classes=manifest.classes,
            batch=manifest.batch,
            graphs={ref.role: str(blobs.path(ref.sha256)) for ref in manifest.files if ref.role != "weights"},
            weights=str(blobs.path(order.weights.sha256)),
            source=config.data,
            task=order.task,
            outbox=str(self.disk.outbox),
            settled=str(self.disk.settled),
        )


def recovered_session(device: str, disk: ModelState, blobs: BlobStore) -> Session:
    """The session that the files on disk stand for."""
    active = disk.manifest()
    if active is None or not _intact(active, blobs):
        return Session(device)
    order, waiting = disk.order(), disk.waiting()
    adopted = order.weights.sha256 if order and order.version == active.version else b""
    work = Work(waiting.version, waiting.round, Step.SENDING, None, sha256=waiting.sha256) if waiting else None
    return Session(device, active=active, work=work, done=disk.settled_round(), adopted=adopted)


def held_model(device: str, name: str, root: Path, blobs: BlobStore) -> HeldModel:
    """A model as it stands on disk; a folder is made for one that is new."""
    disk = ModelState(root / name)
    return HeldModel(name, disk, recovered_session(device, disk, blobs))


def _intact(manifest: Manifest, blobs: BlobStore) -> bool:
    """Whether all files of a version are there and hash to what the manifest says; a damaged one is removed."""
    for ref in manifest.files:
        try:
            blobs.get(ref.sha256)
        except StoreError:
            blobs.path(ref.sha256).unlink(missing_ok=True)
            return False
    return True
