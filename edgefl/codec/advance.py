"""What devices hold comes closer to the parent: the server's half of the downlink's error feedback.

Model: the server keeps, beside the true parent, what devices *hold*. `advance` brings the held weights closer to the parent: the
largest fraction of what is missing moves by whole multiples of a power of two (`edgefl.codec.moves`), the rest stays behind and
is wanted again in the next round. That is error feedback on the server (Sattler et al., Sparse Ternary Compression, 2019, section
V, https://arxiv.org/abs/1903.02891); the residual is `parent - held` and needs no place of its own.

Rule: what it returns is what devices get: the files between which `edgefl.codec.difference` leads are made of it.
"""

import math

import numpy as np

from edgefl.codec.marks import Flags, marked
from edgefl.codec.moves import GRID, move, on_grid
from edgefl.codec.sparsify import count_sent, top_k
from edgefl.errors import ModelError
from edgefl.layout import Float32


def advance(held: Float32, parent: Float32, sparsity: float, removed: Flags | None = None, *, last: bool = False) -> Float32:
    """What devices hold next: the held weights, moved towards the parent in the coordinates where most is missing.

    The step is the power of two next to the mean of the chosen magnitudes, so that most moves are one or two steps.

    Args:
        held: float32, shape `(n,)`, what devices hold now; not changed.
        parent: float32, shape `(n,)`, where they should be.
        sparsity: fraction of the coordinates that may change, in (0, 1].
        removed: bool, shape `(n,)`, those that are gone from the parent (`edgefl.codec.marks`): they go at once, beside the
            others, and are marked in what is returned, which has no other marks; None if none is gone.
        last: nothing follows: every coordinate moves that is half a step or more away.

    Raises:
        ModelError: shapes differ, or a value is not finite.
    """
    if held.shape != parent.shape or not (np.isfinite(parent).all() and np.isfinite(held).all()):
        raise ModelError("these weights cannot be sent", expected=f"{held.shape} finite values", found=f"shape {parent.shape}")
    held = held + np.float32(0.0)  # a copy without marks: what is gone is for the parent to say
    held = held if removed is None else marked(held, removed)
    missing = parent - held
    chosen = top_k(missing, count_sent(len(held), sparsity))
    mean = float(np.abs(missing[chosen]).mean(dtype=np.float64))
    if mean == 0.0:
        return held.copy()
    exponent = min(GRID, max(0, 1 - math.frexp(mean * math.sqrt(2.0))[1]))
    if last:
        chosen = np.flatnonzero(np.abs(missing) >= 0.5 * 2.0**-exponent)
    steps = np.rint((parent[chosen] - on_grid(held[chosen])) * 2.0**exponent)
    moving = steps != 0
    after = held.copy()
    after[chosen[moving]] = move(held[chosen[moving]], steps[moving], exponent)
    return after
