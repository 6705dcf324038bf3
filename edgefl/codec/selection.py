"""Which coordinates an update carries, by the plan's choice: over the whole vector or by tensor, exactly or from a sample.

Model: all choices are by magnitude. By tensor, each sends the same fraction of its own coordinates, at least one. From a
sample, a threshold is estimated on every `STRIDE`-th coordinate, set so low that it lets through a few more than wanted, and only
those are sorted out exactly (DGC's hierarchical selection, Lin et al. 2018, https://arxiv.org/abs/1712.01887, section 4.2).

Rules: never more than asked for; positions ascend; zeros are not sent.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from edgefl.codec.scheme import Scheme
from edgefl.codec.sparsify import count_sent, top_k
from edgefl.errors import UpdateError
from edgefl.layout import Float32, Index

STRIDE = 64
"""Sampling one coordinate in 64 costs little beside the one comparison per coordinate that remains."""
LEAST_SAMPLED = 16
"""Expected number of sent coordinates in the sample from which on its threshold is worth using."""


def select(vector: Float32, scheme: Scheme, parts: Sequence[slice], rng: np.random.Generator) -> Index:
    """Positions to send, int64, strictly increasing, at least one.

    Args:
        vector: float32, shape `(n,)`, finite.
        scheme: its `sparsity`, `by_layer` and `sampled` count here.
        parts: places of the tensors, for `by_layer`: ascending, without gaps, from 0 to n.
        rng: chooses where the sample starts.

    Raises:
        UpdateError: parts that do not cover the vector.
    """
    choose = sampled_top_k if scheme.sampled else _exact
    if not scheme.by_layer:
        return choose(vector, count_sent(len(vector), scheme.sparsity), rng)
    check_parts(parts, len(vector))
    chosen = [place.start + choose(vector[place], count_sent(place.stop - place.start, scheme.sparsity), rng) for place in parts]
    positions = np.concatenate(chosen)
    nonzero = positions[vector[positions] != 0]
    return nonzero if len(nonzero) else positions[:1]


def check_parts(parts: Sequence[slice], size: int) -> None:
    """Refuse parts that are not all of the vector in order.

    Raises:
        UpdateError: a gap, an overlap, an empty part, or another end.
    """
    joined = all(a.stop == b.start for a, b in pairwise(parts)) and all(p.start < p.stop for p in parts)
    if not (parts and joined and parts[0].start == 0 and parts[-1].stop == size):
        raise UpdateError(
            "the tensors' places do not cover the update", expected=f"0 to {size} without gaps", found=str(list(parts))
        )


def sampled_top_k(vector: Float32, count: int, rng: np.random.Generator) -> Index:
    """At most `count` positions of the largest magnitudes, ascending; almost always exactly those of `top_k`.

    The threshold lies three standard errors of the sample below the estimate, so about one selection in a thousand misses some.
    """
    magnitude = np.abs(vector)
    sample = magnitude[int(rng.integers(STRIDE)) :: STRIDE]
    expected = count * len(sample) / len(vector)
    rank = math.ceil(expected + 3 * math.sqrt(expected))
    if expected < LEAST_SAMPLED or rank >= len(sample):
        return top_k(vector, count)
    place = len(sample) - rank
    kept = np.flatnonzero(magnitude >= np.partition(sample, place)[place])
    return kept[top_k(vector[kept], count)]


def _exact(vector: Float32, count: int, _rng: np.random.Generator) -> Index:
    return top_k(vector, count)
