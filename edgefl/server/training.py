"""One training as the server runs it: the shell around the round machine (`server.rounds`).

Model: an update is examined by its head, put together, decoded, stored for good, folded into a running sum, and only then
acknowledged. When the machine says that the round is due, the sum becomes new weights, their files are written, the ledger
closes the round in one transaction, and the next round's orders can be announced. The running sum is a cache of the ledger:
after a restart it is folded again from the stored updates, in the same order, and comes out the same to the last bit.

Rules: a receipt is sent after the commit, never before. What does not decode is refused and never stored. Weights that cannot be
written (training has diverged) are given up: the round closes with the weights that it began with. A training that a command has
stopped meanwhile stores and closes nothing more.
"""

import logging
import math
import sqlite3
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from edgefl.aggregate.mean import PartialSum, polynomial_staleness
from edgefl.codec.sparsify import Sparse
from edgefl.codec.update import decode, max_length
from edgefl.engine.contract import Evaluation
from edgefl.errors import EdgeflError, ModelError, StoreError, UpdateError
from edgefl.layout import Float32
from edgefl.server.evaluate import Evaluator
from edgefl.server.rounds import Accept, Refuse, Rounds, UpdateKey, aggregated, due, judge, stored
from edgefl.server.variants import largest_weight, load_parent, load_variants, store_parent, variant_of_profile
from edgefl.store.blobs import BlobStore
from edgefl.store.ledger import Outcome, TrainingRecord, close_round, newest_round
from edgefl.store.updates import is_stored, known_updates, store_update, waiting_updates
from edgefl.store.versions import get_version
from edgefl.wire.blocks import file_ref
from edgefl.wire.messages import PART_SIZE, FileRef, Receipt, UpdatePart

LONG_EVALUATION = 5.0
"""Seconds; nothing else is served meanwhile."""

log = logging.getLogger("edgefl.server")


@dataclass(frozen=True, slots=True)
class Closed:
    """A round has been aggregated: its number, how many updates counted, and how good the result is if that was measured."""

    round: int
    updates: int
    evaluation: Evaluation | None

    def __str__(self) -> str:
        quality = self.evaluation
        loss = "" if quality is None else f", loss {quality.loss:.4f}"
        accuracy = "" if quality is None or quality.accuracy is None else f", accuracy {quality.accuracy:.4f}"
        return f"round {self.round}: {self.updates} updates{loss}{accuracy}"


