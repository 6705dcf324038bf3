"""Differences between weights files, and the server's way of moving what devices hold: exact, short, and safe to read."""

import contextlib
import tracemalloc
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import make_differences as make
from edgefl.codec.advance import advance
from edgefl.codec.bits import BitReader, pack
from edgefl.codec.difference import apply_difference, encode_difference
from edgefl.codec.integers import read_integers, write_integers
from edgefl.codec.moves import GRID
from edgefl.codec.sparsify import count_sent
from edgefl.codec.weights import PRECISIONS, TRAINABLE, Precision, encode_weights
from edgefl.errors import ModelError, UpdateError
from edgefl.layout import Float32, Layout, Tensor

HERE = Path(__file__).parent / "golden"

LAYOUT = Layout((Tensor("conv", (16, 3, 5, 5)), Tensor("bias", (16,)), Tensor("fc", (10, 200)), Tensor("scale", ())))


def course(rounds: int, sparsity: float = 0.05, seed: int = 0, spread: float = 0.1) -> list[Float32]:
    """What devices hold from round to round while a parent walks about."""
    rng = np.random.default_rng(seed)
    parent = (rng.normal(size=LAYOUT.size) * spread).astype(np.float32)
    held = [parent]
    for _ in range(rounds):
        parent = parent + (rng.laplace(size=LAYOUT.size) * 0.003).astype(np.float32)
        held.append(advance(held[-1], parent, sparsity))
    return held


def encoded(vectors: list[Float32], precision: Precision) -> list[bytes]:
    """Their weights files."""
    return [encode_weights(vector, LAYOUT, precision) for vector in vectors]


@pytest.mark.parametrize("precision", TRAINABLE)
@pytest.mark.parametrize("missed", [1, 2, 8, 12])
def test_a_difference_makes_the_target_to_the_last_bit(precision: Precision, missed: int) -> None:
    """Over one round or many, at any precision, from weights that are on no grid."""
    files = encoded(course(12), precision)
    difference = encode_difference(files[12 - missed], files[12], LAYOUT)
    assert difference is not None
    assert apply_difference(files[12 - missed], difference, LAYOUT) == files[12]


@pytest.mark.parametrize("precision", TRAINABLE)
def test_a_partial_sum_is_what_the_single_differences_come_to(precision: Precision) -> None:
    """One difference over three rounds gives what three in a row give, and is not longer than they together."""
    files = encoded(course(9), precision)[6:]
    singles = [encode_difference(a, b, LAYOUT) for a, b in pairwise(files)]
    whole, step = encode_difference(files[0], files[-1], LAYOUT), files[0]
    for single in singles:
        step = apply_difference(step, single, LAYOUT)
    assert apply_difference(files[0], whole, LAYOUT) == step == files[-1]
    assert len(whole) <= sum(map(len, singles))


def test_moves_are_nearly_ternary_and_cost_little_more_than_their_places() -> None:
    """At 5 % a changed coordinate takes 5.7 bits for its place, one for its sign, and less than two for how far."""
    held = course(6)
    difference = encode_difference(*encoded(held, Precision.FP32)[-2:], LAYOUT)
    changed = np.count_nonzero(held[-1] != held[-2])
    assert 8 * len(difference) < 8.8 * changed + 200
    assert 40 * len(difference) < len(encode_weights(held[-1], LAYOUT, Precision.FP32))


def test_nothing_changes_for_nothing() -> None:
    """Equal files have a difference of a few bytes, and weights that are what they should be stay as they are."""
    held = course(1)[-1]
    data = encode_weights(held, LAYOUT, Precision.FP32)
    difference = encode_difference(data, data, LAYOUT)
    assert len(difference) < 12
    assert apply_difference(data, difference, LAYOUT) == data
    np.testing.assert_array_equal(advance(held, held, 0.1), held)


def test_unlike_weights_have_no_difference_that_is_worth_it() -> None:
    """What would be as long as the file itself is not made; files of different kinds have none at all."""
    rng = np.random.default_rng(0)
    one, other = (encode_weights(rng.standard_normal(LAYOUT.size).astype(np.float32), LAYOUT, Precision.FP32) for _ in "ab")
    difference = encode_difference(one, other, LAYOUT)
    assert difference is None or len(difference) < len(other)
    with pytest.raises(UpdateError):
        encode_difference(one, encode_weights(course(1)[0], LAYOUT, Precision.FP16), LAYOUT)
    with pytest.raises(UpdateError):
        encode_difference(one, other[:-4], LAYOUT)


