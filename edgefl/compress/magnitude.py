"""Magnitude pruning: which weights of a vector are removed, and how many by when.

Model: the weights with the least scores go (Han et al. 2015, https://arxiv.org/abs/1506.02626). What small means is the scope:

* `layer`: the same part of every tensor goes.
* `global`: magnitudes of all tensors are compared as they are.
* `lamp`: each weight's square is compared in parts of the squares of all weights of its tensor that are not smaller (Lee et al.
  2021, https://arxiv.org/abs/2010.07611), which finds how much each layer can spare and leaves none empty.

During federation (FedLTN: Mugunthan et al., ECCV 2022, LNCS 13672, pp. 69-85) a part of what is left goes every few
rounds, after some rounds of plain training and without rewinding: training goes on from the weights as they are.

Rules: pure. Only prunable coordinates go (`edgefl.codec.marks`); a weight that is gone stays gone.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgefl.codec.marks import Flags, gone, is_prunable, marked, prunable
from edgefl.layout import Float32, Layout
from edgefl.plan import FleetPruning, Scope

Scores = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Moment:
    """The end of a round.

    Attributes:
        round: its number, from 1 in each training.
        last: how many rounds the training has.
        loss: mean training loss of the round's updates.
    """

    round: int
    last: int
    loss: float = 0.0


def kept(flat: Float32, layout: Layout, share: float, scope: Scope) -> Flags:
    """Which coordinates are left when this part of the prunable ones is removed.

    What is gone counts first, weights that are zero without being gone go next, and of equals the first.

    Args:
        flat: float32, shape `(layout.size,)`.
        layout: of it.
        share: in [0, 1).
        scope: see above.

    Returns:
        bool, shape `(layout.size,)`; true for everything that is not prunable.
    """
    left = np.ones(layout.size, dtype=np.bool_)
    places = [place for tensor, place in layout.slices() if is_prunable(tensor)]
    parts = [np.arange(place.start, place.stop) for place in places]
    scores = np.zeros(layout.size, dtype=np.float64)
    for place in places:
        scores[place] = _lamp(flat[place]) if scope == "lamp" else np.abs(flat[place])
    scores[gone(flat, layout)] = -1.0  # below every other: what is gone already is part of the share
    for part in parts if scope == "layer" or not parts else [np.concatenate(parts)]:
        _remove(left, part, scores[part], share)
    return left


def share_gone(flat: Float32, layout: Layout) -> float:
    """Part of the prunable coordinates that is gone, in [0, 1]; 0 if nothing can be pruned."""
    return float(np.count_nonzero(gone(flat, layout))) / max(1, int(np.count_nonzero(prunable(layout))))


def next_share(now: float, rules: FleetPruning) -> float:
    """Part of the prunable coordinates that is gone after one more pruning: `rules.share` of what is left, up to the target."""
    return max(now, min(rules.target, 1.0 - (1.0 - now) * (1.0 - rules.share)))


def is_due(rules: FleetPruning, when: Moment) -> bool:
    """Whether something is pruned at the end of a round; never after the last one, which leaves no time to heal."""
    since = when.round - rules.first
    good = not rules.below or when.loss <= rules.below
    return since >= 0 and since % rules.every == 0 and when.round < when.last and good


def pruned(flat: Float32, layout: Layout, rules: FleetPruning) -> Float32:
    """The weights after one more pruning, its removed coordinates marked; those that were gone still are.

    As many are gone as `next_share` says: in `layer` scope of each tensor, and of one that has lost more already, no more.

    Args:
        flat: float32, shape `(layout.size,)`; not changed.
        layout: of it.
        rules: of the plan.
    """
    share = next_share(share_gone(flat, layout), rules)
    return marked(flat, ~kept(flat, layout, share, rules.scope) | gone(flat, layout))


def after_round(before: Float32, after: Float32, layout: Layout, rules: FleetPruning | None, when: Moment) -> Float32:
    """The weights that a round ends with: what was gone before it still is, and more goes if it is time for that.

    Args:
        before: the weights that the round began with, float32, shape `(layout.size,)`.
        after: what aggregation has made of them; not changed.
        layout: of both.
        rules: of the plan; None prunes nothing.
        when: which round it is.
    """
    kept_out = marked(after, gone(before, layout))
    if rules is None or not is_due(rules, when) or not np.isfinite(kept_out).all():
        return kept_out
    return pruned(kept_out, layout, rules)


def _remove(left: Flags, coordinates: npt.NDArray[np.int64], scores: Scores, share: float) -> None:
    """Remove the coordinates with the least scores; of equals the first."""
    count = int(share * len(coordinates))
    left[coordinates[np.argsort(scores, kind="stable")[:count]]] = False


def _lamp(values: Float32) -> Scores:
    """Square of each value in parts of the squares of all that are not smaller; 0 for zeros, 1 for the largest."""
    squares = np.square(values.astype(np.float64))
    order = np.argsort(squares, kind="stable")
    ascending = squares[order]
    following = np.cumsum(ascending[::-1])[::-1]
    scores = np.empty_like(squares)
    scores[order] = np.divide(ascending, following, out=np.zeros_like(ascending), where=following > 0)
    return scores
