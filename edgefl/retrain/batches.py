"""Batches of examples in random order, and small changes to their inputs that need no label.

Model: passes over the examples in a new order each, cut into equal batches; what is left of a pass goes into the next. Equal
seeds give equal batches. A shifted or noisy input is still one that the original has an opinion on, so that few unlabelled
examples go a long way.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from edgefl.errors import DataError
from edgefl.examples import Examples
from edgefl.layout import Float32


@dataclass(frozen=True, slots=True)
class Augmentation:
    """Changes to inputs; the default is none.

    Attributes:
        shift: pixels by which images (the last two axes) are moved at most along each of them, filled with zeros; from 0.
        noise: standard deviation of what is added to each value, from 0.
    """

    shift: int = 0
    noise: float = 0.0

    def applied(self, x: Float32, rng: np.random.Generator) -> Float32:
        """Changed copies of inputs of shape `(n, ...)`.

        Raises:
            DataError: inputs that are no images are to be shifted.
        """
        if self.shift:
            x = self._shifted(x, rng)
        if self.noise:
            x = x + np.float32(self.noise) * rng.standard_normal(x.shape, dtype=np.float32)
        return x

    def _shifted(self, x: Float32, rng: np.random.Generator) -> Float32:
        if x.ndim < 3:
            raise DataError(
                "these inputs cannot be shifted", expected="images", found=f"shape {x.shape[1:]}", remedy="Use shift=0"
            )
        images = x.reshape(len(x), -1, *x.shape[-2:])
        margins = ((0, 0), (0, 0), (self.shift, self.shift), (self.shift, self.shift))
        padded = np.pad(images, margins)
        down, right = rng.integers(0, 2 * self.shift + 1, (2, len(x), 1))
        rows = (down + np.arange(x.shape[-2]))[:, None, :, None]
        columns = (right + np.arange(x.shape[-1]))[:, None, None, :]
        channels = np.arange(images.shape[1])[None, :, None, None]
        moved: Float32 = padded[np.arange(len(x))[:, None, None, None], channels, rows, columns]
        return moved.reshape(x.shape)


def batches(
    examples: Examples, size: int, count: int, augmentation: Augmentation, rng: np.random.Generator
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Inputs and labels of `count` batches.

    Args:
        examples: at least one.
        size: of a batch; fewer if there are not so many examples.
        count: how many batches.
        augmentation: of the inputs.
        rng: order of the examples, and the changes.
    """
    size = min(size, len(examples))
    order = np.empty(0, dtype=np.int64)
    for _ in range(count):
        if len(order) < size:
            order = np.concatenate([order, rng.permutation(len(examples))])
        rows, order = order[:size], order[size:]
        yield torch.from_numpy(augmentation.applied(examples.x[rows], rng)), torch.from_numpy(examples.y[rows])
