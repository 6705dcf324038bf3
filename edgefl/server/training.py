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
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, replace

from edgefl.aggregate.counting import check_range, weight_of
from edgefl.codec.advance import advance
from edgefl.codec.marks import gone
from edgefl.codec.sparsify import Sparse
from edgefl.compress.magnitude import Moment, share_gone
from edgefl.engine.contract import Evaluation
from edgefl.errors import ModelError, StoreError, UpdateError
from edgefl.jumpstart import is_race
from edgefl.layout import Float32
from edgefl.participation import mean_loss
from edgefl.server.admission import Admission, receipt
from edgefl.server.aggregation import Aggregation, Step
from edgefl.server.downlink import REACH, Offer, offer_weights
from edgefl.server.evaluate import Evaluator
from edgefl.server.history import Histories
from edgefl.server.rounds import Rounds, UpdateKey, aggregated, due, stored
from edgefl.server.variants import largest_weight, load_parent, load_variants, store_parent, variant_of_profile
from edgefl.store.blobs import BlobStore
from edgefl.store.ledger import Outcome, TrainingRecord, close_round, newest_race, newest_round
from edgefl.store.offers import recent_offers
from edgefl.store.updates import UpdateRecord, known_updates, losses, store_update, waiting_losses, waiting_updates
from edgefl.store.versions import get_version
from edgefl.wire.files import FileRef
from edgefl.wire.rounds import Receipt, UpdatePart

log = logging.getLogger("edgefl.server")


@dataclass(frozen=True, slots=True)
class Closed:
    """A round has been aggregated: its number, how many updates counted, and how good the result is if that was measured.

    `pruned` is the part of the prunable weights that is gone from the result.
    """

    round: int
    updates: int
    evaluation: Evaluation | None
    pruned: float = 0.0

    def __str__(self) -> str:
        quality = self.evaluation
        loss = "" if quality is None else f", loss {quality.loss:.4f}"
        accuracy = "" if quality is None or quality.accuracy is None else f", accuracy {quality.accuracy:.4f}"
        pruned = f", pruned {100 * self.pruned:.1f} %" if self.pruned else ""
        return f"round {self.round}: {self.updates} updates{loss}{accuracy}{pruned}"


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
        self._variants = load_variants(database, version, blobs)
        newest = newest_round(database, record.id)
        self.parent = load_parent(blobs, newest.result or newest.weights)
        if len(self.parent) != version.layout.size or not self._variants:
            raise StoreError(f"version {record.model}@{record.version} is damaged", remedy="Restore the fleet, or push again")
        self._sent = {name: variant.sent for name, variant in self._variants.items()}
        sizes = {name: len(sent) for name, sent in self._sent.items()}
        self._admission = Admission(database, variant_of_profile(database, version), sizes)
        self._largest = min(largest_weight(variant.precision) for variant in self._variants.values())
        held = newest.held if newest.result is None else newest.held_after
        self.held = self.parent if held is None else load_parent(blobs, held)
        self.offer = self._write_files(self.held)
        self.earlier: tuple[FileRef, ...] = ()
        self._evaluator = Evaluator(next(iter(self._variants.values())), blobs, record.holdout)
        # A server whose clock was ahead when the round was opened must not wait for that time.
        opened, finished = min(newest.opened, wall()), newest.closed is not None or record.state != "running"
        raced = newest_race(database, record.model, record.version)
        self.state = Rounds(record.plan, newest.round, record.last, opened, finished=finished, raced=raced)
        self._layout = version.layout
        self.histories = Histories(database, blobs, record, self._variants)
        self.histories.pruned = share_gone(self.parent, self._layout) > 0.0
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
        return self._admission.examine(self.state, device, profile, head)

    def receive(self, device: str, head: UpdatePart, data: bytes) -> Receipt | None:
        """Store an update whose head has been examined; None when the training has been stopped meanwhile.

        Raises:
            StoreError: it cannot be stored now; nothing has happened.
        """
        try:
            update = self.histories.decode(data, head.variant, head.round, head.before)
            sent, number = self._sent[head.variant], self.state.of_training
            check_range(self.parent, sent, update, self.record.plan, number, self._largest)
        except UpdateError as error:
            return receipt(head, str(error))
        if not store_update(self._database, self.record.id, device, head, data, self._wall()):
            return None
        self._fold((device, head.round), head, update)
        return receipt(head)

    def _fold(self, key: UpdateKey, head: UpdatePart | UpdateRecord, update: Sparse) -> None:
        """Let a stored update take part in the open round."""
        late, plan = self.state.number - key[1], self.record.plan
        weight = weight_of(plan, self.state.of_training, samples=head.samples, late=late, loss=head.loss_after)
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
        evaluation = self._evaluator.evaluate(held, self.known)
        number, following = self.state.number, aggregated(self.state, now)
        accuracy, loss = (evaluation.accuracy, evaluation.loss) if evaluation else (None, None)
        kept = None if held is parent else store_parent(self._blobs, held)
        result, state = store_parent(self._blobs, parent), self._aggregation.store(step)
        plan = self.record.plan
        pruned = share_gone(parent, self._layout)
        outcome = Outcome(self._buffer, result, accuracy, loss, kept, state, step.scores, plan.exclude, plan.attackers, pruned)
        if not following.finished:
            self.histories.opens(following.number, offer.files)
        if not close_round(self._database, self.record.id, number, outcome, now, last=following.finished):
            self.stop()
            return None
        count, self._buffer = len(self._buffer), []
        self.earlier, self.offer, self.held = tuple(self.offer.all_files()), offer, held
        self.parent, self.state = parent, following
        self.histories.pruned = pruned > 0.0
        self._aggregation.closed(step.state)
        self.loss = self._mean_loss(number)
        return Closed(number, count, evaluation, pruned)

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