class Training:
    """A training of one version. Owned by the server's one thread.

    Attributes:
        record: which one.
        state: of the round machine.
        parent: the newest weights, float32, in the coordinates of the full model.
        files: the weight file of each variant by its name: what the devices of the open round start from, or the final weights.
        earlier: those of the round before, for devices that have not heard of the new one.
    """

    def __init__(self, database: sqlite3.Connection, blobs: BlobStore, record: TrainingRecord, wall: Callable[[], float]) -> None:
        """Take up a training where the ledger says it stands.

        Raises:
            StoreError: a blob or the database cannot be read or written.
            ModelError: its weights cannot be written for a variant.
        """
        self.record = record
        self._database = database
        self._blobs = blobs
        self._wall = wall
        version = get_version(database, record.model, record.version)
        self._variants = load_variants(database, version)
        self._of_profile = variant_of_profile(database, version)
        newest = newest_round(database, record.id)
        self.parent = load_parent(blobs, newest.result or newest.weights)
        if len(self.parent) != version.layout.size or not self._variants:
            raise StoreError(f"version {record.model}@{record.version} is damaged", remedy="Restore the fleet, or push again")
        self._sent = {name: variant.sent for name, variant in self._variants.items()}
        self._largest = min(largest_weight(variant.precision) for variant in self._variants.values())
        self.files = self._write_files(self.parent)
        self.earlier: tuple[FileRef, ...] = ()
        self._evaluator = Evaluator(next(iter(self._variants.values())), blobs, record.holdout) if record.holdout else None
        # A server whose clock was ahead when the round was opened must not wait for that time.
        opened, finished = min(newest.opened, wall()), newest.closed is not None or record.state != "running"
        self.state = Rounds(record.plan, newest.round, record.last, opened, finished=finished)
        self._sum = PartialSum(len(self.parent))
        self._buffer: list[UpdateKey] = []
        self._restore_updates()

    def _restore_updates(self) -> None:
        """Fold again what waits, and recognise again what does not."""
        for update in () if self.state.finished else waiting_updates(self._database, self.record.id):
            sparse = decode(update.data, len(self._sent[update.variant]))
            self._fold((update.device, update.round), update.variant, update.samples, sparse)
        since = self.state.number - self.record.plan.staleness
        known = known_updates(self._database, self.record.model, self.record.version, since)
        self.state = replace(self.state, counted=frozenset(known - self.state.buffer))

    def examine(self, device: str, profile: str, head: UpdatePart) -> Receipt | None:
        """What the head of an update of this version alone decides; None when its content is wanted.

        Args:
            device: the sender.
            profile: the sender's.
            head: any part of the update.

        Raises:
            StoreError: the database cannot be read.
        """
        match judge(self.state, (device, head.round)):
            case Accept():
                reason = self._unfit(profile, head)
                return receipt(head, reason) if reason else None
            case verdict:
                if is_stored(self._database, device, head):
                    return receipt(head)
                other = f"another update of this device for round {head.round} is stored already"
                return receipt(head, verdict.reason if isinstance(verdict, Refuse) else other)

    def _unfit(self, profile: str, head: UpdatePart) -> str:
        """Why an update cannot be used, as far as its head tells; empty if it can."""
        expected = self._of_profile.get(profile)
        if head.variant != expected:
            return f"variant {head.variant!r} is not the one of profile {profile}, which is {expected or 'none'}"
        if not (math.isfinite(head.loss_before) and math.isfinite(head.loss_after)):
            return "the loss is not finite: training has diverged"
        most = -(-max_length(len(self._sent[expected])) // PART_SIZE)
        return f"{head.parts} parts; the largest update has {most}" if head.parts > most else ""

    def receive(self, device: str, head: UpdatePart, data: bytes) -> Receipt | None:
        """Store an update whose head has been examined; None when the training has been stopped meanwhile.

        Raises:
            StoreError: it cannot be stored now; nothing has happened.
        """
        try:
            update = decode(data, len(self._sent[head.variant]))
            self._check_range(head.variant, update)
        except UpdateError as error:
            return receipt(head, str(error))
        if not store_update(self._database, self.record.id, device, head, data, self._wall()):
            return None
        self._fold((device, head.round), head.variant, head.samples, update)
        return receipt(head)

    def _check_range(self, variant: str, update: Sparse) -> None:
        """Refuse an update that would by itself make a weight too large to be written.

        A mean of updates that pass is within the range too, because it is a convex combination of what each would come to.
        """
        before = self.parent[self._sent[variant][update.positions]].astype(np.float64)
        largest = float(np.abs(before + update.values.astype(np.float64) * self.record.plan.server_rate).max())
        if largest > self._largest:
            raise UpdateError("it makes a weight too large: training has diverged", found=f"{largest:g}")

    def _fold(self, key: UpdateKey, variant: str, samples: int, update: Sparse) -> None:
        """Let a stored update take part in the open round."""
        weight = samples * polynomial_staleness(self.state.number - key[1])
        self._sum.add(update, self._sent[variant], weight, key=variant)
        self._buffer.append(key)
        self.state = stored(self.state, key)

    def stop(self) -> None:
        """No further rounds: the operator has stopped the training."""
        self.state = replace(self.state, finished=True)

    def is_due(self) -> bool:
        """Whether `advance` would close the round."""
        return due(self.state, self._wall())

    def advance(self) -> Closed | None:
        """Aggregate if the round is due; the new weights are evaluated before the round is closed.

        Raises:
            StoreError: the files cannot be written or the round cannot be closed now; nothing has happened.
        """
        now = self._wall()
        if not due(self.state, now):
            return None
        parent, files = self._step()
        evaluation = self._evaluate(parent)
        number, following = self.state.number, aggregated(self.state, now)
        quality = (evaluation.accuracy, evaluation.loss) if evaluation else (None, None)
        outcome = Outcome(self._buffer, store_parent(self._blobs, parent), *quality)
        if not close_round(self._database, self.record.id, number, outcome, now, last=following.finished):
            self.stop()
            return None
        count, self._buffer = len(self._buffer), []
        self.earlier, self.files = tuple(self.files.values()), files
        self.parent, self.state, self._sum = parent, following, PartialSum(len(parent))
        return Closed(number, count, evaluation)

    def _step(self) -> tuple[Float32, Mapping[str, FileRef]]:
        """The weights after this round, and their files; the old ones if the new ones cannot be written."""
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite cannot be written
            parent = self.parent + self._sum.result() * np.float32(self.record.plan.server_rate)
        try:
            return parent, self._write_files(parent)
        except ModelError as error:
            name = f"{self.record.model}@{self.record.version} round {self.state.number}"
            log.error("%s has diverged, its updates are given up: %s", name, error)
            return self.parent, self.files

    def _write_files(self, parent: Float32) -> Mapping[str, FileRef]:
        contents = {name: variant.weights(parent) for name, variant in self._variants.items()}
        for data in contents.values():
            self._blobs.put(data)
        return {name: file_ref("weights", data) for name, data in contents.items()}

    def _evaluate(self, parent: Float32) -> Evaluation | None:
        """None without a hold-out set, or when it cannot be used: then the log says why, and the training goes on."""
        if self._evaluator is None:
            return None
        began = time.monotonic()
        try:
            return self._evaluator.evaluate(parent)
        except EdgeflError as error:
            log.error("%s cannot be evaluated: %s", self.record.model, error)
            return None
        finally:
            if (took := time.monotonic() - began) > LONG_EVALUATION:
                log.warning("%s: evaluating took %.0f s; use fewer hold-out examples", self.record.model, took)


def receipt(head: UpdatePart, reason: str = "") -> Receipt:
    """The receipt for an update: stored, or refused for a reason."""
    return Receipt(head.model, head.version, head.round, head.sha256, stored=not reason, reason=reason[:500])
