"""How the encoder finds out what levels are worth: logistic regression of "was it sent" on the levels, rounded to integers.

Model: log odds = intercept + sum over kinds of slope * level (or an absence if the level is 0) + worth of the tensor, fitted by
Newton's method on what is sent and a random sample of what is not, weighted so that it stands for all (case-control sampling;
King and Zeng 2001). Stages and the worths of tensors come in only if they save more bits than they cost. Floats are fine here:
only the rounded result travels.
"""

import math
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from edgefl.codec.classes import CLASSES, LIMIT, UNIT, Scorer, Stages, scores
from edgefl.codec.grid import STAGES, Table
from edgefl.codec.history import History
from edgefl.codec.pieces import pieces
from edgefl.layout import Index

Matrix = npt.NDArray[np.float64]
Shares = list[tuple[Table, Table]]

SAMPLE = 8_000
"""Coordinates of each kind, sent and not sent, that the fit looks at."""
MAX_TENSORS = 256
"""More tensors than these get no worth of their own: the fit would take too long."""
LEAST_CLASS = 6
"""Sent coordinates below which classes at the lower end are merged."""
TENSOR_BITS = 18.0
"""What a tensor's worth costs, and the class or so that it opens."""
STAGE_BITS = 300.0
"""What it costs to say the counts of all classes in three stages."""
_STEPS = 12
_ROWS = 256
_RIDGE = 0.05


def fit(history: History, positions: Index, rng: np.random.Generator) -> Scorer:
    """The scorer that makes these positions cheap.

    Args:
        history: what both ends know.
        positions: that are sent, int64, ascending, distinct, at least one.
        rng: draws the sample.
    """
    sample = _sample(history.size, positions, rng)
    kinds, count = len(history.levels), len(history.shapes)
    features = _features(history, sample.places)
    worth, likelihood = _logistic(features, sample, np.zeros(1 + 2 * kinds))
    staged = by_tensor = False
    if history.shapes:
        wider = np.concatenate([features, _busy(history, _shares(history, positions), sample.places)], axis=1)
        finer, better = _logistic(wider, sample, np.concatenate([worth, np.zeros(3)]))
        if staged := better - likelihood > STAGE_BITS * math.log(2.0) + 3 * sample.noise:
            features, worth, likelihood = wider, finer, better
    if 1 < count <= MAX_TENSORS:
        tensor = np.searchsorted(history.grid.starts, sample.places, side="right")[:, None] - 1 == np.arange(count)
        wider = np.concatenate([features, tensor], axis=1)
        finer, better = _logistic(wider, sample, np.concatenate([worth, np.zeros(count)]))
        if by_tensor := better - likelihood > count * (TENSOR_BITS * math.log(2.0) + sample.noise):
            worth = finer
    return _rounded(worth[1:] * UNIT / math.log(2.0), history, positions, staged=staged, by_tensor=by_tensor)


