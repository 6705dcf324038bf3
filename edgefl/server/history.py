"""What the server remembers of the weights that devices trained from, so that it can read what was coded with them.

Model: an update that needs a history names two rounds: the one it was trained for and an earlier one (`before`; 0 stands for the
version's own weights). The devices of a round decoded a weights file; the same file, by its hash, is decoded here.

Rules:

* What a round offers is written down before it is announced, and kept as long as an update in time can name it: for the
  plan's staleness, or `LONGEST_CONTEXT` rounds, which is the most, and `HISTORY_REACH` rounds beyond. Garbage collection keeps
  the files.
* An update whose history is gone is refused: it could only be read wrongly. That a device gets there takes a damaged disk or a
  backup; its next update then names the version's own weights, because the refused one leaves it nothing else.
* An update of a round from which weights are gone is about the others alone, so that it is read with that round's file.
* A few histories and vectors are kept in memory: all devices of a round and a variant name nearly the same ones.
"""

import hashlib
import sqlite3
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from edgefl.codec.history import History
from edgefl.codec.marks import alive
from edgefl.codec.sparsify import Sparse
from edgefl.codec.update import decode, needs_history
from edgefl.codec.weights import PRECISIONS, decode_weights, weights_length
from edgefl.errors import UpdateError
from edgefl.layout import Float32, Index
from edgefl.server.variants import Variant
from edgefl.store.blobs import BlobStore
from edgefl.store.ledger import TrainingRecord
from edgefl.store.offers import offered, offered_blobs, record_offers
from edgefl.wire.files import FileRef
from edgefl.wire.rounds import HISTORY_REACH
from edgefl.wire.tasks import LONGEST_CONTEXT, keeps_history

IN_MEMORY = 4
"""Histories; their vectors are shared, and as many more of these are kept."""


class Histories:
    """The weights of a training's recent rounds. Owned by the training.

    Args:
        database, blobs: the fleet's.
        record: of the training.
        variants: of its version, by name.

    Attributes:
        pruned: whether weights may be gone from any round's files (`edgefl.codec.marks`). If not, an update without a history is
            read without any file.
    """

    def __init__(
        self, database: sqlite3.Connection, blobs: BlobStore, record: TrainingRecord, variants: Mapping[str, Variant]
    ) -> None:
        self._database = database
        self._blobs = blobs
        self._record = record
        self._variants = variants
        self._histories: OrderedDict[tuple[str, int, int], History] = OrderedDict()
        self._weights: OrderedDict[bytes, _Weights] = OrderedDict()
        self.pruned = False

    def opens(self, number: int, files: Mapping[str, FileRef]) -> None:
        """Write down what a round will offer, before it is announced, and while the one before it may still be open.

        Args:
            number: of the round.
            files: the weights file of each variant.

        Raises:
            StoreError: it cannot be written now; nothing has changed.
        """
        record, plan = self._record, self._record.plan
        # In its first round a training may have updates that wait since an earlier one, whose plan may have been another.
        named = keeps_history(plan) or plan.pruning is not None or self.pruned or number - 1 <= record.first
        late = min(plan.staleness, LONGEST_CONTEXT) if named else 0
        since = number - 1 - late - HISTORY_REACH  # differences start from them
        weights = {variant: ref.sha256 for variant, ref in files.items()}
        record_offers(self._database, record.model, record.version, number, weights, since=since)

    def files(self) -> frozenset[bytes]:
        """SHA-256 of every weights file that an update in time may name. Raises StoreError."""
        return offered_blobs(self._database, self._record.model, self._record.version)

    def decode(self, data: bytes, variant: str, number: int, before: int) -> Sparse:
        """Read an update.

        Args:
            data: as it came.
            variant: of the device, one of this version's.
            number: of the round it was trained for.
            before: the earlier round that it names.

        Raises:
            UpdateError: it is damaged, or its history is gone.
            StoreError: the history cannot be read now.
        """
        size, left = len(self._variants[variant].sent), self._weights_of(variant, number).alive if self.pruned else None
        history = self._history(variant, number, before) if needs_history(data) else None
        return decode(data, size, history) if left is None else decode(data, len(left), history).within(left, size)

    def _history(self, variant: str, number: int, before: int) -> History:
        key = (variant, number, before)
        if key not in self._histories:
            self._histories[key] = self._made(variant, number, before)
        return _used(self._histories, key)

    def _made(self, variant: str, number: int, before: int) -> History:
        if before and not number - HISTORY_REACH <= before < number:
            expected = f"one of the {HISTORY_REACH} rounds before {number}, or 0"
            raise UpdateError("an update is coded with the weights of an impossible round", expected=expected, found=str(before))
        shapes = tuple(tensor.shape for tensor in self._variants[variant].layout.tensors if tensor.shared)
        start, earlier, now = (self._weights_of(variant, one) for one in (0, before, number))
        return History(start.vector, earlier.vector, now.vector, shapes).only(now.alive)

    def _weights_of(self, variant: str, number: int) -> "_Weights":
        """The weights of a round, as devices have them."""
        view, record = self._variants[variant], self._record
        sha256: bytes | None = view.manifest.file("weights").sha256
        if number:
            sha256 = offered(self._database, record.model, record.version, number, variant)
        if sha256 is None:
            raise _gone(number)
        if sha256 not in self._weights:
            self._weights[sha256] = self._read(view, sha256, number)
        return _used(self._weights, sha256)

    def _read(self, view: Variant, sha256: bytes, number: int) -> "_Weights":
        if not self._blobs.has(sha256):
            raise _gone(number)
        longest = max(weights_length(view.layout, precision) for precision in PRECISIONS)  # the push may be coarser than rounds
        data = self._blobs.read_range(sha256, 0, longest)
        if hashlib.sha256(data).digest() != sha256:
            raise _gone(number)
        vector, shared = decode_weights(data, view.layout), view.layout.shared()
        return _Weights(vector if shared is None else vector[shared], alive(vector, view.layout))


@dataclass(frozen=True, slots=True)
class _Weights:
    """Weights that devices had: in the coordinates of updates, and which of these an update carries (None: all)."""

    vector: Float32
    alive: Index | None


K = TypeVar("K")
V = TypeVar("V")


def _used(kept: OrderedDict[K, V], key: K) -> V:
    """A value that is there; the ones that have not been used for longest make room."""
    kept.move_to_end(key)
    while len(kept) > IN_MEMORY:
        kept.popitem(last=False)
    return kept[key]


def _gone(number: int) -> UpdateError:
    return UpdateError(f"the weights of round {number}, which the update is coded with, are gone")
