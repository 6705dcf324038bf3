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
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from edgefl.aggregate.mean import polynomial_staleness
from edgefl.codec.difference import advance
from edgefl.codec.marks import gone
from edgefl.codec.sparsify import Sparse
from edgefl.codec.update import max_length
from edgefl.compress.magnitude import Moment
from edgefl.engine.contract import Evaluation
from edgefl.errors import EdgeflError, ModelError, StoreError, UpdateError
from edgefl.jumpstart import is_race, merit, rate_at
from edgefl.layout import Float32
from edgefl.participation import mean_loss
from edgefl.server.aggregation import Aggregation, Step
from edgefl.server.downlink import REACH, Offer, offer_weights
from edgefl.server.evaluate import Evaluator
from edgefl.server.history import Histories
from edgefl.server.rounds import Accept, Refuse, Rounds, UpdateKey, aggregated, due, judge, stored
from edgefl.server.variants import largest_weight, load_parent, load_variants, store_parent, variant_of_profile
from edgefl.store.blobs import BlobStore
from edgefl.store.ledger import Outcome, TrainingRecord, close_round, newest_race, newest_round
from edgefl.store.offers import recent_offers
from edgefl.store.standings import excluded
from edgefl.store.updates import (
    UpdateRecord,
    is_stored,
    known_updates,
    losses,
    store_update,
    waiting_losses,
    waiting_updates,
)
from edgefl.store.versions import get_version
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
        held: what devices hold of it: the same, or, when the downlink is sparse, what has been sent so far.
        offer: the files of `held` for each variant: what the devices of the open round start from, or the final weights.
        earlier: those of the round before, for devices that have not heard of the new one.
        histories: what updates can be coded with.
        loss: mean training loss that the devices reported of the last closed round; 0 if it is not known.
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
        held = newest.held if newest.result is None else newest.held_after
        self.held = self.parent if held is None else load_parent(blobs, held)
        self.offer = self._write_files(self.held)
        self.earlier: tuple[FileRef, ...] = ()
        self._evaluator = Evaluator(next(iter(self._variants.values())), blobs, record.holdout) if record.holdout else None
        # A server whose clock was ahead when the round was opened must not wait for that time.
        opened, finished = min(newest.opened, wall()), newest.closed is not None or record.state != "running"
        raced = newest_race(database, record.model, record.version)
        self.state = Rounds(record.plan, newest.round, record.last, opened, finished=finished, raced=raced)
        self._layout = version.layout
        self.histories = Histories(database, blobs, record, self._variants)
        self.histories.pruned = bool(gone(self.parent, self._layout).any())
        if not finished:
            self.histories.opens(newest.round, self.offer.files)
        self.loss = self._mean_loss(newest.round - 1)
        race = is_race(record.plan, self.state.of_training)
        self._aggregation = Aggregation(record.plan, version.layout, blobs, newest.optimizer, race=race)
        self._buffer: list[UpdateKey] = []
        self._restore_updates()

    @property
    def known(self) -> dict[str, str | int]:
        """What a log line about it says in fields of their own."""
        return {"model": self.record.model, "version": self.record.version, "round": self.state.number}

    def _restore_updates(self) -> None:
        """Fold again what waits, and recognise again what does not."""
        for update in () if self.state.finished else waiting_updates(self._database, self.record.id):
            try:
                sparse = self.histories.decode(update.data, update.variant, update.round, update.before)
            except UpdateError as error:  # the disk has lost what it was coded with
                about = {**self.known, "device": update.device, "round": update.round}
                log.error("%s: an update of %s is lost: %s", self.record.model, update.device, error, extra=about)
                continue
            self._fold((update.device, update.round), update, sparse)
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
            case Accept() if excluded(self._database, device):
                return receipt(head, "this device is excluded; an operator can reinstate it")
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
            update = self.histories.decode(data, head.variant, head.round, head.before)
            self._check_range(head.variant, update)
        except UpdateError as error:
            return receipt(head, str(error))
        if not store_update(self._database, self.record.id, device, head, data, self._wall()):
            return None
        self._fold((device, head.round), head, update)
        return receipt(head)

    def _check_range(self, variant: str, update: Sparse) -> None:
        """Refuse an update that would by itself make a weight too large to be written.

        A mean of updates that pass is within the range too, because it is a convex combination of what each would come to.
        """
        before = self.parent[self._sent[variant][update.positions]].astype(np.float64)
        rate = rate_at(self.record.plan, self.state.of_training)
        largest = float(np.abs(before + update.values.astype(np.float64) * rate).max())
        if largest > self._largest:
            raise UpdateError("it makes a weight too large: training has diverged", found=f"{largest:g}")

    def _fold(self, key: UpdateKey, head: UpdatePart | UpdateRecord, update: Sparse) -> None:
        """Let a stored update take part in the open round."""
        weight = head.samples * polynomial_staleness(self.state.number - key[1])
        if is_race(self.record.plan, self.state.of_training):
            weight = merit(head.loss_after)
        self._aggregation.add(key[0], head.variant, update, self._sent[head.variant], weight)
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
        step, held, offer = self._step()
        parent = step.parent
        evaluation = self._evaluate(held)
        number, following = self.state.number, aggregated(self.state, now)
        accuracy, loss = (evaluation.accuracy, evaluation.loss) if evaluation else (None, None)
        kept = None if held is parent else store_parent(self._blobs, held)
        result, state = store_parent(self._blobs, parent), self._aggregation.store(step)
        plan = self.record.plan
        outcome = Outcome(self._buffer, result, accuracy, loss, kept, state, step.scores, plan.exclude, plan.attackers)
        if not following.finished:
            self.histories.opens(following.number, offer.files)
        if not close_round(self._database, self.record.id, number, outcome, now, last=following.finished):
            self.stop()
            return None
        count, self._buffer = len(self._buffer), []
        self.earlier, self.offer, self.held = tuple(self.offer.all_files()), offer, held
        self.parent, self.state = parent, following
        self.histories.pruned = bool(gone(parent, self._layout).any())
        self._aggregation.closed(step.state)
        self.loss = self._mean_loss(number)
        return Closed(number, count, evaluation)

    def _mean_loss(self, number: int) -> float:
        """Of the updates that were counted in a round; 0 if that cannot be read now: devices then do without."""
        try:
            return mean_loss(losses(self._database, self.record.model, self.record.version, number))
        except StoreError as error:
            log.warning("%s: the losses of round %d cannot be read: %s", self.record.model, number, error, extra=self.known)
            return 0.0

    def _step(self) -> tuple[Step, Float32, Offer]:
        """The weights after this round, what devices get of them, and its files; the old ones if these cannot be written."""
        plan = self.record.plan
        loss = mean_loss(waiting_losses(self._database, self.record.id)) if plan.pruning else 0.0
        step = self._aggregation.step(self.parent, Moment(self.state.of_training, plan.rounds, loss))
        try:
            held = self._next_held(step.parent)
            return step, held, self._write_files(held)
        except ModelError as error:
            name = f"{self.record.model}@{self.record.version} round {self.state.number}"
            log.error("%s has diverged, its updates are given up: %s", name, error, extra=self.known)
            return Step(self.parent, self._aggregation.state, step.scores), self.held, self.offer

    def _next_held(self, parent: Float32) -> Float32:
        """What devices are to hold of the next weights; after the last round nearly all of it. Raises ModelError."""
        share = self.record.plan.downlink_sparsity
        if share == 1.0:
            return parent
        last = self.state.number >= self.record.last
        return advance(self.held, parent, share, gone(parent, self._layout), last=last)

    def _write_files(self, held: Float32) -> Offer:
        bases = recent_offers(self._database, self.record.model, self.record.version, REACH + 1)
        return offer_weights(self._blobs, self._variants, held, bases)

    def _evaluate(self, parent: Float32) -> Evaluation | None:
        """None without a hold-out set, or when it cannot be used: then the log says why, and the training goes on."""
        if self._evaluator is None:
            return None
        began = time.monotonic()
        try:
            return self._evaluator.evaluate(parent)
        except EdgeflError as error:
            log.error("%s cannot be evaluated: %s", self.record.model, error, extra=self.known)
            return None
        finally:
            if (took := time.monotonic() - began) > LONG_EVALUATION:
                log.warning("%s: evaluating took %.0f s; use fewer hold-out examples", self.record.model, took)


def receipt(head: UpdatePart, reason: str = "") -> Receipt:
    """The receipt for an update: stored, or refused for a reason."""
    return Receipt(head.model, head.version, head.round, head.sha256, stored=not reason, reason=reason[:500])
