import math

import numpy as np
import pytest

import fuzz_update as fuzz
from edgefl.codec.bits import BitReader, count_to_bits, number_to_bits, pack
from edgefl.codec.classes import Scorer, Stages
from edgefl.codec.contextual import write_contextual
from edgefl.codec.grid import Grid
from edgefl.codec.history import LEVELS, RANGE, History, outer_levels, own_levels
from edgefl.codec.positions import golomb_divisor
from edgefl.codec.sparsify import top_k
from edgefl.codec.subsets import divisor_of, read_subset, write_subset
from edgefl.codec.update import decode
from edgefl.codec.values import quantise
from edgefl.errors import UpdateError

SHAPES = ((30, 40), (30,), (9, 30), ())


def rng(seed: int = 0) -> np.random.Generator:
    """A seeded generator."""
    return np.random.default_rng(seed)


def moved(seed: int = 0) -> np.ndarray:
    """Moves of very different size, many of them none."""
    return (rng(seed).standard_normal(1501) ** 7 * (rng(seed + 1).random(1501) < 0.6)).astype(np.float32)


def test_own_levels_are_half_octaves_below_the_largest() -> None:
    """The largest is at RANGE, a half of it two below, nothing and next to nothing at 0, whatever the scale."""
    x = np.array([8, -8, 12, 15.9, 4, 6, 0, 8 / 2**15, 8 / 2**16, 8 / 2**30], dtype=np.float32)
    for scale in (1.0, 2.0**60, 2.0**-60):
        assert own_levels(x * np.float32(scale)).tolist() == [31, 31, 32, 32, 29, 30, 0, 1, 0, 0]
    assert not own_levels(np.zeros(5, dtype=np.float32)).any()
    assert not own_levels(np.full(5, 1e-44, dtype=np.float32)).any()


def test_levels_do_not_depend_on_the_scale() -> None:
    """Weights that are all doubled have the same levels."""
    x = moved()
    np.testing.assert_array_equal(outer_levels(x, SHAPES), outer_levels(x * np.float32(2.0**40), SHAPES))
    assert outer_levels(x, SHAPES).max() < LEVELS
    assert own_levels(x).max() == RANGE


def test_outer_levels_are_row_times_column_over_sum() -> None:
    """To within two half octaves of the truncated logarithms."""
    x = np.abs(rng(3).standard_normal((20, 30)) ** 3).astype(np.float32)
    exact = np.outer(x.sum(1), x.sum(0)) / x.sum() / 2.0 ** math.frexp(float(x.max()))[1]
    found = outer_levels(x.reshape(-1), ((20, 30),)).reshape(20, 30)
    assert np.abs(found - 2 * (np.log2(exact) + 24)).max() <= 2.5


def test_huge_and_tiny_weights_have_levels() -> None:
    """A move beyond float32's range counts as the largest, without a warning."""
    big = np.array([3e38, -3e38, 1.0, 0.0], dtype=np.float32)
    with np.errstate(all="raise", over="ignore"):
        known = History(big, -big, big, ((2, 2),))
        assert all(len(kind) == 4 for kind in known.levels)


def test_stages_are_an_eighth_three_eighths_and_a_half() -> None:
    """In the whole, and in every row and column of a layer to within chance."""
    stage = Grid(((200, 784), (200,))).stage
    counts = np.bincount(stage)
    np.testing.assert_allclose(counts / len(stage), [1 / 8, 3 / 8, 1 / 2], atol=0.005)
    table = stage[: 200 * 784].reshape(200, 784) == 2
    assert abs(table.mean(axis=0) - 0.5).max() < 0.2
    assert abs(table.mean(axis=1) - 0.5).max() < 0.1


def test_rows_and_columns_are_numbered_through_all_tensors() -> None:
    """By hand for four tensors: 30 rows, then 30, then 9, then one."""
    rows, columns = Grid(SHAPES).rows_and_columns(np.array([0, 41, 1199, 1200, 1229, 1230, 1261, 1500]))
    assert rows.tolist() == [0, 1, 29, 30, 59, 60, 61, 69]
    assert columns.tolist() == [0, 1, 39, 40, 40, 41, 42, 71]


