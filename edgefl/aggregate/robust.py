"""Aggregation that stands hostile devices, and `make`, which gives a plan's aggregator.

Model, for a round's updates:

1. *bound*: an update longer than `clip` times the median length is shortened to that (norm bounding: Sun et al. 2019,
   https://arxiv.org/abs/1911.07963); lengths are per root of the coordinates that a variant has, so that narrow ones do not make
   wide ones look long. A ternary update cannot be long in one coordinate, so this bounds everything it can do. No update weighs
   more than the median one either: how many examples a device has is its own word.
2. *judge*: who is believed, and how much (`edgefl.aggregate.judging`).
3. *combine*: the weighted mean with coverage (`edgefl.aggregate.mean`), or the trimmed mean of every coordinate's senders.

Memory: the mean alone streams and holds one vector. All others hold the round's sparse updates, 12 bytes for every sent
coordinate: no more than three dense vectors while updates times sparsity is at most 1.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter

import numpy as np
import numpy.typing as npt

from edgefl.aggregate.contract import Aggregator, Held, in_parent
from edgefl.aggregate.geometry import Vector, lengths
from edgefl.aggregate.judging import Judge, believe_all, multi_krum, root_set
from edgefl.aggregate.mean import PartialSum
from edgefl.aggregate.trimmed import trimmed_sum
from edgefl.codec.sparsify import Sparse
from edgefl.errors import UpdateError
from edgefl.layout import Float32, Index
from edgefl.plan import Plan


@dataclass(slots=True)
class Streaming:
    """The weighted mean, update by update; it looks at nobody."""

    size: int
    total: PartialSum = field(init=False)

    def __post_init__(self) -> None:
        self.total = PartialSum(self.size)

    @property
    def updates(self) -> int:
        """How many were added."""
        return self.total.updates

    def add(self, update: Sparse, index: Index | None, weight: float, *, key: str, device: str) -> None:
        """See `Aggregator.add`."""
        del device
        self.total.add(update, index, weight, key=key)

    def result(self, root: Float32 | None = None) -> Float32:
        """See `Aggregator.result`."""
        del root
        return self.total.result()

    def covered(self) -> npt.NDArray[np.bool_]:
        """See `Aggregator.covered`."""
        return self.total.coverage() > 0.0

    def scores(self) -> Mapping[str, float]:
        """None are made."""
        return {}


@dataclass(slots=True)
class Robust:
    """Bound, judge, combine.

    Attributes:
        size: coordinates of the parent.
        judge: who is believed.
        trim: fraction of a coordinate's senders to drop at each end; 0 is the weighted mean.
        clip: longest update in terms of the median one; 0 bounds nothing.
    """

    size: int
    judge: Judge
    trim: float = 0.0
    clip: float = 0.0
    _held: list[Held] = field(default_factory=list)
    _cover: PartialSum = field(init=False)
    _scores: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._cover = PartialSum(self.size)

    @property
    def updates(self) -> int:
        """How many were added."""
        return len(self._held)

    def add(self, update: Sparse, index: Index | None, weight: float, *, key: str, device: str) -> None:
        """See `Aggregator.add`."""
        nothing = Sparse(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32), update.size)
        self._cover.add(nothing, index, weight, key=key)  # checks, and counts who covers what
        self._held.append(Held(device, key, weight, in_parent(update, index, self.size), self._cover.maps[key]))

    def result(self, root: Float32 | None = None) -> Float32:
        """See `Aggregator.result`."""
        if not self._held:
            return np.zeros(self.size, dtype=np.float32)
        held = _levelled(sorted(self._held, key=attrgetter("device", "key", "weight")))
        bounds = self._bounds(held)
        judgement = self.judge(held, bounds, root)
        self._scores = _worst(held, judgement.scores)
        if self.trim > 0.0:
            total = trimmed_sum(held, judgement.scales, self.trim, self.size)
        else:
            total = np.zeros(self.size, dtype=np.float64)
            for item, factor in zip(held, judgement.trust * judgement.scales, strict=True):
                total[item.update.positions] += item.weight * factor * item.update.values.astype(np.float64)
        weight = self._coverage(held, judgement.trust)
        return np.divide(total, weight, out=np.zeros(self.size, dtype=np.float64), where=weight > 0.0).astype(np.float32)

    def covered(self) -> npt.NDArray[np.bool_]:
        """See `Aggregator.covered`."""
        return self._cover.coverage() > 0.0

    def scores(self) -> Mapping[str, float]:
        """See `Aggregator.scores`."""
        return dict(self._scores)

    def _bounds(self, held: list[Held]) -> Vector:
        """The factor that makes each update short enough."""
        found = lengths([item.update for item in held]) / np.sqrt([item.covered for item in held])
        longest = self.clip * float(np.median(found))
        if longest <= 0.0:
            return np.ones(len(held))
        return np.minimum(1.0, longest / np.maximum(found, np.finfo(np.float64).tiny))

    def _coverage(self, held: list[Held], trust: Vector) -> Vector:
        """Weight of what is believed of the devices that cover each coordinate."""
        cover = PartialSum(self.size)
        nothing = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32)
        for item, factor in zip(held, trust, strict=True):
            if factor > 0.0:
                cover.add(Sparse(*nothing, item.covered), item.index, item.weight * float(factor), key=item.key)
        return cover.coverage()


def _levelled(held: list[Held]) -> list[Held]:
    """The updates with weights of at most the median one; of an even number the lower, so that one of two cannot set it."""
    most = sorted(item.weight for item in held)[(len(held) - 1) // 2]
    return [replace(item, weight=min(item.weight, most)) for item in held]


def _worst(held: list[Held], scores: Vector) -> dict[str, float]:
    """A device with several updates in a round is as good as the worst of them."""
    found: dict[str, float] = {}
    for item, score in zip(held, scores.tolist(), strict=True):
        found[item.device] = min(score, found.get(item.device, 1.0))
    return found


def make(plan: Plan, size: int, parts: Sequence[slice] = ()) -> Aggregator:
    """The aggregator that a plan asks for, empty.

    Args:
        plan: `aggregator`, `attackers`, `clip`, `exclude`.
        size: coordinates of the parent.
        parts: the tensors' places in the parent, for judges that look at each.
    """
    match plan.aggregator:
        case "mean":
            watched = plan.clip > 0.0 or plan.exclude > 0.0
            return Robust(size, believe_all(plan.attackers), clip=plan.clip) if watched else Streaming(size)
        case "trimmed-mean":
            return Robust(size, believe_all(plan.attackers), trim=plan.attackers, clip=plan.clip)
        case "multi-krum":
            return Robust(size, multi_krum(plan.attackers, parts), clip=plan.clip)
        case "root-set":
            return Robust(size, root_set, clip=plan.clip)
        case other:
            raise UpdateError(f"no aggregator is called {other!r}")
