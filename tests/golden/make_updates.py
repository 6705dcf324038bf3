"""Makes the golden update and weights files. `python tests/golden/make_updates.py` rewrites them.

Inputs are arithmetic, not random, so that any implementation in any language can make them. Stochastic rounding is replaced by
a generator that always returns 0.5, which rounds to the nearest level, halves up; the seed of a rotation is 2022.
"""

import struct
from pathlib import Path

import numpy as np

from edgefl.codec.bits import pack
from edgefl.codec.classes import Scorer, Stages
from edgefl.codec.contextual import write_contextual
from edgefl.codec.fixed import packed_length
from edgefl.codec.history import History
from edgefl.codec.marks import marked, prunable
from edgefl.codec.plain import HEADER_LENGTH
from edgefl.codec.rotated import write_rotated
from edgefl.codec.sparsify import top_k
from edgefl.codec.subsets import complement, write_gaps
from edgefl.codec.update import decode, encode
from edgefl.codec.values import quantise
from edgefl.codec.weights import PRECISIONS, TRAINABLE, encode_weights
from edgefl.layout import Float32, Layout, Tensor

HERE = Path(__file__).parent

UPDATES = {
    "update-rice-1bit": (1000, 0.01, 1),
    "update-gaps-4bit": (1000, 0.1, 4),
    "update-blocks-2bit": (97, 0.4, 2),
    "update-rice-3bit": (100, 0.9, 3),
    "update-dense-8bit": (40, 1.0, 8),
    "update-one": (1, 1.0, 1),
}
"""Size, sparsity and bits by name."""

DIVIDED = {"update-sparse-1bit": (1000, 0.01, 1, 69), "update-complement-3bit": (100, 0.9, 3, 7)}
"""Size, sparsity, bits and divisor by name: with the divisor that encoders of edgefl took at first."""

SHAPES = ((20, 40), (20,), (9, 20))
CONTEXTUAL = {
    "update-context-1bit": (SHAPES, 40, 1, Scorer(-2, (9, 4, 3, 2), (-30, 25, -64, 0))),
    "update-context-4bit": (SHAPES, 150, 4, Scorer(0, (8, 0, 0, 2), (0, 0, 0, -70), None, (-200, 40, 64))),
    "update-context-staged": (SHAPES, 60, 2, Scorer(3, (5, 0, 0, 0), (0, 0, 0, 0), Stages(500, 9, 5))),
    "update-context-flat": ((), 30, 6, Scorer(1, (7, -3), (0, 0))),
}
"""Shapes, count, bits and scorer by name; the vector has 1000 coordinates."""

ROTATED = {"update-rotated-1bit": (100, 1), "update-rotated-4bit": (77, 4)}
"""Size and bits by name."""

LAYOUT = Layout((Tensor("w", (4, 9)), Tensor("b", (4,)), Tensor("small", (2, 3))))
LARGE = Layout((Tensor("w", (60, 50)), Tensor("b", (60,)), Tensor("state", (60,), "state")))
"""Large enough for its coarse files to be entropy-coded."""


class Half(np.random.Generator):
    """A generator that always returns 0.5."""

    def __init__(self) -> None:
        super().__init__(np.random.PCG64(0))

    def integers(self, _limit: int) -> int:  # type: ignore[override]  # only this form is used
        """The seed of the golden rotation."""
        return 2022

    def random(self, size: int) -> np.ndarray:  # type: ignore[override]  # only this form is used
        """An array of 0.5."""
        return np.full(size, 0.5)


def vector(size: int) -> Float32:
    """x[i] = ((7919 * i) mod 1009 - 504) / 512, exact in float32 and without zeros below i = 1009 but one."""
    return (((7919 * np.arange(size) % 1009) - 504) / 512).astype(np.float32)


def pruned(size: int) -> Float32:
    """Every ninth value of `vector`, in sixteenths, is left, and nothing in the columns below 10."""
    x = np.rint(vector(size) * 16) / 16
    i = np.arange(size)
    return np.where((i % 9 == 0) & ((i >= 3000) | (i % 50 >= 10)), x, 0).astype(np.float32)


def without(size: int) -> Float32:
    """What `pruned` leaves of `vector`, everything else of its tensors that can be pruned being gone."""
    x = pruned(size)
    return marked(x, (x == 0) & prunable(LARGE))


def history(shapes: tuple[tuple[int, ...], ...]) -> History:
    """Weights that moved twice: by x / 8 in every coordinate that 3 divides, then by a shifted x / 16 in every even one."""
    start = vector(1000)[::-1].copy()
    before, now = start.copy(), start.copy()
    before[::3] += vector(1000)[::3] / np.float32(8)
    now[:] = before
    now[::2] += np.roll(vector(1000), 7)[::2] / np.float32(16)
    return History(start, before, now, shapes)


def divided(name: str) -> bytes:
    """A golden file of version 1 with a divisor that this encoder would not choose."""
    size, sparsity, bits, divisor = DIVIDED[name]
    data = encode(vector(size), sparsity=sparsity, bits=bits, rng=Half()).data
    sent = decode(data, size).positions
    coded = complement(sent, size) if 2 * len(sent) > size else sent
    values = data[: HEADER_LENGTH + packed_length(len(sent), bits)]
    streams = b"".join(pack([stream]) for stream in write_gaps(coded, divisor))
    return values[: HEADER_LENGTH - 4] + struct.pack("<I", divisor) + values[HEADER_LENGTH:] + streams


def contextual(name: str) -> bytes:
    """A golden file of version 2. The scorer is given: fitting one is the encoder's own affair."""
    shapes, count, bits, scorer = CONTEXTUAL[name]
    x = vector(1000)
    positions = top_k(x, count)
    return write_contextual(positions, quantise(x[positions], bits, Half()), history(shapes), scorer)


def files() -> dict[str, bytes]:
    """All golden files by name."""
    made = {
        f"{name}.bin": encode(vector(size), sparsity=sparsity, bits=bits, rng=Half()).data
        for name, (size, sparsity, bits) in UPDATES.items()
    }
    made |= {f"{name}.bin": divided(name) for name in DIVIDED}
    made |= {f"{name}.bin": contextual(name) for name in CONTEXTUAL}
    made |= {f"{name}.bin": write_rotated(vector(size), bits, Half()) for name, (size, bits) in ROTATED.items()}
    for precision in PRECISIONS:
        made[f"weights-{precision}.bin"] = encode_weights(vector(LAYOUT.size), LAYOUT, precision)
        if precision in TRAINABLE:
            made[f"weights-{precision}-masked.bin"] = encode_weights(without(LARGE.size), LARGE, precision)
        else:
            made[f"weights-{precision}-coded.bin"] = encode_weights(pruned(LARGE.size), LARGE, precision)
    return made


if __name__ == "__main__":
    for name, data in files().items():
        (HERE / name).write_bytes(data)
