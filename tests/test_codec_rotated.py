import math
import struct
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgefl.codec.centroids import POSITIVE, UNIT
from edgefl.codec.hadamard import BLOCK, block_lengths, random_signs, transform
from edgefl.codec.rotated import HEADER_LENGTH, write_rotated
from edgefl.codec.update import decode, max_length, needs_history
from edgefl.errors import UpdateError

NMSE = (0.571, 0.133, 0.0358, 0.0096, 0.0025, 0.00065, 0.000164, 0.0000412)


def rng(seed: int = 0) -> np.random.Generator:
    """A seeded generator."""
    return np.random.default_rng(seed)


@pytest.mark.parametrize("bits", range(1, 9))
def test_the_error_is_that_of_the_paper(bits: int) -> None:
    """For vectors of very different distributions the squared error is EDEN's for normal values."""
    vectors = rng(1).standard_normal(70_000) ** 3, rng(2).random(70_000) + 1.0, np.sort(rng(3).standard_normal(70_000))
    for x in (vector.astype(np.float32) for vector in vectors):
        values = decode(write_rotated(x, bits, rng(3)), len(x)).values
        error = np.square(values.astype(np.float64) - x).sum() / np.square(x.astype(np.float64)).sum()
        assert error == pytest.approx(NMSE[bits - 1], rel=0.06)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_the_decoded_vector_is_unbiased(bits: int) -> None:
    """The mean over many rotations approaches the vector as fast as independent unbiased errors would let it."""
    x = rng(1).standard_normal(1536).astype(np.float32)
    draws = 200
    mean = np.mean([decode(write_rotated(x, bits, rng(seed)), 1536).values for seed in range(draws)], axis=0, dtype=np.float64)
    error = np.square(mean - x).sum() / np.square(x.astype(np.float64)).sum()
    assert error < 1.5 * NMSE[bits - 1] / draws


@pytest.mark.parametrize("bits", range(1, 9))
def test_the_centroids_are_those_of_lloyd_and_max(bits: int) -> None:
    """Each is the mean of the normal distribution over its cell, to the tables' precision."""

    def density(x: float) -> float:
        return math.exp(-x * x / 2) / math.sqrt(2 * math.pi)

    levels = [c / UNIT for c in POSITIVE[bits - 1]]
    assert len(levels) == 1 << (bits - 1)
    borders = [0.0, *((a + b) / 2 for a, b in pairwise(levels)), 38.0]
    for level, (low, high) in zip(levels, pairwise(borders), strict=True):
        mass = (math.erfc(low / math.sqrt(2)) - math.erfc(high / math.sqrt(2))) / 2
        assert level == pytest.approx((density(low) - density(high)) / mass, abs=0.02)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 700), st.integers(1, 8), st.integers(0, 99))
def test_every_size_survives(size: int, bits: int, seed: int) -> None:
    """Sizes that are no powers of two need no padding; bytes stay in bounds; the product with the vector is kept."""
    x = rng(seed).standard_normal(size).astype(np.float32)
    data = write_rotated(x, bits, rng(seed))
    assert len(data) <= max_length(size)
    assert not needs_history(data)
    read = decode(data, size)
    np.testing.assert_array_equal(read.positions, np.arange(size))
    assert float(read.values @ x) == pytest.approx(float(x @ x), rel=1e-3)


def test_the_transform_is_hadamard() -> None:
    """H times H is d times the identity, block by block, exactly in integers; rows of a small one are Sylvester's."""
    x = rng(0).integers(-1000, 1000, BLOCK + 300).astype(np.int32)
    twice = transform(transform(x))
    expected = x.astype(np.int64) * np.repeat(block_lengths(len(x)), block_lengths(len(x)))
    np.testing.assert_array_equal(twice, expected)
    small = np.stack([transform(row) for row in np.eye(4, dtype=np.int32)])
    np.testing.assert_array_equal(small, [[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]])


def test_signs_are_those_of_splitmix() -> None:
    """The first word of SplitMix64 with seed 0 is 0xE220A8397B1DCDAF; a set bit is -1."""
    word = int("".join("1" if sign < 0 else "0" for sign in random_signs(0, 64)), 2)
    assert word == 0xE220A8397B1DCDAF


def test_extreme_vectors_survive() -> None:
    """Zeros stay zeros; the largest and the smallest float32 values stay finite."""
    assert not decode(write_rotated(np.zeros(100, dtype=np.float32), 3, rng()), 100).values.any()
    for scale in (3.4e38, 1e-44):
        x = np.full(100, scale, dtype=np.float32)
        assert np.isfinite(decode(write_rotated(x, 2, rng()), 100).values).all()


@pytest.mark.parametrize("scale", [math.nan, math.inf, -1.0])
def test_impossible_scales_are_refused(scale: float) -> None:
    """A scale is finite and not negative."""
    data = bytearray(write_rotated(np.ones(100, dtype=np.float32), 2, rng()))
    data[HEADER_LENGTH : HEADER_LENGTH + 4] = struct.pack("<f", scale)
    with pytest.raises(UpdateError):
        decode(bytes(data), 100)


def test_other_lengths_are_refused() -> None:
    """The length follows from size and bits: every prefix, and a byte more, is an UpdateError."""
    data = write_rotated(np.ones(77, dtype=np.float32), 3, rng())
    for wrong in (*(data[:end] for end in range(len(data))), data + b"\0"):
        with pytest.raises(UpdateError):
            decode(wrong, 77)
    with pytest.raises(UpdateError):
        decode(data, 78)
