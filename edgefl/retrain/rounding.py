"""Training weights that a file will round: a module computes with rounded ones, and what moves are the exact ones behind them.

Model: the straight-through estimator (Bengio, Leonard and Courville 2013, https://arxiv.org/abs/1308.3432), as ternary weights
are trained (Li, Zhang and Liu 2016, https://arxiv.org/abs/1605.04711): gradients at the rounded weights are applied to the exact
ones, so that a weight changes its sign, or leaves zero, when it has been pushed far enough. Weights that are zero at the
beginning have been pruned and stay zero. The file of the outcome loses nothing of what is trained, because what was rounded once
is a fixed point of the rounding.
"""

import numpy as np
import torch

from edgefl.codec.fewbits import rounded
from edgefl.codec.precision import Precision, is_quantised
from edgefl.retrain.flat import FlatModule


class Rounded:
    """Exact weights behind a module's rounded ones.

    Args:
        flat: the module; its weights are rounded at once.
        precision: int4 or ternary.
    """

    def __init__(self, flat: FlatModule, precision: Precision) -> None:
        self._flat = flat
        self._precision = precision
        self.moved = flat.values.clone()
        pruned = np.zeros(flat.layout.size, dtype=np.bool_)
        for tensor, place in flat.layout.slices():
            if is_quantised(tensor):
                pruned[place] = flat.values.numpy()[place] == 0
        self._pruned = torch.from_numpy(pruned)
        self.push(0.0)

    def pull(self) -> None:
        """The gradients are those of the rounded weights, but for what is pruned."""
        self.moved.grad = self._flat.gradients.masked_fill(self._pruned, 0.0)

    def push(self, progress: float) -> None:  # noqa: ARG002  part of the protocol
        """Each weight is its exact one, rounded as a file rounds it."""
        self._flat.values[:] = torch.from_numpy(rounded(self.moved.numpy(), self._flat.layout, self._precision))
