"""Makes the golden difference files. `python tests/golden/make_differences.py` rewrites them.

Inputs are arithmetic, so that any implementation in any language can make them.
"""

from pathlib import Path

import numpy as np

from edgefl.codec.difference import encode_difference
from edgefl.codec.weights import TRAINABLE, Precision, encode_weights
from edgefl.layout import Float32, Layout, Tensor

HERE = Path(__file__).parent

LAYOUT = Layout((Tensor("w", (6, 50)), Tensor("b", (6,)), Tensor("small", (2, 3))))
ONE = Layout((Tensor("w", (10,)),))


def before(size: int) -> Float32:
    """x[i] = ((7919 * i) mod 1009 - 504) / 4096, exact in float32."""
    return (((7919 * np.arange(size) % 1009) - 504) / 4096).astype(np.float32)


def after(size: int) -> Float32:
    """The same, but each 11th value is one to three steps of 1/64 higher or lower in turns."""
    x, moved = before(size), np.arange(3, size, 11)
    x[moved] += ((moved % 3 + 1) * np.where(moved % 2, -1, 1) / 64).astype(np.float32)
    return x


def pairs() -> dict[str, tuple[bytes, bytes, Layout]]:
    """Base, target and layout of each difference."""
    made = {
        f"difference-{precision}": (
            encode_weights(before(LAYOUT.size), LAYOUT, precision),
            encode_weights(after(LAYOUT.size), LAYOUT, precision),
            LAYOUT,
        )
        for precision in TRAINABLE
    }
    one = [encode_weights(x(ONE.size), ONE, Precision.FP32) for x in (before, after)]
    return {**made, "difference-one": (one[0], one[1], ONE)}


def files() -> dict[str, bytes]:
    """All golden files by name."""
    return {f"{name}.bin": encode_difference(base, target, layout) or b"" for name, (base, target, layout) in pairs().items()}


if __name__ == "__main__":
    for name, data in files().items():
        (HERE / name).write_bytes(data)
