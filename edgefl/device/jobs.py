"""The trainer's jobs as a model's state says them: which files, which weights, compared or coded with which others."""

import msgspec

from edgefl.device.config import DeviceConfig
from edgefl.device.events import Train, Try
from edgefl.device.job import Held, Job, Side, TrialJob, graphs_of
from edgefl.errors import StoreError
from edgefl.store.blobs import BlobStore
from edgefl.store.model_state import ModelState
from edgefl.store.outbox import OutboxEntry
from edgefl.wire.releases import Manifest
from edgefl.wire.rounds import HISTORY_REACH, RoundOrder


def training_job(train: Train, earlier: OutboxEntry | None, config: DeviceConfig, disk: ModelState, blobs: BlobStore) -> Job:
    """The job of a round.

    Args:
        train: which version and order.
        earlier: the settled update, if the weights that it was trained from may still lie here.
        config: of the device.
        disk: of the model.
        blobs: files of all models.

    Raises:
        StoreError: the order has no task.
    """
    manifest, order = train.manifest, train.order
    if order.task is None:
        raise StoreError("an order without a task cannot be trained")
    start = next((ref for ref in manifest.files if ref.role == "weights"), None)
    return Job(
        **msgspec.structs.asdict(_side(manifest, order.weights.sha256, blobs)),
        device=config.id,
        variant=manifest.variant,
        round=order.round,
        source=config.data,
        task=order.task,
        outbox=str(disk.outbox),
        settled=str(disk.settled),
        personal=str(disk.personal),
        weights_sha256=order.weights.sha256,
        start=_held(start.sha256, 0, blobs) if start else None,
        before=_before(order, earlier, blobs),
    )


def _before(order: RoundOrder, earlier: OutboxEntry | None, blobs: BlobStore) -> Held | None:
    """The weights that the settled update was trained from, if they are here and the server has them still."""
    if earlier is None or not 0 < order.round - earlier.round <= HISTORY_REACH or not blobs.intact(earlier.weights):
        return None
    return _held(earlier.weights, earlier.round, blobs)


def _held(sha256: bytes, number: int, blobs: BlobStore) -> Held:
    return Held(path=str(blobs.path(sha256)), sha256=sha256, round=number)


def trial_job(order: Try, adopted: bytes, config: DeviceConfig, disk: ModelState, blobs: BlobStore) -> TrialJob:
    """The job.

    Args:
        order: what is to be tried, and against what.
        adopted: SHA-256 of the newest weights of the latter; empty if it has only its own.
        config: of the device.
        disk: of the model.
        blobs: files of all models.

    Raises:
        MessageError: a manifest lists no weights.
    """
    manifest, against = order.manifest, order.against
    golden = next((ref for ref in manifest.files if ref.role == "golden"), None)
    return TrialJob(
        candidate=_side(manifest, manifest.file("weights").sha256, blobs),
        before=_side(against, adopted or against.file("weights").sha256, blobs) if against else None,
        golden=str(blobs.path(golden.sha256)) if golden else "",
        source=config.data,
        health=manifest.health,
        personal=str(disk.personal),
    )


def _side(manifest: Manifest, weights: bytes, blobs: BlobStore) -> Side:
    return Side(
        version=manifest.version,
        engine=manifest.engine,
        layout=manifest.layout,
        input_shape=manifest.input_shape,
        classes=manifest.classes,
        batch=manifest.batch,
        graphs=graphs_of(manifest.files, lambda sha256: str(blobs.path(sha256))),
        weights=str(blobs.path(weights)),
        recipe=manifest.recipe,
    )
