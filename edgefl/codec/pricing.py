"""Rate-distortion selection: coordinates by what they bring for each bit they cost.

Model: a coordinate of value v that belongs to a class of which the share p is sent costs about log2((1-p)/p) bits for its
place, the slope of the class's entropy, and the bits of its value. Sent are the coordinates of greatest v**2 / cost**price. With
price 0 that is the choice by magnitude; with price 1 it is the choice that removes most squared error per bit (Shoham and Gersho
1988, as video coders do); beyond 1 it leans still more on cheap coordinates.

As many are taken as remove the squared error that the choice by magnitude would: the update says as much, in fewer bits. Costs
depend on the choice and the choice on costs, so both are found in turns; if nothing is saved, the choice by magnitude stands.

Rule: encoder only; floats are fine.
"""

import numpy as np
import numpy.typing as npt

from edgefl.codec.classes import CLASSES, all_scores, classes
from edgefl.codec.fitting import fit
from edgefl.codec.fixed import Bits
from edgefl.codec.history import History, Levels
from edgefl.codec.pieces import gather, pieces
from edgefl.codec.sparsify import top_k
from edgefl.layout import Float32, Index

Doubles = npt.NDArray[np.float64]

TURNS = 3
_POOL = 8
_STRIDE = 256
"""One coordinate in so many is looked at to tell the parts of a pool apart, and a part has at least about as many of these."""
_PARTS = 128
_LEAST_COST = 0.5


def select_priced(vector: Float32, plain: Index, price: float, bits: int, history: History, rng: np.random.Generator) -> Index:
    """Positions to send, int64, strictly increasing, at least one.

    Args:
        vector: float32, shape `(n,)`, finite.
        plain: what the choice by magnitude would send; its squared error is what has to be removed.
        price: from 0.
        bits: that a sent value costs.
        history: what both ends know.
        rng: draws samples for fitting.
    """
    whole = len(plain) == np.count_nonzero(vector)
    pool = plain if whole else top_k(vector, min(len(vector), _POOL * len(plain)))
    wanted = float(_energies(vector, plain).sum()) * (1.0 - 1e-9)
    taken, best, least = None, None, np.inf
    for turn in range(TURNS):
        chosen = plain if taken is None else gather(pool, taken)
        scorer = fit(history, chosen, rng)
        of_class = classes(scorer, all_scores(scorer, history))
        sizes, counts = _count(of_class), _count(of_class[chosen])
        del chosen
        if (length := spent(counts, sizes, bits)) < least:
            best, least = taken, length
        if turn < TURNS - 1:
            taken = _worthiest(vector, pool, of_class, marginal(counts, sizes, bits) ** price, wanted)
    return plain if best is None else gather(pool, best)


def _worthiest(vector: Float32, pool: Index, of_class: Levels, costs: Doubles, wanted: float) -> Bits:
    """Which of the pool are taken, those of greatest energy for their class's cost first, until they have what is wanted.

    They are sorted a few at a time, what is worth more before what is worth less, and no further than needed: the order and the
    sums are those of all.
    """

    def worth(places: Index) -> Doubles:
        value: Doubles = _energies(vector, places) / costs[of_class[places]]
        return value

    sample = np.sort(-worth(pool[::_STRIDE]))
    step = max(_STRIDE, -(-len(sample) // _PARTS))
    borders = sample[step::step]
    part = np.empty(len(pool), dtype=np.uint8)
    for piece in pieces(len(pool)):
        part[piece] = np.searchsorted(borders, -worth(pool[piece]), side="right")
    taken, reached = np.zeros(len(pool), dtype=np.bool_), 0.0
    for number in range(len(borders) + 1):
        members = np.flatnonzero(part == number)
        order = members[np.argsort(-worth(pool[members]), kind="stable")]
        sums = _energies(vector, pool[order])
        sums[:1] += reached
        np.cumsum(sums, out=sums)
        taken[order[: int(np.searchsorted(sums, wanted)) + 1]] = True
        if len(sums) and (reached := float(sums[-1])) >= wanted:
            break
    return taken


def _energies(vector: Float32, places: Index) -> Doubles:
    """Squares of the values at these places."""
    found = np.empty(len(places))
    for piece in pieces(len(places)):
        found[piece] = vector[places[piece]]
    return np.square(found, out=found)


def _count(of_class: Levels) -> Index:
    """How many are of each class."""
    return sum((np.bincount(of_class[piece], minlength=CLASSES) for piece in pieces(len(of_class))), np.zeros(CLASSES, np.int64))


def spent(counts: Index, sizes: Index, bits: int) -> float:
    """Bits of the positions and values of so many sent coordinates of each class."""
    share = counts / np.maximum(sizes, 1)
    inside = (share > 0.0) & (share < 1.0)
    p = np.where(inside, share, 0.5)
    entropy = np.where(inside, -(p * np.log2(p) + (1.0 - p) * np.log2(1.0 - p)), 0.0)
    return float((sizes * entropy).sum() + bits * counts.sum())


def marginal(counts: Index, sizes: Index, bits: int) -> Doubles:
    """Bits that one more sent coordinate of each class costs, at least `_LEAST_COST`."""
    share = (counts + 0.5) / (sizes + 1.0)
    costs: Doubles = np.maximum(np.log2((1.0 - share) / share) + bits, _LEAST_COST)
    return costs
