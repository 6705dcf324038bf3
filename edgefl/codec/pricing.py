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
from edgefl.codec.history import History
from edgefl.codec.sparsify import top_k
from edgefl.layout import Float32, Index

Doubles = npt.NDArray[np.float64]

TURNS = 3
_POOL = 8
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
    pool = top_k(vector, min(len(vector), _POOL * len(plain)))
    energy = vector[pool].astype(np.float64) ** 2
    wanted = float((vector[plain].astype(np.float64) ** 2).sum()) * (1.0 - 1e-9)
    chosen, best, least = plain, plain, np.inf
    for _ in range(TURNS):
        scorer = fit(history, chosen, rng)
        of_class = classes(scorer, all_scores(scorer, history))
        sizes = np.bincount(of_class, minlength=CLASSES)
        counts = np.bincount(of_class[chosen], minlength=CLASSES)
        if (length := spent(counts, sizes, bits)) < least:
            best, least = chosen, length
        worth = energy / marginal(counts, sizes, bits)[of_class[pool]] ** price
        order = np.argsort(-worth, kind="stable")
        enough = int(np.searchsorted(np.cumsum(energy[order]), wanted)) + 1
        chosen = np.sort(pool[order[:enough]])
    return best


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