def _rounded(numbers: Matrix, history: History, positions: Index, *, staged: bool, by_tensor: bool) -> Scorer:
    """The scorer of these numbers, scaled down if what is sent spreads over more octaves than there are classes.

    Classes at the lower end are merged until `LEAST_CLASS` sent coordinates are in the lowest.
    """
    kinds, tensors = len(history.levels), len(history.shapes) if by_tensor else 0
    for _ in range(3):
        whole = [int(x) for x in np.clip(np.rint(numbers), -LIMIT, LIMIT)]
        stages = Stages(*whole[2 * kinds : 2 * kinds + 3]) if staged else None
        scorer = Scorer(0, tuple(whole[:kinds]), tuple(whole[kinds : 2 * kinds]), stages, tuple(whole[len(whole) - tensors :]))
        found = _sent_scores(scorer, history, positions)
        place = min(LEAST_CLASS, len(found)) - 1
        found.partition(place)
        lowest = int(found[place])
        octaves = (int(found[place:].max()) - lowest) / UNIT
        if octaves <= CLASSES - 2:
            break
        numbers = numbers * ((CLASSES - 3) / octaves)
    return replace(scorer, floor=int(np.clip(lowest // UNIT, -LIMIT, LIMIT)))


def _sent_scores(scorer: Scorer, history: History, positions: Index) -> Table:
    """The score of each sent coordinate when its turn comes."""
    score = np.empty(len(positions), dtype=np.int32)
    shares = None if scorer.stages is None else _shares(history, positions)
    for piece in pieces(len(positions)):
        places = positions[piece]
        tensors = [slice(a, b) for a, b in pairwise(np.searchsorted(places, history.grid.starts))] if history.shapes else []
        score[piece] = scores(scorer, [kind[places] for kind in history.levels], tensors)
        if scorer.stages is not None and shares is not None:
            worth = np.array([scorer.stages.first, scorer.stages.row, scorer.stages.column])
            score[piece] += (_busy(history, shares, places) @ worth).astype(np.int32)
    return score


def _shares(history: History, positions: Index) -> Shares:
    """How busy rows and columns are in the stages from 1 on, as those before say."""
    return [history.grid.shares(positions, stage) for stage in range(1, STAGES)]


def _busy(history: History, shares: Shares, places: Index) -> Matrix:
    """What the stages before say of these coordinates: is it the first stage, level of the row, level of the column."""
    rows, columns = history.grid.rows_and_columns(places)
    of_stage = history.grid.stage_of(places)
    found = np.zeros((len(places), 3))
    found[:, 0] = of_stage == 0
    for stage, (of_row, of_column) in enumerate(shares, start=1):
        here = of_stage == stage
        found[here, 1], found[here, 2] = of_row[rows[here]], of_column[columns[here]]
    return found


@dataclass(frozen=True, slots=True)
class _Sample:
    """Coordinates to learn from: which, whether each is sent, and how many coordinates each stands for."""

    places: Index
    sent: npt.NDArray[np.bool_]
    weights: Matrix

    @property
    def noise(self) -> float:
        """Nats by which a worthless feature seems to help, because one coordinate of the sample stands for many."""
        return float(self.weights.max())


def _sample(size: int, positions: Index, rng: np.random.Generator) -> _Sample:
    sent = positions if len(positions) <= SAMPLE else rng.choice(positions, SAMPLE, replace=False)
    unsent = np.arange(size) if size <= SAMPLE else rng.integers(size, size=SAMPLE)
    found = np.minimum(np.searchsorted(positions, unsent), len(positions) - 1)
    unsent = unsent[positions[found] != unsent]
    return _Sample(
        np.concatenate([sent, unsent]),
        np.arange(len(sent) + len(unsent)) < len(sent),
        np.concatenate(
            [
                np.full(len(sent), len(positions) / len(sent)),
                np.full(len(unsent), (size - len(positions)) / max(1, len(unsent))),
            ]
        ),
    )


def _features(history: History, sample: Index) -> Matrix:
    """Columns: one, the levels, their absences."""
    levels = np.stack([kind[sample] for kind in history.levels], axis=1)
    return np.concatenate([np.ones((len(sample), 1)), levels, levels == 0], axis=1)


def _logistic(features: Matrix, sample: _Sample, start: Matrix) -> tuple[Matrix, float]:
    """Weighted ridge logistic regression from a start: the worths, and the log likelihood.

    The ridge keeps apart what the data cannot tell apart.
    """
    ridge = np.full(features.shape[1], _RIDGE)
    ridge[0] = 1e-6
    worth, weights, sent = start.copy(), sample.weights, sample.sent
    if not worth.any():
        share = float(weights[sent].sum() / weights.sum())
        worth[0] = math.log(share / (1.0 - share)) if share < 1.0 else 0.0
    for _ in range(_STEPS):
        chance = 1.0 / (1.0 + np.exp(-np.clip(features @ worth, -30.0, 30.0)))
        gradient = features.T @ (weights * (sent - chance)) - ridge * worth
        curvature = _products(features, weights * chance * (1.0 - chance)) + np.diag(ridge)
        step = np.linalg.solve(curvature, gradient)
        worth += step * min(1.0, 4.0 / float(np.abs(step).max() + 1e-12))
        if float(gradient @ step) < 1.0:  # half of it is what is left to win, in nats
            break
    score = features @ worth
    return worth, float((weights * (sent * score - np.logaddexp(0.0, score))).sum())


def _products(features: Matrix, weights: Matrix) -> Matrix:
    """Weighted sum over the sample of the products of every two features.

    In blocks too small for BLAS to wake its threads, which spend more on waiting for each other than this takes.
    """
    whole = len(features) // _ROWS * _ROWS
    blocks = features[:whole].reshape(-1, _ROWS, features.shape[1])
    total: Matrix = (blocks.swapaxes(1, 2) @ (blocks * weights[:whole].reshape(-1, _ROWS, 1))).sum(axis=0)
    return total + features[whole:].T @ (features[whole:] * weights[whole:, None])