HARD = {
    "large": 1e6,
    "enormous": 1e30,
    "tiny": 1e-9,
    "subnormal": 1e-40,
}


@pytest.mark.parametrize("spread", HARD.values(), ids=HARD)
def test_weights_of_any_size_come_out_exactly(spread: float) -> None:
    """Beyond the range in which moves are exact there are corrections: longer, but right."""
    rng = np.random.default_rng(1)
    one = (rng.normal(size=LAYOUT.size) * spread).astype(np.float32)
    other = one.copy()
    some = rng.choice(LAYOUT.size, 90, replace=False)
    other[some] += (rng.normal(size=90) * spread * 0.1).astype(np.float32)
    other[some[0]] = -0.0
    for precision in (Precision.FP32, Precision.INT8):
        files = encoded([one, other], precision)
        difference = encode_difference(*files, LAYOUT)
        assert apply_difference(files[0], difference, LAYOUT) == files[1]


def test_what_is_held_and_what_is_missing_are_the_parent() -> None:
    """The server loses nothing: with a parent that stands still, what devices hold gets there, and no coordinate moves away."""
    rng = np.random.default_rng(2)
    parent = (rng.normal(size=2000) * 0.1).astype(np.float32)
    held = parent + (rng.laplace(size=2000) * 0.01).astype(np.float32)
    grid = 2.0**-GRID
    for _ in range(400):
        after = advance(held, parent, 0.05)
        assert np.count_nonzero(after != held) <= count_sent(2000, 0.05)
        assert (np.abs(parent - after) <= np.abs(parent - held) + grid).all()
        held = after
    assert np.abs(parent - held).max() <= grid


def test_the_last_round_leaves_half_a_step_at_most() -> None:
    """When nothing follows, everything moves that is half a step away; what few coordinates left undone is small everywhere."""
    rng = np.random.default_rng(3)
    held = (rng.normal(size=5000) * 0.1).astype(np.float32)
    parent = held + (rng.laplace(size=5000) * 0.003).astype(np.float32)
    usual, last = advance(held, parent, 0.02), advance(held, parent, 0.02, last=True)
    chosen = usual != held
    np.testing.assert_array_equal(usual[chosen], last[chosen])
    step = float(np.abs(usual[chosen] - held[chosen]).min())
    assert np.abs(parent - last).max() <= step / 2 + 2.0**-GRID < np.abs(parent - usual).max()


def test_weights_that_are_not_finite_do_not_move() -> None:
    """A parent that has diverged is refused before anything is made of it."""
    held = np.zeros(10, dtype=np.float32)
    for bad in (np.nan, np.inf):
        with pytest.raises(ModelError):
            advance(held, np.full(10, bad, dtype=np.float32), 0.5)
    with pytest.raises(ModelError):
        advance(held, np.zeros(11, dtype=np.float32), 0.5)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.one_of(st.just(0), st.integers(-9, 9), st.integers(-(2**32) + 1, 2**32 - 1)), max_size=300))
def test_integers_are_read_as_they_were_written(values: list[int]) -> None:
    """Any vector of integers, of whatever sizes and density."""
    vector = np.array(values, dtype=np.int64)
    reader = BitReader(np.frombuffer(pack(write_integers(vector)), dtype=np.uint8))
    places, found = read_integers(reader, len(vector))
    reader.end()
    again = np.zeros_like(vector)
    again[places] = found
    np.testing.assert_array_equal(again, vector)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 1 << 32), st.sampled_from(TRAINABLE), st.integers(0, 53), st.integers(-40, 12))
