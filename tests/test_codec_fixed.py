"""What makes reading fast gives what the slow way gives: codes of a fixed width, any divisor, members by rank, the mean."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgefl.aggregate.mean import PartialSum
from edgefl.codec.bits import BitReader, pack
from edgefl.codec.fixed import codes_of, codes_to_bits, packed_length
from edgefl.codec.positions import decode_positions, encode_positions, gaps_length, golomb_divisor
from edgefl.codec.ranks import Listed, Unlisted, by_class
from edgefl.codec.sparsify import Sparse
from edgefl.codec.subsets import read_gaps, write_gaps
from edgefl.errors import UpdateError


def rng(seed: int = 0) -> np.random.Generator:
    """Repeatable randomness."""
    return np.random.default_rng(seed)


@pytest.mark.parametrize("width", range(33))
@pytest.mark.parametrize("skipped", [0, 3, 8])
def test_codes_of_every_width_are_read_as_written(width: int, skipped: int) -> None:
    """From any bit on, any number of them, and not a bit of what follows."""
    for count in (0, 1, 7, 8, 9, 100):
        codes = rng(count).integers(0, 1 << width, count)
        bits = [np.ones(skipped, dtype=np.bool_), codes_to_bits(codes, width), np.ones(5, dtype=np.bool_)]
        reader = BitReader(np.frombuffer(pack(bits), dtype=np.uint8))
        assert reader.take(skipped).all()
        np.testing.assert_array_equal(reader.codes(count, width), codes)
        assert reader.take(5).all()
        reader.end()


@pytest.mark.parametrize("width", [1, 6, 8, 11, 16, 20])
def test_codes_need_no_byte_more_than_they_fill(width: int) -> None:
    """The words that are read in one piece end with the data; one bit too few is refused before anything is allocated."""
    codes = rng().integers(0, 1 << width, 9)
    data = np.frombuffer(pack([codes_to_bits(codes, width)]), dtype=np.uint8)
    assert len(data) == packed_length(9, width)
    np.testing.assert_array_equal(codes_of(data, 9, width), codes)
    with pytest.raises(UpdateError):
        BitReader(data).codes(1 << 28, width)


@settings(max_examples=150, deadline=None)
@given(st.sets(st.integers(0, 99_999), min_size=1, max_size=60), st.integers(1, 100_000))
def test_gaps_survive_every_divisor(chosen: set[int], divisor: int) -> None:
    """A reader takes any divisor, not only the encoder's choice."""
    members = np.array(sorted(chosen))
    data = b"".join(pack([stream]) for stream in write_gaps(members, divisor))
    reader = BitReader(np.frombuffer(data, dtype=np.uint8), step=8)
    np.testing.assert_array_equal(read_gaps(reader, divisor, len(members), 100_000), members)
    reader.end()
    assert 8 * len(data) >= gaps_length(np.diff(members, prepend=-1) - 1, divisor) > 8 * len(data) - 24


@pytest.mark.parametrize("density", [0.001, 0.005, 0.01, 0.02, 0.04, 0.07, 0.2])
@pytest.mark.parametrize("clustered", [False, True])
def test_a_power_of_two_costs_at_most_a_thousandth(density: float, *, clustered: bool) -> None:
    """The quicker divisor never makes the code more than a thousandth longer, however the positions lie."""
    size = 200_000
    count = round(size * density)
    drawn = rng(1).choice(size, 4 * count if 4 * count < size else count, replace=False)
    cluster = size // 8 + np.arange(count // 2 if clustered else 0)
    positions = np.unique(np.concatenate([drawn[: count - len(cluster)], cluster]))
    divisor, data = encode_positions(positions, size)
    best = golomb_divisor(len(positions), size)
    gaps = np.diff(positions, prepend=-1) - 1
    assert divisor == best or divisor.bit_count() == 1
    assert gaps_length(gaps, divisor) <= 1.001 * gaps_length(gaps, best)
    np.testing.assert_array_equal(decode_positions(np.frombuffer(data, dtype=np.uint8), divisor, len(positions), size), positions)


@pytest.mark.parametrize("densities", [(1.0,), (0.5, 0.5), (0.0, 0.9, 0.1), (0.05, 0.8, 0.0, 0.15), (0.3, 0.3, 0.4)])
@pytest.mark.parametrize("size", [0, 1, 5, 2000])
def test_members_and_ranks_belong_together(densities: tuple[float, ...], size: int) -> None:
    """For each class, whichever is the common one: the r-th member by rank, and its rank back; none without members."""
    of_each = rng(size).choice(len(densities), size, p=densities).astype(np.uint8)
    found = dict(by_class(of_each, 8))
    assert list(found) == sorted(set(of_each.tolist()), reverse=True)
    for number, members in found.items():
        expected = np.flatnonzero(of_each == number)
        assert members.size == len(expected)
        np.testing.assert_array_equal(members.at(np.arange(members.size)), expected)
        np.testing.assert_array_equal(members.ranks(expected[::3]), np.arange(members.size)[::3])
    assert not size or any(isinstance(members, Unlisted) for members in found.values())
    assert all(isinstance(members, Listed | Unlisted) for members in found.values())


def test_the_mean_of_whole_variants_is_that_of_covered_coordinates() -> None:
    """The shorter way for updates that all cover the parent gives the same bits as the way by coverage."""
    size, whole, mapped = 5000, PartialSum(5000), PartialSum(5000)
    for number in range(7):
        positions = np.sort(rng(number).choice(size, 300, replace=False))
        update = Sparse(positions, rng(number).standard_normal(300).astype(np.float32), size)
        whole.add(update, None, 1.7 + number, key="w")
        mapped.add(update, np.arange(size), 1.7 + number, key="w")
    assert whole.result().dtype == np.float32
    np.testing.assert_array_equal(whole.result(), mapped.result())
    assert not PartialSum(3).result().any()
