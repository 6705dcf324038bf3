"""Updates to measure the codec with: vectors of the size and the shape of those that devices train, and the history before them.

Model: the convolutional network for handwritten characters of the federated learning literature (McMahan et al. 2017), 1,663,370
parameters. A change is the product of how busy a coordinate's row and column are, of how much the coordinate itself moves, and of
normal noise, so that magnitudes have heavy tails and moves come back in the same places, as those of gradients do. Nothing is
trained: figures of bytes from here say nothing of a task, figures of time do.
"""

import math
from dataclasses import dataclass

import numpy as np

from edgefl.codec.history import History
from edgefl.codec.scheme import Scheme
from edgefl.layout import Float32

SHAPES = ((32, 1, 5, 5), (32,), (64, 32, 5, 5), (64,), (512, 3136), (512,), (10, 512), (10,))
SIZE = sum(math.prod(shape) for shape in SHAPES)
SPARSE = Scheme(sparsity=0.01, bits=1)
"""One in a hundred coordinates, one bit each."""
DEFAULT = Scheme()
"""What a plan that says nothing gets."""


@dataclass(frozen=True, eq=False)
class Fleet:
    """Devices that train the same model.

    Attributes:
        history: of the model, the same for all.
        busy: float32, shape `(SIZE,)`: how much each coordinate moves.
    """

    history: History
    busy: Float32

    @classmethod
    def of(cls, rng: np.random.Generator) -> "Fleet":
        """Some devices, a few rounds into their training."""
        busy = np.concatenate([_products(shape, rng) for shape in SHAPES]) * _lognormal(SIZE, rng)
        start = (rng.standard_normal(SIZE) * 0.05).astype(np.float32)
        before = start + _sparse_step(busy, rng) + _sparse_step(busy, rng)
        return cls(History(start, before, before + _sparse_step(busy, rng), SHAPES), busy)

    def delta(self, rng: np.random.Generator) -> Float32:
        """What one device has learned, float32, shape `(SIZE,)`."""
        return self.busy * rng.standard_normal(SIZE, dtype=np.float32)


def scattered(rng: np.random.Generator) -> Float32:
    """A change that may be large anywhere, float32, shape `(SIZE,)`: heavy tails, but all coordinates alike."""
    return (rng.standard_normal(SIZE) ** 3).astype(np.float32)


def again(history: History) -> History:
    """The same history, of which nothing has been computed yet."""
    return History(history.start, history.before, history.now, history.shapes)


def _lognormal(size: int, rng: np.random.Generator) -> Float32:
    return np.exp(rng.standard_normal(size, dtype=np.float32))


def _products(shape: tuple[int, ...], rng: np.random.Generator) -> Float32:
    return np.outer(_lognormal(shape[0], rng), _lognormal(math.prod(shape[1:]), rng)).reshape(-1)


def _sparse_step(busy: Float32, rng: np.random.Generator) -> Float32:
    """A round's step: the tenth of the coordinates that moved most."""
    step = busy * rng.standard_normal(len(busy), dtype=np.float32) * np.float32(1e-3)
    magnitude = np.abs(step)
    step[magnitude < np.quantile(magnitude, 0.9)] = 0.0
    return step
