"""Whom to believe: rules that give each of a round's updates a factor, and what they think of its sender.

Model: an update arrives sparse and quantised. What that does to the classical rules, measured in tests/test_aggregate_attacks.py:

* Two honest updates send few coordinates in common, so that distances hardly differ and Krum mostly sees lengths. The rules here
  compare directions, after lengths have been bounded.
* Coordinate-wise medians are medians of zeros; the trimmed mean (`edgefl.aggregate.trimmed`) looks at senders only.

Rules: trust is from 0 up and at least one is positive; scores are in [0, 1].
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from edgefl.aggregate.contract import Held
from edgefl.aggregate.geometry import Vector, agreement, lengths, products, products_with, within
from edgefl.codec.sparsify import Sparse
from edgefl.errors import UpdateError
from edgefl.layout import Float32


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

Judge = Callable[[Sequence[Held], Vector, Float32 | None], Judgement]
"""Updates in the order of their devices' names, the factors that bound their lengths, and the root's update if there is one."""


def believe_all(held: Sequence[Held], bounds: Vector, root: Float32 | None) -> Judgement:
    """Every update counts; the scores say how well each agrees with the others."""
    del root
    gram = products([item.update for item in held]) * np.outer(bounds, bounds)
    return Judgement(np.ones(len(held)), bounds, relative(agreement(gram, _weights(held))))


def multi_krum(attackers: float, parts: Sequence[slice] = ()) -> Judge:
    """The k - f updates that are nearest to their k - f - 2 nearest neighbours (Blanchard et al., NIPS 2017).

    https://arxiv.org/abs/1703.02757. Here with lengths made equal, that is by direction, because the lengths of sparse updates
    say little and their bounds are kept anyway; and tensor by tensor, because who flips labels agrees with everybody but in the
    last ones. An update is as near as it is in the tensor in which it is farthest, relative to the median device; tensors in
    which honest devices themselves hardly agree do not count.

    Args:
        attackers: the fraction of updates that may be hostile; f = ceil(attackers * k).
        parts: the tensors' places in the parent; none for all coordinates as one.
    """

    def judge(held: Sequence[Held], bounds: Vector, root: Float32 | None) -> Judgement:
        del root
        count = len(held)
        hostile = int(np.ceil(attackers * count))
        near = count - hostile - 2
        if near < 1:
            return Judgement(np.ones(count), bounds, np.ones(count))
        updates = [item.update for item in held]
        whole = _closeness(updates, near)
        found = [_closeness([within(update, part) for update in updates], near) for part in parts]
        standing = [relative(whole), *(relative(close) for close in found if float(np.median(close)) >= AGREED)]
        scores = np.min(standing, axis=0)
        chosen = np.lexsort((-whole, -scores))[: count - hostile]
        trust = np.zeros(count)
        trust[chosen] = 1.0
        return Judgement(trust, bounds, scores)

    return judge


def _closeness(updates: Sequence[Sparse], near: int) -> Vector:
    """Mean cosine of each with its nearest others: 1 minus half of Krum's distance between vectors of length 1."""
    size = np.maximum(lengths(updates), np.finfo(np.float64).tiny)
    cosine = products(updates) / np.outer(size, size)
    np.fill_diagonal(cosine, -np.inf)
    closeness: Vector = np.sort(cosine, axis=1)[:, ::-1][:, :near].mean(axis=1)
    return closeness


def root_set(held: Sequence[Held], bounds: Vector, root: Float32 | None) -> Judgement:
    """FLTrust (Cao et al., NDSS 2021, https://arxiv.org/abs/2012.13995): an update counts as far as its direction is the root's.

    The trust is the positive part of the cosine, taken on the coordinates that the update sends, because the others say nothing;
    the length becomes the median one instead of the root's, which is not sparse.

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
    return Judgement(trust, float(np.median(size)) / size, relative(cosine))


def relative(values: Vector) -> Vector:
    """Values against the median one, cut to [0, 1]; all 1 if the median is not positive, since then nobody stands out."""
    middle = float(np.median(values)) if len(values) else 0.0
    return np.clip(values / middle, 0.0, 1.0) if middle > 0.0 else np.ones(len(values))


def _weights(held: Sequence[Held]) -> Vector:
    return np.array([item.weight for item in held], dtype=np.float64)
