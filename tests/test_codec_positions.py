import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgefl.codec.positions import decode_positions, encode_positions, golomb_divisor
from edgefl.errors import UpdateError

GRID = (
    0.001,
    0.002,
    0.005,
    0.01,
    0.02,
    0.05,
    0.1,
    0.15,
    0.18,
    0.2,
    0.22,
    0.24,
    0.2499,
    0.25,
    0.28,
    0.3,
    0.33,
    0.36,
    0.382,
    0.4,
    0.45,
    0.5,
)


def entropy(p: float) -> float:
    """H(p) in bits."""
    return -(p * math.log2(p) + (1 - p) * math.log2(1 - p))


def read(data: bytes, parameter: int, count: int, size: int) -> np.ndarray:
    """Decode from bytes."""
    return decode_positions(np.frombuffer(data, dtype=np.uint8), parameter, count, size)


@pytest.mark.parametrize("density", GRID)
def test_positions_cost_at_most_two_per_cent_more_than_their_entropy(density: float) -> None:
    """Coded positions of 100,000 coordinates stay within 2 % of n*H(p), and decode exactly."""
    size = 100_000
    count = round(size * density)
    positions = np.sort(np.random.default_rng(0).choice(size, count, replace=False))
    parameter, data = encode_positions(positions, size)
    np.testing.assert_array_equal(read(data, parameter, count, size), positions)
    assert 8 * len(data) <= 1.02 * size * entropy(count / size)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1), min_size=1))))
def test_any_set_of_positions_survives(case: tuple[int, set[int]]) -> None:
    """Every non-empty subset of any small range decodes to itself: also clustered, first, last, all."""
    size, chosen = case
    positions = np.array(sorted(chosen), dtype=np.int64)
    parameter, data = encode_positions(positions, size)
    np.testing.assert_array_equal(read(data, parameter, len(positions), size), positions)


def test_dense_positions_take_no_bytes() -> None:
    """If everything is sent there is nothing to say about where."""
    assert encode_positions(np.arange(1000), 1000) == (0, b"")


@pytest.mark.parametrize("density", [0.001, 0.01, 0.1, 0.24])
def test_the_divisor_is_optimal(density: float) -> None:
    """No neighbouring Golomb divisor gives a shorter expected code."""

    def expected_bits(m: int) -> float:
        q = 1 - density
        width = m.bit_length() - 1
        short = (2 << width) - m
        remainder = [density * q**r / (1 - q**m) for r in range(m)]
        return 1 / (1 - q**m) + sum(p * (width if r < short else width + 1) for r, p in enumerate(remainder))

    m = golomb_divisor(round(density * 1_000_000), 1_000_000)
    assert expected_bits(m) <= min(expected_bits(m + 1), expected_bits(max(1, m - 1))) + 1e-9


@pytest.mark.parametrize("density", [0.01, 0.4, 0.8])
def test_one_byte_more_or_less_is_refused(density: float) -> None:
    """There is one coding of given positions: neither a missing nor an extra byte is accepted."""
    size = 1000
    positions = np.sort(np.random.default_rng(1).choice(size, int(size * density), replace=False))
    parameter, data = encode_positions(positions, size)
    for wrong in (data[:-1], data + b"\0", data + b"\x80", b""):
        with pytest.raises(UpdateError):
            read(wrong, parameter, len(positions), size)


@pytest.mark.parametrize(
    ("parameter", "count", "size"), [(0, 10, 1000), (1001, 10, 1000), (1 << 31, 10, 1000), (1, 400, 1000), (5, 1000, 1000)]
)
def test_impossible_parameters_are_refused(parameter: int, count: int, size: int) -> None:
    """A divisor that no encoder writes is refused before anything is allocated."""
    with pytest.raises(UpdateError):
        read(bytes(100), parameter, count, size)