@pytest.mark.parametrize("number", [0, 1, 15, 16, 100, 5000, 1 << 28])
def test_counts_survive(number: int) -> None:
    """Counts and signed numbers are read as they were written, to the last bit."""
    for signed in (number, -number):
        reader = BitReader(np.frombuffer(pack([count_to_bits(number), number_to_bits(signed)]), dtype=np.uint8))
        assert reader.count(number) == number
        assert reader.number(number) == signed
        reader.end()


def test_a_count_above_its_limit_is_refused() -> None:
    """Before anything is allocated for it; as is a run of zeros without an end."""
    for bits in (count_to_bits(11), np.zeros(60, dtype=np.bool_), np.zeros(3, dtype=np.bool_)):
        with pytest.raises(UpdateError):
            BitReader(np.packbits(bits)).count(10)


def test_the_derived_divisor_costs_no_more_than_the_best() -> None:
    """In integers both ends find a divisor as good as the best one to a thousandth."""

    def expected_bits(m: int, p: float) -> float:
        width = m.bit_length() - 1
        whole = 1 - (1 - p) ** m
        long = ((1 - p) ** ((2 << width) - m) - (1 - p) ** m) / whole
        return 1 / whole + width + long

    for size in (9, 1000, 1 << 28):
        for count in sorted({max(1, int(size / d)) for d in np.geomspace(4.01, size, 200)}):
            best, derived = golomb_divisor(count, size), divisor_of(count, size)
            assert expected_bits(derived, count / size) <= 1.001 * expected_bits(best, count / size)


@pytest.mark.parametrize("size", [1, 2, 5, 17, 1000])
def test_every_number_of_members_survives(size: int) -> None:
    """From none to all of a set, one after the other in one row of bits."""
    sets = [np.sort(rng(k).choice(size, k, replace=False)) for k in range(0, size + 1, max(1, size // 40))]
    pieces = [piece for members in sets for piece in write_subset(members, size)]
    reader = BitReader(np.frombuffer(pack(pieces), dtype=np.uint8))
    for members in sets:
        np.testing.assert_array_equal(read_subset(reader, len(members), size), members)
    reader.end()


def file_and_history(scorer: Scorer, bits: int = 3, count: int = 90) -> tuple[bytes, History, np.ndarray]:
    """A file of version 2, what reads it, and its positions."""
    start = rng(9).standard_normal(1501).astype(np.float32)
    known = History(start, start + moved(1), start + moved(1) + moved(5), SHAPES)
    positions = top_k(moved(7), count)
    return write_contextual(positions, quantise(moved(7)[positions], bits, rng()), known, scorer), known, positions


SCORERS = [
    Scorer(0, (0, 0, 0, 0), (0, 0, 0, 0)),
    Scorer(5, (20, -3, 11, 4095), (-4095, 4095, 7, 0)),
    Scorer(-4095, (9, 9, 9, 9), (0, 0, 0, 0), Stages(100, -4095, 77), (1, -1, 4095, -4095)),
    Scorer(3, (7, 0, 0, 2), (0, 0, 64, 0), Stages(0, 20, 20)),
]


@pytest.mark.parametrize("scorer", SCORERS)
def test_any_scorer_gives_a_readable_file(scorer: Scorer) -> None:
    """What levels are worth is the encoder's affair; also nonsense is read back exactly."""
    data, known, positions = file_and_history(scorer)
    np.testing.assert_array_equal(decode(data, 1501, known).positions, positions)


@pytest.mark.parametrize("scorer", SCORERS)
def test_truncated_and_prolonged_files_in_context_are_refused(scorer: Scorer) -> None:
    """Every proper prefix, and every file with a byte more, is an UpdateError."""
    data, known, _ = file_and_history(scorer)
    for wrong in (*(data[:end] for end in range(len(data))), data + b"\0", data + b"\xff", data + data):
        with pytest.raises(UpdateError):
            decode(wrong, 1501, known)


def test_stages_or_tensors_without_shapes_are_refused() -> None:
    """A reader that does not know the tensors says so, before it reads on."""
    data, known, _ = file_and_history(SCORERS[2])
    with pytest.raises(UpdateError):
        decode(data, 1501, History(known.start, known.before, known.now))


def test_ten_thousand_damaged_files_never_surprise_the_decoder() -> None:
    """A short run of the fuzz target `tests/fuzz_update.py`: only UpdateError, in bounded memory and time."""
    read, _ = fuzz.run(10_000, seed=0)
    assert read > 500
