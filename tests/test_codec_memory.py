"""What coding takes beside what goes in: so many bytes for each parameter, however much of the model an update carries."""

import math
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from edgefl.codec import bits, pieces, pricing
from edgefl.codec.compress import Compressed, Memory, compress
from edgefl.codec.history import History
from edgefl.codec.scheme import Scheme
from edgefl.codec.update import decode
from edgefl.layout import Float32

SHAPES = ((1500, 784), (1500,), (200, 1500), (200,))
SIZE = sum(math.prod(shape) for shape in SHAPES)
SPARSE, LARGEST, MORE = 28.0, 36.0, 16.0
"""Bytes a parameter that encoding takes of a sparse update, of any, and of any more than of a sparse one."""
READING = 22.0


def rng(seed: int = 0) -> np.random.Generator:
    """Repeatable randomness."""
    return np.random.default_rng(seed)


def deltas(size: int) -> Float32:
    """Values of very different size, none of them zero."""
    return (rng(1).standard_normal(size) ** 3 + 1e-6).astype(np.float32)


def history(moved: float, shapes: tuple[tuple[int, ...], ...] = SHAPES) -> History:
    """Weights of which so much has moved, some rows and columns far more than others, so that updates come in stages."""
    activity = [
        np.outer(*(np.exp(2 * rng(3).standard_normal(side)) for side in (shape[0], math.prod(shape[1:])))) for shape in shapes
    ]
    moves = np.concatenate([one.reshape(-1) for one in activity]).astype(np.float32) * np.float32(moved)
    start = rng(2).standard_normal(len(moves)).astype(np.float32)
    return History(start, start + moves * deltas(len(moves)), start - moves, shapes)


@contextmanager
def peak(found: list[float]) -> Iterator[None]:
    """Adds the most bytes a parameter that were allocated at a time."""
    tracemalloc.start()
    try:
        yield
        found.append(tracemalloc.get_traced_memory()[1] / SIZE)
    finally:
        tracemalloc.stop()


def coded(scheme: Scheme, past: History | None, vector: Float32) -> Compressed:
    """An update of a device that has sent nothing yet."""
    return compress(vector, Memory.empty(len(vector), scheme), scheme, history=past, rng=rng(5))


def peaks(scheme: Scheme, past: History | None) -> list[float]:
    """The most bytes a parameter that encoding, and decoding, allocate at a time."""
    vector, memory, found = deltas(SIZE), Memory.empty(SIZE, scheme), []
    with peak(found):
        done = compress(vector, memory, scheme, history=past, rng=rng(5))
    with peak(found):
        read = decode(done.data, SIZE, past)
    assert np.array_equal(read.values, done.sent.values)
    return found


@pytest.mark.parametrize("moved", [None, 0.0, 1e-3])
def test_coding_takes_so_many_bytes_a_parameter(moved: float | None) -> None:
    """However much is sent: what comes out of it, a place and a value for each parameter that is sent, and little more."""
    past = None if moved is None else history(moved)
    writing, reading = peaks(Scheme(sparsity=0.02, correction=0.9), past)
    assert writing < SPARSE
    assert reading < READING
    for scheme in (
        Scheme(sparsity=0.2, bits=8, correction=0.9),
        Scheme(sparsity=0.2, bits=8, correction=0.9, price=1.0),
        Scheme(sparsity=1.0, bits=8, correction=0.9),
        Scheme(sparsity=1.0, bits=1, correction=0.9),
        Scheme(sparsity=1.0, bits=8, correction=0.9, rotated=True),
    ):
        whole, read = peaks(scheme, None if moved is None else history(moved))
        assert whole < min(LARGEST, writing + MORE), scheme
        assert read < READING, scheme


@pytest.mark.parametrize("moved", [None, 0.0, 1e-3])
@pytest.mark.parametrize(
    "scheme",
    [
        *(
            Scheme(sparsity, width, price=price)
            for sparsity in (0.02, 0.2, 0.6, 1.0)
            for width, price in ((8, 0.0), (1, 0.0), (5, 0.7))
        ),
        Scheme(sparsity=1.0, rotated=True),
    ],
)
def test_pieces_leave_no_trace(monkeypatch: pytest.MonkeyPatch, scheme: Scheme, moved: float | None) -> None:
    """In pieces of any length an update has the same bytes, and reads as the same."""
    past = None if moved is None else history(moved, ((30, 201), (30,)))
    whole = coded(scheme, past, deltas(6060))
    monkeypatch.setattr(pieces, "PIECE", 64)
    monkeypatch.setattr(bits, "_BATCH", 100)
    monkeypatch.setattr(pricing, "_STRIDE", 8)
    again = coded(scheme, past, deltas(6060))
    assert again.data == whole.data
    assert np.array_equal(again.memory.residual, whole.memory.residual)
    read = decode(again.data, 6060, past)
    assert np.array_equal(read.positions, whole.sent.positions)
    assert np.array_equal(read.values, whole.sent.values)


def test_flags_are_followed_as_numpy_follows_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values at flags are taken and put as by indexing with the flags."""
    monkeypatch.setattr(pieces, "PIECE", 64)
    flags, values = rng().random(1000) < 0.3, rng(1).random(1000)
    taken = pieces.gather(values, flags)
    assert np.array_equal(taken, values[flags])
    expected, found = values.copy(), values.copy()
    expected[flags] = taken[::-1]
    pieces.scatter(found, flags, taken[::-1])
    assert np.array_equal(found, expected)
