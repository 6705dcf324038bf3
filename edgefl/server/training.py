"""One training as the server runs it: the shell around the round machine (`server.rounds`).

Model: an update is judged, decoded, stored for good, folded into a running sum, and only then acknowledged. When the machine
says that the round is due, the sum becomes new weights, the ledger closes the round in one transaction, and the next round's
orders are announced. The running sum is a cache of the ledger: after a restart it is folded again from the stored updates.

Rules: a receipt is sent after the commit, never before. What does not decode is refused and never stored.
"""

import logging
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from edgefl.aggregate.mean import PartialSum, polynomial_staleness
from edgefl.codec.update import decode
from edgefl.engine.contract import Evaluation
from edgefl.errors import EdgeflError, UpdateError
from edgefl.layout import Float32
from edgefl.server.evaluate import Evaluator
from edgefl.server.rounds import Accept, Refuse, Repeat, Rounds, UpdateKey, aggregated, due, judge, stored
from edgefl.server.variants import Variant, load_parent, load_variants, store_parent
from edgefl.store.blobs import BlobStore
from edgefl.store.ledger import (
    TrainingRecord,
    close_round,
    counted_updates,
    get_version,
    rounds,
    store_update,
    waiting_updates,
)
from edgefl.wire.messages import Receipt, UpdatePart

log = logging.getLogger("edgefl.server")


@dataclass(frozen=True, slots=True)
class Closed:
    """A round has been aggregated: its number, how many updates counted, and how good the result is if that was measured."""

    round: int
    updates: int
    evaluation: Evaluation | None


class Training:
    """A running training. Owned by the server's one thread.

    Args:
        database: the fleet's.
        blobs: the fleet's.
        record: which training.
        wall: seconds since 1970.
    """

    def __init__(self, database: sqlite3.Connection, blobs: BlobStore, record: TrainingRecord, wall: Callable[[], float]) -> None:
        self.record = record
        self._database = database
        self._blobs = blobs
        self._wall = wall
        version = get_version(database, record.model, record.version)
        self.variants = load_variants(database, version)
        self.state, weights = self._restore()
        self.parent = load_parent(blobs, weights)
        widest = next(iter(self.variants.values()))
        self._evaluator = Evaluator(widest, blobs, record.holdout) if record.holdout else None
        self._sum = PartialSum(version.layout.size)
        self._buffer: list[UpdateKey] = []
        for update in waiting_updates(database, record.id):
            self._fold((update.device, update.round), update.variant, update.samples, update.data)
            self.state = stored(self.state, (update.device, update.round))

    def _restore(self) -> tuple[Rounds, bytes]:
        newest = rounds(self._database, self.record.id)[-1]
        plan = self.record.plan
        counted = frozenset(counted_updates(self._database, self.record.id, newest.round - plan.staleness))
        finished = newest.closed is not None
        state = Rounds(plan, newest.round, self.record.last, newest.opened, counted=counted, finished=finished)
        return state, newest.result or newest.weights

    def receive(self, device: str, head: UpdatePart, data: bytes) -> Receipt:
        """Judge an update, store it if it counts, and return the receipt to send."""
        try:
            reason = self._accept(device, head, data)
        except UpdateError as error:
            reason = str(error)
        return Receipt(head.model, head.version, head.round, head.sha256, stored=not reason, reason=reason)

    def _accept(self, device: str, head: UpdatePart, data: bytes) -> str:
        """Empty when the update is stored, otherwise why it is refused."""
        if head.version != self.record.version:
            return f"version {head.version} is not in training; version {self.record.version} is"
        if head.variant not in self.variants:
            return f"version {head.version} has no variant {head.variant!r}"
        key = (device, head.round)
        match judge(self.state, key):
            case Refuse(reason):
                return reason
            case Repeat():
                return ""
            case Accept():
                decode(data, self.variants[head.variant].layout.size)
                store_update(self._database, self.record.id, device, head, data, self._wall())
                self.state = stored(self.state, key)
                self._fold(key, head.variant, head.samples, data)
        return ""

    def _fold(self, key: UpdateKey, variant: str, samples: int, data: bytes) -> None:
        view: Variant = self.variants[variant]
        late = self.state.number - key[1]
        self._sum.add(decode(data, view.layout.size), view.index, samples * polynomial_staleness(late), key=variant)
        self._buffer.append(key)

    def stop(self) -> None:
        """No further rounds: the operator has stopped the training, or it is finished."""
        self.state = replace(self.state, finished=True)

    def advance(self) -> Closed | None:
        """Aggregate if the round is due; the new weights are evaluated before the round is closed."""
        now = self._wall()
        if not due(self.state, now):
            return None
        parent = self.parent + self._sum.result() * np.float32(self.record.plan.server_rate)
        evaluation = self._evaluate(parent)
        number, counted = self.state.number, tuple(self._buffer)
        following = aggregated(self.state, now)
        close_round(
            self._database,
            self.record.id,
            number,
            counted=counted,
            result=store_parent(self._blobs, parent),
            accuracy=evaluation.accuracy if evaluation else None,
            loss=evaluation.loss if evaluation else None,
            now=now,
            last=following.finished,
        )
        self.parent, self.state = parent, following
        self._sum = PartialSum(len(parent))
        self._buffer = []
        return Closed(number, len(counted), evaluation)

    def _evaluate(self, parent: Float32) -> Evaluation | None:
        """None without a hold-out set, or when it cannot be used: then the log says why, and the training goes on."""
        if self._evaluator is None:
            return None
        try:
            return self._evaluator.evaluate(parent)
        except EdgeflError as error:
            log.error("%s cannot be evaluated: %s", self.record.model, error)
            return None
