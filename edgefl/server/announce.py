"""What the server tells all devices: the manifest of every variant and the order of every round, signed and retained.

Model: announcing is idempotent and may be repeated at any time; the broker keeps the last announcement of each topic for devices
that come later. Manifests are signed by the release key when they are pushed; round orders are signed here by the online key,
whose public half stands in the manifest.
"""

from collections.abc import Callable

from edgefl.identity.signing import ROUND, Signer
from edgefl.plan import Plan
from edgefl.server.training import Training
from edgefl.server.variants import Variant
from edgefl.store.blobs import BlobStore
from edgefl.store.ledger import VariantRecord
from edgefl.wire import topics
from edgefl.wire.blocks import file_ref
from edgefl.wire.messages import FileRef, RoundOrder, Task, encode

ORDER_SECONDS = 86400 * 7
"""How long a round order is valid: a device that was away for longer waits for the next one."""

Publish = Callable[[str, str, bytes], None]
"""Model, topic, payload: publish retained, and count the bytes for the model."""


def task_of(plan: Plan) -> Task:
    """The part of a plan that devices need."""
    return Task(plan.epochs, plan.learning_rate, plan.sparsity, plan.bits, plan.fraction, plan.seed)


def announce_manifest(publish: Publish, record: VariantRecord) -> None:
    """Announce one variant to the devices of its profile."""
    manifest = record.manifest
    publish(manifest.model, topics.manifest(manifest.model, record.profile), record.signed)


def announce_round(publish: Publish, blobs: BlobStore, signer: Signer, training: Training, now: float) -> list[FileRef]:
    """Announce the open round, or the final weights when the training has ended; returns the weight files to serve."""
    task = None if training.state.finished else task_of(training.record.plan)
    return [_announce_order(publish, blobs, signer, training, variant, task, now) for variant in training.variants.values()]


def _announce_order(
    publish: Publish,
    blobs: BlobStore,
    signer: Signer,
    training: Training,
    variant: Variant,
    task: Task | None,
    now: float,
) -> FileRef:
    weights = variant.weights(training.parent)
    blobs.put(weights)
    ref = file_ref("weights", weights)
    record = training.record
    order = RoundOrder(record.model, record.version, variant.name, training.state.number, ref, task, int(now) + ORDER_SECONDS)
    signed = signer.sign(ROUND, encode(order))
    publish(record.model, topics.round_order(record.model, variant.name), encode(signed))
    return ref
