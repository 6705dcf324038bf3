"""Whom to believe: rules that give each of a round's updates a factor, and what they think of its sender.

Model: an update arrives sparse and quantised. What that does to the classical rules, proved in tests/test_aggregate_attacks.py:

* Two honest updates send few coordinates in common, so that distances hardly differ and Krum mostly sees lengths. The rules here
  compare directions, after lengths have been bounded.
* Accomplices that send the same are nearer to each other than honest devices are: the nearest neighbours prove nothing.
* A narrow variant and a wide one are compared on what both have.
* Coordinate-wise medians are medians of zeros; the trimmed mean (`edgefl.aggregate.trimmed`) looks at senders only.

Rules: trust is from 0 up and at least one is positive; scores are in [0, 1].
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgefl.aggregate.contract import Held
from edgefl.aggregate.geometry import Vector, cosines, lengths, products_with, within
from edgefl.codec.sparsify import Sparse
from edgefl.errors import UpdateError
from edgefl.layout import Float32, Index


@dataclass(frozen=True, slots=True)
class Judgement:
    """What is made of each update; every array has the shape `(k,)`.

    Attributes:
        trust: factor on its weight.
        scales: factor on its values.
        scores: of its sender.
    """

    trust: Vector
    scales: Vector
    scores: Vector


AGREED = 0.1
"""Median closeness from which on a tensor tells honest devices from others."""

TELLING = 10
"""Coordinates that an update sends of a tensor before its direction there says anything: of one or two, it is chance."""

Judge = Callable[[Sequence[Held], Vector, Float32 | None], Judgement]
"""Updates in the order of their devices' names, the factors that bound their lengths, and the root's update if there is one."""


def believe_all(attackers: float) -> Judge:
    """Every update counts; the scores say how close each is to the others (`_closeness`)."""

    def judge(held: Sequence[Held], bounds: Vector, root: Float32 | None) -> Judgement:
        del root
        hostile = int(np.ceil(attackers * len(held)))
        scores = relative(_closeness(cosines(*_seen(held)), hostile)) if len(held) > hostile + 2 else np.ones(len(held))
        return Judgement(np.ones(len(held)), bounds, scores)

    return judge


def multi_krum(attackers: float, parts: Sequence[slice] = ()) -> Judge:
    """The k - f updates that are nearest to their nearest neighbours (Blanchard et al., NIPS 2017).

    https://arxiv.org/abs/1703.02757. Here with lengths made equal, that is by direction, because the lengths of sparse updates
    say little and their bounds are kept anyway; and tensor by tensor, because who flips labels agrees with everybody but in the
    last ones. An update is as near as it is in the tensor in which it is farthest, relative to the median device; tensors in
    which honest devices themselves hardly agree do not count, and who sends next to nothing of a tensor is not judged by it.

    Args:
        attackers: the fraction of updates that may be hostile; f = ceil(attackers * k).
        parts: the tensors' places in the parent; none for all coordinates as one.
    """

    def judge(held: Sequence[Held], bounds: Vector, root: Float32 | None) -> Judgement:
        del root
        count = len(held)
        hostile = int(np.ceil(attackers * count))
        if count < hostile + 3:
            return Judgement(np.ones(count), bounds, np.ones(count))
        updates, indexes = _seen(held)
        whole = _closeness(cosines(updates, indexes), hostile)
        scores = relative(whole)
        for part in parts:
            scores = np.minimum(scores, _in_tensor([within(update, part) for update in updates], indexes, hostile))
        chosen = np.lexsort((-whole, -scores))[: count - hostile]
        trust = np.zeros(count)
        trust[chosen] = 1.0
        return Judgement(trust, bounds, scores)

    return judge


def _in_tensor(updates: Sequence[Sparse], indexes: Sequence[Index | None], hostile: int) -> Vector:
    """How each stands in one tensor; 1 for those who send next to nothing of it, and for all where it does not tell."""
    scores = np.ones(len(updates))
    speakers = [number for number, update in enumerate(updates) if len(update.positions) >= TELLING]
    if len(speakers) < hostile + 3:
        return scores
    close = _closeness(cosines([updates[s] for s in speakers], [indexes[s] for s in speakers]), hostile)
    if float(np.median(close)) >= AGREED:
        scores[speakers] = relative(close)
    return scores


def _closeness(cosine: npt.NDArray[np.float64], hostile: int) -> Vector:
    """Mean cosine of each with its near others: 1 minus half of Krum's distance between vectors of length 1.

    Krum's k - f - 2 nearest, without the f - 1 nearest of all: those may be accomplices that send the same. Honest sparse
    updates have few coordinates in common, so that by the published sum a conspiracy is nearer to itself than they to each other.

    Args:
        cosine: of every two, shape `(k, k)`.
        hostile: f; k is at least f + 3.
    """
    others = cosine.copy()
    np.fill_diagonal(others, -np.inf)
    near = len(others) - hostile - 2
    skipped = max(0, min(hostile - 1, near - 1))
    closeness: Vector = np.sort(others, axis=1)[:, ::-1][:, skipped:near].mean(axis=1)
    return closeness


def _seen(held: Sequence[Held]) -> tuple[list[Sparse], list[Index | None]]:
    """The updates, and what the variant of each covers."""
    return [item.update for item in held], [item.index for item in held]


def root_set(held: Sequence[Held], bounds: Vector, root: Float32 | None) -> Judgement:
    """FLTrust (Cao et al., NDSS 2021, https://arxiv.org/abs/2012.13995): an update counts as far as its direction is the root's.

    The trust is the positive part of the cosine, taken on the coordinates that the update sends, because the others say nothing;
    the length becomes the median one (for its variant's breadth) instead of the root's, which is not sparse.

    Raises:
        UpdateError: there is no root update.
    """
    del bounds
    if root is None:
        raise UpdateError("the root set needs an update of the server's own", remedy="Give the training root examples")
    updates = [item.update for item in held]
    size = np.maximum(lengths(updates), np.finfo(np.float64).tiny)
    seen = np.array([np.sqrt(np.square(root[update.positions].astype(np.float64)).sum()) for update in updates])
    cosine = products_with(updates, root) / np.maximum(size * seen, np.finfo(np.float64).tiny)
    trust = np.maximum(cosine, 0.0)
    if not trust.any():
        trust = np.full(len(held), np.finfo(np.float64).tiny)
    breadth = np.sqrt([item.covered for item in held])
    return Judgement(trust, float(np.median(size / breadth)) * breadth / size, relative(cosine))


FREE, FAR = 3.0, 6.0
"""Deviations below the median up to which a value is ordinary, and from which on it is nobody's honest one."""
LEAST_SPREAD = 0.15
"""Of the median, that one deviation is taken to be at least: where all agree very well, a little less is not suspicious."""


def relative(values: Vector) -> Vector:
    """How ordinary each value is: 1 up to `FREE` deviations below the median one, 0 from `FAR` on, linear between.

    The deviation is the median one (times 1.4826, as of a normal distribution), so that a minority cannot make it. All are 1 if
    the median is not positive, since then nobody stands out. (A plain ratio to the median condemns honest devices late in a
    training, when they agree less and less, and the more so when a minority agrees perfectly.)
    """
    middle = float(np.median(values)) if len(values) else 0.0
    if middle <= 0.0:
        return np.ones(len(values))
    deviation = max(1.4826 * float(np.median(np.abs(values - middle))), LEAST_SPREAD * middle)
    return np.clip((FAR - (middle - values) / deviation) / (FAR - FREE), 0.0, 1.0)
