"""Makes the golden update and weights files. `python tests/golden/make_updates.py` rewrites them.

Inputs are arithmetic, not random, so that any implementation in any language can make them. Stochastic rounding is replaced by
a generator that always returns 0.5, which rounds to the nearest level, halves up.
"""

from pathlib import Path

import numpy as np

from edgefl.codec.update import encode
from edgefl.codec.weights import PRECISIONS, encode_weights
from edgefl.layout import Float32, Layout, Tensor

HERE = Path(__file__).parent

UPDATES = {
    "update-sparse-1bit": (1000, 0.01, 1),
    "update-gaps-4bit": (1000, 0.1, 4),
    "update-blocks-2bit": (97, 0.4, 2),
    "update-complement-3bit": (100, 0.9, 3),
    "update-dense-8bit": (40, 1.0, 8),
    "update-one": (1, 1.0, 1),
}
"""Size, sparsity and bits by name."""

LAYOUT = Layout((Tensor("w", (4, 9)), Tensor("b", (4,)), Tensor("small", (2, 3))))


class Half(np.random.Generator):
    """A generator that always returns 0.5."""

    def __init__(self) -> None:
        super().__init__(np.random.PCG64(0))

    def random(self, size: int) -> np.ndarray:  # type: ignore[override]  # only this form is used
        """An array of 0.5."""
        return np.full(size, 0.5)


def vector(size: int) -> Float32:
    """x[i] = ((7919 * i) mod 1009 - 504) / 512, exact in float32 and without zeros below i = 1009 but one."""
    return (((7919 * np.arange(size) % 1009) - 504) / 512).astype(np.float32)


def files() -> dict[str, bytes]:
    """All golden files by name."""
    made = {
        f"{name}.bin": encode(vector(size), sparsity=sparsity, bits=bits, rng=Half()).data
        for name, (size, sparsity, bits) in UPDATES.items()
    }
    for precision in PRECISIONS:
        made[f"weights-{precision}.bin"] = encode_weights(vector(LAYOUT.size), LAYOUT, precision)
    return made


if __name__ == "__main__":
    for name, data in files().items():
        (HERE / name).write_bytes(data)