def test_any_two_files_have_an_exact_difference_or_none(seed: int, precision: Precision, changes: int, size: int) -> None:
    """Few changes or many, large or small, zeros of either sign among them."""
    layout = Layout((Tensor("w", (3, 16)), Tensor("b", (5,))))
    rng = np.random.default_rng(seed)
    base = np.ldexp(rng.normal(size=53), size).astype(np.float32) * rng.choice([0.0, -0.0, 1.0, 2.0**-9], 53).astype(np.float32)
    target = base.copy()
    some = rng.choice(53, changes, replace=False)
    target[some] = rng.choice([-0.0, 2.0**size, 1.0], changes) * rng.choice([1.0, rng.normal()], changes)
    one, other = (encode_weights(x, layout, precision) for x in (base, target))
    difference = encode_difference(one, other, layout)
    if difference is not None:
        assert len(difference) < len(other)
        assert apply_difference(one, difference, layout) == other


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_damaged_differences_are_refused_or_give_a_file_of_the_same_length(data: st.DataObject) -> None:
    """Flipped, cut, lengthened or swapped bytes: an UpdateError or harmless bytes, and nothing else."""
    precision = data.draw(st.sampled_from(TRAINABLE))
    base, difference = FUZZED[precision]
    damaged = bytearray(difference)
    for place, byte in data.draw(st.lists(st.tuples(st.integers(0, len(difference) - 1), st.integers(0, 255)), max_size=6)):
        damaged[place] = byte
    damaged = damaged[: data.draw(st.integers(0, len(damaged)))] if data.draw(st.booleans()) else damaged
    damaged += data.draw(st.binary(max_size=8))
    with contextlib.suppress(UpdateError):
        assert len(apply_difference(base, bytes(damaged), LAYOUT)) == len(base)


FUZZED = {
    precision: (files[0], encode_difference(files[0], files[3], LAYOUT) or b"")
    for precision in TRAINABLE
    for files in [encoded(course(3), precision)]
}


BAD = {
    "empty": lambda _: b"",
    "header alone": lambda d: d[:5],
    "another magic": lambda d: b"EFU" + d[3:],
    "another version": lambda d: d[:3] + b"\2" + d[4:],
    "a step that is too fine": lambda d: d[:4] + b"\x15" + d[5:],
    "cut": lambda d: d[:-3],
    "longer": lambda d: d + b"\0",
    "as long as the file": lambda d: d + bytes(20_000),
}


@pytest.mark.parametrize("spoil", BAD.values(), ids=BAD)
def test_what_is_no_difference_is_refused(spoil) -> None:
    """Each kind of damage that can be told by looking at the difference has its error."""
    base, difference = FUZZED[Precision.FP32]
    with pytest.raises(UpdateError):
        apply_difference(base, spoil(difference), LAYOUT)


def test_a_difference_meets_only_bases_of_its_kind() -> None:
    """Weights with other numbers of floats and codes, and what is no weights file are refused."""
    base, difference = FUZZED[Precision.FP32]
    for other in (FUZZED[Precision.INT8][0], base[:-4], b"EFX" + base[3:], b"", base[:16]):
        with pytest.raises(UpdateError):
            apply_difference(other, difference, LAYOUT)


@pytest.mark.parametrize("precision", sorted(set(PRECISIONS) - set(TRAINABLE)))
def test_weights_at_rest_have_no_differences(precision: Precision) -> None:
    """Between two such files there is none, and no difference is applied to one: the whole file is fetched."""
    files = encoded(course(1), precision)
    assert encode_difference(*files, LAYOUT) is None
    for base, target in ((files[0], FUZZED[Precision.FP32][0]), (FUZZED[Precision.FP32][0], files[0])):
        with pytest.raises(UpdateError):
            encode_difference(base, target, LAYOUT)
    with pytest.raises(UpdateError):
        apply_difference(files[0], FUZZED[Precision.FP32][1], LAYOUT)


def test_memory_is_bounded_by_the_base() -> None:
    """A difference that promises much and holds little allocates nothing much."""
    size = 200_000
    layout = Layout((Tensor("w", (size,)),))
    base = encode_weights(np.zeros(size, dtype=np.float32), layout, Precision.FP32)
    rng = np.random.default_rng(0)
    tracemalloc.start()
    for _ in range(30):
        lie = b"EFD\1\7" + rng.bytes(int(rng.integers(1, 60)))
        with contextlib.suppress(UpdateError):
            apply_difference(base, lie, layout)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 40 * size


@pytest.mark.parametrize("name", sorted(make.files()))
def test_golden_differences_are_still_written_and_read(name: str) -> None:
    """The golden files are reproduced byte for byte, and lead from their base to their target."""
    golden = (HERE / name).read_bytes()
    assert make.files()[name] == golden
    base, target, layout = make.pairs()[name.removesuffix(".bin")]
    assert apply_difference(base, golden, layout) == target
