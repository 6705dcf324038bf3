"""From what a device has learnt to what waits in its outbox: the update, coded with what both ends know, and the codec's memory.

Model: the codec (`edgefl.codec.compress`) is a function of the delta, of the memory of the last settled update, and of the
history of the weights. These come from files here, and the outcome goes into one file. The history is the version's weights, the
weights that the settled update was trained from if they are still here and not too old, else the version's own again, and the
round's. Which ones were used is said with the update (`before`, 0 for the version's own), and the server looks up the same.

Weights that are gone from what was received (`edgefl.codec.marks`) are in no update; what the memory had of them is dropped.

Rules: earlier weights count only if their bytes are the ones that the server knows by this hash. A memory that belongs to another
version, variant or layout counts as none. Nothing is in the outbox before all of it is.
"""

import hashlib
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np

from edgefl.codec.compress import Memory, compress
from edgefl.codec.history import History
from edgefl.codec.marks import alive
from edgefl.codec.update import needs_history
from edgefl.codec.weights import decode_weights
from edgefl.device.job import Held, Job
from edgefl.engine.contract import Trained
from edgefl.errors import MessageError
from edgefl.layout import Float32, Layout
from edgefl.store.outbox import OutboxEntry, read_entry, read_memory, write_outbox
from edgefl.wire.tasks import scheme_of


@dataclass(frozen=True, slots=True)
class Learnt:
    """What came of a training.

    Attributes:
        delta: of the coordinates that an update carries, float32, finite.
        received: the round's weights as they came, in the layout's order.
        samples: examples it was trained on.
        trained: its losses.
    """

    delta: Float32
    received: Float32
    samples: int
    trained: Trained


def carried(layout: Layout, vector: Float32) -> Float32:
    """The coordinates of a vector that an update carries."""
    shared = layout.shared()
    return vector if shared is None else vector[shared]


def shapes_of(layout: Layout) -> tuple[tuple[int, ...], ...]:
    """The shapes of the tensors that an update is made of."""
    return tuple(tensor.shape for tensor in layout.tensors if tensor.shared)


def last_loss(job: Job) -> float:
    """The loss of the training whose update was settled last; 0 if there was none of this version and variant."""
    entry = read_entry(Path(job.settled))
    return entry.loss_after if entry and (entry.version, entry.variant) == (job.version, job.variant) else 0.0


def write_update(job: Job, learnt: Learnt, rng: np.random.Generator) -> bytes:
    """Compress what was learnt and write the outbox; the SHA-256 of the update.

    Args:
        job: which round, and how to code.
        learnt: what to send.
        rng: of stochastic rounding.

    Raises:
        UpdateError: the task wants the impossible, or the vector to send is not finite.
        StoreError: the outbox cannot be written.
    """
    history, before = _history(job, learnt.received) if job.task.context else (None, 0)
    memory, scheme = _memory(job, len(learnt.delta)), scheme_of(job.task)
    left = alive(learnt.received, job.layout)
    history = history.only(left) if history else None
    done = compress(learnt.delta, memory, scheme, parts=_parts(job.layout), history=history, alive=left, rng=rng)
    residual = _bytes(done.memory.residual)
    velocity = memoryview(b"") if done.memory.velocity is None else _bytes(done.memory.velocity)
    entry = OutboxEntry(
        job.version,
        job.variant,
        job.round,
        job.layout.digest(),
        learnt.samples,
        learnt.trained.loss_before,
        learnt.trained.loss_after,
        hashlib.sha256(done.data).digest(),
        len(done.data),
        len(residual),
        len(velocity),
        job.weights_sha256,
        before if needs_history(done.data) else 0,
    )
    write_outbox(Path(job.outbox), entry, done.data, residual, velocity)
    return entry.sha256


def _memory(job: Job, size: int) -> Memory:
    """What the settled update has left behind."""
    kept = read_memory(Path(job.settled))
    wanted = (job.version, job.variant, job.layout.digest(), 4 * size)
    if kept is None or (kept[0].version, kept[0].variant, kept[0].layout, len(kept[1])) != wanted:
        return Memory.empty(size, scheme_of(job.task))
    velocity = _floats(kept[2])
    return Memory(_floats(kept[1]), velocity if len(velocity) == size else None)


def _history(job: Job, received: Float32) -> tuple[History | None, int]:
    """What both ends know, and the round of its `before`; None if the version's own weights are not here."""
    start, before = _weights(job, job.start), _weights(job, job.before)
    if start is None:
        return None, 0
    now, shapes = carried(job.layout, received), shapes_of(job.layout)
    if before is None or job.before is None:
        return History(start, start, now, shapes), 0
    return History(start, before, now, shapes), job.before.round


def _weights(job: Job, held: Held | None) -> Float32 | None:
    """What a weights file says of the coordinates that updates carry; None unless its bytes are the ones that both ends know."""
    if held is None:
        return None
    try:
        data = Path(held.path).read_bytes()
        known = hashlib.sha256(data).digest() == held.sha256
        return carried(job.layout, decode_weights(data, job.layout)) if known else None
    except (OSError, MessageError):
        return None


def _parts(layout: Layout) -> list[slice]:
    """The places of the tensors in an update."""
    ends = accumulate((tensor.size for tensor in layout.tensors if tensor.shared), initial=0)
    return [slice(start, stop) for start, stop in pairwise(ends)]


def _floats(data: bytes) -> Float32:
    return np.frombuffer(data, dtype="<f4").astype(np.float32)


def _bytes(vector: Float32) -> memoryview:
    """A view where the machine is little-endian."""
    return vector.astype("<f4", copy=False).data.cast("B")
